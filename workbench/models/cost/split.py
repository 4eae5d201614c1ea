"""Which parts of a model `device_map: auto` puts on which of several alike GPUs, without the model.

Parts are not divided: embedding, each layer, last norm, output head. They are given out in the model's order, as
transformers' `infer_auto_device_map` does after `get_balanced_memory` (integrations/accelerate.py): every GPU but the
last takes parts up to an equal share and 1.25 times the largest part, of which bitsandbytes' quantizer takes 90 %; the
first keeps room for the largest part to come free; the last takes the rest. Scales are not counted there.
"""

from dataclasses import dataclass

from workbench.models.anatomy.shapes import Anatomy, Weight
from workbench.models.cost.weights import Loaded

_LEFT = 0.9  # `adjust_max_memory` of the 4-bit quantizer
_BUFFER = 1.25


@dataclass
class Part:
    """What one GPU has: `bytes` of weights and their scales, `layers` of the model."""

    bytes: int = 0
    layers: int = 0


def split(loaded: Loaded, cards: int) -> list[Part]:
    """The parts of `cards` GPUs of one kind, each with room for what it is given."""
    groups = _groups(loaded.anatomy)
    told = [sum(_told(weight, loaded) for weight in weights) for weights, _ in groups]
    room = sum(told) / cards + _BUFFER * max(told)
    if loaded.form.bits == 4:
        room *= _LEFT
    found, taken, number = [Part() for _ in range(cards)], 0.0, 0
    for place, (weights, layer) in enumerate(groups):
        while number < cards - 1:
            reserved = max(told[place + 1 :], default=0) if number == 0 else 0
            if taken + told[place] <= room - reserved:
                break
            number, taken = number + 1, 0.0
        taken += told[place]
        found[number].bytes += sum(loaded.of(weight) for weight in weights)
        found[number].layers += layer
    return found


def fullest(loaded: Loaded, cards: int, each_layer: int = 0) -> Part:
    """The GPU with the most, where every layer has so many bytes beside its weights."""
    return max(split(loaded, cards), key=lambda part: part.bytes + part.layers * each_layer)


def _groups(anatomy: Anatomy) -> list[tuple[tuple[Weight, ...], bool]]:
    """The weights of each part in the model's order, and whether it is a layer."""
    embedding, *rest = [((weight,), False) for weight in anatomy.outside]
    layers = {number: (layer.weights, True) for layer in anatomy.layers for number in layer.numbers}
    return [embedding, *(layers[number] for number in sorted(layers)), *rest]


def _told(weight: Weight, loaded: Loaded) -> float:
    return weight.count * loaded.form.bits / 8 if loaded.packed(weight) else weight.count * loaded.form.bytes
