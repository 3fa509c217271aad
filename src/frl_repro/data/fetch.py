"""Fetch data sets over the network: with torchvision, and Fashion-MNIST with apt. Nothing here needs root rights."""

import ast
import http.client
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

PACKAGE_NAME = "dataset-fashion-mnist"  # of Debian and Ubuntu
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")  # where that package keeps its files, below /
PROBE_TIMEOUT = 10.0  # seconds until a host that does not answer counts as out of reach
SOCKET_TIMEOUT = 20.0  # seconds without a byte until a download counts as broken
COMMAND_TIMEOUT = 240.0  # seconds for one apt-get or dpkg-deb command; 31 MB take this at 130 kB/s


class FetchError(Exception):
    """This way of fetching did not work; the message says why, in one line."""


def fetch_with_torchvision(folder: Path) -> Path:
    """Download with torchvision into ``folder`` and return the folder that holds the files.

    Raises
    ------
    FetchError
        When the host is out of reach, or the download broke off or brought something else.
    """
    with fetching("mnist.py", "FashionMNIST"):
        from torchvision.datasets import FashionMNIST  # noqa: PLC0415 (slow import)

        dataset = FashionMNIST(str(folder), download=True)
    return Path(dataset.raw_folder)


@contextmanager
def fetching(module: str, kind: str) -> Iterator[None]:
    """Download with torchvision inside the block: it waits for no host for ever, and its errors become FetchError.

    Parameters
    ----------
    module, kind : str
        File name of torchvision's module of data sets, and the class in it that the block uses.

    Raises
    ------
    FetchError
        When the host is out of reach, before the block begins, or the download breaks off or brings something else.
    """
    _require_answer_from_host(module, kind)
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT)  # torchvision sets none and would wait for ever
    try:
        yield
    except (RuntimeError, OSError, http.client.HTTPException, ImportError) as error:
        raise FetchError(in_one_line(error)) from error
    finally:
        socket.setdefaulttimeout(timeout_before)


def fetch_with_apt(folder: Path) -> Path:
    """Download the Debian/Ubuntu package into ``folder``, unpack it there and return the folder that holds the files.

    Nothing is installed. When the machine's package lists are missing, unreadable or out of date, the download is tried
    once more with lists of its own below ``folder``.

    Raises
    ------
    FetchError
        When there is no apt on this machine or one of its commands fails.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(f"no {tool} on this machine")
    settings = ["--quiet", f"-oAcquire::http::Timeout={SOCKET_TIMEOUT:.0f}"]
    try:
        _run(["apt-get", *settings, "download", PACKAGE_NAME], folder)
    except FetchError as error:
        logger.info("apt-get download failed (%s); trying with fresh package lists", error)
        settings += _private_apt_state(folder)
        try:
            _run(["apt-get", *settings, "update"], folder)
        except FetchError as update_error:  # one source out of reach fails the command; the others may do
            logger.info("apt-get update failed (%s)", update_error)
        _run(["apt-get", *settings, "download", PACKAGE_NAME], folder)
    package = next(folder.glob(f"{PACKAGE_NAME}_*.deb"), None)
    if package is None:
        raise FetchError("apt-get download left no package")
    unpacked = folder / "unpacked"
    _run(["dpkg-deb", "--extract", str(package), str(unpacked)], folder)
    return unpacked / PACKAGE_FOLDER


def _private_apt_state(folder: Path) -> list[str]:
    """Return the options that make apt keep lists and cache below ``folder``, where this user may write."""
    lists, cache = folder / "lists", folder / "cache"
    (lists / "partial").mkdir(parents=True)  # apt does not create these two
    (cache / "archives" / "partial").mkdir(parents=True)
    # Run by root, apt would change to a user who may not enter a temporary folder.
    return [f"-oDir::State::Lists={lists}", f"-oDir::Cache={cache}", "-oAPT::Sandbox::User=root"]


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a command silently in ``folder``; raise FetchError with its last words when it fails."""
    name = " ".join([word for word in command if not word.startswith("-")][:2])  # as in "apt-get update"
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last_words = error.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FetchError(f"{name} failed: {last_words[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{name} took more than {COMMAND_TIMEOUT:.0f} s") from error
    except OSError as error:
        raise FetchError(f"{name} failed: {in_one_line(error)}") from error


def _require_answer_from_host(module: str, kind: str) -> None:
    """Raise FetchError when the first file cannot be had, before the import of torchvision costs up to a minute."""
    address = _first_address(module, kind)
    if address is None:
        return
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT).close()
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"host out of reach: {in_one_line(error)}") from error


def _first_address(module: str, kind: str) -> str | None:
    """Return the address torchvision fetches first, read from its source text; ``None`` when it is not found there."""
    spec = importlib.util.find_spec("torchvision")  # of a package without a dot: finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(spec.submodule_search_locations[0], "datasets", module)
    try:
        settings = {
            target.id: ast.literal_eval(statement.value)
            for definition in ast.parse(source.read_text(encoding="utf-8")).body
            if isinstance(definition, ast.ClassDef) and definition.name == kind
            for statement in definition.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        if "mirrors" in settings:
            return f"{settings['mirrors'][0]}{settings['resources'][0][0]}"
        return str(settings["url"] if "url" in settings else settings["split_list"]["train"][0])
    except (OSError, SyntaxError, ValueError, LookupError):  # another torchvision: let it try by itself
        return None


def in_one_line(error: BaseException) -> str:
    """Return an error's message without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
