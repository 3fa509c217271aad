"""Where a result comes from: code, versions, machine. Recorded in run.json."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import frl_repro

_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pandas", "safetensors")


def describe(*, device: torch.device, backend: str, command: str) -> dict[str, Any]:
    """Return code version, package versions, machine and command as plain containers."""
    return {
        "command": command,
        "frl_repro": frl_repro.__version__,
        **_GIT,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": _device_name(device),
        "backend": backend,
        "num_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Return commit and whether the tree differs from it; None outside a checkout of this project."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return {"git_commit": None, "git_dirty": None}

    # Git obeys its variables before the folder: GIT_DIR of another repository, as a hook has it, would answer for ours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:  # a repository around an installation
        return {"git_commit": None, "git_dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# Read once, when the code is loaded: the files of a checkout may change while a long sweep runs.
_GIT = _git()
