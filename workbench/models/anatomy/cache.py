"""The KV cache: what a token leaves behind in every layer for the tokens after it.

Elements of a token and a layer, as in table 1 of the DeepSeek-V2 paper (arXiv 2405.04434):

    MHA  2 · heads · d          keys and values of every head (d: a head's width without its rotary part)
    GQA  2 · groups · d         keys and values of one head per group
    MLA  kv_lora_rank + rope    one small vector, out of which keys and values of all heads are made again
"""

from dataclasses import dataclass

from workbench.models.anatomy.sizes import Sizes

BITS = 16
# The paper compares with DeepSeek 67B: 95 layers, 8 groups of 128, 16 bits. It deploys V2 with a cache of 6 bits on
# average (section 3.2.3), and only both together are the 93.3 % of its abstract.
OLD_LAYERS, OLD_GROUPS, OLD_HEAD, OLD_BITS, NEW_BITS = 95, 8, 128, 16, 6


@dataclass(frozen=True)
class Variant:
    """A model's cache with one kind of attention: `elements` per token and layer. `own`: it is the model's own kind.
    `groups`: heads of keys and values (0 with MLA). `kv`, `rope`: widths of the latent (0 else)."""

    kind: str  # mla, gqa, mha
    elements: int
    own: bool
    groups: int = 0
    kv: int = 0
    rope: int = 0


def head_width(sizes: Sizes) -> int:
    """A head's width without its rotary part in MLA."""
    return sizes.latent.nope if sizes.latent else sizes.head


def elements(sizes: Sizes) -> int:
    """Of the model's own cache, per token and layer."""
    if sizes.latent:
        return sizes.latent.kv + sizes.latent.rope
    return 2 * sizes.kv_heads * sizes.head


def variants(sizes: Sizes) -> list[Variant]:
    """The cache as MLA, GQA and MHA would have it.

    A kind that the model does not have takes the paper's proportions: MLA a latent of 4 d and d/2 for the position, GQA
    eight groups (or as many as divide the heads).
    """
    width, heads = head_width(sizes), sizes.heads
    if sizes.latent:
        kv, rope = sizes.latent.kv, sizes.latent.rope
    else:
        kv, rope = 4 * width, width // 2
    grouped = sizes.latent is None and sizes.kv_heads < heads
    groups = sizes.kv_heads if grouped else max(n for n in range(1, 9) if heads % n == 0)
    return [
        Variant("mla", kv + rope, sizes.latent is not None, kv=kv, rope=rope),
        Variant("gqa", 2 * groups * width, grouped, groups=groups),
        Variant("mha", 2 * heads * width, sizes.latent is None and not grouped, groups=heads),
    ]


def cache_bytes(
    sizes: Sizes, tokens: int, *, per_layer: int | None = None, windows: bool = True, bits: int = BITS
) -> int:
    """Bytes of the cache of a text of so many tokens.

    Args:
        per_layer: elements per token and layer; the model's own where none is given.
        windows: layers that see a window keep only that. The workbench's engine keeps all, as pages are shared: False.
    """
    kept = sum(min(tokens, window) if windows and window else tokens for window in sizes.windows)
    return kept * (elements(sizes) if per_layer is None else per_layer) * bits // 8


def published_saving(sizes: Sizes) -> tuple[float, float]:
    """What this model's cache saves per token against DeepSeek 67B's: with 16 bits in both, and with 6 bits in this
    one. DeepSeek-V2: 82.2 % and 93.3 %."""
    ratio = elements(sizes) * sizes.layers / (2 * OLD_GROUPS * OLD_HEAD * OLD_LAYERS)
    return 1 - ratio, 1 - ratio * NEW_BITS / OLD_BITS
