"""The configs that come with the workbench: published values of well-known models, without weights."""

from functools import cache
from pathlib import Path

from workbench.storage import files

_FOLDER = Path(__file__).parent / "configs"
# the order of the lists: the article's models first, then the others by the kind of attention
ORDER = (
    "DeepSeek-V2",
    "DeepSeek-V2-Lite",
    "DeepSeek-MoE-16B",
    "DeepSeek-V3",
    "Qwen3-8B",
    "Qwen3-30B-A3B",
    "Llama-3-8B",
    "GLM-4-9B",
    "Mixtral-8x7B",
    "OLMoE-1B-7B",
    "gpt-oss-20b",
    "Phi-3.5-mini",
    "Gemma-2-9B",
)
# who is put beside whom: what differs between these is one idea each
_GROUPS = (
    ("DeepSeek-V2", "DeepSeek-V2-Lite", "DeepSeek-MoE-16B", "DeepSeek-V3"),
    ("Qwen3-8B", "Llama-3-8B", "GLM-4-9B", "Phi-3.5-mini", "Gemma-2-9B"),
    ("Qwen3-30B-A3B", "Mixtral-8x7B", "OLMoE-1B-7B", "gpt-oss-20b"),
)
_KINDS = {
    "deepseek": 0, "deepseek_v2": 0, "deepseek_v3": 0, "mixtral": 2, "olmoe": 2, "gpt_oss": 2, "qwen3_moe": 2,
}  # fmt: skip


@cache
def configs() -> dict[str, dict]:
    """Name -> config of every bundled model, in the order of the lists."""
    return {name: files.read_object(_FOLDER / f"{name}.json") for name in ORDER}


def find(name: str) -> str | None:
    """The bundled model that a name means, also with an owner before it and other letters' case; None: none."""
    wanted = name.rstrip("/").split("/")[-1].lower()
    return next((known for known in ORDER if known.lower() == wanted), None)


def siblings(model_type: object, but: str = "", most: int = 4) -> list[str]:
    """Bundled models to put beside one of this type."""
    group = _GROUPS[_KINDS.get(model_type, 1) if isinstance(model_type, str) else 1]
    return [name for name in group if name != but][:most]
