"""Who is asked: a base model, or a run with the options that it was trained with. No torch here."""

from pathlib import Path

from workbench.config.options import EngineConfig, options_that_affect
from workbench.config.run_config import changed_values, parse_overrides, validated
from workbench.errors import UserError
from workbench.models.locate import locate_adapter, locate_model
from workbench.models.memory import free_gib, loaded_gib
from workbench.runs.run import Run, active_runs, run_named
from workbench.storage.workspace import Workspace
from workbench.train.placement import fits_from_host

_ENGINES = ("engine", "engine_url", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "devices")
LOADING = (
    "model_revision",
    "quantization_bit",
    "quantization_type",
    "double_quantization",
    *(name for name in options_that_affect("loading", EngineConfig) if name not in _ENGINES),
)


def engine_values(values: dict) -> dict:
    """Of a run's options those by which its model is loaded to answer."""
    found = {name: values[name] for name in LOADING if values.get(name) is not None}
    if found.get("weights_on") == "shared":  # by devices that train together
        del found["weights_on"]
    return found


def target(
    model: str, adapter: str, overrides: list[str] | dict, workspace: Workspace
) -> tuple[str, str, EngineConfig]:
    """`(model, adapter, how it is loaded)`. A run, or its checkpoint, stands for its base model, its adapter and the
    options that it was trained with; `overrides` (`key=value`) come on top.

    Raises:
        UserError: there is no such model or adapter, or an option is wrong.
    """
    run = run_named(workspace, model.partition("/")[0])
    values: dict = {}
    if run is not None and not (Path(model).is_dir() and (Path(model) / "config.json").is_file()):
        values = run.config_values()
        model, adapter = _of_run(run, model, values)
    elif adapter and (trained := run_named(workspace, adapter.partition("/")[0])):
        values = trained.config_values()
    more = overrides if isinstance(overrides, dict) else parse_overrides(overrides)
    config = validated(engine_values(values) | {"model_name_or_path": model} | more, EngineConfig)
    locate_model(model, workspace)
    if adapter:
        locate_adapter(adapter, workspace)
    return model, adapter, config


def _of_run(run: Run, name: str, values: dict) -> tuple[str, str]:
    """The model and the adapter that a run, or its checkpoint, has brought forth. Raises UserError."""
    checkpoint = name.partition("/")[2]
    folder = run.path / checkpoint
    if (folder / "adapter_config.json").is_file() or not (folder / "config.json").is_file():
        base = str(values.get("model_name_or_path") or "")
        if not (folder / "adapter_config.json").is_file():
            raise UserError("predict_run_empty", id=name)
        return base, name
    return str(folder), ""


def loading(config: EngineConfig) -> dict:
    """The options by which a model is loaded that are not the default, without the model itself."""
    return {key: value for key, value in changed_values(config).items() if key in LOADING}


def check_room(config: EngineConfig, workspace: Workspace) -> None:
    """Raise UserError where a model will probably not fit into the memory that is free now."""
    folder = Path(locate_model(config.model_name_or_path or "", workspace))
    free, on_gpu = free_gib(config.devices)
    need = loaded_gib(folder, config.quantization_bit, on_gpu) if folder.is_dir() else 0.0
    if need <= free or (on_gpu and fits_from_host(config, workspace, free)):
        return
    if going := active_runs(workspace):
        raise UserError("engine_too_large_beside", need=need, free=free, id=going[0].id)
    raise UserError("engine_too_large", need=need, free=free)
