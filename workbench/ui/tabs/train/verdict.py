"""What would come of a start, in one box: valid, valid but, or the reason why not."""

from workbench.config.options import RunConfig
from workbench.data.preflight import check_names
from workbench.models.locate import to_fetch
from workbench.storage.workspace import Workspace
from workbench.train.estimates.check import check_start
from workbench.train.estimates.outlook import Outlook
from workbench.ui.catalogue import say
from workbench.ui.notes import note, told


def verdict(config: RunConfig, expected: Outlook, workspace: Workspace, lang: str) -> str:
    """The box, as far as that is told without a look at data. Raises UserError: nothing would come of it."""
    check_names(config, workspace)
    warnings = check_start(config, workspace, expected)
    if config.trust_remote_code:
        return note(say("trust_warning", lang), "warn")
    model = config.model_name_or_path or ""
    if to_fetch(model, workspace):
        warnings = [say("config_ok_fetch", lang, model=model), *warnings]
        return note("\n".join(told(warning, lang) for warning in warnings), "warn")
    if warnings:
        words = "\n".join(told(warning, lang) for warning in warnings)
        return note(say("cost_valid_but", lang, warning=words), "warn")
    return note(say("config_ok", lang))
