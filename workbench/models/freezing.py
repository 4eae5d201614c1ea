"""Which weights `finetuning_type: freeze` trains, by their names. No torch here: estimates ask, too."""

import re
from collections.abc import Iterable

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError

_IN_LAYER = re.compile(r"(?:.*?\.)?(\d+)\.(.+)")  # the first number in a name is its layer's


def chosen_layers(layers: int, config: RunConfig) -> range:
    """Numbers of the layers that are trained, of so many.

    Raises:
        UserError: LLaMA Pro's blocks cannot lie in these layers.
    """
    wanted = config.freeze_trainable_layers
    if config.use_llama_pro:
        if wanted < 1 or layers % wanted:
            raise UserError("llama_pro_layers", layers=layers, wanted=wanted)
        stride = layers // wanted
        return range(stride - 1, layers, stride)
    return range(max(0, layers - wanted), layers) if wanted > 0 else range(min(-wanted, layers))


def chosen_names(names: Iterable[str], layers: int, config: RunConfig) -> set[str]:
    """Those of a model's parameter names that are trained.

    Args:
        layers: decoder layers of the model.

    Raises:
        UserError: a module that is not there; lists those that are.
    """
    numbers = set(chosen_layers(layers, config))
    inside: dict[str, set[str]] = {}
    outside: dict[str, set[str]] = {}
    for name in names:
        if match := _IN_LAYER.fullmatch(name):
            part = match[2].split(".")[0]
            of_part = inside.setdefault(part, set())
            if int(match[1]) in numbers:
                of_part.add(name)
        else:
            outside.setdefault(name.split(".")[-2] if "." in name else name, set()).add(name)
    wanted = split_names(config.freeze_trainable_modules) or ["all"]
    parts = list(inside) if "all" in wanted else wanted
    more = split_names(config.freeze_extra_modules)
    for option, given, known in (
        ("freeze_trainable_modules", parts, inside),
        ("freeze_extra_modules", more, outside),
    ):
        if unknown := [part for part in given if part not in known]:
            raise UserError("freeze_unknown", option=option, names=unknown, known=sorted(known))
    return set().union(*(inside[part] for part in parts), *(outside[part] for part in more))
