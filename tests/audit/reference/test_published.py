"""Reference sets in a LanceDB database, beside the sets that they were published from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import AuditError, BrokenReference, DatabaseAway, InvalidInput
from audit.model.loading import load_checkpoint
from audit.reference import published
from audit.reference.build import add, build
from audit.reference.folder import read_manifest
from audit.reference.manifest import Options
from audit.reference.published import PublishedSet, database_uri, publish
from audit.reference.reference_set import ReferenceSet
from audit.reference.upkeep import compact, remove

CLIP = f"local-dir:{demo.CLIP}"
WIDTH = 64


def unit(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors in clusters."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((20, WIDTH))
    found = centres[draw.integers(20, size=count)] + 0.5 * draw.standard_normal((count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def source(folder: Path, name: str, count: int, seed: int) -> Path:
    """Embeddings, as a reference set takes them in."""
    np.save(folder / f"{name}.npy", unit(count, seed))
    return folder / f"{name}.npy"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a set of three hundred embeddings."""
    build(source(tmp_path, "a", 300, 0), tmp_path / "own", embedders=[CLIP], options=Options(index="flat"))
    return tmp_path / "own"


def same(first: ReferenceSet, second: PublishedSet, k: int = 5) -> None:
    """Both find the same, at similarities that are exact."""
    queries = np.concatenate([unit(20, 99), first.stored("embedded-0.npy", first.live[::40])])
    for part in (queries, queries[:1]):
        similarities, indices = first.search_vectors(part, k)
        found, rows = second.search_vectors(part, k)
        assert np.array_equal(first.live[indices], rows)
        np.testing.assert_allclose(found, similarities, atol=2e-6)
    assert second.entries(rows[0].tolist()) == first.entries(indices[0].tolist())
    assert (len(second), second.digest, second.complete) == (len(first), first.digest, first.complete)


def test_it_finds_what_the_set_finds_through_every_change(own: Path, tmp_path: Path) -> None:
    """Also after images were added, removed and compacted; what is open keeps the state that it opened."""
    out, database = tmp_path / "out", f"lancedb:{tmp_path}/database"
    first = publish(ReferenceSet.load(own), out, database)
    same(ReferenceSet.load(own), first)
    before = first.search_vectors(unit(4, 5), 3)

    add(own, source(tmp_path, "b", 100, 1))
    same(ReferenceSet.load(own), publish(ReferenceSet.load(own), out, database))
    remove(own, [3, 50, 51, 399])
    same(ReferenceSet.load(own), publish(ReferenceSet.load(own), out, database))
    add(own, source(tmp_path, "c", 100, 1))  # of what is there already: only copies change
    same(ReferenceSet.load(own), publish(ReferenceSet.load(own), out, database))
    compact(own)
    publish(ReferenceSet.load(own), out, database)
    last = ReferenceSet.load(out)
    assert isinstance(last, PublishedSet)
    assert not last.complete
    assert not last.has_images
    same(ReferenceSet.load(own), last)
    again = publish(ReferenceSet.load(own), out, database)
    assert again._state == last._state  # nothing was to do
    after = first.search_vectors(unit(4, 5), 3)
    assert np.array_equal(before[1], after[1])
    assert np.array_equal(before[0], after[0])


def test_an_index_finds_nearly_all_and_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an index, too, similarities are those of the stored vectors, and a member finds itself."""
    monkeypatch.setattr(published, "INDEXED", 1000)
    build(source(tmp_path, "a", 3000, 0), tmp_path / "own", embedders=[CLIP])
    own = ReferenceSet.load(tmp_path / "own")
    found = publish(own, tmp_path / "out", f"lancedb:{tmp_path}/database")
    queries = np.concatenate([unit(100, 7), own.stored("embedded-0.npy", own.live[::30])])
    similarities, rows = found.search_vectors(queries, 2)
    exact, nearest = own.search_vectors(queries, 1)
    assert (rows[:, 0] == nearest[:, 0]).mean() >= 0.95
    hit = rows[:, 0] == nearest[:, 0]
    np.testing.assert_allclose(similarities[hit, 0], exact[hit, 0], atol=2e-6)
    stored = own.stored("embedded-0.npy", rows[:, 0])
    np.testing.assert_allclose(similarities[:, 0], np.einsum("nd,nd->n", stored, queries), atol=2e-6)
    everything, _ = found.search_vectors(queries[:2], 3000)  # more than the lists near to them hold
    assert everything.shape == (2, 3000)
    add(tmp_path / "own", source(tmp_path, "b", 500, 3))
    grown = ReferenceSet.load(tmp_path / "own")
    found = publish(grown, tmp_path / "out", f"lancedb:{tmp_path}/database")
    new = grown.stored("embedded-0.npy", grown.live[-20:])
    assert np.array_equal(found.search_vectors(new, 1)[1][:, 0], grown.live[-20:])


def test_an_audit_against_it_is_that_of_the_set(tmp_path: Path) -> None:
    """Of the demo's images without their pixels: the same neighbours, the same verdict; away, no verdict at all."""
    shipped = ReferenceSet.load(demo.REFERENCE)
    np.savez(tmp_path / "images.npz", images=shipped.images[:200], captions=shipped.captions[:200])
    own = build(tmp_path / "images.npz", tmp_path / "own", embedders=[CLIP], options=Options(images=False))
    there = publish(own, tmp_path / "out", f"lancedb:{tmp_path}/database")
    checkpoint, budget = load_checkpoint(demo.CHECKPOINT), Budget(seeds=2, minimum_seeds=2)
    prompt = demo.prompts()[0]
    reports = [Auditor(checkpoint, one, demo.calibration()).audit(prompt, budget=budget) for one in (own, there)]
    first, second = (report.evidence.neighbors for report in reports)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.clip_index, second.clip_index)
    np.testing.assert_allclose(first.clip_similarity, second.clip_similarity, atol=1e-5)
    assert reports[0].decision.verdict == reports[1].decision.verdict
    shutil.rmtree(tmp_path / "database")
    with pytest.raises(DatabaseAway, match="does not answer"):
        Auditor(checkpoint, ReferenceSet.load(tmp_path / "out"), demo.calibration()).audit(prompt, budget=budget)


def test_a_database_that_comes_back_is_asked_again(own: Path, tmp_path: Path) -> None:
    """Away is an error that names no place; back again, it answers."""
    publish(ReferenceSet.load(own), tmp_path / "out", f"lancedb:{tmp_path}/database")
    (tmp_path / "database").rename(tmp_path / "elsewhere")
    away = ReferenceSet.load(tmp_path / "out")
    for ask in (lambda: away.search_vectors(unit(2, 1), 1), lambda: away.entries([0])):
        with pytest.raises(DatabaseAway) as raised:
            ask()
        assert (raised.value.reason, str(tmp_path) in str(raised.value)) == ("DATABASE_AWAY", False)
    (tmp_path / "elsewhere").rename(tmp_path / "database")
    assert away.search_vectors(unit(2, 1), 1)[1].shape == (2, 1)


def test_a_table_that_somebody_changed_is_refused(own: Path, tmp_path: Path) -> None:
    """Where the state that was published is gone, nobody takes what is there for it."""
    import lancedb

    publish(ReferenceSet.load(own), tmp_path / "out", f"lancedb:{tmp_path}/database")
    connection = lancedb.connect(tmp_path / "database")
    schema = connection.open_table("reference").schema
    connection.drop_table("reference")
    for _ in range(3):
        connection.create_table("reference", schema=schema, mode="overwrite")
    with pytest.raises(AuditError) as raised:
        ReferenceSet.load(tmp_path / "out").search_vectors(unit(2, 1), 1)
    assert raised.value.reason in ("REFERENCE_DAMAGED", "DATABASE_AWAY")


@pytest.mark.parametrize(
    "database",
    ["", "lancedb:", "milvus:x", "/x", "lancedb:s3://key:secret@bucket/x", "lancedb:s3://bucket/x?secret=1"],
)
def test_bad_databases(own: Path, tmp_path: Path, database: str) -> None:
    """What is none, or holds credentials, is refused before anything is written, and not repeated."""
    with pytest.raises(InvalidInput) as raised:
        publish(ReferenceSet.load(own), tmp_path / "out", database)
    assert (raised.value.reason, "secret" in str(raised.value)) == ("DATABASE_INVALID", False)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_published(own: Path, tmp_path: Path) -> None:
    """A set without embeddings, one that is published, a folder with something else; and upkeep says where to go."""
    database = f"lancedb:{tmp_path}/database"
    there = publish(ReferenceSet.load(own), tmp_path / "out", database)
    images = ReferenceSet("x", np.zeros((2, 8, 8, 1), np.uint8), ["", ""], complete=True)
    for reference, out, reason in (
        (images, "fresh", "EMBEDDER_REQUIRED"),
        (there, "fresh", "EMBEDDER_REQUIRED"),
        (ReferenceSet.load(own), "own", "FOLDER_IN_USE"),
    ):
        with pytest.raises(InvalidInput) as raised:
            publish(reference, tmp_path / out, database)
        assert raised.value.reason == reason
    with pytest.raises(InvalidInput, match="published from"):
        remove(tmp_path / "out", [0])
    with pytest.raises(InvalidInput, match="values, not 3"):
        there.search_vectors(np.ones((1, 3), np.float32), 1)
    manifest = tmp_path / "out" / "reference.json"
    manifest.write_text(manifest.read_text().replace('"count": 300', '"count": 299'))
    with pytest.raises(BrokenReference, match="has changed"):
        ReferenceSet.load(tmp_path / "out")


def test_a_kill_in_the_middle(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old state stays until the new one is whole, and the next attempt goes on."""
    out, database = tmp_path / "out", f"lancedb:{tmp_path}/database"
    publish(ReferenceSet.load(own), out, database)
    monkeypatch.setattr(published, "SENT", 20)
    before = ReferenceSet.load(own)
    add(own, source(tmp_path, "b", 100, 1))

    def killed(stage: str, done: int, total: int | None) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(ReferenceSet.load(own), out, database, progress=killed)
    still = ReferenceSet.load(out)
    assert isinstance(still, PublishedSet)
    assert (len(still), still.digest) == (300, before.digest)
    assert still.search_vectors(unit(3, 4), 300)[1].max() < 300
    same(ReferenceSet.load(own), publish(ReferenceSet.load(own), out, database))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=3))
def test_any_upkeep(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    """After any additions and removals the table holds what the set holds."""
    folder = tmp_path_factory.mktemp("any")
    build(source(folder, "a", 30, 0), folder / "own", embedders=[CLIP])
    publish(ReferenceSet.load(folder / "own", models=False), folder / "out", f"lancedb:{folder}/database")
    for number, (adds, count) in enumerate(steps):
        if adds:
            add(folder / "own", source(folder, f"more-{number}", count + 1, count))
        else:
            remove(folder / "own", range(min(count, read_manifest(folder / "own").count - 10)))
        own = ReferenceSet.load(folder / "own", models=False)
        same(own, publish(own, folder / "out", f"lancedb:{folder}/database"), k=3)


def test_places() -> None:
    """A folder is named from the root, whatever the working folder becomes; other URIs are left alone."""
    assert database_uri("lancedb:here") == str(Path("here").absolute())
    assert database_uri("lancedb:s3://bucket/x") == "s3://bucket/x"
