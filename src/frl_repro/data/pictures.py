"""Decode picture files of many kinds into one uint8 tensor, and refuse by name whatever does not fit."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import bar

MIN_SIDE = 8  # pixels; no model takes less
# Pillow would try every format it knows, whatever a file's name: PostScript, say, runs another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FORMAT_NAMES = "PNG, JPEG, JPEG 2000, WebP, TIFF, GIF, BMP, PPM"
_GREY_MODES = ("1", "L")
_COLOUR_MODES = ("RGB", "P", "YCbCr", "CMYK", "LAB", "HSV")
_CLEAR_MODES = ("LA", "La", "PA", "RGBA", "RGBa", "RGBX")
NUM_THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes outside Python's lock
_NUM_AHEAD = 64  # decoded pictures that wait for their place, for each thread


@dataclass(frozen=True)
class Wanted:
    """What pictures are made into.

    Attributes
    ----------
    image_size : int or None
        Height and width; None: as they are, and all alike.
    num_channels : int or None
        1 (grey) or 3 (colour); None: as they are, and all alike.
    """

    image_size: int | None
    num_channels: int | None


def decode_all(names: Sequence[str], read: Callable[[str], bytes], wanted: Wanted) -> Tensor:
    """Return the pictures as one tensor, in the order of their names.

    Parameters
    ----------
    names : sequence of str
        At least one; they appear in messages.
    read : callable
        Name to the file's content.
    wanted : Wanted

    Returns
    -------
    Tensor, shape (N, C, H, W), uint8

    Raises
    ------
    UserError
        A picture that cannot be read, or that differs from the first one in size or kind; the message names it.
    """
    images: Tensor | None = None
    with bar("decode images", len(names)) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of pictures that it reads all the same
        for place, picture in enumerate(_decoded(names, read, wanted)):
            if images is None:
                images = _allocate(len(names), picture.shape)
            height, width, channels = picture.shape
            if channels != images.shape[1]:
                kinds = {1: "grey", 3: "in colour"}
                raise UserError(
                    f"{names[place]} is {kinds[channels]}, {names[0]} is {kinds[images.shape[1]]}: convert one, or "
                    "give dataset.num_channels=3 (all in colour) or 1 (all grey)"
                )
            if (height, width) != images.shape[2:]:
                raise UserError(
                    f"{names[place]} has {height}x{width} pixels, {names[0]} has {images.shape[2]}x{images.shape[3]}: "
                    "give dataset.image_size=SIDE to resize all of them"
                )
            images[place] = torch.from_numpy(picture).permute(2, 0, 1)
            advance(1)
    assert images is not None
    return images


def read_picture(path: Path, name: str) -> bytes:
    """Return the content of a picture's file; UserError, which calls it ``name``, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): mend its permissions or remove it") from error


def _decoded(names: Sequence[str], read: Callable[[str], bytes], wanted: Wanted) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures in order, shape (H, W, C); a few are decoded ahead, however slowly they are taken."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        remaining = iter(names)
        under_way: deque[Future[NDArray[np.uint8]]] = deque(
            pool.submit(_decode, name, read, wanted) for name in islice(remaining, NUM_THREADS * _NUM_AHEAD)
        )
        try:
            for name in chain(remaining, [None] * len(under_way)):
                yield under_way.popleft().result()
                if name is not None:
                    under_way.append(pool.submit(_decode, name, read, wanted))
        finally:
            for future in under_way:
                future.cancel()


def _decode(name: str, read: Callable[[str], bytes], wanted: Wanted) -> NDArray[np.uint8]:
    """Return one picture, shape (H, W, C), C 1 or 3."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=_known_formats()) as opened:
            _refuse_several(name, opened)
            opened.load()
            # Cameras store pictures as the sensor lay and note how to turn them.
            picture = ImageOps.exif_transpose(opened).convert(_target_mode(name, opened, wanted))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(
            f"{name} is too large: pictures of more than {most} million pixels are not read; make it smaller"
        ) from error
    except OSError as error:
        raise UserError(
            f"{name} is no picture that can be read ({_first_line(error)}): replace or remove it (formats: "
            f"{_FORMAT_NAMES})"
        ) from error
    except Exception as error:  # damaged files make Pillow's decoders fail in many ways
        raise UserError(f"{name} is damaged ({_first_line(error)}): replace or remove it") from error
    if wanted.image_size is not None:
        picture = picture.resize((wanted.image_size, wanted.image_size), Image.Resampling.BILINEAR)
    if min(picture.size) < MIN_SIDE:
        raise UserError(
            f"{name} has {picture.height}x{picture.width} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed: "
            "give dataset.image_size=SIDE to enlarge all of them"
        )
    pixels = np.array(picture, dtype=np.uint8)  # a copy: what Pillow gives cannot be written to
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this machine's Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_several(name: str, picture: Image.Image) -> None:
    """Refuse animations and documents of several pages: which of the pictures is meant, nobody knows."""
    # A camera's JPEG may hold a preview after the picture itself, which comes first.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise UserError(
            f"{name} holds {getattr(picture, 'n_frames', 'several')} pictures (an animation, or pages): keep one of "
            "them, or save each as a file of its own"
        )


def _target_mode(name: str, picture: Image.Image, wanted: Wanted) -> str:
    """Return Pillow's name of what the picture is converted to: ``L`` or ``RGB``."""
    mode = picture.mode
    is_clear = mode in _CLEAR_MODES or (mode == "P" and "transparency" in picture.info)
    if not is_clear and mode not in (*_GREY_MODES, *_COLOUR_MODES):
        raise UserError(f"{name} has pixels of mode {mode}, not of 8 bits: convert it to 8-bit grey or colour")
    if wanted.num_channels is not None:
        return "L" if wanted.num_channels == 1 else "RGB"
    if is_clear:
        raise UserError(
            f"{name} has transparency: convert it, or give dataset.num_channels=3 (or 1), which drops transparency"
        )
    return "L" if mode in _GREY_MODES else "RGB"


def _allocate(num: int, shape: tuple[int, ...]) -> Tensor:
    height, width, channels = shape
    num_bytes = num * height * width * channels
    message = (
        f"{num} images of {height}x{width} pixels take {num_bytes / 2**30:.1f} GiB, more than this machine's memory "
        "holds: give a smaller dataset.image_size"
    )
    if num_bytes > _physical_memory():
        raise UserError(message)
    try:
        return torch.empty(num, channels, height, width, dtype=torch.uint8)
    except RuntimeError:
        raise UserError(message) from None


def _physical_memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return float("inf")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # Pillow names the object in memory, which tells nobody anything.
    return (lines[0] if lines else type(error).__name__).partition(" <_io")[0]
