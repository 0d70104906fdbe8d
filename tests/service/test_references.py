"""Reference sets: listed and searched."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from audit.demo import CLIP, REFERENCE
from audit.reference.build import build
from audit.reference.images import encode_png
from audit.reference.published import publish
from audit.reference.reference_set import ReferenceSet
from audit.v1 import reference_pb2
from service import reference_handlers
from service.config import load_settings
from service.server import start_server
from tests.service.helpers import LONG, NOT_SERVING, SERVING, Client, failure, failure_of, small


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    """The demo's, opened here."""
    return ReferenceSet.load(REFERENCE)


def _search(client: Client, **fields: Any) -> reference_pb2.SearchReferenceResponse:
    request = reference_pb2.SearchReferenceRequest(**{"reference": "demo", **fields})
    return client.references.SearchReference(request, timeout=LONG)


def _encoded(image: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def large_png() -> bytes:
    """A well-formed header that promises a column more than may be."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 4097, 4096, 8, 0, 0, 0, 0), b"IDAT"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_list(client: Client, reference: ReferenceSet) -> None:
    """A set tells its size, digest and completeness."""
    (info,) = client.references.ListReferences(reference_pb2.ListReferencesRequest(), timeout=LONG).references
    assert (info.name, info.size, info.complete) == ("demo", len(reference), True)
    assert info.digest == reference.digest
    assert reference.embedder is not None
    assert info.clip_digest == reference.embedder.digest
    assert client.metric("basin_reference_images", reference="demo") == len(reference)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_search_finds_the_image_itself(client: Client, reference: ReferenceSet, file_format: str) -> None:
    """An image of the set, whatever the file format, is its own nearest neighbour."""
    found = _search(client, image=_encoded(reference.images[17][..., 0], file_format), limit=3, include_images=True)
    first = found.pixel[0]
    assert np.array_equal(reference.images[first.index], reference.images[17])
    (entry,) = reference.entries([first.index])
    assert (first.key, first.caption, first.url, first.copies) == (entry.key, entry.caption, entry.url, entry.copies)
    assert not first.HasField("distance")
    assert first.image.png == encode_png(reference.images[17])
    assert len(found.pixel) == len(found.clip) == 3
    distances = [hit.original_distance for hit in found.pixel]
    assert distances == sorted(distances)
    similarities = [hit.similarity for hit in found.clip]
    assert similarities == sorted(similarities, reverse=True)
    if file_format == "PNG":
        assert distances[0] == pytest.approx(0, abs=1e-3)
        assert similarities[0] == pytest.approx(1, abs=1e-2)


def test_search_gives_ten_hits_unless_said(client: Client, reference: ReferenceSet) -> None:
    """The limit defaults to ten, and images stay away unless asked for."""
    found = _search(client, image=encode_png(reference.images[0]))
    assert len(found.pixel) == len(found.clip) == 10
    assert not any(hit.HasField("image") for hit in found.pixel)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"image": b""}, "IMAGE_EMPTY", "image"),
        ({"image": b"GIF89a no image at all"}, "IMAGE_UNREADABLE", "image"),
        ({"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "IMAGE_UNREADABLE", "image"),
        ({"image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "IMAGE_UNREADABLE", "image"),
        ({"image": encode_png(np.arange(4096, dtype=np.uint8).reshape(64, 64, 1))[:70]}, "IMAGE_UNREADABLE", "image"),
        *(
            ({"image": _encoded(np.zeros((9, 9), np.uint8), other)}, "IMAGE_UNREADABLE", "image")
            for other in ("BMP", "GIF", "TIFF")
        ),
        ({"image": large_png()}, "IMAGE_TOO_LARGE", "image"),
        ({"image": b"x" * 100_001}, "IMAGE_TOO_LARGE", "image"),
        ({"limit": -1}, "LIMIT_OUT_OF_RANGE", "limit"),
        ({"limit": 101}, "LIMIT_OUT_OF_RANGE", "limit"),
        ({"reference": ""}, "REFERENCE_REQUIRED", "reference"),
    ],
)
def test_bad_search(client: Client, reference: ReferenceSet, fields: dict[str, Any], reason: str, field: str) -> None:
    """Bytes that are no image, or too much of one, are refused by field and reason."""
    refused = failure(lambda: _search(client, **{"image": encode_png(reference.images[0]), **fields}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refused.fields == (field,)
    assert client.health() == SERVING


def test_more_searches_than_may_wait(launch: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is to come again later, and then it is answered."""
    monkeypatch.setattr(reference_handlers, "MOST_SEARCHES", 1)
    own, large = launch(), _encoded(np.zeros((4096, 4096), np.uint8), "PNG")
    request = reference_pb2.SearchReferenceRequest(reference="demo", image=large)
    calls = [own.references.SearchReference.future(request, timeout=LONG) for _ in range(3)]
    refused = [failure_of(error) for call in calls if isinstance(error := call.exception(), grpc.RpcError)]
    assert [(one.code, one.reason) for one in refused] == 2 * [(grpc.StatusCode.RESOURCE_EXHAUSTED, "SEARCHES_FULL")]
    assert all(one.retry_seconds for one in refused)
    assert own.metric("basin_errors_total", reason="SEARCHES_FULL") == 2
    assert _search(own, image=large).pixel


def test_unknown_reference(client: Client, reference: ReferenceSet) -> None:
    """Only registered names are known."""
    unknown = failure(lambda: _search(client, image=encode_png(reference.images[0]), reference="/etc"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "REFERENCE_NOT_FOUND")


def test_names_are_the_operators(
    launch: Callable[..., Client], tmp_path: Path, reference: ReferenceSet, prompts: list[str]
) -> None:
    """A set goes by the name it is registered under, in reports too; a colour set without CLIP has pixel hits only."""
    images = np.repeat(reference.images[:20], 3, axis=3)
    ReferenceSet("its own name", images, [""] * 20, complete=False).save(tmp_path / "set")
    own = launch(demo=True, references={"theirs": tmp_path / "set"})
    assert own.audit(small(prompts[0], reference="theirs")).subject.reference == "theirs"
    found = _search(own, reference="theirs", image=encode_png(images[3]), limit=100)
    assert len(found.pixel) == 20
    assert not found.clip
    listed = own.references.ListReferences(reference_pb2.ListReferencesRequest(), timeout=LONG).references
    assert [(info.name, info.complete) for info in listed] == [("demo", True), ("theirs", False)]


def test_broken_reference_leaves_the_rest_serving(tmp_path: Path, prompts: list[str]) -> None:
    """A set that cannot be loaded is not listed, says why when asked for, and keeps the server from being ready."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "reference.json").write_text("{}")
    folders = {"broken": tmp_path / "broken", "missing": tmp_path / "missing"}
    settings = load_settings(listen="127.0.0.1:0", metrics="off", references=folders)
    with start_server(settings) as server:
        assert not server.wait_ready(LONG)
        client = Client.of(server)
        assert client.health("liveness") == SERVING
        assert client.health("readiness") == client.health() == NOT_SERVING
        listed = client.references.ListReferences(reference_pb2.ListReferencesRequest(), timeout=LONG).references
        assert [info.name for info in listed] == ["demo"]
        for name, reason in (("broken", "REFERENCE_DAMAGED"), ("missing", "REFERENCE_NOT_FOUND")):
            refused = failure(lambda name=name: client.audit(small(prompts[0], reference=name)))
            assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
            assert str(tmp_path) not in refused.message
        assert client.audit(small(prompts[0], reference="demo"))


def test_a_published_set(
    launch: Callable[..., Client], tmp_path: Path, reference: ReferenceSet, prompts: list[str]
) -> None:
    """Its neighbours come from a database; while that is away there is no verdict, and afterwards there is again."""
    np.savez(tmp_path / "images.npz", images=reference.images[:50])
    built = build(tmp_path / "images.npz", tmp_path / "set", embedders=[f"local-dir:{CLIP}"])
    publish(built, tmp_path / "published", f"lancedb:{tmp_path}/database")
    own = launch(demo=True, references={"far": tmp_path / "published"})
    image = encode_png(reference.images[7])
    found = _search(own, reference="far", image=image, limit=3)
    assert (len(found.pixel), found.clip[0].index) == (0, 7)
    assert own.audit(small(prompts[0], reference="far")).subject.reference_digest == built.digest
    (tmp_path / "database").rename(tmp_path / "away")
    for call in (
        lambda: own.audit(small(prompts[0], reference="far")),
        lambda: _search(own, reference="far", image=image),
    ):
        refused = failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_AWAY")
        assert refused.retry_seconds
        assert str(tmp_path) not in refused.message
    (tmp_path / "away").rename(tmp_path / "database")
    assert _search(own, reference="far", image=image, limit=3).clip == found.clip
    assert own.audit(small(prompts[0], reference="far"))
