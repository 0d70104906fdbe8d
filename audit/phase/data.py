"""Image data sets in their published file formats."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Where the IDX files of Fashion-MNIST are looked for, in this order, when no folder is named.
FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    Path("~/.cache/fashion-mnist").expanduser(),
    Path("data/FashionMNIST/raw"),  # torchvision's layout
)

GARMENTS = ("tee", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class LabeledImages:
    """Greyscale images with their class.

    Attributes:
        images: uint8, shape (n, height, width).
        labels: int64, shape (n,), in [0, number of classes).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzip-compressed or not.

    The format is LeCun's: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values in C order.

    Raises:
        ValueError: the file is not an IDX file of unsigned bytes, or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path.name} is not a whole gzip file") from error
    header = 4 + 4 * raw[3] if len(raw) > 3 else 4
    if len(raw) < header or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw[4:header], dtype=">u4").astype(np.int64)
    if len(raw) - header != shape.prod():
        raise ValueError(f"{path.name} holds {len(raw) - header} values, its header promises {shape.prod()}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def load_fashion_mnist(folder: Path | None = None) -> LabeledImages:
    """Load the 60,000 training images of Fashion-MNIST (Xiao et al. 2017), zero-padded from 28×28 to 32×32.

    Args:
        folder: holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, each optionally with `.gz`; the
            usual places (`FASHION_MNIST_FOLDERS`) are searched when None.

    Raises:
        FileNotFoundError: no folder holds both files.
        ValueError: they are damaged or of another data set.
    """
    for candidate in FASHION_MNIST_FOLDERS if folder is None else (folder,):
        found = [
            next((path for path in (candidate / name, candidate / f"{name}.gz") if path.is_file()), None)
            for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
        ]
        if found[0] and found[1]:
            images, labels = read_idx(found[0]), read_idx(found[1]).astype(np.int64)
            if images.shape != (len(labels), 28, 28):
                raise ValueError(f"{found[0].name} and {found[1].name} are not those of Fashion-MNIST")
            return LabeledImages(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels)
    searched = ", ".join(str(f) for f in (FASHION_MNIST_FOLDERS if folder is None else (folder,)))
    raise FileNotFoundError(
        f"Fashion-MNIST not found in {searched}; install Debian's package dataset-fashion-mnist "
        "or name the folder of its IDX files with --data"
    )
