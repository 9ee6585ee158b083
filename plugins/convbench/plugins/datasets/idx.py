"""Read an IDX file, plain or compressed, and refuse it unless it is exactly the published one.

IDX is the format of MNIST and its relatives: two zero bytes, the element type (8 for uint8), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the elements in C order.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from convbench.registry.errors import DataError

UINT8 = 8
SUFFIXES = ("", ".gz", ".xz")  # in the order of preference: plain files are read ten times faster


@dataclass(frozen=True)
class IdxFile:
    """One published file: its name, the shape of its uint8 elements, and the SHA-256 of its plain content."""

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def header(self) -> bytes:
        return struct.pack(f">4B{len(self.shape)}I", 0, 0, UINT8, len(self.shape), *self.shape)

    @property
    def size_bytes(self) -> int:
        return len(self.header) + math.prod(self.shape)

    def found_in(self, directory: Path) -> Path | None:
        """The file under its own name or a compressed one, None where it is missing."""
        candidates = (directory / (self.name + suffix) for suffix in SUFFIXES)
        return next((path for path in candidates if os.path.isfile(path)), None)  # False if unreadable


def read_idx(path: Path, file: IdxFile) -> bytearray:
    """Read and verify `path`, and return its elements with the header in front.

    The content is copied into memory instead of being mapped: what was verified is then what is used, whoever
    writes to the file later, and the buffer is writable, as torch wants it.

    Raises:
        DataError: the file cannot be read, or is not `file` to the last byte.
    """
    content = bytearray(file.size_bytes)
    try:
        with _opened(path) as stream:
            filled = _fill(stream, content)
            surplus = bool(
                stream.read(1)
            )  # reading past the end also makes gzip and xz check their checksums
    except EOFError as error:
        raise DataError(f"{path} is truncated: its compressed stream ends early") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged: it does not decompress ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    del content[filled:]
    if wrong := _what_is_wrong(content, surplus, file):
        raise DataError(f"{path} {wrong}")
    return content


def _opened(path: Path) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case _:
            return path.open("rb")


def _fill(stream: BinaryIO, content: bytearray) -> int:
    """Read until `content` is full or the stream ends; return the number of bytes read."""
    filled = 0
    with memoryview(content) as view:
        while filled < len(content):
            chunk = stream.read(min(1 << 22, len(content) - filled))
            if not chunk:
                break
            view[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    return filled


def _what_is_wrong(content: bytearray, surplus: bool, file: IdxFile) -> str | None:
    """How the content differs from `file`, most telling difference first, as the predicate of a sentence."""
    header = bytes(content[: len(file.header)])
    if not content:
        return "is empty"
    if header[:4] != file.header[:4]:
        return (
            f"is not an IDX file of {len(file.shape)}-dimensional uint8 data: it begins with {header[:4]!r}"
        )
    if header != file.header and len(header) == len(file.header):
        shape = struct.unpack(f">{len(file.shape)}I", header[4:])
        return f"holds data of shape {shape}, where {file.name} has {file.shape}"
    if len(content) < file.size_bytes:
        return f"is truncated: it holds {len(content):,} of {file.size_bytes:,} bytes"
    if surplus:
        return f"is damaged: it goes on past the {file.size_bytes:,} bytes of {file.name}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        return (
            f"is damaged or another dataset's: its SHA-256 is {digest}, that of {file.name} is {file.sha256}"
        )
    return None
