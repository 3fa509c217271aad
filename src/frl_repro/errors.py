"""The one exception that stands for a mistake of the user."""


class UserError(ValueError):
    """A mistake the user can mend: wrong key, value, path or file.

    The message is one line that names what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 1; library callers catch it as a ``ValueError``.
    """
