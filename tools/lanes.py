"""The fast tests in environments of their own: oldest and newest PyTorch, and each supported Python.

python tools/lanes.py                         # all lanes, one after the other: several GB and 10 minutes each
python tools/lanes.py lanes=newest tests='tests/test_fused.py -x'
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.basics.errors import UserError
from frl_repro.basics.time_left import duration
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, switch, usage_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".lanes"
_TORCH = ("torch", "torchvision")
_USUAL_TESTS = "--numprocesses auto --dist worksteal --quiet"


@dataclass(frozen=True)
class Lane:
    """An environment.

    Attributes
    ----------
    summary : str
    python : str
        Of the interpreter, ``"3.12"``; empty for the one that runs this.
    packages : tuple of str
        What to install beside the project; the versions in ``constraints.txt`` of these do not count.
    """

    summary: str
    python: str = ""
    packages: tuple[str, ...] = ()


def oldest() -> tuple[str, ...]:
    """Return PyTorch and torchvision at the lower bounds that ``pyproject.toml`` declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.split(">=", one, maxsplit=1) for one in project["dependencies"] if one.split(">=")[0] in _TORCH)
    return tuple(f"{name}=={bounds[name]}.*" for name in _TORCH)


LANES = {
    "oldest": Lane("the oldest PyTorch that pyproject.toml allows", packages=oldest()),
    "newest": Lane("the newest PyTorch that the package index has", packages=_TORCH),
    "python3.11": Lane("Python 3.11 with the versions of constraints.txt", "3.11"),
    "python3.12": Lane("Python 3.12 with the versions of constraints.txt", "3.12"),
    "python3.13": Lane("Python 3.13 with the versions of constraints.txt", "3.13"),
}

_KEYS = {
    "lanes": f"comma-separated choice of {', '.join(LANES)}   [all]",
    "tests": f"what pytest is given   [{_USUAL_TESTS}]",
    "dry": "true prints the commands and runs nothing   [false]",
}


def interpreter(version: str) -> str | None:
    """Return an interpreter of a version, ``"3.12"``, of this machine; None where there is none that works."""
    if version in ("", f"{sys.version_info.major}.{sys.version_info.minor}"):
        return sys.executable
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        shutil.which(f"python{version}"),
        *(str(path) for path in sorted(installed.glob(f"{version}.*/bin/python"))),
    ]
    for path in filter(None, found):
        # A shim of pyenv may be there for a version that is not.
        asked = subprocess.run([path, "-c", "import sys"], capture_output=True, check=False)
        if asked.returncode == 0:
            return path
    return None


def commands_of(name: str, lane: Lane, python: str, tests: Sequence[str]) -> list[list[str]]:
    """Return the commands of a lane: make the environment, install, test."""
    folder = FOLDER / name
    own = str(folder / "bin" / "python")
    install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = folder / "constraints.txt"
    return [
        [python, "-m", "venv", str(folder)],
        [*install, "--upgrade", "--constraint", str(constraints), "--editable", f"{ROOT}[dev]", *lane.packages],
        [own, "-m", "pytest", *tests],
    ]


def constraints_of(lane: Lane) -> str:
    """Return the constraints of a lane: without those of packages that it chooses itself."""
    names = {re.split("[=<>]", package)[0] for package in lane.packages}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.split("==")[0] not in names)


def run_lane(name: str, tests: Sequence[str]) -> str:
    """Make a lane's environment and run the tests in it; return what came of it."""
    lane = LANES[name]
    python = interpreter(lane.python)
    if python is None:
        return f"no Python {lane.python} here"
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / name / "constraints.txt").write_text(constraints_of(lane), encoding="utf-8")
    started = time.monotonic()
    for command in commands_of(name, lane, python, tests):
        sys.stdout.write(f"[{name}] {shlex.join(command)}\n")
        sys.stdout.flush()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return f"FAILED with exit code {code}: {shlex.join(command[:4])} ..."
    return f"passed in {duration(time.monotonic() - started)}"


def _lanes(given: dict[str, str]) -> tuple[str, int]:
    names = [choice("lanes", name.strip(), LANES) for name in given.get("lanes", ",".join(LANES)).split(",")]
    try:
        tests = shlex.split(given.get("tests", _USUAL_TESTS))
    except ValueError as problem:
        raise UserError(f"tests={given['tests']} cannot be read ({problem}): close the quotes") from None
    if switch("dry", given.get("dry", "false")):
        found = {name: interpreter(LANES[name].python) for name in names}
        lines = [
            f"[{name}] {shlex.join(command)}" if python else f"[{name}] no Python {LANES[name].python} here"
            for name, python in found.items()
            for command in commands_of(name, LANES[name], python or "", tests)[: None if python else 1]
        ]
        return "\n".join(lines) + "\n", 0
    outcomes = {name: run_lane(name, tests) for name in names}
    width = max(map(len, outcomes))
    text = "".join(f"{name:<{width}}  {outcome}\n" for name, outcome in outcomes.items())
    return text, 1 if any(outcome.startswith("FAILED") for outcome in outcomes.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lanes that ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_lanes)


def _usage() -> str:
    return usage_text(
        "Run the fast tests in environments of their own, made in .lanes/: several GB each.",
        program=program_name(),
        keys=_KEYS,
        sections={"lanes": "\n".join(f"  {name:<11} {lane.summary}" for name, lane in LANES.items())},
    )


if __name__ == "__main__":
    sys.exit(main())
