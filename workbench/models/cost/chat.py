"""Memory of a model that is loaded for chat: weights, the cache of one whole context, adapters, what a pass needs.

The engine's cache may grow beyond one context: `planned_tokens` says how far. It takes memory as it fills.
"""

from workbench.config.option import split_names
from workbench.config.options import EngineConfig
from workbench.messages.message import Message
from workbench.models.anatomy import cache, units
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.cost import constants
from workbench.models.cost.parts import Estimate
from workbench.models.cost.placement import packing_bytes, streamed
from workbench.models.cost.split import fullest
from workbench.models.cost.weights import Form, Loaded

PAGE = 16  # tokens of the cache that are given out together
ROWS = {True: 64, False: 32}  # answers that share forward passes, on a GPU and on the host
_SHARE = {True: 0.8, False: 0.125}  # of the free memory, for keys and values
_AT_LEAST = 0.5  # of the free memory may be taken to have one whole context
_READ = {True: 1024, False: 128}  # tokens of a prompt that are read at once
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def planned_tokens(free: float, bytes_per_token: int, context: int, rows: int, gpu: bool) -> int:
    """Tokens that the cache may hold: a share of the free memory, at least one context if half of the memory has room
    for it, and no more than all rows could use."""
    whole = min(context * bytes_per_token, free * _AT_LEAST)
    return max(PAGE, int(min(max(free * _SHARE[gpu], whole) // bytes_per_token, context * rows)))


def chat_memory(anatomy: Anatomy, config: EngineConfig, memory: float, gpu: bool, adapters: int = 0) -> Estimate:
    """What a loaded model takes. Where `weights_on: auto` lets the weights of its layers stay in host memory (they are
    in 4 bits and the larger part of a GPU's memory, and the model does not fit), that is counted.

    Args:
        memory: bytes of the device; of each, where `devices` names several GPUs that share the model. Then all but the
            facts is of the one with the most.
        adapters: bytes of the adapters' files.
    """
    able = config.quantization_bit != 8 and not config.external and "," not in config.devices
    if config.weights_on == "host" or not gpu or not able:
        return _memory(anatomy, config, memory, gpu, adapters, config.weights_on == "host" and able)
    found = _memory(anatomy, config, memory, gpu, adapters, False)
    auto = config.weights_on == "auto" and config.quantization_bit == 4
    if not auto or _without_cache(found) <= memory or 2 * found.parts["weights"] < memory:
        return found
    streaming = _memory(anatomy, config, memory, gpu, adapters, True)
    return streaming if _without_cache(streaming) <= memory else found


def _without_cache(estimate: Estimate) -> int:
    """Bytes without the cache, which takes what is left."""
    return estimate.total - estimate.parts["cache"]


def _memory(
    anatomy: Anatomy, config: EngineConfig, memory: float, gpu: bool, adapters: int, from_host: bool
) -> Estimate:
    sizes = anatomy.sizes
    width = _BYTES.get(config.infer_dtype, 2 if gpu else 4)
    loaded = Loaded(anatomy, Form(config.quantization_bit or 0, config.double_quantization, width))
    weights = loaded.bytes
    plain, packed, scales = weights.plain, weights.packed, weights.constants
    placed = streamed(loaded) if from_host else None
    if placed is not None:
        plain, packed, scales = placed.stays, placed.slots, 0
    elif not gpu and not config.quantization_bit:
        plain = _on_host(anatomy, config.cpu_weights)
    per_token = cache.cache_bytes(sizes, 1, windows=False, bits=8 * width)
    context = sizes.context or 4096
    held_here = per_token  # of a token, by this device
    cards = len(split_names(config.devices)) if gpu and placed is None else 1
    if cards > 1:
        part = fullest(loaded, cards, context * per_token // sizes.layers)
        plain, packed, scales, adapters = part.bytes, 0, 0, -(-adapters * part.layers // sizes.layers)
        held_here = -(-per_token * part.layers // sizes.layers)
    static = plain + packed + scales
    base = constants.CONTEXT + constants.LIBRARIES if gpu else constants.HOST_BASE
    planned = planned_tokens(max(0.0, memory - static - base), held_here, context, ROWS[gpu], gpu)
    read = _READ[gpu]
    work = read * width * max(8 * sizes.hidden, 4 * sizes.dense, 2 * sizes.heads * sizes.head)
    if sizes.experts:
        work += read * width * sizes.experts.used * (sizes.hidden + 3 * sizes.experts.size)
        if loaded.packed(next(w for w, _ in anatomy.counted() if w.component == "experts")):
            work += width * 3 * sizes.experts.count * sizes.experts.size * sizes.hidden
    held = min(planned, context)
    parts = {
        "weights": plain + packed,
        "constants": scales,
        "adapters": adapters,
        "cache": held * held_here,
        "workspace": int(work + (loaded.largest if not sizes.experts else 0)),
        "logits": 2 * ROWS[gpu] * sizes.vocabulary * 4,
        "context": base,
    }
    notes = []
    if held < context:
        notes.append(Message("cost_context_short", tokens=held, context=context))
    if config.external:
        notes.append(Message("cost_other_engine"))
    facts = {"bytes_per_token": per_token, "context": context, "planned_tokens": planned, "held_tokens": held}
    if placed is not None:
        facts |= {"weights_on": "host", "host_bytes": placed.host, "packing_bytes": packing_bytes(loaded)}
        notes.append(Message("cost_chat_on_host", host=units.memory(placed.host)))
    return Estimate(parts, sum(parts.values()) - base, "chat", facts, notes)


def _on_host(anatomy: Anatomy, form: str) -> int:
    """Bytes of the weights on the host: linear layers in 16 bits where that changes none, the rest in 32."""
    linear = sum(w.count * n for w, n in anatomy.counted() if w.linear and w.component != "experts")
    each = {"auto": 2.0, "float16": 2.0, "int8": 1.125, "float32": 4.0}[form]
    tied = 0 if anatomy.sizes.tied else anatomy.sizes.vocabulary * anatomy.sizes.hidden  # the head is linear, too
    return int((linear + tied) * each + (anatomy.total - linear - tied) * 4)
