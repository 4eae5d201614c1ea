"""Arithmetic of a token: multiply-adds count as two operations.

A matrix of n parameters takes 2 n operations per token, forward. Attention adds 2 · heads · (width of queries + width
of values) for every token that is looked at. The backward pass takes as much again for the activations' gradients, and
as much once more for the weights': with frozen weights (LoRA) a step is about 2, with all trained 3 forward passes.
"""

from workbench.models.anatomy.shapes import Anatomy

FROZEN, FULL = 2, 3  # forward passes that a training step costs


def attention_flops(anatomy: Anatomy, seen: int) -> int:
    """Of one token that looks at `seen` tokens, in all layers; layers with a window look at no more than that."""
    sizes = anatomy.sizes
    queries, values = sizes.head, sizes.latent.value if sizes.latent else sizes.head
    looked = sum(min(seen, window) if window else seen for window in sizes.windows)
    return 2 * sizes.heads * (queries + values) * looked


def matrix_flops(anatomy: Anatomy) -> int:
    """Of one token in all matrices: projections, experts taken, output head."""
    inside = sum(
        weight.count * weight.used * len(layer.numbers)
        for layer in anatomy.layers
        for weight in layer.weights
        if weight.matrix
    )
    head = anatomy.sizes.vocabulary * anatomy.sizes.hidden
    return round(2 * (inside + head))


def token_flops(anatomy: Anatomy, seen: int = 0) -> int:
    """Of one token, forward, that looks at `seen` tokens."""
    return matrix_flops(anatomy) + attention_flops(anatomy, seen)
