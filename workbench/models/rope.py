"""RoPE scaling: from `rope_scaling` and `rope_factor` to the model config's `rope_parameters`.

linear: positions divided by the factor (Chen et al. 2023, arXiv 2306.15595). dynamic: the base grows with the
length (NTK-aware, as in transformers). yarn: arXiv 2309.00071. llama3: as in Llama 3.1.
"""

from workbench.errors import UserError
from workbench.messages.message import Message


def set_rope_scaling(config, kind: str, factor: float) -> str:
    """Change `config` (a transformers model config) in place; returns a sentence saying what the context becomes.

    Raises:
        UserError: the model has no rotary embedding, or several kinds of it.
    """
    if kind == "none":
        return ""
    own = getattr(config, "rope_parameters", None)
    if not own:
        raise UserError("rope_none", model=config.model_type)
    if "rope_theta" not in own:
        raise UserError("rope_several", model=config.model_type)
    replaced = own.get("rope_type", "default")
    positions = config.max_position_embeddings
    original = own.get("original_max_position_embeddings") or positions
    scaled = {"rope_type": kind, "rope_theta": own["rope_theta"], "factor": float(factor)}
    if "partial_rotary_factor" in own:
        scaled["partial_rotary_factor"] = own["partial_rotary_factor"]
    if kind in ("dynamic", "yarn", "llama3"):
        scaled["original_max_position_embeddings"] = original
    if kind == "llama3":
        scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters = scaled
    context = int(original * factor)
    line = Message("rope_scaled", kind=kind, factor=factor, context=context)
    if replaced != "default":
        return Message("rope_replaced", line=line, kind=replaced, positions=positions)
    return line
