"""`basin reference` on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit import demo
from audit.v1 import info_pb2, reference_pb2
from service import sending
from service.client import BasinClient
from service.config import load_settings
from service.server import start_server
from tests.cli.conftest import Basin, is_one_error

LONG = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose callers may make reference sets."""
    settings = load_settings(
        listen="127.0.0.1:0",
        metrics="off",
        limits={"image_bytes": 20_000},
        reference_store={
            "folder": tmp_path_factory.mktemp("store"),
            "embedders": {"clip": f"local-dir:{demo.CLIP}"},
            "stream_images": 4,
        },
    )
    with start_server(settings) as server:
        assert server.wait_ready(LONG)
        yield server.address


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of several kinds, one twice, one too large to send, and one that is none."""
    folder, draw = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.webp", "d.bmp", "e.tiff", "f.gif"):
        Image.fromarray(draw.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / name)
    (folder / "g.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "a.txt").write_text("a caption")
    Image.fromarray(draw.integers(0, 256, (200, 200), dtype=np.uint8)).save(folder / "large.png")
    (folder / "none.png").write_bytes(b"no image")
    return folder


def test_a_set_from_creation_to_deletion(basin: Basin, address: str, pictures: Path) -> None:
    """Each command does its part, in as many streams as the server's bounds make it, and can be given again."""
    made = basin("reference", "create", "mine", "--server", address, "--size", 32, "--embedder", "clip")
    assert (made.code, "partial" in made.out) == (0, True)
    added = basin("reference", "add", "mine", "--images", pictures, "--server", address, "--complete")
    assert added.code == 0
    assert "6 added, 1 duplicates, 2 could not be read; 6 images, partial" in added.out
    assert "large.png: the image has" in added.err
    assert "none.png: the upload is not a readable image" in added.err
    (pictures / "none.png").unlink()
    (pictures / "large.png").unlink()
    again = basin("reference", "add", "mine", "--images", pictures, "--server", address, "--complete")
    assert "0 added, 7 there already; 6 images" in again.out

    found = basin("reference", "search", "mine", pictures / "a.png", "--server", address, "--format", "json")
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert (rows[0]["by"], rows[0]["key"], rows[0]["caption"]) == ("pixels", "a.png", "a caption")
    words = basin("reference", "search", "mine", "--prompt", "a dress", "--server", address, "--limit", 2)
    assert (words.code, words.out.count("clip")) == (0, 2)

    listed = basin("reference", "list", "--server", address, "--format", "json")
    names = {one["name"]: one for one in map(json.loads, listed.out.splitlines())}
    assert (names["mine"]["size"], names["mine"]["created"], names["demo"]["created"]) == (6, True, False)
    assert "mine" in basin("reference", "list", "--server", address).out
    assert basin("reference", "delete", "mine", "--server", address).code == 0
    assert is_one_error(basin("reference", "delete", "mine", "--server", address), "mine")


def test_a_complete_set(basin: Basin, address: str, pictures: Path) -> None:
    """With every image in, it is complete."""
    for name in ("large.png", "none.png"):
        (pictures / name).unlink()
    basin("reference", "create", "whole", "--server", address, "--size", 16)
    added = basin("reference", "add", "whole", "--images", pictures, "--server", address, "--complete")
    assert "6 images, complete" in added.out


def test_bad_commands_are_one_line(basin: Basin, address: str, pictures: Path, tmp_path: Path) -> None:
    """What the server or the command refuses ends with one line."""
    np.save(tmp_path / "vectors.npy", np.ones((2, 4), np.float32))
    for arguments, words in (
        (("create", "../x", "--size", 8), ["'../x'"]),
        (("create", "x"), ["height"]),
        (("create", "x", "--size", 2**40), ["out of range"]),
        (("create", "x", "--size", 8, "--embedder", "vit"), ["vit"]),
        (("add", "nobodys", "--images", pictures), ["nobodys"]),
        (("add", "demo", "--images", pictures), ["operator"]),
        (("add", "demo", "--images", pictures, "--restart"), ["unfinished"]),
        (("add", "demo", "--images", tmp_path / "vectors.npy"), ["embeddings"]),
        (("search", "demo", tmp_path / "missing.png"), ["missing.png"]),
    ):
        assert is_one_error(basin("reference", *arguments, "--server", address), *words)


def test_what_the_images_raise_is_raised(address: str) -> None:
    """A source that fails in the middle fails the call, and nothing of its last stream is in."""

    def images() -> Iterator[reference_pb2.NewImage]:
        yield reference_pb2.NewImage(key="a")
        raise OSError("the disk is gone")

    with BasinClient(address, timeout=LONG) as client:
        client.create_reference(reference_pb2.CreateReferenceRequest(reference="raising", height=8, width=8))
        with pytest.raises(OSError, match="the disk is gone"):
            client.add_images("raising", images())
        assert client.reference("raising").size == 0


def test_streams_end_at_either_bound() -> None:
    """No stream has more images or more bytes than a server takes, and all images are in one."""
    images = [reference_pb2.NewImage(image=bytes(size), key=str(size)) for size in (10, 400, 600, 10, 10, 10, 2000)]
    total = reference_pb2.AddImagesResponse()
    limits = info_pb2.Limits(image_bytes=1000, stream_images=3, stream_bytes=1000)
    streams = list(sending.in_streams(images, limits, total))
    assert [[len(image.image) for image in stream] for stream in streams] == [[10, 400], [600, 10, 10], [10]]
    assert (total.unreadable, total.left_out[0].key) == (1, "2000")
