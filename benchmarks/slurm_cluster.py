"""A SLURM cluster of one node on this machine's loopback interface, to try launchers on: set up, and taken down.

    python benchmarks/slurm_cluster.py up /tmp/slurm       # prints what to type next: export SLURM_CONF=...
    python benchmarks/slurm_cluster.py down /tmp/slurm

Needs Linux, the superuser, and Debian's or Ubuntu's packages ``slurm-wlm`` and ``munge``; it installs nothing. All it
writes, logs included, lies in the folder. A cluster of the machine's own is left alone: other ports, other sockets,
another munge key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_SECONDS = 60.0  # until the node is idle; it takes two or three
_DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order in which they are ended

_SETTINGS = """\
ClusterName=frl_repro
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# No control groups: they may belong to someone else, as in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=60
OverTimeLimit=0
SchedulerParameters=sched_interval=2
SlurmctldParameters=idle_on_node_suspend
NodeName={host} NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=100000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(Exception):
    """The cluster cannot be set up here; the message says why in one line."""


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which SLURM's commands talk to the cluster in ``folder``."""
    return {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}


def why_not() -> str | None:
    """Return why no cluster can be set up on this machine; None where it can."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not found: {_INSTALL}"
    if os.geteuid() != 0:
        return "SLURM's node daemon needs the superuser"
    return None


def up(folder: Path, *, num_cpus: int = 2) -> dict[str, str]:
    """Start the cluster, wait until its node is idle, and return the environment in which to use it.

    Parameters
    ----------
    folder : Path
        For all its files; it must not exist, or be empty.
    num_cpus : int
        Jobs of one processor that run at a time, whatever the machine has.

    Raises
    ------
    ClusterError
        Something is missing, or a daemon ended; the message names its log.
    """
    reason = why_not()
    if reason is not None:
        raise ClusterError(reason)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ClusterError(f"{folder} is not empty: take down what is there, or choose another folder")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    controller_port, node_port = _free_ports(2)
    settings = _SETTINGS.format(
        folder=folder, host=host, num_cpus=num_cpus, controller_port=controller_port, node_port=node_port
    )
    (folder / "slurm.conf").write_text(settings)
    munge = [f"--{name}={folder}/munge/{file}" for name, file in _MUNGE_FILES.items()]
    try:
        socket_file = folder / "munge" / "socket"
        _start(folder, ["munged", "--foreground", "--force", "--num-threads=2", *munge], socket_file.exists)
        _start(folder, ["slurmctld", "-D", "-i"], lambda: "UP" in ask(folder, "scontrol", "ping"))
        _start(folder, ["slurmd", "-D"], lambda: ask(folder, "sinfo", "-h", "-o", "%T") == "idle")
    except ClusterError:
        down(folder)
        raise
    return environment(folder)


_MUNGE_FILES = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}


def down(folder: Path) -> None:
    """End the cluster's jobs and daemons; its folder, with their logs, stays."""
    folder = folder.resolve()
    if _is_alive(folder, "slurmctld"):
        ask(folder, "scancel", "--full", "--user=root")
        deadline = time.monotonic() + 15
        while ask(folder, "squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
    for name in _DAEMONS:
        if not _is_alive(folder, name):
            continue
        pid = _pid(folder, name)
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while _is_alive(folder, name) and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)
        if _is_alive(folder, name):
            os.kill(pid, signal.SIGKILL)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(folder: Path, command: list[str], is_ready: Callable[[], bool]) -> None:
    """Start a daemon and wait until it answers."""
    name, *arguments = command
    program = shutil.which(name, path=_PATH)
    assert program is not None
    output = folder / f"{name}.out"
    with output.open("ab") as said:
        daemon = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment(folder),
            cwd=folder, start_new_session=True,
        )  # fmt: skip
    (folder / f"{name}.started").write_text(str(daemon.pid))
    deadline = time.monotonic() + _SECONDS
    while not is_ready():
        if daemon.poll() is not None or time.monotonic() > deadline:
            lines = output.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
            raise ClusterError(f"{name} does not get ready ({lines[-1]}): see the logs in {folder}")
        time.sleep(0.2)
    daemon.returncode = 0  # it outlives this process: no warning of that


def _pid(folder: Path, name: str) -> int:
    return int((folder / f"{name}.started").read_text())


def _is_alive(folder: Path, name: str) -> bool:
    """Return whether the daemon runs: not another process that has its number by now."""
    try:
        command = Path(f"/proc/{_pid(folder, name)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return Path(os.fsdecode(command[0])).name == name


def ask(folder: Path, *command: str) -> str:
    """Return what one of SLURM's commands says; empty where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(folder), timeout=60)
    return done.stdout.strip()


def main(arguments: list[str]) -> int:
    """Set the cluster up or take it down; return the exit code."""
    if len(arguments) != 2 or arguments[0] not in ("up", "down"):
        sys.stderr.write("usage: slurm_cluster.py up|down FOLDER\n")
        return 2
    folder = Path(arguments[1])
    try:
        if arguments[0] == "down":
            down(folder)
            return 0
        added = up(folder)
    except ClusterError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1
    sys.stdout.write(f"export SLURM_CONF={added['SLURM_CONF']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
