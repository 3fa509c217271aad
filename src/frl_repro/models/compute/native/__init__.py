"""Native CPU backends: C++ compiled on first use with the machine's own compiler."""

from frl_repro.models.compute.native.build import NativeUnavailable

__all__ = ["NativeUnavailable"]
