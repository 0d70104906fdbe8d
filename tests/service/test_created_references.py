"""Reference sets that callers make: created, filled, searched, audited against and deleted over the wire."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import demo
from audit.reference.images import encode_png
from audit.reference.intake import Intake
from audit.reference.reference_set import ReferenceSet
from audit.v1 import info_pb2, reference_pb2
from service import reference_handlers, references, uploads
from service.config_parts import ReferenceStorePart
from service.reference_store import ReferenceStore
from tests.mutations import run
from tests.service.helpers import LONG, Client, eventually, failure, failure_of, small
from tests.service.processes import Process
from tests.service.test_references import large_png

CLIP = f"local-dir:{demo.CLIP}"
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def picture(number: int) -> bytes:
    """One of many images, all different."""
    return encode_png(np.random.default_rng(number).integers(0, 256, (32, 32, 1), dtype=np.uint8))


def new(number: int, **fields: Any) -> reference_pb2.NewImage:
    """It, as a caller sends it."""
    return reference_pb2.NewImage(**{"image": picture(number), "key": f"{number}.png", **fields})


def create(client: Client, name: str, **fields: Any) -> reference_pb2.ReferenceInfo:
    """Make a set of small grey images."""
    request = reference_pb2.CreateReferenceRequest(**{"reference": name, "height": 32, "width": 32, **fields})
    return client.references.CreateReference(request, timeout=LONG).reference


def header(name: str, **fields: Any) -> reference_pb2.AddImagesRequest:
    """What a stream begins with."""
    return reference_pb2.AddImagesRequest(header=reference_pb2.AddImagesHeader(reference=name, **fields))


def part(*images: reference_pb2.NewImage) -> reference_pb2.AddImagesRequest:
    """What follows."""
    return reference_pb2.AddImagesRequest(images=reference_pb2.NewImages(images=images))


def send(client: Client, messages: Iterable[reference_pb2.AddImagesRequest]) -> reference_pb2.AddImagesResponse:
    """Send a stream."""
    return client.references.AddImages(iter(messages), timeout=LONG)


def add(client: Client, name: str, *images: reference_pb2.NewImage, **fields: Any) -> reference_pb2.AddImagesResponse:
    """Add images to a set."""
    return send(client, [header(name, **fields), *(part(image) for image in images)])


def counts(answer: reference_pb2.AddImagesResponse) -> tuple[int, int, int, int]:
    """Added, duplicates, repeated and unreadable images."""
    return answer.added, answer.duplicates, answer.repeated_images, answer.unreadable


def get(client: Client, name: str) -> reference_pb2.ReferenceInfo:
    """What the server says of a set."""
    return client.references.GetReference(reference_pb2.GetReferenceRequest(reference=name), timeout=LONG).reference


def delete(client: Client, name: str) -> None:
    """Delete a set."""
    client.references.DeleteReference(reference_pb2.DeleteReferenceRequest(reference=name), timeout=LONG)


def search(client: Client, name: str, **fields: Any) -> reference_pb2.SearchReferenceResponse:
    """Search a set."""
    request = reference_pb2.SearchReferenceRequest(reference=name, **fields)
    return client.references.SearchReference(request, timeout=LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared server keeps sets."""
    return tmp_path_factory.mktemp("references") / "store"


@pytest.fixture(scope="module")
def own(launch: Callable[..., Client], folder: Path) -> Client:
    """A server whose callers may make reference sets."""
    return launch(
        demo=True,
        limits={"image_bytes": 20_000, "image_side": 64},
        reference_store={"folder": folder, "embedders": {"clip": CLIP}, "stream_images": 20, "images": 40, "sets": 30},
    )


def test_a_set_is_made_filled_searched_audited_against_and_deleted(
    own: Client, folder: Path, prompts: list[str]
) -> None:
    """A set is made, filled, searched, audited against and deleted; every change counts at once."""
    made = create(own, "whole", embedders=["clip"])
    assert (made.name, made.size, made.created, made.complete) == ("whole", 0, True, False)
    empty = failure(lambda: own.audit(small(prompts[0], reference="whole")))
    assert (empty.code, empty.reason, empty.fields) == (PRECONDITION, "REFERENCE_EMPTY", ())

    first = add(own, "whole", *(new(number, caption=f"picture {number}") for number in range(5)))
    assert counts(first) == (5, 0, 0, 0)
    assert (first.reference.size, first.reference.complete, first.reference.height) == (5, False, 32)
    found = search(own, "whole", image=picture(3), limit=2, include_images=True)
    assert (found.pixel[0].key, found.pixel[0].caption) == ("3.png", "picture 3")
    assert found.pixel[0].original_distance == pytest.approx(0, abs=1e-3)
    assert (found.clip[0].key, len(found.clip)) == ("3.png", 2)
    words = search(own, "whole", prompt="a red silk dress", limit=5)
    assert (len(words.pixel), len(words.clip)) == (0, 5)
    similarities = [hit.similarity for hit in words.clip]
    assert similarities == sorted(similarities, reverse=True)

    partial = own.audit(small(prompts[0], reference="whole"))
    assert not partial.subject.reference_complete
    grown = add(own, "whole", new(5), new(6), complete=True)
    assert (grown.reference.size, grown.reference.complete) == (7, True)
    assert grown.reference.digest != first.reference.digest
    audited = own.audit(small(prompts[0], reference="whole"))
    assert (audited.subject.reference, audited.subject.reference_digest) == ("whole", grown.reference.digest)
    assert audited.subject.reference_complete

    delete(own, "whole")
    assert failure(lambda: get(own, "whole")).code is grpc.StatusCode.NOT_FOUND
    assert failure(lambda: own.audit(small(prompts[0], reference="whole"))).reason == "REFERENCE_NOT_FOUND"
    assert not (folder / "whole").exists()


def test_what_is_sent_again_changes_nothing(own: Client) -> None:
    """The same keys and contents are counted as repeated; the same content under another key is one more copy."""
    create(own, "again")
    stream = [new(0), new(1), new(2, image=b"no image at all")]
    assert counts(add(own, "again", *stream)) == (2, 0, 0, 1)
    once = get(own, "again")
    repeated = add(own, "again", *stream)
    assert counts(repeated) == (0, 0, 2, 1)
    assert repeated.reference == once
    assert [(one.key, one.reason) for one in repeated.left_out] == [("2.png", "the upload is not a readable image")]
    assert counts(add(own, "again", new(0, key="other"), new(3), new(3))) == (1, 1, 1, 0)
    assert counts(add(own, "again", new(0, key="other"), *stream)) == (0, 0, 3, 1)
    now = get(own, "again")
    assert (now.size, now.duplicates, now.unreadable) == (3, 1, 1)


def test_an_unnamed_image_is_called_by_its_content(own: Client) -> None:
    """Without a key it is the same image whenever the same file comes."""
    create(own, "unnamed")
    assert counts(add(own, "unnamed", new(0, key=""), new(0, key=""))) == (1, 0, 1, 0)
    (hit, *_) = search(own, "unnamed", image=picture(0)).pixel
    assert len(hit.key) == 64


def test_a_set_with_unreadable_images_is_never_complete(own: Client) -> None:
    """Said to be complete, it is not: what could not be read may be what is copied."""
    create(own, "lacking")
    answer = add(own, "lacking", new(0), new(1, image=picture(1)[:200]), complete=True)
    assert counts(answer) == (1, 0, 0, 1)
    assert not answer.reference.complete
    create(own, "promised")
    assert not add(own, "promised", new(0)).reference.complete
    assert send(own, [header("promised", complete=True)]).reference.complete
    assert add(own, "promised", new(1)).reference.complete
    assert not send(own, [header("promised", complete=False)]).reference.complete


def test_embeddings_alone_are_a_set_too(own: Client) -> None:
    """Without images there are hits by embedding, none by pixels; without CLIP there are none by words."""
    create(own, "vectors", without_images=True, embedders=["clip"], height=0, width=0, thumbnail_side=16)
    add(own, "vectors", new(0), new(1))
    found = search(own, "vectors", image=picture(1))
    assert (len(found.pixel), found.clip[0].key) == (0, "1.png")
    create(own, "pixels")
    add(own, "pixels", new(0))
    refused = failure(lambda: search(own, "pixels", prompt="a dress"))
    assert (refused.code, refused.reason) == (PRECONDITION, "CLIP_REQUIRED")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"reference": ""}, "REFERENCE_REQUIRED", "reference"),
        ({"reference": "../demo"}, "REFERENCE_NAME_INVALID", "reference"),
        ({"reference": "a/b"}, "REFERENCE_NAME_INVALID", "reference"),
        ({"reference": ".hidden"}, "REFERENCE_NAME_INVALID", "reference"),
        ({"reference": "x" * 64}, "REFERENCE_NAME_INVALID", "reference"),
        ({"height": 0}, "SIZE_OUT_OF_RANGE", "height"),
        ({"width": 65}, "SIZE_OUT_OF_RANGE", "width"),
        ({"thumbnail_side": -1}, "SIZE_OUT_OF_RANGE", "thumbnail_side"),
        ({"embedders": ["clip", "clip"]}, "EMBEDDER_REPEATED", "embedders"),
        ({"without_images": True, "embedders": ["clip"]}, "SIZE_OUT_OF_RANGE", "height"),
        ({"without_images": True, "height": 0, "width": 0}, "EMBEDDER_REQUIRED", "embedders"),
    ],
)
def test_bad_creations(own: Client, folder: Path, fields: dict[str, Any], reason: str, field: str) -> None:
    """They are refused by field and reason, and leave nothing behind."""
    before = sorted(folder.parent.rglob("*"))
    refused = failure(lambda: create(own, fields.pop("reference", "bad"), **fields))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, reason, (field,))
    assert sorted(folder.parent.rglob("*")) == before


def test_names_are_taken_once(own: Client) -> None:
    """The same creation again is that set; another one, or the operator's name, is refused, and so is a path."""
    assert create(own, "taken") == create(own, "taken")
    for name, fields in (("taken", {"height": 16}), ("demo", {})):
        refused = failure(lambda name=name, fields=fields: create(own, name, **fields))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REFERENCE_EXISTS")
    unknown = failure(lambda: create(own, "other", embedders=[CLIP]))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "EMBEDDER_NOT_FOUND")


def test_streams_out_of_order_or_bounds(own: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are not what they should be add nothing."""
    create(own, "strict")
    before = add(own, "strict", new(0)).reference
    monkeypatch.setattr(uploads, "MAX_PIXELS", 30 * 32 * 32)
    tall = encode_png(np.zeros((1100, 30, 1), np.uint8))
    for messages, code, reason, field in (
        ([], INVALID, "HEADER_MISSING", "header"),
        ([part(new(1)), header("strict")], INVALID, "HEADER_MISPLACED", "header"),
        ([header("strict"), header("strict")], INVALID, "HEADER_MISPLACED", "header"),
        ([reference_pb2.AddImagesRequest(), part(new(1))], INVALID, "HEADER_MISPLACED", "header"),
        ([header("strict"), part(*map(new, range(1, 22)))], INVALID, "TOO_MANY_IMAGES", "images"),
        ([header("strict"), part(new(1, image=tall))], INVALID, "TOO_MANY_PIXELS", "images"),
        ([header("strict"), part(new(1), new(2, key="k" * 1025))], INVALID, "TEXT_TOO_LONG", "images[1].key"),
        ([header("demo"), part(new(1))], PRECONDITION, "REFERENCE_READ_ONLY", None),
        ([header("nobodys"), part(new(1))], grpc.StatusCode.NOT_FOUND, "REFERENCE_NOT_FOUND", None),
        ([header("../strict"), part(new(1))], INVALID, "REFERENCE_NAME_INVALID", "reference"),
    ):
        refused = failure(lambda messages=messages: send(own, messages))
        assert (refused.code, refused.reason) == (code, reason)
        assert refused.fields == (() if field is None else (field,))
    assert get(own, "strict") == before
    empty = failure(lambda: (create(own, "hollow"), send(own, [header("hollow")])))
    assert (empty.code, empty.reason) == (INVALID, "IMAGES_EMPTY")


def test_images_out_of_bounds_are_left_out(own: Client) -> None:
    """Each is answered with its reason, and the others are in."""
    create(own, "hostile")
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (160, 160, 1), dtype=np.uint8))
    answer = add(
        own, "hostile", new(0, image=b""), new(1, image=noise), new(2, image=large_png()),
        new(3, image=b"%!PS-Adobe-3.0"), new(4, image=picture(4)[:300]), new(5),
    )  # fmt: skip
    assert counts(answer) == (1, 0, 0, 5)
    reasons = [one.reason for one in answer.left_out]
    assert [one.key for one in answer.left_out] == [f"{number}.png" for number in range(5)]
    for words, reason in zip(("no image", "bytes", "pixels", "readable", "readable"), reasons, strict=True):
        assert words in reason


def test_there_is_only_so_much_room(own: Client, launch: Callable[..., Client], tmp_path: Path) -> None:
    """More images, bytes or sets than the operator allows are refused, and what is there stays."""
    create(own, "full")
    add(own, "full", *map(new, range(20)))
    add(own, "full", *map(new, range(20, 40)))
    refused = failure(lambda: add(own, "full", new(40)))
    assert (refused.code, refused.reason, refused.retry_seconds) == (EXHAUSTED, "REFERENCE_STORE_FULL", None)
    assert get(own, "full").size == 40
    tight = launch(demo=True, reference_store={"folder": tmp_path, "sets": 1, "bytes": 40_000})
    create(tight, "one")
    assert failure(lambda: create(tight, "two")).reason == "REFERENCE_STORE_FULL"
    assert failure(lambda: add(tight, "one", *map(new, range(12)))).reason == "REFERENCE_STORE_FULL"
    assert add(tight, "one", new(0)).added == 1
    delete(tight, "one")
    create(tight, "two")


def test_closed_unless_the_operator_opens_it(client: Client) -> None:
    """Without a folder callers make no sets, and are told so."""
    for call in (lambda: create(client, "x"), lambda: add(client, "x", new(0)), lambda: delete(client, "x")):
        refused = failure(call)
        assert (refused.code, refused.reason) == (PRECONDITION, "REFERENCE_STORE_CLOSED")
    info = client.info.GetInfo(info_pb2.GetInfoRequest(), timeout=LONG)
    assert not info.embedders


def test_what_may_be_asked_for_is_told(own: Client) -> None:
    """Names of embedders, never their paths, and bounds of streams; and sets appear in lists."""
    info = own.info.GetInfo(info_pb2.GetInfoRequest(), timeout=LONG)
    assert (list(info.embedders), info.limits.stream_images) == (["clip"], 20)
    create(own, "listed", embedders=["clip"])
    add(own, "listed", new(0))
    listed = {one.name: one for one in own.references.ListReferences(reference_pb2.ListReferencesRequest()).references}
    assert not listed["demo"].created
    assert listed["listed"] == get(own, "listed")
    assert str(demo.CLIP.parent) not in str(listed)
    assert own.metric("basin_created_references") == sum(one.created for one in listed.values())
    assert own.metric("basin_created_reference_bytes") > 0
    assert own.metric("basin_received_images_total", result="added") > 0
    assert not own.metric("basin_reference_images", reference="listed")


def test_a_stream_that_breaks_adds_nothing(own: Client, folder: Path) -> None:
    """Nothing is left of it, and the same images can be sent again."""
    create(own, "broken")
    before = add(own, "broken", new(0)).reference
    sent, hold = threading.Event(), threading.Event()

    def messages() -> Iterator[reference_pb2.AddImagesRequest]:
        yield header("broken")
        yield part(new(1))
        sent.set()
        hold.wait(LONG)

    call = own.references.AddImages.future(messages(), timeout=LONG)
    assert sent.wait(LONG)
    call.cancel()
    hold.set()
    eventually(lambda: own.metric("basin_rpcs_total", method="ReferenceService/AddImages", code="CANCELLED"))
    assert get(own, "broken") == before
    assert counts(add(own, "broken", new(0), new(1))) == (1, 0, 1, 0)


def test_a_caller_that_goes_away_while_images_are_added(own: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work ends, the set stays as it was, and the next stream is added."""
    create(own, "left")
    before = add(own, "left", new(0)).reference
    begun, hold, embed = threading.Event(), threading.Event(), Intake._embed

    def slowly(self: Any, images: Any) -> None:
        begun.set()
        hold.wait(LONG)
        embed(self, images)

    monkeypatch.setattr(Intake, "_embed", slowly)
    call = own.references.AddImages.future(iter([header("left"), part(new(1))]), timeout=LONG)
    assert begun.wait(LONG)
    call.cancel()
    time.sleep(0.2)  # for the cancellation to arrive; if it does not, the image is there below
    hold.set()
    eventually(lambda: own.metric("basin_rpcs_total", method="ReferenceService/AddImages", code="CANCELLED") >= 2)
    assert get(own, "left") == before
    assert counts(add(own, "left", new(1), new(2))) == (2, 0, 0, 0)


def test_more_streams_than_may_be(own: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is to come again later."""
    monkeypatch.setattr(reference_handlers, "MOST_ADDITIONS", 1)
    create(own, "busy")
    sent, hold = threading.Event(), threading.Event()

    def messages() -> Iterator[reference_pb2.AddImagesRequest]:
        yield header("busy")
        yield part(new(0))
        sent.set()
        hold.wait(LONG)

    call = own.references.AddImages.future(messages(), timeout=LONG)
    assert sent.wait(LONG)
    eventually(lambda: failure_or_none(lambda: send(own, [header("busy"), part(new(1))])) == "TOO_MANY_INTAKES")
    hold.set()
    assert call.result().added >= 1
    assert get(own, "busy").size == call.result().reference.size


def failure_or_none(call: Callable[[], object]) -> str:
    """The reason of a failure; "" where there is none."""
    try:
        call()
    except grpc.RpcError as error:
        return failure_of(error).reason
    return ""


def test_audits_keep_the_state_that_they_opened(own: Client, folder: Path) -> None:
    """A set that is open can be searched while and after it is added to and deleted."""
    create(own, "open", embedders=["clip"])
    add(own, "open", new(0), new(1))
    opened = ReferenceSet.load(folder / "open" / "set")
    add(own, "open", new(2))
    delete(own, "open")
    assert len(opened) == 2
    assert [entry.key for entry in opened.entries([0, 1])] == ["0.png", "1.png"]
    found = opened.search_embedded(opened.reference_images([1]), 1)
    assert found is not None
    assert found[1].tolist() == [[1]]


def test_two_servers_on_one_folder(
    own: Client, launch: Callable[..., Client], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them made, changed or deleted, the other one knows a moment later."""
    monkeypatch.setattr(references, "GLANCE", 0.05)
    other = launch(demo=True, reference_store={"folder": folder})
    create(own, "shared")
    add(own, "shared", new(0))
    eventually(lambda: "shared" in _sizes(other))
    eventually(lambda: _sizes(other)["shared"] == 1)
    add(own, "shared", new(1))
    eventually(lambda: _sizes(other)["shared"] == 2)
    delete(own, "shared")
    eventually(lambda: "shared" not in _sizes(other))


def _sizes(client: Client) -> dict[str, int]:
    listed = client.references.ListReferences(reference_pb2.ListReferencesRequest(), timeout=LONG).references
    return {one.name: one.size for one in listed}


def test_a_kill_while_images_are_added(spawn: Callable[..., Process], tmp_path: Path, prompts: list[str]) -> None:
    """The set is what it was or what it was to be, is there after the restart, and takes the same stream again."""
    store = tmp_path / "store"
    settings = {"reference_store": {"folder": str(store), "embedders": {"clip": CLIP}}, "demo": True}
    first = spawn(**settings)
    own = first.client()
    create(own, "kept", embedders=["clip"])
    add(own, "kept", *map(new, range(3)))
    call = own.references.AddImages.future(iter([header("kept"), part(*map(new, range(600)))]), timeout=LONG)
    pending = store / "kept" / "set" / "segments"
    before = len(list(pending.iterdir()))
    eventually(lambda: len(list(pending.iterdir())) > before)
    first.signal(signal.SIGKILL)
    first.ends()
    answered = call.exception() is None
    second = spawn(**settings)
    again = second.client()
    assert get(again, "kept").size in ((600,) if answered else (3, 600))
    answer = add(again, "kept", *map(new, range(600)))
    assert (answer.reference.size, answer.reference.duplicates) == (600, 0)
    assert answer.added + answer.repeated_images == 600
    assert again.audit(small(prompts[0], reference="kept")).subject.reference_digest == answer.reference.digest
    assert sorted(path.name for path in store.iterdir()) == ["kept"]


def test_damage_is_said_and_can_be_deleted(spawn: Callable[..., Process], tmp_path: Path) -> None:
    """A set that cannot be loaded keeps the server from nothing but itself, and its folder stays unsaid."""
    store = tmp_path / "store"
    (store / "ruin" / "set").mkdir(parents=True)
    (store / "ruin" / "set" / "reference.json").write_text("{}")
    (store / "ruin" / "created.json").write_text('{"embedders": [], "options": {}}')
    (store / ".gone-1234").mkdir()
    own = spawn(reference_store={"folder": str(store)}, demo=True).client()
    refused = failure(lambda: get(own, "ruin"))
    assert (refused.code, refused.reason) == (PRECONDITION, "REFERENCE_DAMAGED")
    assert str(tmp_path) not in refused.message
    delete(own, "ruin")
    assert failure(lambda: get(own, "ruin")).reason == "REFERENCE_NOT_FOUND"
    assert list(store.iterdir()) == []


@run(8)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5), min_size=1, max_size=4)
)
def test_streams_in_any_order_come_to_the_same(tmp_path_factory: pytest.TempPathFactory, streams: Any) -> None:
    """Whatever keys and contents streams hold, and whichever come twice: rows and copies are those of the pairs."""
    store = ReferenceStore(ReferenceStorePart(folder=tmp_path_factory.mktemp("any")))
    request = reference_pb2.CreateReferenceRequest(reference="x", height=8, width=8)
    store.create("x", reference_handlers.creation_of(request, 64))
    pairs = set[tuple[int, int]]()
    for stream in [*streams, streams[0]]:
        upload = store.upload(10_000)
        upload.add(reference_pb2.NewImage(key=str(key), image=picture(content)) for key, content in stream)
        answer = store.add("x", upload, None, lambda model: pytest.fail(model), lambda *step: None)
        upload.close()
        assert sum(answer.counts.values()) == len(stream)
        pairs |= set(stream)
        contents = {content for _, content in pairs}
        assert (len(answer.reference), answer.reference.manifest.duplicates) == (
            len(contents), len(pairs) - len(contents)
        )  # fmt: skip
