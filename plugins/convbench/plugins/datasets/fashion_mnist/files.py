"""Where under a directory a copy of FashionMNIST lies, and whether it is the real and whole thing.

The SHA-256 sums are of the uncompressed content, so that a plain file, torchvision's download and Debian's
recompressed file all verify against the same ones. They were computed from Debian's dataset-fashion-mnist
0.0~git20200523.55506a9-1; with the file name and time that Debian removed from the gzip headers put back, its
files have the MD5 sums that torchvision pins for the authors' own.
"""

from __future__ import annotations

from pathlib import Path

from convbench.plugins.datasets.idx import IdxFile, read_idx
from convbench.registry.errors import DataError

NAME = "fashion-mnist"

FULL = (  # train images, train labels, test images, test labels: the order of every tuple of contents
    IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)

# What `convbench data fetch` writes, what torchvision writes, and the files as they are.
LAYOUTS = (NAME, "FashionMNIST/raw", ".")


def find(root: Path) -> Path | None:
    """The directory under `root` that holds any of the four files, None where there is none of them."""
    directories = (root / layout for layout in LAYOUTS)
    return next((d for d in directories if any(file.found_in(d) for file in FULL)), None)


def read(directory: Path, files: tuple[IdxFile, ...] | None = None) -> tuple[bytearray, ...]:
    """Read and verify the four files of a copy, those of the full dataset unless told.

    Raises:
        DataError: one of them is missing, damaged, truncated or another one's.
    """
    files = files or FULL
    missing = [file.name for file in files if not file.found_in(directory)]
    if missing:
        raise DataError(f"{directory} is a partial copy of FashionMNIST: it lacks {' and '.join(missing)}")
    return tuple(read_idx(path, file) for file in files if (path := file.found_in(directory)))


def problem(directory: Path, files: tuple[IdxFile, ...] | None = None) -> str | None:
    """What is wrong with the copy in `directory`, None when it is whole and verified."""
    try:
        read(directory, files)
    except DataError as error:
        return str(error)
    return None


def write(contents: tuple[bytearray, ...], directory: Path) -> None:
    """Write the four files uncompressed, since every worker process of a run reads them anew."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in zip(FULL, contents, strict=True):
        (directory / file.name).write_bytes(content)
