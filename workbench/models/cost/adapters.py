"""What is trained: which weights `lora_target` means, adapters, their gradients and the optimizer's state."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from workbench.config.conflicts import chosen_optimizer, keeps_float32
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.models.anatomy.shapes import Anatomy, Weight
from workbench.models.freezing import chosen_layers, chosen_names

# Bytes of state that an optimizer keeps for a trained number: two moments or one, in 32 or 8 bits with a scale for
# each 256 (two tensors of them for Adam). Paged ones lie in memory that the driver moves to the host.
_STATE = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.03,
    "adamw_bnb_8bit": 2.03,
    "paged_adamw_8bit": 0.0,
    "paged_adamw_32bit": 0.0,
    "lion_8bit": 1.016,
    "lion_32bit": 4.0,
    "paged_lion_8bit": 0.0,
    "adafactor": 0.0,  # sums of rows and columns only
    "sgd": 0.0,
    "adagrad": 4.0,
    "rmsprop": 4.0,
}
_MOMENTS_LIKE_WEIGHTS = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop")
EIGHT_BIT = "adamw_8bit"
MOST_NAMES = 100  # of `lora_target`: a text from a browser may hold any number


@dataclass(frozen=True)
class Targets:
    """The weights with adapters: `(full name, weight)`. `experts`: those of them that are expert parameters.
    `unknown`: parts of `lora_target` that match nothing."""

    linears: tuple[tuple[str, Weight], ...] = ()
    experts: tuple[tuple[str, Weight], ...] = ()
    unknown: tuple[str, ...] = ()

    def of_layer(self, number: int) -> set[str]:
        """Names within a layer (`self_attn.q_proj.weight`) of its weights with adapters."""
        start = f"model.layers.{number}."
        return {w.name for name, w in (*self.linears, *self.experts) if name.startswith(start)}


@lru_cache(maxsize=256)
def targets(anatomy: Anatomy, wanted: str) -> Targets:
    """What `lora_target` means in this model, by the rules of `models/adapters.py`; of very many names, of the first
    `MOST_NAMES`."""
    modules, experts = [], []
    for name, weight in anatomy.weights():
        if weight.component == "experts" and weight.linear:
            experts.append((name, weight))
        elif name.endswith(".weight"):
            modules.append((name.removesuffix(".weight"), weight))
    if wanted.strip().lower() == "all":
        return Targets(tuple((n, w) for n, w in modules if w.linear), tuple(experts))
    chosen: dict[str, Weight] = {}
    chosen_experts: dict[str, Weight] = {}
    unknown = []
    for part in split_names(wanted)[:MOST_NAMES]:
        found = {n: w for n, w in modules if _named(n, part)}
        of_experts = {n: w for n, w in experts if _named(n, part) or _named(n.rpartition(".")[0], part)}
        if not found and not of_experts:
            unknown.append(part)
        chosen |= found
        chosen_experts |= of_experts
    return Targets(tuple(chosen.items()), tuple(chosen_experts.items()), tuple(unknown))


def _named(name: str, part: str) -> bool:
    return f".{name}".endswith(f".{part}")


@dataclass(frozen=True)
class Trained:
    """What is trained of a run, in numbers of parameters.

    Attributes:
        adapters: float32 parameters of adapters; `of_linears`: those of linear layers among them.
        modules: parameters of whole modules, in the model's own format; with `finetuning_type: full` all of it.
        matrices: rows, columns and number of the linear layers that are trained whole. block: parameters of the largest
            layer among what is trained.
        first: number of the first layer that is trained (`freeze`): those below need no way back.
        copied: parameters of modules of which a trained copy is kept beside the model's (`additional_target`).
    """

    adapters: int = 0
    of_linears: int = 0
    modules: int = 0
    copied: int = 0
    targets: Targets = field(default_factory=Targets)
    first: int = 0
    matrices: tuple[tuple[int, int, int], ...] = ()
    block: int = 0

    def copies(self, width: int) -> int:
        """Bytes of what is held beside the model's own weights; `width`: bytes of one of these."""
        return 4 * self.adapters + width * self.copied

    def facts(self, width: int) -> dict:
        """What others want to know of it: bytes of what is trained, and targets that are not there."""
        return {
            "trained": 4 * self.adapters + width * self.modules,
            "trained_parameters": self.adapters + self.modules,
            "unknown_targets": list(self.targets.unknown),
        }

    def gradients(self, width: int) -> int:
        return 4 * self.adapters + width * self.modules

    def state_of(self, config: RunConfig, width: int) -> int:
        """Bytes of the optimizer's state, also of those with options of their own; of weights in 16 bits (`width` 2)
        float32 copies are part of it."""
        if width < 4 and keeps_float32(config):
            return self.state_of(config, 4) + 4 * self.modules
        each, matrices = width / 4, sum(rows * columns * count for rows, columns, count in self.matrices)
        chosen = chosen_optimizer(config)
        if chosen in ("galore", "apollo"):
            rank = getattr(config, f"{chosen}_rank")
            numbers = sum(_projected(rows, columns, rank) * count for rows, columns, count in self.matrices)
            eight = chosen == "galore" and "8bit" in config.optim
            rest = max(0, self.modules - matrices)
            return int(numbers * (2 if eight else 4 * each) + rest * (2.03 if eight else 8 * each))
        if chosen == "muon":
            return int(4 * self.adapters + each * (4 * matrices + 8 * max(0, self.modules - matrices)))
        if chosen == "adam_mini":  # the second moment is one number for a row or a block
            return int(4 * self.adapters + 4 * each * self.modules)
        if chosen == "badam" and config.badam_mode == "layer":  # of one block: its moments and weights in 32 bits
            return 16 * self.block
        return self.state(config.optim, width)

    def state(self, optim: str, width: int) -> int:
        """Bytes of the optimizer's state."""
        each = _STATE[optim]
        if optim in _MOMENTS_LIKE_WEIGHTS:  # moments have the format of what they belong to
            return int(each * self.adapters + each * width / 4 * self.modules)
        return int(each * (self.adapters + self.modules))


def trained(anatomy: Anatomy, config: RunConfig, *, on_cpu: bool = False) -> Trained:
    """What a run trains. Adapters that a run goes on with are taken to be as the options say."""
    if config.finetuning_type == "full":
        return _whole(anatomy, {name for name, _ in anatomy.weights()})
    if config.finetuning_type == "freeze":
        return _frozen(anatomy, config)
    if config.finetuning_type == "oft":
        found = targets(anatomy, config.oft_target)
        turned = sum(_rotation(weight, config) for _, weight in found.linears)
        copied = _copied(anatomy, config)
        return Trained(turned, turned, copied, copied, Targets(found.linears, (), found.unknown))
    found = targets(anatomy, config.lora_target)
    if config.use_llama_pro:
        found = _expanded(anatomy, found, config)
    experts = found.experts
    if config.lora_dropout or config.use_dora or config.pissa_init or config.create_new_adapter:
        experts = ()  # with `all` these go without adapters (`models/adapters.py`)
        found = Targets(found.linears, (), found.unknown)
    linears = sum(_low_rank(weight, config.lora_rank) for _, weight in found.linears)
    if config.use_dora:
        linears += sum(weight.shape[0] for _, weight in found.linears)
    more = sum(_low_rank(weight, config.lora_rank) for _, weight in experts)
    copied = _copied(anatomy, config)
    return Trained(linears + more, linears, copied, copied, found)


def freeze_problem(anatomy: Anatomy, config: RunConfig) -> str | None:
    """What is wrong with the modules that `finetuning_type: freeze` names."""
    if config.finetuning_type != "freeze":
        return None
    try:
        chosen_names((name for name, _ in anatomy.weights()), anatomy.sizes.layers, config)
    except UserError as error:
        return error.message
    return None


def _frozen(anatomy: Anatomy, config: RunConfig) -> Trained:
    sizes = {name: weight.count for name, weight in anatomy.weights()}
    try:
        chosen = chosen_names(sizes, anatomy.sizes.layers, config)
    except UserError:  # told by `freeze_problem`
        return Trained()
    numbers = [int(name.split(".")[2]) for name in chosen if name.startswith("model.layers.")]
    below = any(name.startswith("model.embed_tokens") for name in chosen)
    first = 0 if below else min(numbers, default=anatomy.sizes.layers)
    return _whole(anatomy, chosen, first)


def _whole(anatomy: Anatomy, chosen: set[str], first: int = 0) -> Trained:
    """Weights of these names, trained themselves."""
    weights = [(name, weight) for name, weight in anatomy.weights() if name in chosen]
    linears = Counter(w.shape for name, w in weights if w.linear and len(w.shape) == 2 and w.component != "head")
    blocks: Counter = Counter()
    for name, weight in weights:
        blocks[name.split(".")[2] if name.startswith("model.layers.") else name] += weight.count
    return Trained(
        modules=sum(weight.count for _, weight in weights),
        first=first,
        matrices=tuple((shape[0], shape[1], count) for shape, count in linears.items()),
        block=max((count for name, count in blocks.items() if name.isdigit()), default=0),
    )


def _projected(rows: int, columns: int, rank: int) -> int:
    """Numbers of a projector and of two moments of what it projects."""
    rank = min(rank, rows, columns)
    return rank * (2 * max(rows, columns) + min(rows, columns))


def _expanded(anatomy: Anatomy, found: Targets, config: RunConfig) -> Targets:
    """The targets in LLaMA Pro's blocks; all where the layers cannot be divided, which ends the run."""
    try:
        inside = tuple(f".{number}." for number in chosen_layers(anatomy.sizes.layers, config))
    except UserError:
        return found
    linears, experts = (
        tuple((name, weight) for name, weight in part if any(number in name for number in inside))
        for part in (found.linears, found.experts)
    )
    return Targets(linears, experts, found.unknown)


def _copied(anatomy: Anatomy, config: RunConfig) -> int:
    wanted = config.additional_target or ("embed_tokens,lm_head" if config.new_tokens else "")
    return sum(w.count for name, w in anatomy.weights() if _in_modules(name, split_names(wanted)))


def _rotation(weight: Weight, config: RunConfig) -> int:
    """Parameters of OFT on a linear layer: half of a matrix for each block of its inputs. A size that does not divide
    them becomes the nearest that does, as in PEFT."""
    inputs = weight.shape[-1]
    wanted = config.oft_rank or config.oft_block_size or inputs
    size = _nearest_divisor(inputs, wanted)
    blocks = size if config.oft_rank else inputs // size
    side = inputs // blocks
    return blocks * side * (side - 1) // 2


def _nearest_divisor(number: int, wanted: int) -> int:
    if wanted >= number:
        return number
    higher = next(n for n in range(wanted, number + 1) if number % n == 0)
    lower = next((n for n in range(wanted, 1, -1) if number % n == 0), 1)
    return lower if wanted - lower <= higher - wanted else higher


def _low_rank(weight: Weight, rank: int) -> int:
    *experts, rows, columns = weight.shape if len(weight.shape) > 1 else (1, weight.shape[0])
    return rank * (rows + columns) * (experts[0] if experts else 1)


def _in_modules(name: str, modules: Iterable[str]) -> bool:
    module = name.rpartition(".")[0]
    return any(f".{module}.".find(f".{part}.") >= 0 for part in modules)
