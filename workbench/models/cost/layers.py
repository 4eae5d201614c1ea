"""What a decoder layer keeps for its backward pass, per token, and what it needs beside that while it is computed.

Read off the modules of transformers and PEFT and off `models/quantized`. Bytes of a token in a layer, with 16-bit
activations (2 bytes a number) unless something else is said:

- A norm keeps its input in 32 bits (4 H), and its result where somebody needs it: a LoRA factor, routed experts.
- Attention keeps queries, keys, values, its result and the logarithm of each softmax's sum (4 bytes a head). Attention
  with all scores (`eager`) keeps these in 32 and in 16 bits: 6 bytes for each token that is looked at and each head.
- A gated feed-forward part of width I keeps gate, activated gate and up (6 I), and their product where LoRA needs it.
- Packed experts keep their input only. Those of 16 bits keep what a feed-forward part does for each of k experts, and
  their results (2 H), which the routing weights are multiplied with.
- A compiled layer fuses what is cheap: it keeps its input, the residual stream between its halves, queries, keys,
  values and result of attention, gate and up.
"""

from dataclasses import dataclass

from workbench.models.anatomy.shapes import Layer
from workbench.models.anatomy.sizes import Sizes
from workbench.models.cost import constants
from workbench.models.cost.experts import ExpertWork

_LINEARS = 2  # outputs of linear layers that a recomputed layer stores, in widths of the residual stream


@dataclass(frozen=True)
class How:
    """How layers are computed.

    Attributes:
        rank: of the adapters.
        mixed: as PEFT wrote it, under autocast; else 4-bit layers are single operators.
        bits: 4, 8 or 0 of the weights; experts: whether fused experts are packed.
        width: bytes of an activation.
        scores: tokens that a token looks at if attention has all its scores at once, else 0.
        unpacked: experts are kept unpacked, so that nothing needs to be unpacked.
        halves: experts unpack their larger matrix in two halves, where it has no adapters.
        dropout: adapters drop some of their inputs; full: all weights are trained; turned: OFT turns the inputs.
    """

    rank: int = 0
    mixed: bool = False
    bits: int = 0
    packed_experts: bool = False
    width: int = 2
    scores: int = 0
    unpacked: bool = False
    halves: bool = False
    dropout: bool = False
    full: bool = False
    turned: bool = False


@dataclass(frozen=True)
class LayerCost:
    """One layer's, for `tokens` tokens; bytes.

    Attributes:
        input: what goes in.
        kept: what autograd keeps of a layer run by transformers.
        passing: what there is beside that at the most, unpacked weights included: `unpacked` of them.
        compiled: what a compiled layer keeps that computes nothing again; `compiled_passing` beside it.
        stored: what a compiled layer stores that is computed again; `beyond_stored`: what its way back needs more.
        outside: inputs of 8-bit products. bitsandbytes keeps them where checkpointing does not see them.
    """

    input: int
    kept: int
    passing: int
    unpacked: int
    compiled: int
    compiled_passing: int
    stored: int
    beyond_stored: int
    outside: int = 0


def widths(sizes: Sizes) -> tuple[int, int, int]:
    """Widths of all queries, of all keys and of all values together, as attention sees them."""
    if sizes.latent:
        query = sizes.heads * (sizes.latent.nope + sizes.latent.rope)
        return query, query, sizes.heads * sizes.latent.value
    return sizes.heads * sizes.head, sizes.kv_heads * sizes.head, sizes.kv_heads * sizes.head


def layer_cost(sizes: Sizes, layer: Layer, adapted: set[str], how: How, tokens: int) -> LayerCost:
    """What a layer takes. `adapted`: names of its weights with adapters."""
    b, h = how.width, sizes.hidden
    query, key, value = widths(sizes)
    result = sizes.heads * sizes.latent.value if sizes.latent else query
    lora = {name.rpartition(".weight")[0].rpartition(".")[2] for name in adapted if "experts" not in name}
    on_experts = any(".experts." in f".{name}" for name in adapted)
    used, inner, shared = _experts(sizes, layer)
    dense = sizes.dense if not layer.mixture else shared
    norms = len(sizes.family.norms)

    # attention as transformers runs it
    attention = 4 * h + _inputs(
        ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa"), lora, h, how
    )
    if sizes.latent:
        attention += 4 * (sizes.latent.kv + (sizes.latent.q or 0))
        attention += _inputs(("kv_b_proj",), lora, sizes.latent.kv, how)
        attention += _inputs(("q_b_proj",), lora, sizes.latent.q or 0, how)
    if sizes.family.head_norms:
        attention += 4 * (query + key)
    attention += b * (query + key + value + result) + 4 * sizes.heads
    attention += how.scores * sizes.heads * (4 + b) + (b * 2 * query if how.scores else 0)
    if "o_proj" in lora and (
        how.dropout or how.turned or (how.mixed and how.bits == 0)
    ):  # else it is attention's result
        attention += _inputs(("o_proj",), lora, result, how)
    low = b * how.rank * len(adapted)  # rows of the adapters' narrow side
    attention += low
    if how.full:  # a trained norm keeps what its weight is multiplied with
        attention += b * h + b * (query + key) * bool(sizes.family.head_norms)
    # feed-forward
    feed = 4 * h * (norms - 1) + b * h * (norms - 1) * how.full
    gated = 0
    if dense:
        names = ("gate_proj", "up_proj", "gate_up_proj")
        feed += 3 * b * dense + _inputs(names, lora, h, how)
        product = _inputs(("down_proj",), lora, dense, how)
        feed += product
        gated = max(b * dense, 3 * b * dense - product)
    rows = tokens * used
    routing = 0
    work = None
    if layer.mixture and sizes.experts:
        routing = 8 * sizes.experts.count + 24 * used
        work = ExpertWork(rows, h, inner, sizes.experts.count, how.rank if on_experts else 0, how.unpacked, how.halves)
        feed += routing
        if how.packed_experts:
            feed += 0 if feed_has_input(lora, dense) else b * h
        else:
            feed += used * (3 * b * inner + b * h)
            feed += (used * (b * h + b * inner) + b * h) * how.full
    kept = tokens * (attention + feed)

    # what passes, beside what is kept
    stream = 2 * b * h * tokens
    unpacked = _unpacked(layer, how)
    passing = stream + max(tokens * gated, tokens * b * dense + unpacked)
    compiled_passing = again = stream + max(tokens * 2 * b * dense, tokens * b * dense + unpacked)
    if work is not None and how.packed_experts:
        passing = max(passing, stream + work.backward(False))
        compiled_passing = max(compiled_passing, stream + work.backward(True))
        again = max(again, stream + work.backward(False))
    elif work is not None:
        plain = rows * max(b * (3 * inner), b * (2 * h + inner))
        if on_experts and sizes.experts:  # PEFT adds B A to all experts' matrices
            plain += 4 * b * sizes.experts.count * inner * h
        passing, compiled_passing = max(passing, stream + plain), max(compiled_passing, stream + plain)
        again = compiled_passing
    if how.bits == 8:
        products = int(tokens * constants.EIGHT_BIT * dense)
        passing, compiled_passing, again = passing + products, compiled_passing + products, again + products
    scores = how.scores * sizes.heads * (4 + 4 + b) * tokens
    passing = max(passing, stream + scores)

    # compiled
    half = b * h  # the stream between the halves
    core = b * (query + key + value + result) + 4 * sizes.heads
    core += how.scores * sizes.heads * (4 + b)
    if sizes.family.head_norms:  # before and after their norms
        core += b * (query + key)
    first = {"q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa"}
    core += b * h * bool(first & lora) + low  # the input of LoRA factors
    fused = 2 * b * dense + routing
    if dense:
        fused += b * h * bool({"gate_proj", "up_proj", "gate_up_proj"} & lora) + b * dense * ("down_proj" in lora)
    if layer.mixture and how.packed_experts:
        fused += 2 * b * inner * used + b * h
    elif layer.mixture:
        fused += used * (2 * b * inner + b * h)
    compiled = tokens * (b * h + half + core + fused)
    linears = _stored_linears(sizes, layer) if how.bits == 4 else 0
    stored = tokens * (b * h + b * result + 4 * sizes.heads + b * linears + routing + low)
    recomputed = compiled - (tokens * 2 * b * inner * used if layer.mixture and how.packed_experts else 0)
    beyond = recomputed + again - stored
    outside = tokens * b * (2 * h + result + dense) * (how.bits == 8)
    return LayerCost(tokens * b * h, kept, passing, unpacked, compiled, compiled_passing, stored, beyond, outside)


def feed_has_input(lora: set[str], dense: int) -> bool:
    """Whether the norm's result before the experts is kept by shared experts' adapters already."""
    return bool(dense and lora & {"gate_proj", "up_proj", "gate_up_proj"})


def _inputs(names: tuple[str, ...], lora: set[str], width: int, how: How) -> int:
    """Bytes of an input of this width that the linear layers behind it keep.

    It is one tensor for all of them, where an adapter, an 8-bit product or a trained weight needs it. PEFT casts it to
    32 bits for each adapter of 16-bit weights, and autocast back: a copy for each. Dropout makes one for each, too, and
    a mask of a byte.
    """
    count = sum(name in lora for name in names)
    if how.turned:  # what goes into each rotation, cast for it, is its own
        return how.width * width * count
    if how.dropout:
        return (how.width + 1) * width * count + how.width * width * (how.bits == 8)
    if how.mixed and how.bits == 0 and how.width == 2 and not how.full:
        return how.width * width * count
    return how.width * width * bool(count or how.bits == 8 or how.full)


def _experts(sizes: Sizes, layer: Layer) -> tuple[int, int, int]:
    if not (layer.mixture and sizes.experts):
        return 0, 0, 0
    return sizes.experts.used, sizes.experts.size, sizes.experts.shared


def _unpacked(layer: Layer, how: How) -> int:
    """Bytes of the largest linear layer of this one, unpacked; routed experts are counted with their work."""
    if not how.bits:
        return 0
    return max((2 * w.count for w in layer.weights if w.linear and w.component != "experts"), default=0)


def _stored_linears(sizes: Sizes, layer: Layer) -> int:
    """Width of the first linear layers' results that a recomputed layer stores: in order, none that is more than twice
    as wide as what goes in, up to twice the stream's width."""
    total = 0
    for weight in layer.weights:
        if weight.linear and len(weight.shape) == 2:
            rows, columns = weight.shape
            if 2 * columns >= rows and total + rows <= _LINEARS * sizes.hidden:
                total += rows
    return total
