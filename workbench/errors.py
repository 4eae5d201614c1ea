"""The one exception that a user is meant to read, and one that says a run is done."""


class NothingLeft(Exception):
    """The checkpoint that a run should go on from is at its last step already."""


class UserError(Exception):
    """Bad input or a situation that the user can change.

    The message is one or a few plain sentences: what is wrong, what exists, what to do. The command line
    prints it without a traceback and exits with code 2; the page shows it as it is.
    """
