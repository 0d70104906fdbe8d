"""Building reference sets, adding to them, and going on after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from audit import demo
from audit.errors import InvalidInput, NotFound
from audit.reference import intake, upkeep
from audit.reference.build import add, build
from audit.reference.clip import ClipEmbedder
from audit.reference.contents import KnownContents
from audit.reference.manifest import PENDING, Options, SegmentInfo
from audit.reference.reference_set import Entry, ReferenceSet
from audit.reference.segments import Segment
from tests.mutations import run

CLIP = f"local-dir:{demo.CLIP}"
DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (40, 16, 16), dtype=np.uint8)


def saved(file: Path, images: np.ndarray = IMAGES) -> Path:
    """Images as a source."""
    np.save(file, images)
    return file


def test_a_set_is_built_from_a_folder_of_images(tmp_path: Path) -> None:
    """Name, completeness, captions, pixels and progress of a build; grey among colour becomes colour."""
    source = tmp_path / "pictures"
    source.mkdir()
    for index in range(3):
        Image.new("L", (32, 32), 80 * index).save(source / f"{index}.png")
    Image.new("RGB", (32, 32), (255, 0, 0)).save(source / "3.png")
    told: list[tuple[str, int, int | None]] = []
    built = build(source, tmp_path / "set", complete=False, embedders=[CLIP], progress=lambda *step: told.append(step))
    assert (built.name, built.complete, len(built)) == ("pictures", False, 4)
    assert built.images.shape == (4, 32, 32, 3)
    assert built.images[3, 0, 0].tolist() == [255, 0, 0]
    assert built.captions == ["0.png", "1.png", "2.png", "3.png"]
    assert told == [("embedding", 4, None)]
    found = built.search_embedded(built.reference_images([2]), 1)
    assert found is not None
    assert found[1].tolist() == [[2]]


def test_a_set_on_disk_is_the_set_in_memory(tmp_path: Path) -> None:
    """The same images have the same digest and the same neighbours, wherever they come from."""
    built = build(saved(tmp_path / "a.npy"), tmp_path / "set", embedders=[CLIP])
    captions = [""] * len(IMAGES)
    held = ReferenceSet("a", IMAGES[..., None], captions, complete=True, embedder=ClipEmbedder(CLIP))
    assert built.digest == held.digest
    asked = held.reference_images(range(5)) * 0.9
    for ours, theirs in zip(built.search_pixels(asked, 3), held.search_pixels(asked, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = built.search_embedded(asked, 3), held.search_embedded(asked, 3)
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-3)


def test_images_are_brought_to_a_size(tmp_path: Path) -> None:
    """Scaled to cover it and cut around the middle; thumbnails are kept where they are asked for."""
    source = tmp_path / "source"
    source.mkdir()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(source / "wide.png")
    Image.new("L", (7, 9), 50).save(source / "small.png")
    built = build(source, tmp_path / "set", options=Options(side=(20, 20), thumbnails=8))
    assert built.images.shape == (2, 20, 20, 3)
    assert (built.images[1] == 200).all()
    with pytest.raises(InvalidInput, match="several sizes"):
        build(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    bare = build(source, tmp_path / "bare", embedders=[CLIP], options=Options(images=False, thumbnails=8))
    assert not bare.has_images
    shown = bare.picture(1)
    assert shown is not None
    assert shown.shape == (8, 8, 3)
    asked = built.reference_images([0])
    assert bare.vectors(asked).shape == (1, 1200)
    for refused in (lambda: bare.images, lambda: bare.search_pixels(asked, 1)):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.reason == "REFERENCE_WITHOUT_IMAGES"


def test_same_images_become_one_and_are_counted(tmp_path: Path) -> None:
    """Exact copies are found whatever they are called, also those that are added later; they can be kept instead."""
    doubled = np.concatenate([IMAGES[:6], IMAGES[2:4], IMAGES[2:3]])
    source = saved(tmp_path / "a.npy", doubled)
    built = build(source, tmp_path / "set")
    assert (len(built), built.manifest.duplicates) == (6, 3)
    assert [entry.copies for entry in built.entries(range(6))] == [1, 1, 3, 2, 1, 1]
    grown = add(tmp_path / "set", saved(tmp_path / "b.npy", IMAGES[5:8]))
    assert (len(grown), grown.manifest.duplicates) == (8, 4)
    assert grown.entries([5]) == [Entry(key="a/5", caption="", url="", copies=2)]
    kept = build(source, tmp_path / "kept", options=Options(deduplicate=False))
    assert (len(kept), kept.manifest.duplicates) == (9, 0)


def test_nearly_the_same_images_become_one_where_asked(tmp_path: Path) -> None:
    """By cosine similarity of the embedder: the first stays, the others are counted with it."""
    images = np.asarray(ReferenceSet.load(demo.REFERENCE).images[:30, ..., 0])
    images = np.unique(images, axis=0)
    near = np.clip(images[:3].astype(int) + 1, 0, 255).astype(np.uint8)
    source = saved(tmp_path / "a.npy", np.concatenate([images, near, near[:1] // 2 * 2]))
    built = build(source, tmp_path / "set", embedders=[CLIP], options=Options(near_duplicates=0.9999))
    assert len(built) == len(images)
    assert built.manifest.duplicates == 4
    assert [entry.copies for entry in built.entries(range(4))] == [3, 2, 2, 1]
    np.testing.assert_array_equal(built.images[..., 0], images)
    upkeep.compact(tmp_path / "set")
    compacted = ReferenceSet.load(tmp_path / "set")
    assert compacted.digest == built.digest
    assert [entry.copies for entry in compacted.entries(range(4))] == [3, 2, 2, 1]
    more = add(
        tmp_path / "set", saved(tmp_path / "b.npy", np.clip(images[5:6].astype(int) + 1, 0, 255).astype(np.uint8))
    )
    assert more.entries([5])[0].copies == 2


def test_what_cannot_be_read_makes_a_complete_set_partial(tmp_path: Path) -> None:
    """It is counted and named, never fatal; an all-clear against such a set would be a false one."""
    source = tmp_path / "source"
    source.mkdir()
    for index in range(3):
        Image.fromarray(IMAGES[index]).save(source / f"{index}.png")
    (source / "1.png").write_bytes((source / "1.png").read_bytes()[:50])
    built = build(source, tmp_path / "set", complete=True)
    assert (len(built), built.complete, built.manifest.unreadable) == (2, False, 1)
    (left,) = built.segments[0].others().to_pylist()
    assert (left["key"], left["same_as"], left["why"]) == ("1.png", None, "1.png is not a readable image")


@pytest.mark.parametrize("width", [64, 63])
def test_embeddings_make_a_set_without_images(tmp_path: Path, width: int) -> None:
    """As LAION's metadata come: searched by embedding, with captions and URLs; of another width they are left out."""
    embedder = ClipEmbedder(CLIP)
    floats = ReferenceSet("x", IMAGES[..., None], [""] * 40, complete=False).reference_images(range(40))
    vectors = embedder(floats).numpy()[:, :width] * 3
    table = pa.table(
        {"URL": [f"u{n}" for n in range(40)], "TEXT": [f"t{n}" for n in range(40)], "vector": list(vectors)}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    if width == 63:
        with pytest.raises(InvalidInput, match="63 values, the embedder makes 64"):
            build(tmp_path / "a.parquet", tmp_path / "set", complete=False, embedders=[CLIP])
        return
    built = build(tmp_path / "a.parquet", tmp_path / "set", complete=False, embedders=[CLIP])
    assert (len(built), built.has_images) == (40, False)
    found = built.search_embedded(floats[7:8], 2)
    assert found is not None
    assert found[0][0, 0] == pytest.approx(1, abs=2e-3)
    assert built.entries(found[1][0][:1].tolist()) == [Entry(key="a/7", caption="t7", url="u7", copies=1)]
    grown = add(tmp_path / "set", saved(tmp_path / "b.npy", 255 - IMAGES[:2]))
    assert (len(grown), grown.has_images) == (42, False)


def test_what_does_not_fit_is_not_added(tmp_path: Path) -> None:
    """Images of another size, embeddings where images are kept, nothing at all: the set stays as it is."""
    folder = tmp_path / "set"
    build(saved(tmp_path / "a.npy", IMAGES[:4]), folder)
    before = (folder / "reference.json").read_bytes()
    saved(tmp_path / "large.npy", np.zeros((2, 20, 20), np.uint8))
    np.save(tmp_path / "vectors.npy", np.ones((2, 64), np.float32))
    for name, reason in (("large.npy", "IMAGES_MIXED_SIZES"), ("vectors.npy", "SOURCE_UNFIT")):
        with pytest.raises(InvalidInput) as caught:
            add(folder, tmp_path / name)
        assert caught.value.reason == reason
        assert (folder / "reference.json").read_bytes() == before
    with pytest.raises(NotFound):
        add(tmp_path / "nowhere", tmp_path / "a.npy")
    assert len(add(folder, saved(tmp_path / "b.npy", IMAGES[4:6]))) == 6


class Cut(Exception):
    """Stands for a kill."""


@pytest.fixture
def mend() -> Iterator[Callable[[], None]]:
    """Segments of eight rows, and writing stops after the second; until this is called."""
    patch = pytest.MonkeyPatch()
    patch.setattr(intake, "EMBEDDED_ROWS", 8)
    patch.setattr(intake, "SEGMENT_SECONDS", 0.0)
    write, written = intake.write_segment, list[SegmentInfo]()

    def stop(folder: Path, segment: Segment) -> SegmentInfo:
        if len(written) == 2:
            raise Cut
        written.append(write(folder, segment))
        return written[-1]

    patch.setattr(intake, "write_segment", stop)
    yield patch.undo
    patch.undo()


def test_what_was_embedded_is_not_embedded_again(
    tmp_path: Path, mend: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was cut short is no set; asked for again it goes on, and gives what an undisturbed one gives."""
    source, folder = saved(tmp_path / "a.npy", np.concatenate([IMAGES, IMAGES[:3]])), tmp_path / "set"
    with pytest.raises(Cut):
        build(source, folder, embedders=[CLIP])
    with pytest.raises(NotFound, match="not finished"):
        ReferenceSet.load(folder)
    with pytest.raises(InvalidInput) as caught:
        build(source, folder, embedders=[CLIP], complete=False)
    assert caught.value.reason == "REFERENCE_UNFINISHED"

    mend()
    embedded: list[int] = []
    embed = ClipEmbedder.__call__
    monkeypatch.setattr(
        ClipEmbedder, "__call__", lambda self, images: embedded.append(len(images)) or embed(self, images)
    )
    built = build(source, folder, embedders=[CLIP])
    assert sum(embedded) - 1 == len(IMAGES) - 16  # one image tells the width
    assert (len(built), built.manifest.duplicates) == (40, 3)
    assert built.digest == build(source, tmp_path / "whole", embedders=[CLIP]).digest
    again = build(source, folder, embedders=[CLIP])
    assert again.digest == built.digest
    with pytest.raises(InvalidInput) as caught:
        build(source, folder)
    assert caught.value.reason == "FOLDER_IN_USE"


def test_an_addition_that_was_cut_short(tmp_path: Path, mend: Callable[[], None]) -> None:
    """The set stays as it was, and is closed to other changes until the addition is finished or dropped."""
    folder = tmp_path / "set"
    before = build(saved(tmp_path / "a.npy", IMAGES[:8]), folder)
    more = saved(tmp_path / "b.npy", IMAGES)
    with pytest.raises(Cut):
        add(folder, more)
    assert ReferenceSet.load(folder).digest == before.digest
    for change in (lambda: upkeep.remove(folder, [0]), lambda: add(folder, saved(tmp_path / "c.npy", IMAGES[:1]))):
        with pytest.raises(InvalidInput) as caught:
            change()
        assert caught.value.reason == "REFERENCE_UNFINISHED"
    mend()
    assert len(add(folder, more)) == 40
    assert not (folder / PENDING).exists()
    assert len(add(folder, more)) == 40


def test_kills_leave_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    """SIGKILL at steps of every operation: files and manifest agree, and what was asked for can be asked for again."""
    command = [sys.executable, "-m", "tests.audit.reference.kills", str(tmp_path), "17"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    assert found.keys() == {"build", "add", "remove", "compact", "merge"}
    for name, one in found.items():
        assert one["wrong"] == [], name
        assert one["steps"] >= 10, name
        assert one["changed"] == (name != "compact"), name


@run(60)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=8))
def test_contents_are_known(batches: list[list[int]]) -> None:
    """However rows come in batches, each content is found at the row that had it first."""
    known, first, start = KnownContents(), dict[int, int](), 0
    for batch in batches:
        digests, row = [], start
        for content in batch:
            digest = content.to_bytes(8, "little") + bytes(24)
            found = known.find(digest, row)
            assert found == first.get(content)
            if found is None:
                first[content] = row
                digests.append(np.frombuffer(digest, np.uint8))
                row += 1
        known.add(np.array(digests, np.uint8).reshape(-1, 32), np.arange(row - start), start)
        start = row
