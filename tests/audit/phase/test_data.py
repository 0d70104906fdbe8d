"""IDX files and Fashion-MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from audit.phase.data import load_fashion_mnist, read_idx


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
PACKED = gzip.compress(WHOLE)


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


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_padded(tmp_path: Path, suffix: str) -> None:
    """Images of side 28 become images of side 32 with a black border; labels are integers."""
    images = np.full((6, 28, 28), 9)
    for name, content in (("train-images-idx3-ubyte", idx(images)), ("train-labels-idx1-ubyte", idx(np.arange(6)))):
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    found = load_fashion_mnist(tmp_path)
    assert found.images.shape == (6, 32, 32)
    assert found.images.sum() == 9 * 6 * 28 * 28
    assert (found.images[:, 2:-2, 2:-2] == 9).all()
    assert found.labels.tolist() == list(range(6))
    assert found.labels.dtype == np.int64


def test_other_data_sets_are_refused(tmp_path: Path) -> None:
    """Images of another size, or as many labels as there are not images."""
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(6)))
    for images in (np.zeros((6, 8, 8)), np.zeros((5, 28, 28)), np.zeros((6, 784))):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
        with pytest.raises(ValueError, match="not those of Fashion-MNIST"):
            load_fashion_mnist(tmp_path)


def test_missing_files_say_what_to_install(tmp_path: Path) -> None:
    """The error names the folder that was searched and Debian's package."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
