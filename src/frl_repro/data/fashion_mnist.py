"""Fashion-MNIST at 32x32 pixels: found or fetched, checked, resized once and cached."""

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from frl_repro.basics.atomic import write_bytes
from frl_repro.basics.errors import UserError
from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.dataset import Split
from frl_repro.data.fetch import PACKAGE_FOLDER, PACKAGE_NAME, FetchError, fetch_with_apt, fetch_with_torchvision
from frl_repro.data.idx import KnownContent, parse_idx, read_checked

logger = logging.getLogger(__name__)

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

IMAGE_SIDE = 32  # pixels; the reproduction report resizes 28 to 32, bilinear: torchvision's Resize on PIL images

# Source: the four files as published at github.com/zalandoresearch/fashion-mnist, uncompressed. The files unpacked by
# torchvision (which checks the md5 of the archives) and those of the Debian package have this same content.
TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
KNOWN_CONTENT = {
    TRAIN_IMAGES: KnownContent("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47_040_016),
    TRAIN_LABELS: KnownContent("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60_008),
    TEST_IMAGES: KnownContent("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7_840_016),
    TEST_LABELS: KnownContent("0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10_008),
}

TORCHVISION_FOLDER = Path("FashionMNIST", "raw")  # torchvision's layout below its root
SYSTEM_FOLDER = Path("/") / PACKAGE_FOLDER
FETCHERS: dict[str, Callable[[Path], Path]] = {
    "torchvision's download": fetch_with_torchvision,
    "apt": fetch_with_apt,
}

CACHE_NAME = f"fashion_mnist-{IMAGE_SIDE}.safetensors"
CACHE_VERSION = 1  # raise it when the content of the cache changes for the same source files

WAYS_OUT = (
    "Either point dataset.root at a folder with the four files "
    f"({', '.join(KNOWN_CONTENT)}, each with or without .gz), "
    f"or install the Debian/Ubuntu package {PACKAGE_NAME}"
)
ALLOW_DOWNLOAD = ", or set dataset.download=true with network access"


def load_fashion_mnist(*, root: Path | None, download: bool, cache_dir: Path | None) -> tuple[Split, Split]:
    """Return all training and test images, resized from 28 to 32 pixels exactly as PIL's bilinear filter does.

    The files come from ``root`` when it is given. Otherwise from the cache, then from a system copy
    (``SYSTEM_FOLDER``), then, with ``download``, from torchvision's download, then from apt. A ``root`` that lacks
    files is completed with ``download`` from the latter three. Files in ``root`` are never replaced or deleted.

    Parameters
    ----------
    root : Path or None
        Folder in torchvision's layout (``<root>/FashionMNIST/raw``) or holding the four files itself, each
        uncompressed or ``.gz``.
    download : bool
        Whether files may be fetched over the network.
    cache_dir : Path or None
        Where the resized tensors are kept; ``None`` for ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    tuple of Split
        60,000 training and 10,000 test images, uint8 of shape (N, 1, 32, 32), in the order of the files.

    Raises
    ------
    UserError
        When ``root`` does not exist or lacks files and may not be completed, when a file is damaged or another, or
        when no source has the files.
    """
    cache_file = cache_folder(cache_dir) / CACHE_NAME
    tensors = load_tensors(cache_file, identity=_cache_identity())
    if root is not None or tensors is None:
        contents = _read_anywhere(download=download) if root is None else _read_root(root, download=download)
        if tensors is None:
            tensors = _prepare(contents)
            store_tensors(cache_file, tensors, identity=_cache_identity())
    return (
        Split(images=tensors[TRAIN_IMAGES], labels=tensors[TRAIN_LABELS]),
        Split(images=tensors[TEST_IMAGES], labels=tensors[TEST_LABELS]),
    )


def resize_bilinear(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the images resized to ``side`` x ``side``, equal to PIL's bilinear resize of each image by itself.

    Parameters
    ----------
    images : array, shape (N, H, W), uint8
    side : int
        Height and width of the result in pixels.

    Returns
    -------
    array, shape (N, side, side), uint8

    Source: Pillow's resize is a horizontal pass, rounded to uint8, and then a vertical pass. Rows do not mix in the
    first, so all images pass as one tall image; transposed, the same holds for the second.
    """
    narrowed = _resize_width(images, side)
    return _resize_width(narrowed.swapaxes(1, 2), side).swapaxes(1, 2).copy()


def _resize_width(images: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    N, H, W = images.shape
    tall = Image.fromarray(np.ascontiguousarray(images).reshape(N * H, W))
    return np.asarray(tall.resize((width, N * H), Image.Resampling.BILINEAR)).reshape(N, H, width)


def _prepare(contents: dict[str, bytes]) -> dict[str, Tensor]:
    """Return images of shape (N, 1, 32, 32), uint8, and labels of shape (N,), int64, under the names of the files."""
    arrays = {name: parse_idx(content) for name, content in contents.items()}
    images = {
        name: torch.from_numpy(resize_bilinear(arrays[name], IMAGE_SIDE)).unsqueeze(1)
        for name in (TRAIN_IMAGES, TEST_IMAGES)
    }
    labels = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in (TRAIN_LABELS, TEST_LABELS)}
    return images | labels


def _read_root(root: Path, *, download: bool) -> dict[str, bytes]:
    """Return the content of the four files in ``root``, completed over the network where allowed."""
    if root.exists() and not root.is_dir():
        raise UserError(f"dataset.root={root} is no folder: give the folder that holds the Fashion-MNIST files")
    if not root.exists() and not download:
        raise UserError(
            f"dataset.root={root} does not exist: correct it, leave it out to search the usual places, "
            "or set dataset.download=true to create it"
        )
    paths = _locate(root)
    missing = [name for name in KNOWN_CONTENT if name not in paths]
    if missing and not download:
        raise UserError(
            f"dataset.root={root} lacks {', '.join(missing)} (with or without .gz, in the folder itself or in "
            f"{TORCHVISION_FOLDER}): add them, or set dataset.download=true to fetch them"
        )
    contents = {name: read_checked(path, KNOWN_CONTENT[name]) for name, path in paths.items()}
    if missing:
        found = _read_anywhere(download=download)
        for name in missing:
            contents[name] = found[name]
        _keep(root / TORCHVISION_FOLDER, {name: found[name] for name in missing})
    return contents


def _keep(folder: Path, contents: dict[str, bytes]) -> None:
    """Write checked files into ``folder``; a folder that cannot be written to is only logged."""
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
    except OSError as error:
        logger.warning("Fashion-MNIST cannot be kept in %s (%s)", folder, error)


def _read_anywhere(*, download: bool) -> dict[str, bytes]:
    """Return the content of the four files from the system copy, else over the network where allowed."""
    if len(_locate(SYSTEM_FOLDER)) == len(KNOWN_CONTENT):
        return _read_folder(SYSTEM_FOLDER)
    tried = [f"system copy in {SYSTEM_FOLDER} (not there)"]
    if not download:
        tried.append("download (not allowed by dataset.download=false)")
    for label, fetch in FETCHERS.items() if download else ():
        logger.info("fetching Fashion-MNIST with %s (31 MB)", label)
        with tempfile.TemporaryDirectory(prefix="frl_repro-") as temporary:
            try:
                return _read_folder(fetch(Path(temporary)))
            except (FetchError, UserError) as error:
                tried.append(f"{label} ({error})")
    raise UserError(
        f"Fashion-MNIST not found. Tried: {'; '.join(tried)}. {WAYS_OUT}{'' if download else ALLOW_DOWNLOAD}"
    )


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Return the content of the four files in ``folder``; UserError when one is missing or not what it should be."""
    paths = _locate(folder)
    for name in KNOWN_CONTENT:
        if name not in paths:
            raise UserError(f"{folder} lacks {name}")
    return {name: read_checked(path, KNOWN_CONTENT[name]) for name, path in paths.items()}


def _locate(folder: Path) -> dict[str, Path]:
    """Return the path of each of the four files that ``folder`` holds, torchvision's layout and plain files first."""
    paths = {}
    for name in KNOWN_CONTENT:
        candidates = (
            place / f"{name}{suffix}" for place in (folder / TORCHVISION_FOLDER, folder) for suffix in ("", ".gz")
        )
        if (path := next((path for path in candidates if path.is_file()), None)) is not None:
            paths[name] = path
    return paths


def _cache_identity() -> str:
    """Return what the cache's tensors are made from and how."""
    sources = "".join(f"{name} {content.sha256}\n" for name, content in sorted(KNOWN_CONTENT.items()))
    return f"version {CACHE_VERSION}, side {IMAGE_SIDE}, sources {hashlib.sha256(sources.encode()).hexdigest()}"
