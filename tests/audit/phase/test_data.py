"""The image data sets, from small files in their published formats."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from sklearn.datasets import load_digits

from audit.errors import InvalidInput, NotFound
from audit.phase.data import (
    CIFAR10_BATCHES,
    CIFAR10_FOLDERS,
    DATA_SETS,
    FASHION_MNIST_FOLDERS,
    MNIST_FOLDERS,
    DataSet,
    LabeledImages,
    load_data,
    load_fashion_mnist,
    read_idx,
)


def idx(values: np.ndarray, *, code: int = 8) -> bytes:
    """An IDX file of an array."""
    header = bytes([0, 0, code, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


@given(values=arrays(np.uint8, array_shapes(max_dims=3, max_side=6)), packed=st.booleans())
def test_files_are_read_compressed_or_not(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, packed: bool
) -> None:
    """Any array of bytes comes back in its shape."""
    file = tmp_path_factory.mktemp("idx") / ("values.gz" if packed else "values")
    file.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    found = read_idx(file)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


WHOLE = idx(np.arange(60).reshape(3, 4, 5))
PACKED = gzip.compress(WHOLE, mtime=0)  # the same in every process: it names tests


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a", b""),
        ("a", b"\0\0\x08"),
        ("a", WHOLE[:-1]),
        ("a", WHOLE + b"\0"),
        ("a", WHOLE[:10]),
        ("a", b"\0\0\x0d" + WHOLE[3:]),
        ("a", b"\x89PNG" + WHOLE[4:]),
        ("a.gz", b""),
        ("a.gz", b"hello"),
        ("a.gz", WHOLE),
        ("a.gz", PACKED[:-9]),
        ("a.gz", PACKED[:20] + b"\xff\xff\xff" + PACKED[23:]),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Truncated, too long, of another type, or not what the name says."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_idx(tmp_path / name)


def write_pair(folder: Path, images: np.ndarray, labels: np.ndarray, suffix: str = "") -> None:
    """The two IDX files of MNIST or Fashion-MNIST."""
    for name, content in (("train-images-idx3-ubyte", idx(images)), ("train-labels-idx1-ubyte", idx(labels))):
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)


def same(one: LabeledImages, other: LabeledImages) -> None:
    """Both hold the same images and labels, of the same types."""
    assert one.images.dtype == other.images.dtype == np.uint8
    assert one.labels.dtype == other.labels.dtype == np.int64
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def error(kind: type[Exception], name: DataSet, source: Path | None) -> str:
    """The message of the error that loading raises, which is one line."""
    with pytest.raises(kind) as caught:
        load_data(name, source)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_of_side_28_are_padded(tmp_path: Path, name: DataSet, suffix: str) -> None:
    """Images of side 28 become images of side 32 with a black border; labels are integers."""
    write_pair(tmp_path, np.full((6, 28, 28), 9), np.arange(6), suffix)
    found = load_data(name, tmp_path)
    assert found.images.shape == (6, 32, 32)
    assert found.images.sum() == 9 * 6 * 28 * 28
    assert (found.images[:, 2:-2, 2:-2] == 9).all()
    assert found.labels.tolist() == list(range(6))
    assert found.labels.dtype == np.int64
    same(load_fashion_mnist(tmp_path), found)


@pytest.mark.parametrize(("name", "title"), [("fashion-mnist", "Fashion-MNIST"), ("mnist", "MNIST")])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((6, 8, 8)), np.arange(6)),
        (np.zeros((5, 28, 28)), np.arange(6)),
        (np.zeros((6, 784)), np.arange(6)),
        (np.zeros((6, 28, 28)), np.zeros((6, 1))),
        (np.zeros((6, 28, 28)), np.array(6)),
        (np.zeros((6, 28, 28)), np.arange(5, 11)),
        (np.zeros((0, 28, 28)), np.zeros(0)),
    ],
)
def test_other_data_sets_are_refused(
    tmp_path: Path, name: DataSet, title: str, images: np.ndarray, labels: np.ndarray
) -> None:
    """Images of another size, not one label for each, labels over 9, or no images at all."""
    write_pair(tmp_path, images, labels)
    message = error(ValueError, name, tmp_path)
    assert message == f"train-images-idx3-ubyte and train-labels-idx1-ubyte are not those of {title}"


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    """A file cut short is an error of the data set too."""
    write_pair(tmp_path, np.zeros((6, 28, 28)), np.arange(6), ".gz")
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-3])
    assert error(ValueError, "mnist", tmp_path) == "train-labels-idx1-ubyte.gz is not a whole gzip file"


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    """The error names the folder that was searched and where to take the data set from."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
    assert error(FileNotFoundError, "fashion-mnist", tmp_path) == (
        f"Fashion-MNIST not found in {tmp_path}; install Debian's package dataset-fashion-mnist "
        "or name the folder of its IDX files with --data"
    )
    assert error(FileNotFoundError, "mnist", tmp_path) == (
        f"MNIST not found in {tmp_path}; name the folder of its IDX files with --data"
    )
    for source in (tmp_path, tmp_path / "absent", tmp_path / "absent.tar.gz"):
        message = error(FileNotFoundError, "cifar10", source)
        assert message.startswith(f"CIFAR-10 not found in {source}; take the binary version")
        assert message.endswith("with --data")


@pytest.mark.parametrize(("name", "places"), [("mnist", MNIST_FOLDERS), ("cifar10", CIFAR10_FOLDERS)])
def test_the_usual_places_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: DataSet, places: tuple[Path, ...]
) -> None:
    """Without a source the error names all places, and files in the working directory's are found."""
    if any(place.exists() for place in places[:-1]):
        pytest.skip("the data set is installed here")
    monkeypatch.chdir(tmp_path)
    assert all(str(place) in error(FileNotFoundError, name, None) for place in places)
    places[-1].mkdir(parents=True)
    if name == "cifar10":
        write_archive(places[-1] / "cifar-10-binary.tar.gz", BATCHES)
    else:
        write_pair(places[-1], np.full((2, 28, 28), 5), np.arange(2))
    same(load_data(name, None), load_data(name, places[-1]))


@pytest.mark.skipif(not FASHION_MNIST_FOLDERS[0].exists(), reason="Debian's package is not installed")
def test_the_published_fashion_mnist_is_whole() -> None:
    """Debian's files have 60,000 images, 6,000 of each class."""
    found = load_data("fashion-mnist", None)
    assert found.images.shape == (60000, 32, 32)
    assert np.bincount(found.labels).tolist() == [6000] * 10


def batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A file of CIFAR-10's binary version: of each image the label, the red, the green and the blue plane."""
    return b"".join(
        bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, label in zip(images, labels, strict=True)
    )


def pictures(sizes: list[int], seed: int = 0) -> tuple[LabeledImages, dict[str, bytes]]:
    """Random pictures, and the five files with so many of them each."""
    rng = np.random.default_rng(seed)
    data = LabeledImages(rng.integers(0, 256, (sum(sizes), 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, sum(sizes)))
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(np.split(data.images, cuts), np.split(data.labels, cuts), strict=True)
    return data, {f"data_batch_{n}.bin": batch(*part) for n, part in enumerate(parts, start=1)}


def write_archive(file: Path, contents: dict[str, bytes], folder: str = "cifar-10-batches-bin/") -> None:
    """A gzip-compressed tar file of these files in this order."""
    with tarfile.open(file, "w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def write_folder(folder: Path, contents: dict[str, bytes]) -> None:
    """These files in a new folder."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


PICTURES, BATCHES = pictures([2, 1, 1, 3, 1])
OTHERS = {"batches.meta.txt": b"airplane\nautomobile\n", "test_batch.bin": b"\0" * 3073, "readme.html": b""}


@given(
    sizes=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
    order=st.permutations([*CIFAR10_BATCHES, *OTHERS]),
    prefix=st.sampled_from(["cifar-10-batches-bin/", "./cifar-10-batches-bin/", ""]),
)
def test_cifar10_is_read_from_an_archive_or_a_folder(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, order: list[str], prefix: str
) -> None:
    """The planes become colours, whatever the order of the files in the archive and wherever they lie."""
    data, batches = pictures(sizes, seed)
    contents = {name: (batches | OTHERS)[name] for name in order}
    packed, unpacked = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("unpacked")
    write_archive(packed / "cifar-10-binary.tar.gz", contents, prefix)
    write_folder(unpacked / "cifar-10-batches-bin", contents)
    for source in (packed, packed / "cifar-10-binary.tar.gz", unpacked, unpacked / "cifar-10-batches-bin"):
        same(load_data("cifar10", source), data)


def test_archives_are_not_unpacked_to_disk(tmp_path: Path) -> None:
    """After loading there is nothing in the folder but the archive."""
    write_archive(tmp_path / "cifar-10-binary.tar.gz", BATCHES)
    load_data("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "holds no data_batch_4.bin"),
        (b"", "has 0 bytes"),
        (BATCHES["data_batch_4.bin"][:-1], "has 9218 bytes, not whole records of 3073"),
        (BATCHES["data_batch_4.bin"] + b"\0", "has 9220 bytes, not whole records of 3073"),
        (b"\x0a" + BATCHES["data_batch_4.bin"][1:], "has a label 10"),
        (BATCHES["data_batch_4.bin"][:-3073] + b"\xff" * 3073, "has a label 255"),
    ],
)
def test_damaged_batches_are_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """A file that is missing, empty, cut short, too long or of other labels is named with its folder or archive."""
    contents = {name: raw for name, raw in (BATCHES | {"data_batch_4.bin": content}).items() if raw is not None}
    folder, archive = tmp_path / "cifar-10-batches-bin", tmp_path / "other.tar.gz"
    write_folder(folder, contents)
    write_archive(archive, contents)
    for source in (folder, archive):
        message = error(ValueError, "cifar10", source)
        assert complaint in message
        assert "data_batch_4.bin" in message
        assert str(source) in message


def test_archives_of_something_else_are_refused(tmp_path: Path) -> None:
    """No archive, one that is not compressed, one without the files, and one with links in their place."""
    file = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as tar:
        for name in CIFAR10_BATCHES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    write_archive(tmp_path / "empty.tar.gz", {})
    write_archive(tmp_path / "others.tar.gz", OTHERS)
    plain = gzip.decompress((tmp_path / "others.tar.gz").read_bytes())
    for content in (b"", b"hello", plain, gzip.compress(b""), gzip.compress(b"hello" * 999)):
        file.write_bytes(content)
        assert error(ValueError, "cifar10", tmp_path) == f"{file} is not a whole tar.gz file"
    for name in ("links.tar.gz", "empty.tar.gz", "others.tar.gz"):
        assert "holds no data_batch_1.bin" in error(ValueError, "cifar10", tmp_path / name)


@given(data=st.data())
def test_damaged_archives_are_refused_or_read_right(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever byte is changed and wherever the file ends, no wrong image comes out."""
    file = tmp_path_factory.mktemp("damaged") / "cifar-10-binary.tar.gz"
    write_archive(file, BATCHES)
    raw = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] = data.draw(st.integers(0, 255))
    else:
        del raw[place:]
    file.write_bytes(raw)
    with contextlib.suppress(ValueError):
        same(load_data("cifar10", file), PICTURES)


def test_a_spoilt_compressed_stream_is_refused(tmp_path: Path) -> None:
    """Damage that the decompressor itself stumbles over, in the middle of an image, is an error like any other."""
    file = tmp_path / "cifar-10-binary.tar.gz"
    few_values = np.random.default_rng(0).integers(0, 7, 40 * 3073, np.uint8)  # so that gzip has something to compress
    write_archive(file, BATCHES | {"data_batch_1.bin": few_values.tobytes()})
    raw = file.read_bytes()
    for place in range(100, len(raw), len(raw) // 30):
        file.write_bytes(raw[:place] + bytes(255 - byte for byte in raw[place:]))
        assert error(ValueError, "cifar10", file) == f"{file} is not a whole tar.gz file"


@given(data=st.data())
def test_archives_cut_short_before_compression_are_refused_or_read_right(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A whole gzip file of a part of a tar file gives all images or none."""
    file = tmp_path_factory.mktemp("cut") / "cifar-10-binary.tar.gz"
    write_archive(file, BATCHES)
    plain = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(plain[: data.draw(st.integers(0, len(plain)))]))
    with contextlib.suppress(ValueError):
        same(load_data("cifar10", file), PICTURES)


class Trap:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_pickles_are_refused(tmp_path: Path) -> None:
    """CIFAR-10's python version, packed or not, is not read; the error tells which version to take."""
    trap = {"data_batch_1": pickle.dumps(Trap(tmp_path / "sprung"))}
    (tmp_path / "packed").mkdir()
    write_archive(tmp_path / "packed/cifar-10-python.tar.gz", trap, "cifar-10-batches-py/")
    write_folder(tmp_path / "unpacked/cifar-10-batches-py", trap)
    for source, found in (
        ("packed", "packed/cifar-10-python.tar.gz"),
        ("packed/cifar-10-python.tar.gz", "packed/cifar-10-python.tar.gz"),
        ("unpacked", "unpacked/cifar-10-batches-py/data_batch_1"),
        ("unpacked/cifar-10-batches-py", "unpacked/cifar-10-batches-py/data_batch_1"),
        ("unpacked/cifar-10-batches-py/data_batch_1", "unpacked/cifar-10-batches-py/data_batch_1"),
    ):
        message = error(ValueError, "cifar10", tmp_path / source)
        assert message.startswith(f"{tmp_path / found} is of CIFAR-10's python version, and pickles are not read; ")
        assert "take the binary version, cifar-10-binary.tar.gz" in message
    assert not (tmp_path / "sprung").exists()


def test_the_binary_version_is_taken_where_both_are(tmp_path: Path) -> None:
    """Pickles beside the binary version do no harm."""
    write_folder(tmp_path / "cifar-10-batches-py", {"data_batch_1": b"pickled"})
    write_archive(tmp_path / "cifar-10-binary.tar.gz", BATCHES)
    same(load_data("cifar10", tmp_path), PICTURES)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """1,797 images of side 8, whose 17 greys are spread over 0..255; a source is refused."""
    found = load_data("digits", None)
    digits = load_digits()
    assert found.images.shape == (1797, 8, 8)
    assert set(np.unique(found.images)) == {round(grey * 255 / 16) for grey in range(17)}
    same(LabeledImages(np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64)), found)
    assert (
        error(ValueError, "digits", tmp_path) == "digits come with scikit-learn; --data goes with the other data sets"
    )


@given(shape=st.sampled_from([(3, 6, 4), (3, 6, 4, 3), (1, 1, 1), (2, 5, 3, 3)]), data=st.data())
def test_own_images_are_read_from_files_or_an_archive(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Grey images come without channels and colour images with three, in the order of the names, all of class 0."""
    images = data.draw(arrays(np.uint8, shape))
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    np.savez(folder / "images.npz", images=images)
    for source in (folder, folder / "images.npz"):
        same(load_data("folder", source), LabeledImages(images, np.zeros(len(images), dtype=np.int64)))


def test_own_images_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Without a path, with nothing there, an empty folder, images of several sizes, or a broken one."""
    assert "--data" in error(ValueError, "folder", None)
    assert "absent" in error(NotFound, "folder", tmp_path / "absent")
    assert "holds no images" in error(InvalidInput, "folder", tmp_path)
    for side in (4, 5):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    assert "2 sizes" in error(InvalidInput, "folder", tmp_path)
    (tmp_path / "4.png").write_bytes(b"hello")
    assert "4.png" in error(InvalidInput, "folder", tmp_path)


def test_the_names_are_those_that_can_be_loaded() -> None:
    """The tuple lists the five names in a fixed order."""
    assert DATA_SETS == ("digits", "fashion-mnist", "mnist", "cifar10", "folder")
