"""Adapters added up, each with its weight: base + Σ weight · (trained − base), or a sentence why not.

LoRA's change of a layer is a product with a factor, so a weight scales that factor (rsLoRA's included). A module that
is trained whole (`modules_to_save`) is mixed with the base's. DoRA's change is not linear in its factors.
"""

from collections.abc import Sequence

from workbench.errors import UserError


def check_weights(configs: Sequence, weights: Sequence[float]) -> None:
    """Raise UserError if adapters of these PEFT configs cannot be added up with these weights."""
    alone = len(weights) == 1 and weights[0] == 1
    if not alone and any(getattr(config, "use_dora", False) for config in configs):
        raise UserError("dora_alone")
    if not alone and any(str(getattr(c.peft_type, "value", c.peft_type)) == "OFT" for c in configs):
        raise UserError("oft_alone")


def merge_into_base(tuned, names: list[str], weights: list[float]):
    """The base of a PEFT model with the named adapters merged in.

    Args:
        tuned: a PeftModel with the adapters `names` loaded.

    Raises:
        UserError: they cannot be added up.
        ValueError, NotImplementedError: of PEFT, for layers that cannot be merged.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    check_weights([tuned.peft_config[name] for name in names], weights)
    for module in tuned.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(scaling := getattr(module, "scaling", None), dict):
            for name, weight in zip(names, weights, strict=True):
                if name in scaling:
                    scaling[name] *= weight
        elif isinstance(module, ModulesToSaveWrapper):
            with torch.no_grad():
                _mix(module, names, weights)
    return tuned.merge_and_unload(adapter_names=names)


def _mix(module, names: list[str], weights: list[float]) -> None:
    """Put the sum of a module's trained versions into each of them: PEFT merges that of the active adapter."""
    trained = [(name, weight) for name, weight in zip(names, weights, strict=True) if name in module.modules_to_save]
    if not trained:
        return
    base = dict(module.original_module.named_parameters())
    sums = {key: value.detach().clone() for key, value in base.items()}
    for name, weight in trained:
        for key, value in module.modules_to_save[name].named_parameters():
            sums[key] += weight * (value.detach().to(sums[key].device) - base[key])
    for name, _ in trained:
        for key, value in module.modules_to_save[name].named_parameters():
            value.data.copy_(sums[key])


def add_up(model, names: list[str], weights: list[float], new: str) -> None:
    """A new adapter of a PEFT model that adds up others (PEFT's `cat`: the rank is the sum of the ranks).

    Raises:
        UserError: an adapter that has more than factors, or whose change is not linear.
        ValueError, TypeError, NotImplementedError: of PEFT, for adapters that cannot be added up.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    configs = [model.peft_config[name] for name in names]
    check_weights(configs, [*weights, 0.0])  # even alone it becomes another adapter
    if any(config.modules_to_save for config in configs):
        raise UserError("whole_modules_served")
    model.add_weighted_adapter(names, weights, new, combination_type="cat")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and new in (getattr(module, "scaling", None) or ()):
            module.scaling[new] = 1.0  # the factors hold it already; rsLoRA's rule for the new rank would not
