"""Native CPU backends: C++ compiled on first use with the machine's own compiler."""

from frl_repro.native.build import NativeUnavailable
from frl_repro.native.engine import Engine, Unsupported, engine_for

__all__ = ["Engine", "NativeUnavailable", "Unsupported", "engine_for"]
