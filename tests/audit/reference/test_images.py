"""Reading, converting and comparing images."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from audit.errors import InvalidInput, NotFound
from audit.reference import images as module
from audit.reference.images import (
    IMAGE_FORMATS,
    encode_png,
    in_chunks,
    pixel_vectors,
    read_image,
    read_images,
    to_bytes,
    to_float,
    with_channels,
)
from tests.mutations import mutated, run

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def png(pixels: np.ndarray, **options: object) -> bytes:
    """A PNG file of an array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_grey_stays_grey_and_colour_stays_colour() -> None:
    """Lossless files come back as they were, without a channel that says nothing."""
    np.testing.assert_array_equal(read_image(png(GREY[0])), GREY[0])
    np.testing.assert_array_equal(read_image(png(COLOUR[0])), COLOUR[0])


def test_other_modes_become_grey_or_colour() -> None:
    """One-bit and grey with alpha become grey; palettes and alpha become colour."""
    for mode, shape in (("1", (6, 4)), ("LA", (6, 4)), ("P", (6, 4, 3)), ("RGBA", (6, 4, 3))):
        buffer = io.BytesIO()
        Image.fromarray(COLOUR[0]).convert(mode).save(buffer, "PNG")
        assert read_image(buffer.getvalue()).shape == shape


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    """The upper byte of a 16-bit value is its 8-bit value."""
    deep = (GREY[0].astype(np.uint16) << 8) + 17
    np.testing.assert_array_equal(read_image(png(deep)), GREY[0])


@pytest.mark.parametrize("raw", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", png(GREY[0])[:-30], png(GREY[0])[:30]])
def test_what_is_no_image_is_refused(raw: bytes) -> None:
    """Bytes of no image, of a format that starts other programs, or cut short are a clear error."""
    with pytest.raises(InvalidInput) as caught:
        read_image(raw)
    assert (caught.value.reason, caught.value.field) == ("IMAGE_UNREADABLE", "image")


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_images_never_raise_anything_else(data: st.DataObject) -> None:
    """Whatever bytes are changed or missing, an image is read or refused."""
    raw = bytearray(png(data.draw(st.sampled_from([GREY[0], COLOUR[0]]))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInput):
        assert read_image(bytes(raw[: data.draw(st.integers(0, len(raw)))])).dtype == np.uint8


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on what the header promises."""
    monkeypatch.setattr(module, "MAX_PIXELS", 23)
    with pytest.raises(InvalidInput) as caught:
        read_image(png(GREY[0])[:60])
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    """Folders are searched recursively; other files are left alone; names become captions."""
    (tmp_path / "b").mkdir()
    for name, pixels in (("c.png", GREY[0]), ("a.PNG", GREY[1]), ("b/x.png", GREY[2])):
        (tmp_path / name).write_bytes(png(pixels))
    (tmp_path / "notes.txt").write_text("hello")
    images, captions = read_images(tmp_path)
    assert captions == ["a.PNG", "b/x.png", "c.png"]
    np.testing.assert_array_equal(images, GREY[[1, 2, 0]][..., None])


def test_grey_among_colour_becomes_colour(tmp_path: Path) -> None:
    """A folder of mixed modes is a colour set, grey repeated."""
    (tmp_path / "a.png").write_bytes(png(GREY[0]))
    (tmp_path / "b.png").write_bytes(png(COLOUR[0]))
    images, _ = read_images(tmp_path)
    assert images.shape == (2, 6, 4, 3)
    np.testing.assert_array_equal(images[0], np.repeat(GREY[0][..., None], 3, axis=-1))


def test_folders_without_images_or_of_several_sizes_are_refused(tmp_path: Path) -> None:
    """Nothing to read, several sizes, or a file that is no image: each its reason."""
    with pytest.raises(NotFound):
        read_images(tmp_path / "missing")
    with pytest.raises(InvalidInput) as caught:
        read_images(tmp_path)
    assert caught.value.reason == "IMAGES_EMPTY"
    (tmp_path / "a.png").write_bytes(png(GREY[0]))
    (tmp_path / "b.png").write_bytes(png(GREY[0, :4]))
    with pytest.raises(InvalidInput) as caught:
        read_images(tmp_path)
    assert caught.value.reason == "IMAGES_MIXED_SIZES"
    assert "4×4" in str(caught.value)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match=r"b\.png"):
        read_images(tmp_path)


@pytest.mark.parametrize("images", [GREY, COLOUR])
def test_archives_are_read(tmp_path: Path, images: np.ndarray) -> None:
    """Grey archives gain a channel; captions are read where there are some."""
    np.savez(tmp_path / "a.npz", images=images)
    found, captions = read_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, images if images.ndim == 4 else images[..., None])
    assert captions == [""] * 5
    np.savez_compressed(tmp_path / "b.npz", images=images, captions=np.array(list("abcde")))
    assert read_images(tmp_path / "b.npz")[1] == list("abcde")


@pytest.mark.parametrize(
    "arrays_of",
    [
        {"images": GREY.astype(np.float32)},
        {"images": GREY[0]},
        {"images": GREY[:0]},
        {"images": np.repeat(COLOUR[..., :1], 4, axis=-1)},
        {"images": np.uint8(3)},
        {"images": np.array([object()])},
        {"pictures": GREY},
        {"images": GREY, "captions": np.array(["one"])},
        {"images": GREY, "captions": np.array("one")},
        {"images": GREY, "captions": np.array([{}] * 5, dtype=object)},
    ],
)
def test_archives_of_the_wrong_kind_are_refused(tmp_path: Path, arrays_of: dict[str, np.ndarray]) -> None:
    """Wrong names, types, shapes, counts, or pickled objects."""
    np.savez(tmp_path / "a.npz", **arrays_of)
    with pytest.raises(InvalidInput) as caught:
        read_images(tmp_path / "a.npz")
    assert caught.value.field == "images"


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_archives_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are changed or missing, an archive is read or refused."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=GREY)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("archive") / "a.npz"
    file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(InvalidInput):
        assert read_images(file)[0].dtype == np.uint8


def test_a_bare_array_is_no_archive(tmp_path: Path) -> None:
    """A .npy file under the name of an archive is refused."""
    with (tmp_path / "a.npz").open("wb") as stream:
        np.save(stream, GREY)
    with pytest.raises(InvalidInput):
        read_images(tmp_path / "a.npz")


@given(images=arrays(np.uint8, (2, 3, 4, 3)))
def test_bytes_survive_floats(images: np.ndarray) -> None:
    """uint8 → [-1, 1] → uint8 changes nothing."""
    floats = to_float(images)
    assert floats.shape == (2, 3, 3, 4)
    assert float(floats.abs().max()) <= 1
    np.testing.assert_array_equal(to_bytes(floats), images)


@pytest.mark.parametrize("image", [GREY[0][..., None], COLOUR[0]])
def test_png_files_keep_every_pixel(image: np.ndarray) -> None:
    """What is encoded is read back."""
    found = read_image(encode_png(image))
    np.testing.assert_array_equal(found.reshape(image.shape), image)


def test_channels_are_repeated_or_averaged() -> None:
    """Grey to colour repeats, colour to grey averages, and the same number changes nothing."""
    grey, colour = torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3, 3)
    assert torch.equal(with_channels(grey, 3)[:, 2], grey[:, 0])
    torch.testing.assert_close(with_channels(colour, 1)[:, 0], colour.mean(1))
    assert with_channels(colour, 3) is colour


def test_pixel_vectors_have_the_references_size() -> None:
    """Small images keep their pixels; large ones are averaged down to the side; distances are ℓ2."""
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    vectors = pixel_vectors(images, 1, (32, 32))
    assert torch.equal(vectors, images.flatten(1))
    assert pixel_vectors(images, 3, (32, 32)).shape == (2, 3 * 32 * 32)
    large = pixel_vectors(torch.ones(1, 3, 256, 128), 3, (256, 128))
    assert large.shape == (1, 3 * 64 * 32)
    torch.testing.assert_close(large, torch.ones_like(large))
    assert pixel_vectors(torch.rand(1, 1, 64, 64), 1, (16, 16)).shape == (1, 256)


@given(total=st.integers(0, 50), size=st.integers(1, 20))
def test_chunks_cover_everything_once(total: int, size: int) -> None:
    """Consecutive slices, none larger than asked for, none empty."""
    chunks = [list(range(total))[part] for part in in_chunks(total, size)]
    assert [item for chunk in chunks for item in chunk] == list(range(total))
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_damaged_files(kind: str, mode: str) -> None:
    """Whatever was done to a file, it is an image, or is refused in our own words."""
    if kind == "WEBP" and mode == "P":
        mode = "RGBA"
    if kind == "JPEG" and mode == "P":
        mode = "CMYK"
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (24, 16, 3), dtype=np.uint8)).convert(mode).save(buffer, kind)

    @run(60)
    @given(mutated(buffer.getvalue()))
    def check(content: bytes) -> None:
        with contextlib.suppress(InvalidInput):
            assert read_image(content).dtype == np.uint8

    check()
