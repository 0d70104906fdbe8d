"""Image data sets in their published file formats."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from audit.reference.images import read_images

#: What `load_data` can load.
DataSet = Literal["digits", "fashion-mnist", "mnist", "cifar10", "folder"]
DATA_SETS: tuple[DataSet, ...] = get_args(DataSet)

#: Where the IDX files of Fashion-MNIST are looked for, in this order, when no folder is named.
FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    Path("~/.cache/fashion-mnist").expanduser(),
    Path("data/FashionMNIST/raw"),  # torchvision's layout
)
#: The same for MNIST.
MNIST_FOLDERS = (
    Path("/usr/share/datasets/mnist"),
    Path("~/.cache/mnist").expanduser(),
    Path("data/MNIST/raw"),  # torchvision's layout
)
#: Where CIFAR-10, unpacked or not, is looked for.
CIFAR10_FOLDERS = (
    Path("/usr/share/datasets/cifar10"),
    Path("~/.cache/cifar10").expanduser(),
    Path("data"),
)

#: The training files of CIFAR-10's binary version.
CIFAR10_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
#: Files of its python version, which are pickles: reading one can run any code.
CIFAR10_PICKLES = ("cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1", "data_batch_1")

GARMENTS = ("tee", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class LabeledImages:
    """Images with their class.

    Attributes:
        images: uint8, shape (n, height, width) when they are greyscale and (n, height, width, 3) when in colour.
        labels: int64, shape (n,), in [0, number of classes).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_data(name: DataSet, source: Path | None) -> LabeledImages:
    """Load the training images of a data set.

    Args:
        name: `digits` are scikit-learn's 1,797 handwritten digits, 8×8; `fashion-mnist` and `mnist` are 60,000
            greyscale images each, zero-padded from 28×28 to 32×32; `cifar10` is 50,000 colour images, 32×32;
            `folder` is images of one's own, all of class 0.
        source: for `fashion-mnist` and `mnist` the folder of the IDX files; for `cifar10` the binary version, as
            `cifar-10-binary.tar.gz`, as the unpacked folder, or as a folder that holds one of them; for `folder`
            what `read_images` takes, a folder of image files or an .npz file. None searches the usual places
            of a published data set (`FASHION_MNIST_FOLDERS`, `MNIST_FOLDERS`, `CIFAR10_FOLDERS`).

    Returns:
        All images, in the order of the files.

    Raises:
        FileNotFoundError: the data set is in none of the places.
        ValueError: its files are damaged, pickled or of another data set; or `digits` came with a source, or
            `folder` without one.
        NotFound: there is nothing at the `source` of `folder`.
        InvalidInput: it holds no images, images of several sizes, or unreadable ones.
    """
    match name:
        case "digits":
            return _load_digits(source)
        case "fashion-mnist":
            return load_fashion_mnist(source)
        case "mnist":
            return _load_idx_pair(
                "MNIST", MNIST_FOLDERS if source is None else (source,), "name the folder of its IDX files with --data"
            )
        case "cifar10":
            return _load_cifar10(CIFAR10_FOLDERS if source is None else (source,))
        case "folder":
            return _load_folder(source)


def load_fashion_mnist(folder: Path | None = None) -> LabeledImages:
    """Load the 60,000 training images of Fashion-MNIST (Xiao et al. 2017), zero-padded from 28×28 to 32×32.

    Args:
        folder: holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, each optionally with `.gz`; the
            usual places (`FASHION_MNIST_FOLDERS`) are searched when None.

    Returns:
        Greyscale images and their classes, the indices of `GARMENTS`.

    Raises:
        FileNotFoundError: no folder holds both files.
        ValueError: they are damaged or of another data set.
    """
    return _load_idx_pair(
        "Fashion-MNIST",
        FASHION_MNIST_FOLDERS if folder is None else (folder,),
        "install Debian's package dataset-fashion-mnist or name the folder of its IDX files with --data",
    )


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


def _load_idx_pair(title: str, folders: tuple[Path, ...], advice: str) -> LabeledImages:
    """Load MNIST or a data set published in its format from the first folder that holds both files.

    Args:
        title: of the data set, for messages.
        folders: where to look, in this order.
        advice: what to do when no folder holds both files.

    Returns:
        Greyscale images, zero-padded from 28×28 to 32×32, and their classes.

    Raises:
        FileNotFoundError: no folder holds both files.
        ValueError: they are damaged or of another data set.
    """
    for folder in folders:
        found = [
            next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
            for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
        ]
        if found[0] and found[1]:
            images, labels = read_idx(found[0]), read_idx(found[1]).astype(np.int64)
            if labels.ndim != 1 or images.shape != (len(labels), 28, 28) or not labels.size or labels.max() > 9:
                raise ValueError(f"{found[0].name} and {found[1].name} are not those of {title}")
            return LabeledImages(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels)
    raise FileNotFoundError(f"{title} not found in {', '.join(map(str, folders))}; {advice}")


def _load_cifar10(places: tuple[Path, ...]) -> LabeledImages:
    """Load the training images of CIFAR-10 (Krizhevsky 2009) from the first place that holds its binary version.

    Args:
        places: folders or archives, in the order of the search.

    Returns:
        Colour images, 32×32, and their classes.

    Raises:
        FileNotFoundError: it is in none of the places.
        ValueError: it is damaged, or there is nothing but the python version.
    """
    for place in places:
        for folder in (place, place / "cifar-10-batches-bin"):
            batches = {name: (folder / name).read_bytes() for name in CIFAR10_BATCHES if (folder / name).is_file()}
            if batches:
                return _decode_cifar10(batches, folder)
        for archive in (place, place / "cifar-10-binary.tar.gz"):
            if archive.is_file() and archive.name not in CIFAR10_PICKLES:
                return _decode_cifar10(_unpack_cifar10(archive), archive)
    advice = "take the binary version, cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    for place in places:
        for path in (place, *(place / name for name in CIFAR10_PICKLES)):
            if path.is_file():
                raise ValueError(f"{path} is of CIFAR-10's python version, and pickles are not read; {advice}")
    raise FileNotFoundError(
        f"CIFAR-10 not found in {', '.join(map(str, places))}; {advice}, and name it or its folder with --data"
    )


def _unpack_cifar10(archive: Path) -> dict[str, bytes]:
    """The training files in `cifar-10-binary.tar.gz`, by their names without the folder.

    Raises:
        ValueError: it is not a gzip-compressed tar file, or is damaged.
    """
    batches = {}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for member in tar:  # in the archive's order: going back would decompress it again
                name = PurePosixPath(member.name).name
                if name in CIFAR10_BATCHES and member.isfile() and (file := tar.extractfile(member)):
                    batches[name] = file.read()
            while unpacked.read(1 << 20):  # gzip's checksum comes last, after what tar reads
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{archive} is not a whole tar.gz file") from error
    return batches


def _decode_cifar10(batches: dict[str, bytes], origin: Path) -> LabeledImages:
    """Images and classes of CIFAR-10's binary version.

    A record is one byte of class and the red, the green and the blue plane of 32×32 bytes.

    Args:
        batches: the content of each training file.
        origin: the folder or archive they are from, for messages.

    Returns:
        The images in the order of `CIFAR10_BATCHES`.

    Raises:
        ValueError: a file is missing, cut short, or has a label over 9.
    """
    size = 1 + 3 * 32 * 32
    for name in CIFAR10_BATCHES:
        if name not in batches:
            raise ValueError(f"{origin} holds no {name}, which is part of CIFAR-10's binary version")
        raw = batches[name]
        if not raw or len(raw) % size:
            raise ValueError(f"{name} in {origin} has {len(raw)} bytes, not whole records of {size}")
        if max(raw[::size]) > 9:
            raise ValueError(f"{name} in {origin} has a label {max(raw[::size])}, but CIFAR-10's are 0 to 9")
    records = np.frombuffer(b"".join(batches[name] for name in CIFAR10_BATCHES), dtype=np.uint8).reshape(-1, size)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return LabeledImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64))


def _load_digits(source: Path | None) -> LabeledImages:
    """scikit-learn's handwritten digits, brought from 0..16 to 0..255.

    Raises:
        ValueError: a source is named.
    """
    if source is not None:
        raise ValueError("digits come with scikit-learn; --data goes with the other data sets")
    from sklearn.datasets import load_digits  # slow to import, and the other data sets do without

    digits = load_digits()
    return LabeledImages(np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64))


def _load_folder(source: Path | None) -> LabeledImages:
    """Images of one's own through `read_images`, all of class 0.

    Raises:
        ValueError: no source is named.
        NotFound: there is nothing at `source`.
        InvalidInput: it holds no images, images of several sizes, or unreadable ones.
    """
    if source is None:
        raise ValueError("the data set folder has no usual place; name a folder of images or an .npz file with --data")
    images, _ = read_images(source)
    return LabeledImages(images[..., 0] if images.shape[-1] == 1 else images, np.zeros(len(images), dtype=np.int64))
