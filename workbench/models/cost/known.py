"""The config of a model that is asked for by name: its own files where they are here, else a bundled one of the same
sizes."""

from pathlib import Path

from workbench.errors import UserError
from workbench.models.anatomy import bundled
from workbench.models.anatomy.report import Found, find
from workbench.models.locate import is_demo
from workbench.storage import files
from workbench.storage.workspace import DEMO_MODEL, Workspace

# models of the catalogue by their last name -> the bundled config with the same sizes, and what differs
_SAME: dict[str, tuple[str, dict]] = {
    "deepseek-v2-lite-chat": ("DeepSeek-V2-Lite", {}),
    "deepseek-v2-chat": ("DeepSeek-V2", {}),
    "deepseek-moe-16b-chat": ("DeepSeek-MoE-16B", {}),
    "deepseek-moe-16b-base": ("DeepSeek-MoE-16B", {}),
    "llama-3.1-8b-instruct": ("Llama-3-8B", {"max_position_embeddings": 131072}),
    "meta-llama-3-8b-instruct": ("Llama-3-8B", {}),
    "glm-4-9b-chat-hf": ("GLM-4-9B", {}),
}
# the demo model's, which is converted on first use
DEMO_CONFIG = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def config_of(name: str, workspace: Workspace) -> Found:
    """The config of a model that a run or a chat names.

    Raises:
        UserError: it is not on this machine and not known by its name; or its config cannot be read.
    """
    try:
        return find(name, workspace)
    except UserError as error:
        if getattr(error.message, "code", "") != "anatomy_not_found":
            raise
        if is_demo(name):
            return Found(DEMO_MODEL, DEMO_CONFIG, "bundled")
        if same := _SAME.get(name.rstrip("/").split("/")[-1].lower()):
            sizes, differing = same
            return Found(sizes, bundled.configs()[sizes] | differing, "bundled")
        if path := _in_cache(name):
            return Found(name, files.read_object(path), "file", path)
        raise


def _in_cache(name: str) -> Path | None:
    """The config.json of a hub's model that was fetched before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except (HFValidationError, OSError):
        return None
    return Path(found) if isinstance(found, str) else None
