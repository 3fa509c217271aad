"""Images in folders by class, ``<root>/train/<class>/*`` and ``<root>/test/<class>/*``: decoded once and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.dataset import Split
from frl_repro.data.pictures import NUM_THREADS, Wanted, decode_all, read_picture
from frl_repro.errors import UserError

SPLITS = ("train", "test")
CACHE_VERSION = 2  # raise it when the content of the cache changes for the same files
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")  # as hidden files, no part of the data


@dataclass(frozen=True)
class Listing:
    """Which files there are.

    Attributes
    ----------
    class_names : tuple of str, length K
        Sorted.
    files : mapping of split to class to names
        Names relative to the root, with forward slashes, sorted; at least one for each class.
    """

    class_names: tuple[str, ...]
    files: Mapping[str, Mapping[str, Sequence[str]]]

    def names(self, split: str) -> list[str]:
        """Return the split's files, class by class."""
        return [name for class_name in self.class_names for name in self.files[split][class_name]]

    def labels(self, split: str) -> Tensor:
        """Return the classes of `names`, shape (N,), int64."""
        counts = torch.tensor([len(self.files[split][class_name]) for class_name in self.class_names])
        return torch.arange(len(self.class_names)).repeat_interleave(counts)


def load_image_folder(
    root: Path, *, image_size: int | None, num_channels: int | None, cache_dir: Path | None
) -> tuple[tuple[str, ...], Split, Split]:
    """Return class names, training and test images of a folder.

    The decoded images are cached by the content of the files: a folder in which anything changes is decoded anew.

    Parameters
    ----------
    root : Path
        Only read. Hidden files are passed over; whatever else is no picture is refused.
    image_size : int or None
        Resize every image to a square of so many pixels, with PIL's bilinear filter; None: all must have one size.
    num_channels : int or None
        Convert every image to colour (3) or grey (1); None: all must be of one kind.
    cache_dir : Path or None
        Where decoded images are kept; None for ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    class_names : tuple of str, length K
        Names of the class folders, sorted.
    train, test : Split
        In the order of the sorted class and file names.

    Raises
    ------
    UserError
        Folders that are missing or differ between the splits, a class without images, or an image that cannot be read
        or does not fit the others; the message names it.
    """
    listing = list_folder(root)
    settings = f"size {image_size}, channels {num_channels}"
    place = hashlib.sha256(f"{root.resolve()}\n{settings}".encode(errors="surrogateescape")).hexdigest()[:12]
    cache_file = cache_folder(cache_dir) / f"image_folder-{place}.safetensors"

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        names = [name for split in SPLITS for name in listing.names(split)]
        digests = dict(zip(names, pool.map(lambda name: _sha256(read_picture(root / name, name)), names), strict=True))
    tensors = load_tensors(cache_file, identity=_identity(listing, digests, settings))
    if tensors is None:

        def read(name: str) -> bytes:
            content = read_picture(root / name, name)
            digests[name] = _sha256(content)  # of the very bytes that are decoded
            return content

        tensors = decode_listing(listing, read, Wanted(image_size=image_size, num_channels=num_channels))
        store_tensors(cache_file, tensors, identity=_identity(listing, digests, settings))
    return (listing.class_names, *splits_of(tensors))


def _identity(listing: Listing, digests: Mapping[str, str], settings: str) -> str:
    """Return what decoded pictures depend on: the files' content by split and class, in order, and the settings."""
    lines = [f"version {CACHE_VERSION}, {settings}"]
    for split in SPLITS:
        for class_name in listing.class_names:
            lines += [split, class_name, *(digests[name] for name in listing.files[split][class_name])]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def decode_listing(listing: Listing, read: Callable[[str], bytes], wanted: Wanted) -> dict[str, Tensor]:
    """Return images and labels of both splits, as they are cached; see `splits_of`."""
    names = [listing.names(split) for split in SPLITS]
    images = decode_all([*names[0], *names[1]], read, wanted).split([len(part) for part in names])  # type: ignore[no-untyped-call]
    tensors = {f"{split}_images": part for split, part in zip(SPLITS, images, strict=True)}
    return tensors | {f"{split}_labels": listing.labels(split) for split in SPLITS}


def splits_of(tensors: Mapping[str, Tensor]) -> tuple[Split, Split]:
    """Return the training and the test split."""
    train, test = (Split(images=tensors[f"{name}_images"], labels=tensors[f"{name}_labels"]) for name in SPLITS)
    return train, test


def list_folder(root: Path) -> Listing:
    """Return the classes and files of a folder.

    Raises
    ------
    UserError
        As `load_image_folder` does for folders and classes.
    """
    layout = "expected are <root>/train/<class>/* and <root>/test/<class>/*"
    if not root.is_dir():
        raise UserError(f"dataset.root={root} {'is no folder' if root.exists() else 'does not exist'}: {layout}")
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise UserError(f"dataset.root={root} has no folder {' and no folder '.join(missing)}: {layout}")
    found = {split: _list_split(root, split) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        lonely = sorted(found[split].keys() - found[other].keys())
        if lonely:
            raise UserError(f"{root / other} has no class {lonely[0]!r}, which {root / split} has: both need the same")
    if len(found["train"]) < 2:
        raise UserError(f"{root / 'train'} has {len(found['train'])} class folders, at least 2 are needed: {layout}")
    return Listing(class_names=tuple(found["train"]), files=found)


def _list_split(root: Path, split: str) -> dict[str, list[str]]:
    """Return the files by class; UserError where there are none, or where something else lies among them."""
    files: dict[str, list[str]] = {}
    for folder in _entries(root / split):
        if not folder.is_dir():
            raise UserError(f"{folder.path} lies among the class folders: move it into one of them, or remove it")
        entries = _entries(Path(folder.path))
        for entry in entries:
            if not entry.is_file():
                raise UserError(f"{entry.path} is no file: a class folder holds pictures alone, and no further folders")
        if not entries:
            raise UserError(f"{folder.path} holds no picture: every class needs some in train and in test")
        files[folder.name] = [f"{split}/{folder.name}/{entry.name}" for entry in entries]
    return files


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (e for e in entries if not e.name.startswith(".") and e.name not in _SYSTEM_FILES),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): mend its permissions") from error
    for entry in found:
        # Bytes that are no UTF-8 arrive as lone surrogates. Of files nothing is kept; classes are named in every table.
        if entry.is_dir() and any("\ud800" <= letter <= "\udfff" for letter in entry.name):
            raise UserError(f"{entry.path}: the folder's name is no UTF-8 text: rename it, it is the name of a class")
    return found
