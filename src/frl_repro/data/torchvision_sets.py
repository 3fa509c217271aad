"""CIFAR-10 and SVHN through torchvision, which verifies every file; kept as one tensor afterwards."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frl_repro.basics.errors import UserError, is_out_of_memory
from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.dataset import Split
from frl_repro.data.fetch import FetchError, fetching, in_one_line

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when the content of a cache changes for the same files


@dataclass(frozen=True)
class Source:
    """A data set of torchvision.

    Attributes
    ----------
    name, title : str
        In settings and files; for people.
    class_names : tuple of str, length K
    content : str
        What identifies the files: torchvision's checksums.
    module, kind : str
        Where torchvision defines it: its module's file and its class.
    size : str
        Of the download.
    files : str
        What ``dataset.root`` must hold.
    alternatives : str
        Further ways to get it, or nothing.
    read : callable
        Folder to tensors; torchvision's errors pass.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    content: str
    module: str
    kind: str
    size: str
    files: str
    alternatives: str
    read: Callable[[Path, bool], dict[str, Tensor]]


def load_torchvision(
    source: Source, *, root: Path | None, download: bool, cache_dir: Path | None
) -> tuple[Split, Split]:
    """Return all training and test images, in torchvision's order.

    They come from ``root`` when it is given, fetched into it with ``download`` where it lacks them. Otherwise from the
    cache, then with ``download`` from the network.

    Parameters
    ----------
    source : Source
    root : Path or None
        Folder in torchvision's layout.
    download : bool
        Whether files may be fetched over the network.
    cache_dir : Path or None
        Where the tensors are kept; None for ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    tuple of Split
        uint8 images of shape (N, 3, 32, 32).

    Raises
    ------
    UserError
        When there are no such files, they are damaged, or cannot be fetched.
    """
    cache_file = cache_folder(cache_dir) / f"{source.name}.safetensors"
    identity = f"version {CACHE_VERSION}, {source.content}"
    tensors = load_tensors(cache_file, identity=identity)
    if root is not None or tensors is None:
        fresh = _read(source, root, download=download)
        if tensors is None:
            tensors = fresh
            store_tensors(cache_file, tensors, identity=identity)
    return (
        Split(images=tensors["train_images"], labels=tensors["train_labels"]),
        Split(images=tensors["test_images"], labels=tensors["test_labels"]),
    )


def _read(source: Source, root: Path | None, *, download: bool) -> dict[str, Tensor]:
    if root is not None:
        if root.exists() and not root.is_dir():
            raise UserError(f"dataset.root={root} is no folder: give the folder that holds {source.files}")
        if not root.exists() and not download:
            raise UserError(
                f"dataset.root={root} does not exist: correct it, or set dataset.download=true to create it"
            )
        try:
            return source.read(root, False)
        except RuntimeError as problem:
            if is_out_of_memory(problem):
                raise
            if not download:
                raise UserError(
                    f"dataset.root={root} lacks {source.files}, or holds damaged ones ({in_one_line(problem)}): "
                    f"{_ways_out(source, download=download)}"
                ) from problem
    if not download:
        raise UserError(
            f"{source.title} not found: no dataset.root, nothing in the cache, and dataset.download=false. "
            f"{_ways_out(source, download=download)}"
        )
    logger.info("fetching %s with torchvision's download (%s)", source.title, source.size)
    with tempfile.TemporaryDirectory(prefix="frl_repro-") as temporary:
        try:
            with fetching(source.module, source.kind):
                return source.read(Path(temporary) if root is None else root, True)
        except FetchError as problem:
            raise UserError(
                f"{source.title} not found. Tried: torchvision's download ({in_one_line(problem)}). "
                f"{_ways_out(source, download=download)}"
            ) from problem


def _ways_out(source: Source, *, download: bool) -> str:
    """Return what helps: where the network was tried in vain, what can be brought from elsewhere."""
    fetch = f"Set dataset.download=true ({source.size} over the network), or point" if not download else "Point"
    return (
        f"{fetch} dataset.root at a folder with {source.files}{source.alternatives}; for a trial without data: "
        "dataset=synthetic"
    )


def _read_cifar10(root: Path, download: bool) -> dict[str, Tensor]:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 (slow import)
    from torchvision.datasets.utils import check_integrity, extract_archive  # noqa: PLC0415

    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="frl_repro-") as temporary:
        warnings.simplefilter("ignore")  # NumPy's, of what its older versions wrote into the published files
        packed = root / CIFAR10.filename
        if not download and not (root / CIFAR10.base_folder).exists() and packed.is_file():
            if not check_integrity(str(packed), CIFAR10.tgz_md5):
                raise RuntimeError(f"{packed.name} is damaged")
            extract_archive(str(packed), temporary)
            root = Path(temporary)
        parts = {name: CIFAR10(str(root), train=name == "train", download=download) for name in ("train", "test")}
    return _tensors({name: (part.data.transpose(0, 3, 1, 2), part.targets) for name, part in parts.items()})


def _read_svhn(root: Path, download: bool) -> dict[str, Tensor]:
    from torchvision.datasets import SVHN  # noqa: PLC0415 (slow import)

    parts = {name: SVHN(str(root), split=name, download=download) for name in ("train", "test")}
    return _tensors({name: (part.data, part.labels) for name, part in parts.items()})


def _tensors(parts: dict[str, tuple[Any, Any]]) -> dict[str, Tensor]:
    """Return images, shape (N, 3, 32, 32), and labels, shape (N,), of both splits."""
    tensors = {f"{name}_images": torch.from_numpy(np.ascontiguousarray(images)) for name, (images, _) in parts.items()}
    labels = {f"{name}_labels": torch.tensor(labels, dtype=torch.int64) for name, (_, labels) in parts.items()}
    return tensors | labels


CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    content="archive md5 c58f30108f718f92721af3b95e74349a",
    module="cifar.py",
    kind="CIFAR10",
    size="170 MB",
    files="cifar-10-batches-py or cifar-10-python.tar.gz",
    alternatives=" (brought from another machine), or use dataset=cifar10_jpeg with its archive (the images as JPEG, "
    "18.6 MB: other pixels, and other numbers; docs/data.md)",
    read=_read_cifar10,
)
SVHN = Source(
    name="svhn",
    title="SVHN",
    class_names=tuple(str(digit) for digit in range(10)),
    content="md5 e26dedcc434d2e4c54c9b2d4a06d8373 eb5a983be6a315427106f1b164d9cef3",
    module="svhn.py",
    kind="SVHN",
    size="246 MB",
    files="train_32x32.mat and test_32x32.mat",
    alternatives=" (brought from another machine)",
    read=_read_svhn,
)
