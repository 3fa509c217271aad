"""CIFAR-10 as JPEG files of quality 75, from a folder or from one archive: another data set than CIFAR-10 itself.

JPEG changes pixels a little. Whatever is measured on it goes by the name ``cifar10_jpeg``.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from frl_repro.basics.errors import UserError
from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.dataset import Split
from frl_repro.data.image_folder import SPLITS, Listing, decode_listing, list_folder, splits_of
from frl_repro.data.pictures import Wanted

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_FILES = {"train": 5000, "test": 1000}  # of each class
ARCHIVE_SHA256 = "c562d90f16f2364941ee596663171764f871c78be386d92d6cfb3cfac2be07d2"
CONTENT_SHA256 = "50ad6748b6e21784d69d60c380dbc30b9b8ec21336aff1d7db52f1607abb89c4"  # of the files in it: see `_digest`

ROOT_VARIABLE = "FRL_CIFAR10_JPEG"  # environment variable that takes the place of dataset.root
USUAL_PLACES = (Path("data/cifar10_jpeg"), Path("data/cifar10-jpeg.tar.xz"))  # below the working folder

CACHE_NAME = "cifar10_jpeg.safetensors"
CACHE_VERSION = 1  # raise it when the content of the cache changes for the same files

WAYS_OUT = (
    "get them (docs/data.md says where), then give dataset.root=FILE (cifar10-jpeg.tar.xz) or dataset.root=FOLDER "
    f"(with its train and test), set {ROOT_VARIABLE} to either, or put them at {USUAL_PLACES[1]} or {USUAL_PLACES[0]}; "
    "for a trial without data: dataset=synthetic"
)


def load_cifar10_jpeg(*, root: Path | None, cache_dir: Path | None) -> tuple[Split, Split]:
    """Return 50,000 training and 10,000 test images, sorted by class and file.

    They come from ``root`` when it is given. Otherwise from the cache, then from where ``ROOT_VARIABLE`` points, then
    from ``USUAL_PLACES``.

    Parameters
    ----------
    root : Path or None
        The archive, or a folder that holds its ``train`` and ``test``. Only read. The archive's sha256 is verified each
        time it is given, the content of a folder when it is decoded.
    cache_dir : Path or None
        Where the decoded images are kept; None for ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    tuple of Split
        uint8 images of shape (N, 3, 32, 32).

    Raises
    ------
    UserError
        There is no such file or folder, or it holds anything else.
    """
    cache_file = cache_folder(cache_dir) / CACHE_NAME
    identity = f"version {CACHE_VERSION}, content {CONTENT_SHA256}"
    tensors = load_tensors(cache_file, identity=identity)
    if root is not None or tensors is None:
        source = _usual_place() if root is None else root
        read = _check_folder(source) if source.is_dir() else _check_archive(source)
        if tensors is None:
            contents = read()
            wanted = Wanted(image_size=None, num_channels=None)
            tensors = decode_listing(_listing_of(contents), contents.__getitem__, wanted)
            store_tensors(cache_file, tensors, identity=identity)
    return splits_of(tensors)


def _usual_place() -> Path:
    configured = os.environ.get(ROOT_VARIABLE, "")
    if configured:
        return Path(configured).expanduser()
    for place in USUAL_PLACES:
        if place.exists():
            return place
    raise UserError(f"CIFAR-10 as JPEG not found: {WAYS_OUT}")


def _check_archive(path: Path) -> Callable[[], dict[str, bytes]]:
    """Return what unpacks the archive into memory, once its checksum is verified."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"dataset.root={path} does not exist: {WAYS_OUT}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend its permissions or replace it") from error
    sha256 = hashlib.sha256(packed).hexdigest()
    if sha256 != ARCHIVE_SHA256:
        raise UserError(
            f"{path} is damaged or another file (expected sha256 {ARCHIVE_SHA256[:12]}, got {sha256[:12]} of "
            f"{len(packed)} bytes): replace it"
        )

    def unpack() -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive if member.isfile())
            return {name: file.read() for name, file in files if file is not None}

    return unpack


def _check_folder(folder: Path) -> Callable[[], dict[str, bytes]]:
    """Return what reads the folder's files and verifies them, once it is seen to hold what it should."""
    listing = list_folder(folder, split_seed=0)
    if listing.class_names != CLASS_NAMES:
        odd = sorted(set(listing.class_names) ^ set(CLASS_NAMES))
        raise UserError(f"{folder} is not CIFAR-10: it has other classes ({', '.join(odd)}); try dataset=image_folder")
    for split, expected in NUM_FILES.items():
        for files in listing.files[split].values():
            if len(files) != expected:
                place = (folder / files[0]).parent
                raise UserError(f"{place} holds {len(files)} files, expected are {expected}")

    def read() -> dict[str, bytes]:
        contents = {name: (folder / name).read_bytes() for split in SPLITS for name in listing.names(split)}
        if _digest(contents) != CONTENT_SHA256:
            raise UserError(
                f"{folder} does not hold the files of cifar10-jpeg.tar.xz (sha256 over all of them differs): unpack it "
                "anew, or give the archive itself; for images of your own use dataset=image_folder"
            )
        return contents

    return read


def _listing_of(contents: Mapping[str, bytes]) -> Listing:
    """Return the listing of files named ``<split>/<class>/<file>``."""
    files: dict[str, dict[str, list[str]]] = {split: {name: [] for name in CLASS_NAMES} for split in SPLITS}
    for path in sorted(contents):
        split, class_name, _ = path.split("/")
        files[split][class_name].append(path)
    return Listing(class_names=CLASS_NAMES, files=files)


def _digest(contents: Mapping[str, bytes]) -> str:
    """Return the sha256 (hex) over the files' names and contents, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode(errors="surrogateescape"))
        digest.update(contents[name])
    return digest.hexdigest()
