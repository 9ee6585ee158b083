"""The four files of FashionMNIST, and of the sample in this package: find a copy, read and verify it.

The SHA-256 sums are of the uncompressed content, so that a plain file, torchvision's download and Debian's
recompressed file all verify against the same ones. They were computed from Debian's dataset-fashion-mnist
0.0~git20200523.55506a9-1; with the file name and time that Debian removed from the gzip headers put back, its
files have the MD5 sums that torchvision pins for the authors' own.

The sample has 1,000 training and 200 test images of each class, in their original order: of each class and
split, those whose index has the smallest SHA-256 of "convbench fashion-mnist sample 0/<split>/<index>" (splits
`train` and `test`, indices from 0; 0 is the seed). A random generator may draw other images in other versions of
its library, a hash does not. `scripts/draw_sample.py` draws the sample again from the full data.
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

SAMPLE_NAME = "fashion-mnist-sample"
SAMPLE_DIRECTORY = Path(__file__).with_name("sample")
SAMPLE = (
    IdxFile(
        "train-images-idx3-ubyte",
        (10_000, 28, 28),
        "decd20a9a0a9e79f42a5f3dfee855f759f6fd59353af959a01ed25211176edd2",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        (10_000,),
        "2f1e87e2bd63ebf3c5fa1c6487e4379969e68e6bac04c9e097eed55f9c03bea8",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        (2_000, 28, 28),
        "7f3cb55ac885174e43d3a4bcc19e16baa43e411767f706edf193b7294c0db91f",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte", (2_000,), "e9b0185e36c6a068d9ba636494bbb216c57dc542d61c424f4cfe91067f96ba4b"
    ),
)

# What `convbench data fetch` writes, what torchvision writes, and the files as they are.
LAYOUTS = (NAME, "FashionMNIST/raw", ".")


def find(root: Path) -> Path | None:
    """The directory under `root` that holds any of the four files; None if there is none."""
    directories = (root / layout for layout in LAYOUTS)
    return next((d for d in directories if any(file.found_in(d) for file in FULL)), None)


def read(directory: Path, files: tuple[IdxFile, ...] | None = None) -> tuple[bytearray, ...]:
    """Read and verify the four files of a copy, those of the full dataset by default.

    Raises:
        DataError: one of them is missing, damaged, truncated, or of another dataset.
    """
    files = files or FULL
    missing = [file.name for file in files if not file.found_in(directory)]
    if missing:
        raise DataError(f"{directory} is a partial copy of FashionMNIST: it lacks {' and '.join(missing)}")
    return tuple(read_idx(path, file) for file in files if (path := file.found_in(directory)))


def read_sample() -> tuple[bytearray, ...]:
    """Read and verify the sample: train images, train labels, test images, test labels, headers in front.

    Raises:
        DataError: the installed package is damaged.
    """
    try:
        return read(SAMPLE_DIRECTORY, SAMPLE)
    except DataError as error:
        raise DataError(f"{error}; reinstalling convbench restores its embedded sample") from error


def problem(directory: Path, files: tuple[IdxFile, ...] | None = None) -> str | None:
    """What is wrong with the copy in `directory`; None if it is complete and verified."""
    try:
        read(directory, files)
    except DataError as error:
        return str(error)
    return None


def write(contents: tuple[bytearray, ...], directory: Path) -> None:
    """Write the four files uncompressed: every worker process of a run reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in zip(FULL, contents, strict=True):
        (directory / file.name).write_bytes(content)
