"""Random streams: one independent generator per purpose, derived from the run's seed.

Every use of chance names its stream, so that adding a draw in one place (a logger, an evaluation) changes nothing
elsewhere, and so that an interrupted run continues with the very numbers that it would have drawn: a generator depends
only on (seed, stream, index) and never on what was drawn before. See ``docs/randomness.md`` for the list of streams.
"""

import hashlib

import torch


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """Return the 63-bit seed of one stream.

    Parameters
    ----------
    seed : int
        The run's seed.
    stream : str
        What the numbers drive, e.g. ``"order"``.
    index : int
        Which instance of the stream, e.g. the epoch.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, stream: str, index: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for one stream; see `derive_seed` for the parameters."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream, index))
