"""`basin reference build`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit import demo
from audit.reference.reference_set import ReferenceSet
from tests.cli.conftest import Basin, is_one_error


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five grey pictures, two of them deeper inside."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.jpg", "c.webp", "deeper/d.png", "deeper/e.PNG")):
        Image.fromarray(np.full((32, 32), 40 * index, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_folder_becomes_a_complete_set(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """All images below the folder are in, under their names."""
    result = basin("reference", "build", "--images", pictures, "--out", tmp_path / "set")

    built = ReferenceSet.load(tmp_path / "set")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"pictures: 5 images, complete, {built.digest}\n"
    assert built.captions == ["a.png", "b.jpg", "c.webp", "deeper/d.png", "deeper/e.PNG"]
    assert built.complete


def test_an_archive_becomes_a_partial_set_with_clip(basin: Basin, tmp_path: Path) -> None:
    """An .npz of colour images with captions, declared partial, named, and indexed by the demo's CLIP model."""
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, captions=[f"caption {index}" for index in range(6)])

    result = basin(
        "reference", "build", "--images", tmp_path / "images.npz", "--out", tmp_path / "set", "--partial",
        "--name", "some", "--clip", f"local-dir:{demo.FOLDER / 'clip'}",
    )  # fmt: skip

    built = ReferenceSet.load(tmp_path / "set")
    assert result.code == 0
    assert (built.name, built.complete, len(built), built.captions[2]) == ("some", False, 6, "caption 2")
    found = built.search_clip(built.reference_images([3]), 1)
    assert found is not None
    assert found[1][0, 0] == 3


def test_bad_images_are_one_line(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """Each way that images can be wrong is said in one line."""
    empty, mixed, fake = (tmp_path / name for name in ("empty", "mixed", "fake"))
    for folder in (empty, mixed, fake):
        folder.mkdir()
    for side in (16, 32):
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(mixed / f"{side}.png")
    (fake / "fake.png").write_bytes(b"not an image")
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 8, 8)))
    np.savez(tmp_path / "nameless.npz", pictures=np.zeros((2, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}], dtype=object))
    (tmp_path / "file").write_text("in the way")

    for source, out, words in (
        (tmp_path / "missing", "set", ["missing"]),
        (empty, "set", ["empty", "no images"]),
        (mixed, "set", ["mixed", "2 sizes"]),
        (fake, "set", ["fake.png"]),
        (tmp_path / "floats.npz", "set", ["uint8"]),
        (tmp_path / "nameless.npz", "set", ["images"]),
        (tmp_path / "objects.npz", "set", ["objects.npz"]),
        (pictures, "pictures", ["no reference set"]),
        (pictures, "file", ["file"]),
    ):
        assert is_one_error(basin("reference", "build", "--images", source, "--out", tmp_path / out), *words)
    for clip in ("ViT-B-32", "local-dir:/nowhere", f"bogus@{tmp_path / 'file'}"):
        result = basin("reference", "build", "--images", pictures, "--out", tmp_path / "set", "--clip", clip)
        assert is_one_error(result, "CLIP")
    assert not (tmp_path / "set").exists()
