"""The presets as this machine sees them: what each takes, whether it fits, how long it runs; the best one first."""

from workbench.config.presets import DEFAULT, Preset, list_presets
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.models.cost.device import Device
from workbench.storage.workspace import Workspace
from workbench.train.estimates.outlook import Outlook, outlook


def for_machine(workspace: Workspace, device: Device | None = None) -> list[tuple[Preset, Outlook | None, bool]]:
    """`(preset, what is to be expected of it, whether it is recommended)`; those that fit first, the largest first.

    Recommended is the largest one that fits and whose data is here; without a GPU, the demo.
    """
    found: list[tuple[Preset, Outlook | None]] = []
    for preset in list_presets(workspace):
        try:
            config = validated(preset.values)
            if device is None and config.devices != "cpu":
                config = config.model_copy(update={"devices": "auto"})
            found.append((preset, outlook(config, workspace, device, with_changes=False)))
        except UserError:
            found.append((preset, None))
    fitting = [(p, o) for p, o in found if o is not None and o.estimate is not None and o.fits_here]
    on_gpu = any(o.device.gpu for _, o in fitting)
    ready = [(p, o) for p, o in fitting if o.rows.count]
    best = max(ready, key=lambda one: one[1].total, default=None) if on_gpu else None
    if best is None:
        best = next((one for one in fitting if one[0].name == DEFAULT), None)

    def order(one: tuple[Preset, Outlook | None]) -> tuple:
        preset, result = one
        known = result is not None and result.estimate is not None
        return (
            preset is not (best[0] if best else None),
            not (known and result.fits_here),
            -(result.total if known else 0),
        )

    return [(preset, result, best is not None and preset is best[0]) for preset, result in sorted(found, key=order)]
