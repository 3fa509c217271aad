"""The exception for mistakes of the user, and one-line messages for any other exception."""

import os
import re
import traceback
import unicodedata

_TRACEBACK = "FRL_REPRO_TRACEBACK"  # environment variable that shows the traceback of an unexpected error

_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode's explicit directions


class UserError(ValueError):
    """A mistake the user can mend: wrong key, value, path or file.

    The message is one line that names what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 1; library callers catch it as a ``ValueError``.
    """


# What torch's allocator on the processor says (Linux and macOS, then Windows), C++ below it, and oneDNN, which says no
# more than that; what it does not support, it says of a "primitive descriptor".
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|bad allocation|could not create a (primitive$|memory)",
    re.IGNORECASE,
)
_NO_ROOM_FOR_LIBRARY = "failed to map segment"  # of the system's loader
_NO_THREAD = "can't start new thread"


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether memory ran out: on a GPU, on the processor, in native code or in NumPy."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":  # torch's, without torch
        return True
    return isinstance(problem, RuntimeError) and _OUT_OF_MEMORY.search(str(problem)) is not None


def reason(problem: Exception) -> str:
    """Return why something failed, in one line for people."""
    if isinstance(problem, UserError):
        text = str(problem)
    elif isinstance(problem, OSError):
        text = f"{os.fsdecode(problem.filename) if problem.filename else 'input/output'}: {problem.strerror or problem}"
    elif is_out_of_memory(problem):
        text = "not enough memory for one step: give a smaller trainer.batch_size, or another device"
    elif isinstance(problem, ImportError) and _NO_ROOM_FOR_LIBRARY in str(problem):
        text = f"not enough memory to load {str(problem).partition(':')[0]}: raise the limit (ulimit -v), or free some"
    elif isinstance(problem, RuntimeError) and _NO_THREAD in str(problem):
        text = "no thread can be started: the limit of memory (ulimit -v) or of processes (ulimit -u) is reached"
    else:
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(problem)
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        text = f"unexpected {type(problem).__name__}: {lines[0] if lines else 'no message'}"
        text += f" (please report it; {_TRACEBACK}=1 shows more)"
    return one_line(text)


def one_line(text: str) -> str:
    r"""Return a text with its line breaks shown as ``\n``, other control characters as `printable` does."""
    return printable("\\n".join(text.splitlines()))


def printable(text: str) -> str:
    r"""Return a text for a terminal: control characters, also those that turn the writing round, as ``\x1b``.

    Names of classes and folders are what other people call them. Line breaks stay.
    """
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Zl", "Zp") and character != "\n"
    return is_control or unicodedata.bidirectional(character) in _TURNING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
