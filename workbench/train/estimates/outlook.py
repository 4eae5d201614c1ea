"""A run before it starts: memory, whether it fits, what would save most, how long it takes."""

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.config.options import EngineConfig, RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.anatomy.folder import look
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.anatomy.sizes import read_sizes
from workbench.models.cost.adapters import freeze_problem
from workbench.models.cost.batch import Rows
from workbench.models.cost.changes import LEAST, MOST, Change, best
from workbench.models.cost.chat import chat_memory
from workbench.models.cost.device import SIZES, Device, card_memory, cards, device_for, host
from workbench.models.cost.host import HostMemory
from workbench.models.cost.known import config_of
from workbench.models.cost.parts import Estimate
from workbench.models.cost.time import Duration, duration
from workbench.models.cost.training import Gpu, TrainingMemory, placement
from workbench.models.locate import is_demo, locate_adapter, locate_model
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history
from workbench.train.estimates.rows import rows_of
from workbench.train.launch import process_count


@dataclass
class Outlook:
    """What is to be expected.

    Attributes:
        model: its name and number of parameters: what the history goes by.
        estimate: None where it cannot be told; `problems` say why.
        factor, corrected_by: what earlier runs make of it, and how many of them.
        fits: size of a card in GB -> whether it fits there.
        changes: what saves most.
        unknown_targets, target_names: parts of `lora_target` that match nothing, and what could be named.
        unknown_modules: what is wrong with the modules of `finetuning_type: freeze`.
        known_bytes: where there is no estimate: of the weight files, the least that it takes.
    """

    model: str
    device: Device
    estimate: Estimate | None = None
    rows: Rows = field(default_factory=Rows)
    factor: float = 1.0
    corrected_by: int = 0
    fits: dict[int, bool] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    duration: Duration | None = None
    problems: list[Message] = field(default_factory=list)
    notes: list[Message] = field(default_factory=list)
    unknown_targets: tuple[str, ...] = ()
    target_names: list[str] = field(default_factory=list)
    unknown_modules: str | None = None
    known_bytes: int = 0

    @property
    def total(self) -> int:
        """Bytes in all, corrected by earlier runs."""
        if self.estimate is None:
            return self.known_bytes
        base = self.estimate.parts.get("context", 0)
        return int((self.estimate.total - base) * self.factor + base)

    @property
    def fits_here(self) -> bool:
        return self.total <= self.device.memory


@functools.lru_cache(maxsize=64)
def _anatomy(config: str) -> tuple[Anatomy | None, tuple[Message, ...], tuple[Message, ...]]:
    reading = read_sizes(json.loads(config))
    anatomy = Anatomy(reading.sizes) if reading.sizes else None
    return anatomy, tuple(reading.problems), tuple(reading.notes)  # type: ignore[arg-type]


def _model(name: str, workspace: Workspace, result: Outlook) -> Anatomy | None:
    """The anatomy of a model; what is wrong goes into `result`."""
    try:
        found = config_of(name, workspace)
    except UserError as error:
        code = getattr(error.message, "code", "")
        unknown = Message("cost_model_not_here", model=name[:100])
        result.problems.append(unknown if code == "anatomy_not_found" else error.message)
        return None
    anatomy, problems, notes = _anatomy(json.dumps(found.config, sort_keys=True, default=str))
    result.notes += notes
    quantized = found.config.get("quantization_config")
    if anatomy is None:
        result.problems += problems
        if found.path is not None and found.source == "folder":
            result.known_bytes = look(Path(found.path)).weight_bytes
    elif isinstance(quantized, dict) and quantized.get("quant_method") != "bitsandbytes":
        result.notes.append(Message("cost_quantized", method=str(quantized.get("quant_method"))[:40]))
    short = name.rstrip("/").split("/")[-1]
    result.model = f"{short} ({anatomy.total:,})" if anatomy else short
    return anatomy


def outlook(
    config: RunConfig,
    workspace: Workspace,
    device: Device | None = None,
    *,
    with_changes: bool = True,
    processes: int = 0,
) -> Outlook:
    """What is to be expected of a run on a device; on what its `devices` are here if none is given.

    Args:
        processes: that train together, where that is known; else as many as `devices` says.
    """
    if not config.do_train:
        return _predicting(config, workspace, device)
    device = device or device_for(config.devices)
    several, processes = device.count if device.gpu else 1, processes or processes_on(config, device)
    if device.gpu and config.device_map == "none":  # each process of such a run takes one of them
        device = replace(device, count=1)
    result = Outlook(str(config.model_name_or_path or ""), device)
    anatomy = _model(config.model_name_or_path or "", workspace, result)
    if anatomy is None:
        return result
    result.rows = rows = rows_of(config, workspace)
    entries = history.read(workspace)
    result.factor, result.corrected_by = history.correction(entries, result.model, device.name)

    name = config.model_name_or_path or ""
    converts = is_demo(name) and not Path(locate_model(name, workspace), "config.json").is_file()

    def on(changed: RunConfig, memory: int, count: int, gpu: bool) -> Estimate:
        if gpu:
            card = Gpu(memory, count, processes)
            place = placement(anatomy, changed, rows, card, result.factor)
            return TrainingMemory(anatomy, changed.model_copy(update={"weights_on": place}), rows, card).estimate()
        return HostMemory(anatomy, changed, rows, converts).estimate()

    result.estimate = on(config, device.memory, device.count, device.gpu)
    result.notes += result.estimate.notes
    if config.deepspeed:
        result.notes.append(Message("cost_zero"))
    result.unknown_targets = tuple(result.estimate.facts.get("unknown_targets", ()))
    result.unknown_modules = freeze_problem(anatomy, config)
    result.target_names = sorted({one.name.rpartition(".")[2] for one in anatomy.linears()})
    for size in SIZES:
        memory = card_memory(size)
        result.fits[size] = fits(on(config, memory, 1, True), result.factor if device.gpu else 1.0, memory)
    if with_changes:
        found = best(
            config,
            anatomy,
            result.estimate,
            lambda changed: on(changed, device.memory, several, device.gpu),
            device.memory,
            several,
        )
        result.changes = found
    way = way_of(result.estimate, device)
    earlier = history.speed(entries, result.model, device.name, config.quantization_bit or 0, way)
    # steps have as many times the rows, which are computed side by side
    steps = config.gradient_accumulation_steps * processes
    whole = config.model_copy(update={"gradient_accumulation_steps": steps})
    one = duration(anatomy, whole, rows, device, result.estimate.facts, earlier)
    side_by_side = processes if device.gpu else 1
    result.duration = replace(one, rate=one.rate * side_by_side, watts=one.watts * side_by_side)
    if processes > 1:
        rows_of_step = steps * config.per_device_train_batch_size
        result.notes.append(Message("cost_each_device", count=processes, rows=rows_of_step))
    return result


def processes_on(config: RunConfig, device: Device) -> int:
    """How many processes of a run train side by side on a device that counts as several."""
    if config.devices == "auto":
        return 1
    return process_count(config, ",".join(map(str, range(device.count))) if device.gpu else "cpu")


def _predicting(config: RunConfig, workspace: Workspace, device: Device | None) -> Outlook:
    """Of a run that only predicts: what its model takes to answer."""
    shared = EngineConfig.model_fields.keys() & RunConfig.model_fields.keys()
    values = {name: getattr(config, name) for name in shared}
    engine = EngineConfig(**values | ({"weights_on": "auto"} if config.weights_on == "shared" else {}))
    adapter = (config.adapter_name_or_path or "").split(",")[-1].strip()
    result = chat_outlook(engine, adapter, workspace, device)
    result.notes.insert(0, Message("cost_predicts"))
    return result


def way_of(estimate: Estimate, device: Device) -> str:
    """How steps are made: `compiled`, `recorded`, `plain`, `streamed` (weights from the host), `shared` (from the
    other devices), or `host` (no GPU)."""
    if not device.gpu:
        return "host"
    if estimate.facts.get("weights_on") in ("host", "shared"):
        return "streamed" if estimate.facts["weights_on"] == "host" else "shared"
    return next((way for way in ("compiled", "recorded") if estimate.facts.get(way)), "plain")


def fits(estimate: Estimate, factor: float, memory: int) -> bool:
    """Whether an estimate, corrected, is within a memory."""
    base = estimate.parts.get("context", 0)
    return (estimate.total - base) * factor + base <= memory


def chat_outlook(config: EngineConfig, adapter: str, workspace: Workspace, device: Device | None = None) -> Outlook:
    """What is to be expected of a model that is loaded for chat; on what its `devices` are here if none is given."""
    device = device or device_for(config.devices)
    result = Outlook(str(config.model_name_or_path or ""), device)
    if config.engine_url is not None:
        result.problems.append(Message("cost_engine_elsewhere"))
        return result
    anatomy = _model(config.model_name_or_path or "", workspace, result)
    if anatomy is None:
        return result
    adapters = 0
    if adapter:
        try:
            adapters = sum(f.stat().st_size for f in locate_adapter(adapter, workspace).glob("adapter_model*"))
        except (UserError, OSError):
            adapters = 0
    result.estimate = chat_memory(anatomy, config, device.memory, device.gpu, adapters)
    result.notes += result.estimate.notes
    for size in SIZES:
        memory = card_memory(size)
        result.fits[size] = chat_memory(anatomy, config, memory, True, adapters).total <= memory
    found = []
    for options in ({"quantization_bit": 4}, {"quantization_bit": 8}):
        bits = config.quantization_bit or 16
        if options["quantization_bit"] < bits:
            then = chat_memory(anatomy, config.model_copy(update=options), device.memory, device.gpu, adapters)
            saving = result.estimate.total - then.total + then.parts["cache"] - result.estimate.parts["cache"]
            if saving >= LEAST:
                found.append(Change(options, saving, then.total <= device.memory))
    result.changes = sorted(found, key=lambda change: -change.saving)[:MOST]
    return result


def devices_here() -> list[Device]:
    """The GPUs of this machine, or the machine itself where there are none."""
    return list(cards()) or [host()]
