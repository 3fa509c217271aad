"""Images in folders by class: decoded once and cached.

``<root>/train/<class>/*`` with ``<root>/test/<class>/*`` or, where there is no test, ``<root>/val/<class>/*``; or
``<root>/<class>/*`` alone, of which part is drawn for testing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.dataset import Split
from frl_repro.data.pictures import NUM_THREADS, Wanted, decode_all, read_picture

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
TEST_FOLDERS = ("test", "val")  # what the folder of test images may be called; the first that there is
FLAT_TEST_SHARE = 0.2  # of each class's pictures, where there are class folders alone
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
    root: Path, *, image_size: int | None, num_channels: int | None, cache_dir: Path | None, split_seed: int = 0
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
    split_seed : int
        Seed of what is drawn for testing where there are class folders alone.

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
    listing = list_folder(root, split_seed=split_seed)
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


def holds_splits(root: Path) -> bool:
    """Return whether a folder says which pictures are for testing; else `list_folder` draws them."""
    return any((root / name).is_dir() for name in ("train", *TEST_FOLDERS))


def list_folder(root: Path, *, split_seed: int) -> Listing:
    """Return the classes and files of a folder.

    Class folders of train and test are the same where their names are equal in Unicode's composed form, in which they
    are returned: systems store accents in different ways.

    Parameters
    ----------
    root : Path
    split_seed : int
        Seed of what is drawn for testing where there are class folders alone.

    Raises
    ------
    UserError
        Folders that are missing or differ between the splits, a class without images, or something else among them.
    """
    if not root.is_dir():
        raise UserError(f"dataset.root={root} {'is no folder' if root.exists() else 'does not exist'}: {_LAYOUTS}")
    if not holds_splits(root):
        return _drawn(root, _list_split(root, "."), split_seed)
    test_folders = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    has_train = (root / "train").is_dir()
    if not has_train or not test_folders:
        raise UserError(f"dataset.root={root} has no folder {'test' if has_train else 'train'}: {_LAYOUTS}")
    if len(test_folders) > 1:
        logger.warning("%s is not read: validation images are dataset.validation_fraction of train", root / "val")
    folders = ("train", test_folders[0])
    found = {split: _list_split(root, folder) for split, folder in zip(SPLITS, folders, strict=True)}
    for mine, others in (SPLITS, SPLITS[::-1]):
        lonely = sorted(found[mine].keys() - found[others].keys())
        if lonely:
            has, lacks = (root / folders[SPLITS.index(split)] for split in (mine, others))
            raise UserError(f"{lacks} has no class {lonely[0]!r}, which {has} has: both need the same")
    return Listing(class_names=_class_names(root / "train", found["train"]), files=found)


_LAYOUTS = (
    "expected are <root>/train/<class>/* and <root>/test/<class>/* (or val for test), or <root>/<class>/* to have "
    f"{FLAT_TEST_SHARE:.0%} drawn for testing"
)


def _class_names(folder: Path, files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if len(files) < 2:
        raise UserError(f"{folder} has {len(files)} class folders, at least 2 are needed: {_LAYOUTS}")
    return tuple(sorted(files))


def _drawn(root: Path, files: Mapping[str, Sequence[str]], seed: int) -> Listing:
    """Return the listing in which a share of each class is for testing: at least one picture, and not all."""
    class_names = _class_names(root, files)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for class_name in class_names:
        names = files[class_name]
        if len(names) < 2:
            raise UserError(
                f"{root / Path(names[0]).parent} holds one picture, at least 2 are needed: one to train, one to test"
            )
        order = torch.randperm(len(names), generator=generator).tolist()
        num_test = max(1, round(FLAT_TEST_SHARE * len(names)))
        parts["test"][class_name] = [names[place] for place in sorted(order[:num_test])]
        parts["train"][class_name] = [names[place] for place in sorted(order[num_test:])]
    return Listing(class_names=class_names, files=parts)


def _list_split(root: Path, split: str) -> dict[str, list[str]]:
    """Return the files by class; UserError where there are none, or where something else lies among them."""
    files: dict[str, list[str]] = {}
    place = Path(split)
    for folder in _entries(root / split):
        if not folder.is_dir():
            raise UserError(
                f"{root / place / folder.name} lies among the class folders: move it into one of them, or remove it "
                f"({_LAYOUTS})"
            )
        entries = _entries(root / place / folder.name)
        for entry in entries:
            if not entry.is_file():
                raise UserError(
                    f"{root / place / folder.name / entry.name} is no file: a class folder holds pictures alone, and "
                    f"no further folders ({_LAYOUTS})"
                )
        if not entries:
            raise UserError(
                f"{root / place / folder.name} holds no picture: every class needs some in train and in test"
            )
        class_name = unicodedata.normalize("NFC", folder.name)
        if class_name in files:
            raise UserError(
                f"{root / place} has two class folders {class_name!r}, spelt with different Unicode characters: put "
                "their pictures into one"
            )
        files[class_name] = [(place / folder.name / entry.name).as_posix() for entry in entries]
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
