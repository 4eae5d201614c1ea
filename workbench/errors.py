"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input or a situation that the user can change.

    The message is one or a few plain sentences: what is wrong, what exists, what to do. The command line
    prints it without a traceback and exits with code 2; the page shows it as it is.
    """
