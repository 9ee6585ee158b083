"""The embedded sample: 12,000 real FashionMNIST images that the package itself ships.

1,000 training and 200 test images of each class, in their original order: of each class and split, those
whose index has the smallest SHA-256 of "convbench fashion-mnist sample 0/<split>/<index>" (splits `train` and
`test`, indices from 0; 0 is the seed). A hash, not a random generator, so that the draw is the same with
every version of every library. `scripts/draw_sample.py` draws it again from the full data.
"""

from __future__ import annotations

from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import files
from convbench.plugins.datasets.idx import IdxFile
from convbench.registry.errors import DataError

NAME = "fashion-mnist-sample"
DIRECTORY = Path(__file__).with_name("sample")

FILES = (
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


def read() -> tuple[bytearray, ...]:
    """Read and verify the sample: train images, train labels, test images, test labels, headers in front.

    Raises:
        DataError: the installed package is damaged.
    """
    try:
        return files.read(DIRECTORY, FILES)
    except DataError as error:
        raise DataError(f"{error}; reinstalling convbench restores its embedded sample") from error
