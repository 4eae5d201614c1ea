"""Every weight of a model with its shape, from its sizes alone: what transformers 5 builds, by the same names.

anatomy = Anatomy(sizes)
anatomy.total, anatomy.active, anatomy.by_component(), anatomy.linears()
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from workbench.models.anatomy.sizes import Sizes

COMPONENTS = (
    "embedding",
    "attention",
    "router",
    "experts",
    "shared_experts",
    "mlp",
    "norm",
    "head",
)


@dataclass(frozen=True)
class Weight:
    """A parameter. `name`: its full name without the layer's number (`self_attn.q_proj.weight`). `used`: the share of
    it that one token is multiplied with: top-k of the experts, 0 for the embedding (a row is looked up), else 1.
    `linear`: a matrix [out, in] of a linear layer that LoRA can be put on; expert parameters [E, out, in] as well."""

    name: str
    component: str
    shape: tuple[int, ...]
    used: float = 1.0
    linear: bool = False

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix(self) -> bool:
        """Whether tokens are multiplied with it (else it is a bias, a norm or a table)."""
        return len(self.shape) >= 2 and self.component != "embedding" and not self.name.endswith("_bias")


@dataclass(frozen=True)
class Layer:
    """One kind of decoder layer: its weights, and the numbers of the layers that are of this kind."""

    mixture: bool
    window: int
    weights: tuple[Weight, ...]
    numbers: tuple[int, ...]

    @property
    def count(self) -> int:
        """Parameters of one such layer."""
        return sum(weight.count for weight in self.weights)


@dataclass(frozen=True)
class Linear:
    """A kind of linear layer (or of expert parameters) that LoRA can be put on: `count` of them in the model, each
    [out_features, in_features], `experts` times where it holds one matrix per expert (else 0)."""

    name: str
    component: str
    out_features: int
    in_features: int
    count: int
    experts: int = 0

    def lora_parameters(self, rank: int) -> int:
        """Parameters of the adapters of this rank on all of them."""
        return rank * (self.out_features + self.in_features) * self.count * (self.experts or 1)


class Anatomy:
    """A model's weights. All counts are parameters, not bytes; tied embeddings count once."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The kinds of layers, in the order of their first."""
        kinds: dict[tuple[bool, int], list[int]] = {}
        for number, kind in enumerate(zip(self.sizes.mixtures, self.sizes.windows, strict=True)):
            kinds.setdefault(kind, []).append(number)
        return tuple(
            Layer(mixture, window, tuple(_layer(self.sizes, mixture)), tuple(numbers))
            for (mixture, window), numbers in kinds.items()
        )

    @cached_property
    def outside(self) -> tuple[Weight, ...]:
        """What belongs to no layer: embedding, last norm, output head. A tied head is the embedding, so there is
        none; the embedding is then multiplied with as well."""
        sizes = self.sizes
        table = (sizes.vocabulary, sizes.hidden)
        weights = [
            Weight("model.embed_tokens.weight", "embedding", table, 1.0 if sizes.tied else 0.0),
            Weight("model.norm.weight", "norm", (sizes.hidden,)),
        ]
        return (*weights, *([] if sizes.tied else [Weight("lm_head.weight", "head", table)]))

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """`(full name, weight)` of every parameter."""
        for weight in self.outside:
            yield weight.name, weight
        for layer in self.layers:
            for number in layer.numbers:
                for weight in layer.weights:
                    yield f"model.layers.{number}.{weight.name}", weight

    def counted(self) -> Iterator[tuple[Weight, int]]:
        """Each kind of weight and how many there are."""
        yield from ((weight, 1) for weight in self.outside)
        for layer in self.layers:
            yield from ((weight, len(layer.numbers)) for weight in layer.weights)

    @cached_property
    def total(self) -> int:
        return sum(weight.count * number for weight, number in self.counted())

    @cached_property
    def active(self) -> int:
        """Parameters that one token meets: all but the routed experts that it does not take. Embedding and output head
        are counted whole, as published figures count them."""
        return round(sum(w.count * (w.used if w.component == "experts" else 1) * n for w, n in self.counted()))

    @cached_property
    def multiplied(self) -> int:
        """Of the active ones, those that a token is multiplied with: without the embedding, of which one row is looked
        up (a tied one is the output head as well, and counts)."""
        return round(sum(w.count * w.used * n for w, n in self.counted()))

    def by_component(self, active: bool = False) -> dict[str, int]:
        """Component -> parameters, or the active ones. All of `COMPONENTS` that the model has."""
        found: dict[str, float] = {}
        for weight, number in self.counted():
            share = weight.used if active and weight.component == "experts" else 1
            found[weight.component] = found.get(weight.component, 0) + weight.count * number * share
        return {component: round(found[component]) for component in COMPONENTS if component in found}

    def by_name(self) -> dict[tuple[str, str], int]:
        """`(component, weight's name)` -> parameters in all layers."""
        found: dict[tuple[str, str], int] = {}
        for weight, number in self.counted():
            key = weight.component, weight.name.removesuffix(".weight")
            found[key] = found.get(key, 0) + weight.count * number
        return found

    def linears(self) -> list[Linear]:
        """What `lora_target` can name, by its last name: linear layers but routers and head, and expert parameters."""
        found: dict[tuple[str, str, int, int, int], int] = {}
        for layer in self.layers:
            for weight in (w for w in layer.weights if w.linear):
                name = weight.name.removesuffix(".weight")
                name = ".".join(name.split(".")[-2:]) if weight.component == "experts" else name.split(".")[-1]
                *experts, rows, columns = weight.shape
                if experts and self.sizes.family.sinks:
                    rows, columns = columns, rows
                key = name, weight.component, rows, columns, experts[0] if experts else 0
                found[key] = found.get(key, 0) + len(layer.numbers)
        return [
            Linear(name, component, rows, columns, number, experts_)
            for (name, component, rows, columns, experts_), number in found.items()
        ]


def _layer(sizes: Sizes, mixture: bool) -> Iterator[Weight]:
    yield from _latent_attention(sizes) if sizes.latent else _attention(sizes)
    if not mixture:
        yield from _mlp(sizes, "mlp", "mlp", sizes.dense, fused=sizes.family.fused_mlp, bias=sizes.mlp_bias)
    elif sizes.experts:
        yield from _mixture(sizes)
    for name in sizes.family.norms:
        yield Weight(f"{name}.weight", "norm", (sizes.hidden,))


def _projection(name: str, rows: int, columns: int, bias: bool, component: str = "attention") -> Iterator[Weight]:
    yield Weight(f"{name}.weight", component, (rows, columns), linear=True)
    if bias:
        yield Weight(f"{name}.bias", component, (rows,))


def _attention(sizes: Sizes) -> Iterator[Weight]:
    family, bias = sizes.family, sizes.attention_bias
    queries, keys = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    if family.fused_qkv:
        yield from _projection("self_attn.qkv_proj", queries + 2 * keys, sizes.hidden, bias)
    else:
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _projection(f"self_attn.{name}", rows, sizes.hidden, bias)
    yield from _projection("self_attn.o_proj", sizes.hidden, queries, bias and family.attention == "config")
    if family.head_norms:
        widths = (sizes.head, sizes.head) if family.head_norms == "head" else (queries, keys)
        for name, width in zip(("q_norm", "k_norm"), widths, strict=True):
            yield Weight(f"self_attn.{name}.weight", "norm", (width,))
    if family.sinks:
        yield Weight("self_attn.sinks", "attention", (sizes.heads,))


def _latent_attention(sizes: Sizes) -> Iterator[Weight]:
    latent, hidden, bias = sizes.latent, sizes.hidden, sizes.attention_bias
    assert latent is not None
    queries = sizes.heads * (latent.nope + latent.rope)
    if latent.q is None:
        yield from _projection("self_attn.q_proj", queries, hidden, False)
    else:
        yield from _projection("self_attn.q_a_proj", latent.q, hidden, bias)
        yield Weight("self_attn.q_a_layernorm.weight", "norm", (latent.q,))
        yield from _projection("self_attn.q_b_proj", queries, latent.q, False)
    yield from _projection("self_attn.kv_a_proj_with_mqa", latent.kv + latent.rope, hidden, bias)
    yield Weight("self_attn.kv_a_layernorm.weight", "norm", (latent.kv,))
    yield from _projection("self_attn.kv_b_proj", sizes.heads * (latent.nope + latent.value), latent.kv, False)
    yield from _projection("self_attn.o_proj", hidden, sizes.heads * latent.value, bias)


def _mlp(sizes: Sizes, path: str, component: str, width: int, *, fused: bool, bias: bool) -> Iterator[Weight]:
    if fused:
        yield from _projection(f"{path}.gate_up_proj", 2 * width, sizes.hidden, bias, component)
    else:
        for name in ("gate_proj", "up_proj"):
            yield from _projection(f"{path}.{name}", width, sizes.hidden, bias, component)
    yield from _projection(f"{path}.down_proj", sizes.hidden, width, bias, component)


def _mixture(sizes: Sizes) -> Iterator[Weight]:
    experts, family, hidden = sizes.experts, sizes.family, sizes.hidden
    assert experts is not None
    share, count, width = experts.used / experts.count, experts.count, experts.size
    biased = family.sinks  # gpt-oss: matrices [in, out], with biases
    up, down = (2 * width, hidden), (hidden, width)
    if biased:
        up, down = up[::-1], down[::-1]
    for name, shape, rows in (("gate_up_proj", up, 2 * width), ("down_proj", down, hidden)):
        yield Weight(f"mlp.experts.{name}", "experts", (count, *shape), share, linear=True)
        if biased:
            yield Weight(f"mlp.experts.{name}_bias", "experts", (count, rows), share)
    yield Weight(f"mlp.{family.router}.weight", "router", (count, hidden))
    if biased:
        yield Weight(f"mlp.{family.router}.bias", "router", (count,))
    if experts.shared:
        yield from _mlp(sizes, "mlp.shared_experts", "shared_experts", experts.shared, fused=False, bias=False)
