"""Reference sets: search, files, damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit import demo
from audit.errors import BrokenReference, InvalidInput, NotFound
from audit.reference.clip import ClipEmbedder
from audit.reference.folder import read_manifest
from audit.reference.reference_set import ReferenceSet
from tests.mutations import reconfigured, run

CLIP = f"local-dir:{demo.FOLDER / 'clip'}"


@pytest.fixture(scope="module")
def embedder() -> ClipEmbedder:
    """The demo's open_clip model."""
    return ClipEmbedder(CLIP)


@pytest.fixture(scope="module")
def images(reference: ReferenceSet) -> np.ndarray:
    """Sixty of the demo's training images, all different."""
    return np.unique(np.asarray(reference.images), axis=0)[:60]


def make(images: np.ndarray, **options: object) -> ReferenceSet:
    """A complete set of them."""
    captions = [f"image {i}" for i in range(len(images))]
    return ReferenceSet("made", images, captions, **{"complete": True, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray, embedder: ClipEmbedder) -> Path:
    """A set of eight images on disk."""
    folder = tmp_path_factory.mktemp("saved") / "set"
    make(images[:8], embedder=embedder).save(folder)
    return folder


@pytest.mark.parametrize("queries", [1, 7, 60])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_search_is_brute_force(images: np.ndarray, queries: int, k: int) -> None:
    """FAISS gives the same neighbours and distances as all pairs do, however many queries there are."""
    made = make(images)
    asked = made.reference_images(list(range(queries))) + 0.05 * torch.randn(queries, 1, 32, 32)
    distances, indices = made.search_pixels(asked, k)
    every = torch.cdist(
        made.vectors(asked).double(),
        made.vectors(made.reference_images(list(range(60)))).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).numpy()
    assert distances.shape == indices.shape == (queries, k)
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :k], atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(every, indices, 1), distances, atol=1e-3)
    assert (indices[:, 0] == np.arange(queries)).all()


def test_a_search_for_more_than_there_is_gives_all(images: np.ndarray) -> None:
    """K is cut to the size of the set."""
    made = make(images[:3])
    assert made.search_pixels(made.reference_images([0, 1]), 10)[1].shape == (2, 3)


def test_clip_search_finds_an_image_itself(images: np.ndarray, embedder: ClipEmbedder) -> None:
    """Cosine similarities are in order, at most 1, and an image is its own nearest; half precision stores them."""
    made = make(images, embedder=embedder)
    found = made.search_embedded(made.reference_images([4, 9]), 60)
    assert found is not None
    similarities, indices = found
    np.testing.assert_allclose(similarities[:, 0], 1, atol=2e-3)
    assert (np.diff(similarities, axis=1) <= 1e-6).all()
    embedded = embedder(made.reference_images(list(range(60))))
    np.testing.assert_allclose(similarities[0], (embedded[indices[0]] @ embedded[4]).numpy(), atol=2e-3)


def test_without_an_embedder_there_are_no_clip_neighbours(images: np.ndarray) -> None:
    """Pixels alone are searched."""
    made = make(images)
    assert made.search_embedded(made.reference_images([0]), 1) is None


def test_what_is_saved_is_loaded(tmp_path: Path, images: np.ndarray, embedder: ClipEmbedder) -> None:
    """Images, captions, completeness, digest and neighbours survive the folder, with and without CLIP."""
    for name, options in (("plain", {}), ("clip", {"embedder": embedder}), ("part", {"complete": False})):
        made = make(images, **options)
        made.save(tmp_path / name)
        loaded = ReferenceSet.load(tmp_path / name)
        assert (loaded.name, loaded.digest, loaded.complete) == ("made", made.digest, made.complete)
        assert loaded.captions == made.captions
        np.testing.assert_array_equal(loaded.images, images)
        asked = made.reference_images([5])
        for a, b in zip(made.search_pixels(asked, 3), loaded.search_pixels(asked, 3), strict=True):
            np.testing.assert_array_equal(a, b)
        if "embedder" in options:
            ours, theirs = made.search_embedded(asked, 3), loaded.search_embedded(asked, 3)
            assert ours is not None
            assert theirs is not None
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)


def test_completeness_is_part_of_the_identity(images: np.ndarray) -> None:
    """The same images declared partial are another set, and other images are another set."""
    assert make(images).digest != make(images, complete=False).digest
    assert make(images).digest != make(images[:-1]).digest
    assert make(images).digest == make(images.copy()).digest


def test_saving_again_replaces_and_finishes(tmp_path: Path, images: np.ndarray) -> None:
    """A set is replaced, also one whose writing was cut short; anything else is left alone."""
    folder = tmp_path / "set"
    make(images).save(folder)
    make(images[:5]).save(folder)
    assert len(ReferenceSet.load(folder)) == 5
    (folder / "reference.json").unlink()
    with pytest.raises(NotFound):
        ReferenceSet.load(folder)
    make(images[:7]).save(folder)
    assert len(ReferenceSet.load(folder)) == 7
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    for taken in (other, file):
        with pytest.raises(InvalidInput) as caught:
            make(images).save(taken)
        assert caught.value.reason == "FOLDER_IN_USE"
    assert (other / "thesis.txt").read_text() == file.read_text() == "precious"


def test_set_and_embedder_move_together(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedder is found relative to the set, from any working directory."""
    shutil.copytree(demo.FOLDER / "clip", tmp_path / "before" / "clip")
    monkeypatch.chdir(tmp_path / "before")
    make(images[:4], embedder=ClipEmbedder("local-dir:clip")).save(Path("set"))
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    loaded = ReferenceSet.load(Path("after/set"))
    assert loaded.search_embedded(loaded.reference_images([0]), 1) is not None


def _edit(folder: Path, **changes: object) -> None:
    """Other values in a manifest whose checksum is right."""
    file = folder / "reference.json"
    content = {**json.loads(file.read_text()), **changes}
    del content["checksum"]
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(content))


def _tamper(folder: Path) -> None:
    file = folder / "reference.json"
    file.write_text(file.read_text().replace('"complete": true', '"complete": false'))


def _inside(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"segments/*/{name}")
    return found


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _link_out(file: Path) -> None:
    outside = file.rename(file.parents[3] / "outside")
    file.symlink_to(outside)


FILES = ("images.npz", "embedded-0.npy", "digests.npy", "metadata.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        _tamper,
        lambda folder: _edit(folder, format=3),
        lambda folder: _edit(folder, format="2"),
        lambda folder: _edit(folder, surprise=1),
        lambda folder: _edit(folder, side=[16, 16]),
        lambda folder: _edit(folder, count=-1),
        lambda folder: _edit(folder, segments=[{"name": "../../../etc", "rows": 8, "files": {}}]),
        lambda folder: _edit(folder, embedders=[{"model": 3, "digest": "", "width": 64}]),
        lambda folder: _edit(folder, embedders=[{"model": "local-dir:../nowhere", "digest": "", "width": 64}]),
        lambda folder: _edit(
            folder,
            embedders=[{"model": f"local-dir:{os.path.relpath(demo.CLIP, folder)}", "digest": "x", "width": 64}],
        ),
        lambda folder: _cut(folder / "reference.json"),
        lambda folder: (folder / "reference.json").write_text("[]"),
        lambda folder: (folder / "reference.json").write_text("[" * 100_000),
        lambda folder: (folder / "reference.json").write_bytes(b"\xff"),
        *[lambda folder, name=name: _flip(_inside(folder, name)) for name in FILES],
        *[lambda folder, name=name: _cut(_inside(folder, name)) for name in FILES],
        *[lambda folder, name=name: _inside(folder, name).unlink() for name in FILES],
        lambda folder: _link_out(_inside(folder, "digests.npy")),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, saved: Path, damage: Callable[[Path], object]) -> None:
    """A folder that was tampered with, cut short, or is of another format is broken, and never half used."""
    folder = tmp_path / "set"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(BrokenReference) as caught:
        ReferenceSet.load(folder)
    assert (caught.value.reason, caught.value.field) == ("REFERENCE_DAMAGED", "reference")
    assert str(tmp_path) not in str(caught.value)


@run(100)
@given(data=st.data(), format=st.sampled_from([None, 1, 3, 4]))
def test_damaged_manifests_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, format: int | None
) -> None:
    """Whatever values are wrong or missing in a manifest, also its format's, a set is opened or refused."""
    folder = tmp_path_factory.mktemp("manifest")
    content = json.loads((demo.REFERENCE / "reference.json").read_text())
    del content["checksum"]
    changed = data.draw(reconfigured(content))
    if format is not None:
        changed["format"] = format
    checksum = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
    (folder / "reference.json").write_text(json.dumps({**changed, "checksum": checksum}))
    with contextlib.suppress(BrokenReference):
        assert read_manifest(folder).format == 2


def test_other_weights_of_the_embedder_are_noticed(tmp_path: Path, images: np.ndarray) -> None:
    """Embeddings of one model are never searched with another."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(demo.FOLDER / "clip", tmp_path / "clip")
    make(images[:4], embedder=ClipEmbedder(f"local-dir:{tmp_path / 'clip'}")).save(tmp_path / "set")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["visual.proj"] = weights["visual.proj"] + 1
    save_file(weights, file)
    with pytest.raises(BrokenReference, match="other weights"):
        ReferenceSet.load(tmp_path / "set")


@pytest.mark.parametrize("path", ["missing", "empty"])
def test_no_set_is_not_found(tmp_path: Path, path: str) -> None:
    """A folder without a description is none."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound) as caught:
        ReferenceSet.load(tmp_path / path)
    assert (caught.value.reason, caught.value.field) == ("REFERENCE_NOT_FOUND", "reference")


def test_the_demos_set_is_complete(reference: ReferenceSet) -> None:
    """It holds a training image for every caption of the truth table, and says that it is all there is."""
    assert reference.complete
    assert set(demo.prompts()) == set(reference.captions)
    assert reference.images.shape[1:] == (32, 32, 1)
