"""`basin reference`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit import demo
from audit.reference.reference_set import ReferenceSet
from tests.cli.conftest import Basin, is_one_error

CLIP = f"local-dir:{demo.CLIP}"


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
    again = basin("reference", "build", "--images", pictures, "--out", tmp_path / "set")
    assert (again.code, again.out) == (0, result.out)


def test_an_archive_becomes_a_partial_set_with_clip(basin: Basin, tmp_path: Path) -> None:
    """An .npz of colour images with captions, declared partial, named, and indexed by the demo's CLIP model."""
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, captions=[f"caption {index}" for index in range(6)])

    result = basin(
        "reference", "build", "--images", tmp_path / "images.npz", "--out", tmp_path / "set", "--partial",
        "--name", "some", "--embedder", CLIP,
    )  # fmt: skip

    built = ReferenceSet.load(tmp_path / "set")
    assert result.code == 0
    assert (built.name, built.complete, len(built), built.captions[2]) == ("some", False, 6, "caption 2")
    found = built.search_embedded(built.reference_images([3]), 1)
    assert found is not None
    assert found[1][0, 0] == 3


def test_bad_images_are_one_line(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """Each way that images can be wrong is said in one line, and leaves nothing behind."""
    empty, mixed, fake = (tmp_path / name for name in ("empty", "mixed", "fake"))
    for folder in (empty, mixed, fake):
        folder.mkdir()
    for side in (16, 32):
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(mixed / f"{side}.png")
    (fake / "fake.png").write_bytes(b"not an image")
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 8, 8)))
    np.savez(tmp_path / "nameless.npz", pictures=np.zeros((2, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}], dtype=object))
    np.save(tmp_path / "vectors.npy", np.ones((3, 64), np.float32))
    (tmp_path / "file").write_text("in the way")

    for source, out, words in (
        (tmp_path / "missing", "set", ["missing"]),
        (empty, "set", ["empty", "no images"]),
        (mixed, "set", ["mixed", "several sizes", "16×16, 32×32"]),
        (fake, "set", ["fake.png"]),
        (tmp_path / "floats.npz", "set", ["uint8"]),
        (tmp_path / "nameless.npz", "set", ["images"]),
        (tmp_path / "objects.npz", "set", ["objects.npz"]),
        (tmp_path / "vectors.npy", "set", ["needs the embedder"]),
        (tmp_path / "file", "set", ["no source"]),
        (pictures, "pictures", ["no reference set"]),
        (pictures, "file", ["file"]),
    ):
        assert is_one_error(basin("reference", "build", "--images", source, "--out", tmp_path / out), *words)
    for flags, words in (
        (("--embedder", "ViT-B-32"), ["embedder"]),
        (("--embedder", "local-dir:/nowhere"), ["nowhere"]),
        (("--embedder", f"bogus@{tmp_path / 'file'}"), ["bogus"]),
        (("--no-images",), ["embedder"]),
        (("--near-duplicates", "0.9"), ["embedder"]),
        (("--size", "0"), ["size"]),
        (("--size", "99999"), ["size"]),
    ):
        result = basin("reference", "build", "--images", pictures, "--out", tmp_path / "set", *flags)
        assert is_one_error(result, *words)
    assert not (tmp_path / "set").exists()


def test_a_set_is_kept_up(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """Added to, taken from, merged with another and compacted; every step says what is in it now."""
    folder, more = tmp_path / "set", tmp_path / "more"
    more.mkdir()
    for name, value in (("new.png", 250), ("same.png", 0)):
        Image.fromarray(np.full((32, 32), value, dtype=np.uint8)).save(more / name)
    (more / "cut.png").write_bytes((more / "new.png").read_bytes()[:40])

    basin("reference", "build", "--images", pictures, "--out", folder)
    added = basin("reference", "add", folder, "--images", more)
    assert added.out.startswith("pictures: 6 images, 1 more could not be read, 1 duplicates, partial, sha256:")
    listed = json.loads(basin("reference", "info", folder, "--check", "--left-out", "--format", "json").out)
    assert (listed["images"], listed["extent"], listed["duplicates"], listed["unreadable"]) == (6, "partial", 1, 1)
    assert [(entry["key"], entry["same_as"]) for entry in listed["left_out"]] == [("cut.png", None), ("same.png", 0)]

    removed = basin("reference", "remove", folder, "--index", "1", "--key", "c.webp")
    assert removed.out.startswith("pictures: 4 images")
    compacted = basin("reference", "compact", folder)
    assert compacted.out == removed.out
    assert ReferenceSet.load(folder).captions == ["a.png", "deeper/d.png", "deeper/e.PNG", "new.png"]

    basin("reference", "build", "--images", pictures, "--out", tmp_path / "other", "--partial")
    merged = basin("reference", "merge", folder, tmp_path / "other")
    assert merged.out.startswith("pictures: 6 images")
    shown = basin("reference", "info", folder).out
    assert all(word in shown for word in ("pictures", "32×32", "partial", "sha256:"))


def test_a_set_is_searched(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """By an image in pixels and by embedding, and by words."""
    folder = tmp_path / "set"
    basin("reference", "build", "--images", pictures, "--out", folder, "--embedder", CLIP)

    lines = basin("reference", "search", folder, pictures / "c.webp", "--limit", "2", "--format", "json").out
    hits = [json.loads(line) for line in lines.splitlines()]
    assert [hit["by"] for hit in hits] == ["pixels"] * 2 + ["local-dir:clip"] * 2
    assert (hits[0]["key"], hits[0]["copies"]) == ("c.webp", 1)
    assert hits[0]["distance"] <= hits[1]["distance"]
    assert hits[2]["similarity"] == pytest.approx(1, abs=1e-2)
    assert "c.webp" in basin("reference", "search", folder, pictures / "c.webp").out
    words = basin("reference", "search", folder, "--prompt", "a coral velvet shirt", "--format", "json").out
    assert len(words.splitlines()) == 5
    assert all(-1 <= json.loads(line)["similarity"] <= 1 for line in words.splitlines())


def test_bad_upkeep_is_one_line(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """What is not there, does not go together or is no image; the set stays as it is."""
    folder, other, large = tmp_path / "set", tmp_path / "other", tmp_path / "large"
    for out, flags in ((folder, ()), (other, ("--embedder", CLIP)), (large, ("--size", "48"))):
        basin("reference", "build", "--images", pictures, "--out", out, *flags)
    before = (folder / "reference.json").read_bytes()

    for arguments, words in (
        (("add", tmp_path / "nowhere", "--images", pictures), ["nowhere"]),
        (("add", folder, "--images", tmp_path / "nowhere"), ["nowhere"]),
        (("remove", folder), ["--index"]),
        (("remove", folder, "--index", "5"), ["no image 5"]),
        (("remove", folder, "--index", "-1"), ["no image -1"]),
        (("remove", folder, "--key", "z.png"), ["z.png"]),
        (("remove", folder, *(flag for n in range(5) for flag in ("--index", n))), ["empty"]),
        (("merge", folder, other), ["embedders"]),
        (("merge", folder, large), ["size"]),
        (("merge", folder, tmp_path), ["no reference set"]),
        (("compact", tmp_path), ["no reference set"]),
        (("info", tmp_path), ["no reference set"]),
        (("search", folder), ["--prompt"]),
        (("search", folder, "--prompt", "words"), ["CLIP"]),
        (("search", folder, tmp_path / "nowhere.png"), ["nowhere.png"]),
        (("search", folder, folder / "reference.json"), ["not a readable image"]),
    ):
        assert is_one_error(basin("reference", *arguments), *words)
    assert (folder / "reference.json").read_bytes() == before


def test_a_set_is_published(basin: Basin, pictures: Path, tmp_path: Path) -> None:
    """To a database, from which the same commands search it; and what is wrong is one line."""
    basin("reference", "build", "--images", pictures, "--out", tmp_path / "set", "--embedder", CLIP)
    result = basin("reference", "publish", tmp_path / "set", f"lancedb:{tmp_path}/database", "--out", tmp_path / "out")
    assert (result.code, result.out.startswith("pictures: 5 images, complete, sha256:")) == (0, True)
    found = basin("reference", "search", tmp_path / "out", pictures / "b.jpg", "--format", "json")
    assert json.loads(found.out.splitlines()[0])["key"] == "b.jpg"
    facts = json.loads(basin("reference", "info", tmp_path / "out", "--format", "json").out)
    assert (facts["images"], facts["size"]) == (5, "not kept")
    for arguments, words in (
        (("publish", tmp_path / "set", "milvus:x", "--out", tmp_path / "other"), ["lancedb:"]),
        (("publish", tmp_path / "out", f"lancedb:{tmp_path}/x", "--out", tmp_path / "other"), ["cannot be published"]),
        (("add", tmp_path / "out", "--images", pictures), ["published from"]),
        (("compact", tmp_path / "out"), ["published from"]),
    ):
        assert is_one_error(basin("reference", *arguments), *words)
