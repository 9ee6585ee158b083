"""Draw the embedded sample of FashionMNIST again from the full data, by the rule in `files.py`.

    python scripts/draw_sample.py [--data-dir DIR] [--out DIR]

Writes four xz-compressed IDX files, and prints the SHA-256 of each one's uncompressed content, as
`files.SAMPLE` pins them. The compressed bytes may differ between versions of liblzma, the content does not.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import files, sources
from convbench.plugins.datasets.idx import IdxFile

SEED = 0
CLASSES = range(10)
IMAGE_BYTES = 28 * 28
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 2}]


def rank(split: str, index: int) -> bytes:
    """Where an image stands in the draw: the smaller the earlier."""
    return hashlib.sha256(f"convbench fashion-mnist sample {SEED}/{split}/{index}".encode()).digest()


def draw(split: str, labels: bytes, per_class: int) -> list[int]:
    """The indices of `per_class` images of each class, in their original order."""
    drawn = []
    for wanted in CLASSES:
        members = (index for index, label in enumerate(labels) if label == wanted)
        drawn += sorted(members, key=lambda index: rank(split, index))[:per_class]
    return sorted(drawn)


def sample_files(contents: tuple[bytearray, ...]) -> Iterator[tuple[IdxFile, bytes]]:
    """Each file of the sample with its uncompressed content."""
    pairs = zip(("train", "test"), (contents[:2], contents[2:]), (0, 2), strict=True)
    for split, (images, labels), first in pairs:
        images_file, labels_file = files.SAMPLE[first : first + 2]
        pixels, classes = bytes(images[16:]), bytes(labels[8:])
        drawn = draw(split, classes, per_class=labels_file.shape[0] // len(CLASSES))
        chosen = b"".join(pixels[i * IMAGE_BYTES : (i + 1) * IMAGE_BYTES] for i in drawn)
        yield images_file, images_file.header + chosen
        yield labels_file, labels_file.header + bytes(classes[i] for i in drawn)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="where the full data is, if not in a usual place")
    parser.add_argument("--out", type=Path, default=files.SAMPLE_DIRECTORY)
    arguments = parser.parse_args()

    full = sources.chosen(arguments.data_dir)
    if full is None:
        parser.error("the full FashionMNIST is not on this machine; `convbench data fetch` fetches it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for file, content in sample_files(sources.read(*full)):
        packed = lzma.compress(content, format=lzma.FORMAT_XZ, filters=XZ)
        (arguments.out / f"{file.name}.xz").write_bytes(packed)
        print(f"{hashlib.sha256(content).hexdigest()}  {file.name}  {len(packed):,} bytes")


if __name__ == "__main__":
    main()
