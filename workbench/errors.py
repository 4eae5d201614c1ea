"""The one exception that a user is meant to read, and one that says a run is done."""

from workbench.messages.message import CATALOGUE, Message, told


class NothingLeft(Exception):
    """The checkpoint that a run should go on from is at its last step already."""


class Told(Exception):
    """An error that says something in the catalogue's words (`workbench.messages`): a code and its values.

    Text that was made elsewhere stays as it is.
    """

    def __init__(self, what: str = "", /, **values):
        known = what in CATALOGUE and not isinstance(what, Message)
        self.message: str = Message(what, **values) if known or values else what
        super().__init__(self.message)

    def __reduce__(self):
        return _copy, (type(self), self.message, vars(self))

    def text(self, lang: str) -> str:
        """The sentence in `lang`: `en` or `zh`."""
        return told(self.message, lang)


class UserError(Told):
    """Bad input or a situation that the user can change: `UserError("model_missing", name=name)`.

    The message is one or a few plain sentences: what is wrong, what exists, what to do. The command line prints it
    without a traceback and exits with code 2; the page shows it.
    """


def _copy(kind: type[Told], message: str, attributes: dict) -> Told:
    """An error as it was in another process, whatever its class takes."""
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error
