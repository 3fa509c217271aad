"""Native CPU backends: C++ compiled on first use with the machine's own compiler."""

from frl_repro.models.compute.native.engine import Engine, NativeUnavailable, Unsupported, engine_for

__all__ = ["Engine", "NativeUnavailable", "Unsupported", "engine_for"]
