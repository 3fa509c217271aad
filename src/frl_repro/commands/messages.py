"""What a program says when something fails: one line for each mistake."""

from __future__ import annotations

import sys

from frl_repro.basics import torchrun
from frl_repro.basics.errors import one_line

_LONGEST = 400  # characters of a library's message


def speaks() -> bool:
    """Return whether this process reports to people; of several, the first alone does."""
    return torchrun.num_processes() == 1 or torchrun.rank() == 0


def fail(message: str, *, is_alone: bool = False) -> int:
    """Say what failed, of several processes once; ``is_alone``: it may have failed in this one alone."""
    if is_alone or speaks():
        sys.stderr.write(f"error: {one_line(message)}\n")
    return 1


def in_one_line(error: BaseException) -> str:
    """Return a library's message without its line breaks, and without the lines in which OmegaConf names its types."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(kept) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
