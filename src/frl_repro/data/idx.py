"""Reader of IDX files (the format of MNIST and Fashion-MNIST) that believes only content with a known checksum."""

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frl_repro.basics.errors import UserError

UNSIGNED_BYTE = 0x08  # type code of the IDX format, third byte of the file


@dataclass(frozen=True)
class KnownContent:
    """What an uncompressed file must hold: sha256 (hex) and size in bytes."""

    sha256: str
    num_bytes: int


def read_checked(path: Path, expected: KnownContent) -> bytes:
    """Return the uncompressed content of ``path``, which is decompressed when its name ends in ``.gz``.

    Parameters
    ----------
    path : Path
        An existing file; it is only read.
    expected : KnownContent
        What the uncompressed content must be.

    Returns
    -------
    bytes
        Content with the expected sha256.

    Raises
    ------
    UserError
        When the file cannot be read or holds anything else. The message names the path.
    """
    wanted = f"expected sha256 {expected.sha256[:12]} of {expected.num_bytes} bytes"
    try:
        # One byte more than expected is enough to see that a file is too long, however long it is.
        content = _read(path, max_bytes=expected.num_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}; {wanted}): delete or replace it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend its permissions or replace it") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected.sha256:
        size = f"{len(content)}" if len(content) <= expected.num_bytes else f"more than {expected.num_bytes}"
        raise UserError(
            f"{path} is damaged or another file ({wanted}, got {sha256[:12]} of {size} bytes): delete or replace it"
        )
    return content


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, read-only, of the shape its header tells.

    Raises
    ------
    ValueError
        When the header is none of IDX, tells another type than unsigned bytes, or another size than there is.

    Source: header layout as published with MNIST: two zero bytes, type code, number of dimensions, then each dimension
    as big-endian 32-bit integer.
    """
    header_size = 4 + 4 * content[3] if len(content) > 3 else 4
    if len(content) < header_size or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise ValueError(f"no IDX file of unsigned bytes: starts with {content[:4].hex() or 'nothing'}")
    shape = struct.unpack(f">{content[3]}I", content[4:header_size])
    num_values = len(content) - header_size
    if num_values != math.prod(shape):
        raise ValueError(f"IDX header tells shape {shape}, but {num_values} values follow")
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)


def _read(path: Path, *, max_bytes: int) -> bytes:
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            return file.read(max_bytes)
    with path.open("rb") as file:
        return file.read(max_bytes)
