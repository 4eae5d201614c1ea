"""What an export is made of: the base's files, their precision, and the tokenizer that the adapter was trained with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.ends import end_tokens
from workbench.models.load import generation_settings, load_tokenizer, model_source
from workbench.models.locate import MAX_JSON, check_folder
from workbench.runs.run import run_named
from workbench.storage import files, hub
from workbench.storage.hub import first_line
from workbench.storage.workspace import Workspace

_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.py", "README.md")  # of a model of a hub


def source_folder(config: EngineConfig, workspace: Workspace, progress: Progress) -> Path:
    """The folder of the base's files; a model of a hub is fetched into the hub's cache.

    Raises:
        UserError: the model is missing, or cannot be fetched.
    """
    source = model_source(config, workspace, progress)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=config.model_revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub's client raises many kinds
        raise UserError("model_unreachable", name=source, place=hub.endpoint(), advice=hub.by_hand(source)) from error


def with_run_settings(config: EngineConfig, adapters: Iterable[str], workspace: Workspace) -> EngineConfig:
    """`config` with the RoPE scaling that the first adapter's run was trained with, where nothing else is set."""
    run = run_named(workspace, next(iter(adapters), "").split("/")[0])
    values = run.config_values() if run else {}
    if "rope_scaling" in config.model_fields_set or not values.get("rope_scaling"):
        return config
    own = {key: values[key] for key in ("rope_scaling", "rope_factor") if key in values}
    return validated(config.model_dump(exclude_unset=True) | own, EngineConfig)


def check_unquantized(source: Path, name: str) -> None:
    """Raise UserError for a base whose files are quantized already: an adapter cannot be merged into them."""
    method = (read_json(source / "config.json").get("quantization_config") or {}).get("quant_method")
    if method:
        raise UserError("export_base_quantized", name=name, method=method)


def read_json(path: Path) -> dict:
    """A JSON object; empty where there is no such file. Raises UserError: it is none."""
    try:
        return files.read_object(path, MAX_JSON)
    except FileNotFoundError:
        return {}


def own_dtype(source: Path, trust_remote_code: bool):
    """The base's own precision; bfloat16 where its config does not say."""
    import torch
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code).dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def empty_model(source: Path, name: str, trust_remote_code: bool):
    """The base's modules without weights (on the meta device). Raises UserError: transformers does not know it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from workbench.models import deepseek_moe

    deepseek_moe.install()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a file that says what the library does not expect
        raise UserError("model_unloadable", name=name, problem=" ".join(str(error).split())[:300]) from None


def ends_of(config: EngineConfig, tokenizer: Any, workspace: Workspace, progress: Progress) -> list[int]:
    """Ids of the tokens at which an exported model stops, as in chat."""
    from types import SimpleNamespace

    settings = generation_settings(config, workspace, progress)
    return end_tokens(SimpleNamespace(generation_config=settings), tokenizer)


def exported_tokenizer(
    config: EngineConfig, adapter: Path | None, workspace: Workspace, progress: Progress, set_template: Callable
):
    """The tokenizer that the adapter was trained with, template included; the base's where there is none beside it."""
    if adapter and not (adapter / "tokenizer_config.json").is_file():
        adapter = adapter.parent  # of a checkpoint: its run
    if adapter and (adapter / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        check_folder(adapter)
        try:
            tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=config.trust_remote_code)
        except Exception as error:  # of a file that says what the libraries do not expect
            raise UserError("tokenizer_unreadable", folder=adapter, problem=first_line(error)) from None
        if tokenizer.chat_template:
            set_template(tokenizer, "auto", config.enable_thinking)
            return tokenizer
    tokenizer = load_tokenizer(config, workspace, progress)
    if config.template != "auto" or tokenizer.chat_template:
        set_template(tokenizer, config.template, config.enable_thinking)
    return tokenizer
