"""The stages of training, one module each. A new one is a module with a `STAGE`, and a line here."""

from importlib import import_module

from workbench.errors import UserError

MODULES = {name: f"workbench.train.stages.{name}" for name in ("sft", "pt", "dpo", "kto", "rm", "grpo")}


def stage(name: str):
    """The `Stage` of a name; its module, and with it TRL, is imported then. Raises UserError: there is none."""
    if name not in MODULES:
        raise UserError("stage_unsupported", name=name, known=MODULES)
    return import_module(MODULES[name]).STAGE
