"""The one exception that stands for a mistake of the user, or for trouble outside the program."""


class UserError(ValueError):
    """A mistake the user can mend: wrong key, value, path or file.

    The message is one line that names what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 1; library callers catch it as a ``ValueError``.
    """


def as_user_error(problem: UserError | OSError) -> UserError:
    """Return the same as a `UserError`: of a system error, file and reason in one line."""
    if isinstance(problem, UserError):
        return problem
    return UserError(f"{problem.filename or 'input/output'}: {problem.strerror or problem}")
