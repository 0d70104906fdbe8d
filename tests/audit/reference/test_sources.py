"""Where reference sets are built from, hostile ones too."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from audit.errors import InvalidInput, NotFound
from audit.reference import sources
from audit.reference.images import read_image
from audit.reference.sources import Item, open_source
from tests.mutations import mutated, run


def png(value: int) -> bytes:
    """A grey image of one value."""
    buffer = io.BytesIO()
    Image.new("L", (8, 6), value).save(buffer, "PNG")
    return buffer.getvalue()


def tar(file: Path, members: list[tuple[str, bytes | None]], **headers: object) -> Path:
    """A tar file; a member without content is a link out."""
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def every(path: Path, skip: int = 0) -> list[Item]:
    """All items of all parts."""
    source = open_source(path)
    return [item for part in range(len(source.parts)) for item in source.items(part, skip)]


def values(items: list[Item]) -> list[int]:
    """The grey values of images."""
    found = []
    for item in items:
        assert item.content is not None
        image = item.content if isinstance(item.content, np.ndarray) else read_image(item.content)
        found.append(int(image.reshape(-1)[0]))
    return found


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    """Captions stand beside the images, or are their names; folders that are links are left alone."""
    (tmp_path / "set" / "b").mkdir(parents=True)
    for name, value in (("c.png", 1), ("a.PNG", 2), ("b/x.png", 3)):
        (tmp_path / "set" / name).write_bytes(png(value))
    (tmp_path / "set" / "c.txt").write_text(" a caption \n")
    (tmp_path / "set" / "b" / "x.json").write_text(json.dumps({"caption": "said", "url": "https://example.com/x"}))
    (tmp_path / "set" / "notes.md").write_text("nothing")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    items = every(tmp_path / "set")
    assert [(item.key, item.caption, item.url) for item in items] == [
        ("a.PNG", "a.PNG", ""), ("b/x.png", "said", "https://example.com/x"), ("c.png", "a caption", ""),
    ]  # fmt: skip
    assert values(items) == [2, 3, 1]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_one_key_are_one_image(tmp_path: Path, suffix: str) -> None:
    """WebDataset's layout: a key ends at the first dot, its members follow each other, and others do not matter."""
    file = tar(
        tmp_path / f"shard{suffix}",
        [
            ("a/0.png", png(1)), ("a/0.txt", b"one"), ("a/0.json", b'{"url": "https://example.com/0"}'),
            ("a/1.seg.png", png(9)), ("a/1.jpg", png(2)), ("a/1.cls", b"7"),
            ("2.txt", b"words alone"), ("3.json", b"[" * 5000), ("3.webp", png(3)),
        ],
    )  # fmt: skip
    items = every(file)
    assert [(item.key, item.caption, item.url) for item in items] == [
        ("a/0", "one", "https://example.com/0"), ("a/1", "", ""), ("3", "", ""),
    ]  # fmt: skip
    assert values(items) == [1, 2, 3]


def test_a_folder_of_shards_is_read_shard_by_shard(tmp_path: Path) -> None:
    """In the order of their names; metadata beside them, as img2dataset writes it, does not matter."""
    for shard in (1, 0):
        tar(tmp_path / f"{shard:05d}.tar", [(f"{shard}{n}.jpg", png(10 * shard + n)) for n in range(3)])
        pq.write_table(pa.table({"url": ["https://example.com"]}), tmp_path / f"{shard:05d}.parquet")
    assert values(every(tmp_path)) == [0, 1, 2, 10, 11, 12]
    source = open_source(tmp_path)
    assert [item.key for item in source.items(1, 2)] == ["12"]


def test_hostile_members_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, absolute and climbing names, and what is too large are named with a fault, and never opened."""
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 500)
    names = {"link.png": None, "/etc/abs.png": png(1), "../up.png": png(1), "big.png": b"x" * 501, "ok.png": png(5)}
    file = tar(tmp_path / "evil.tar", list(names.items()))
    items = every(file)
    assert [item.key for item in items if item.fault] == ["link", "/etc/abs", "../up", "big"]
    assert values([item for item in items if not item.fault]) == [5]


def test_a_header_cannot_make_us_read_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is said to be longer than anything ends the archive, before it is read."""
    monkeypatch.setattr(sources, "MAX_READ_BYTES", 2000)
    member = tarfile.TarInfo("x" * 4000 + ".png")
    with tarfile.open(tmp_path / "long.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member, io.BytesIO())
    (item,) = every(tmp_path / "long.tar")
    assert "too large" in item.fault


def test_a_shard_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    """The rest is one fault, which names the file and no folder."""
    file = tar(tmp_path / "cut.tar", [(f"{n}.png", png(n)) for n in range(4)])
    file.write_bytes(file.read_bytes()[: 2 * 1024 + 700])
    items = every(file)
    assert values([item for item in items if not item.fault]) == [0, 1]
    assert items[-1].key == "cut.tar"
    assert str(tmp_path) not in items[-1].fault


def test_parquet_of_images(tmp_path: Path) -> None:
    """Files in a column, or in structs as `datasets` has them; a file that is elsewhere is never opened."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": png(1), "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        None,
        {"bytes": png(4), "path": ""},
    ]
    table = pa.table({"image": pa.array(rows, kind), "TEXT": ["a", "b", None, "\ud7ff"], "id": [7, 8, 9, 10]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    items = every(tmp_path / "a.parquet")
    assert [(item.key, item.caption) for item in items] == [("7", "a"), ("8", "b"), ("9", ""), ("10", "\ud7ff")]
    assert [bool(item.fault) for item in items] == [False, True, True, False]
    assert values([items[0], items[3]]) == [1, 4]
    pq.write_table(pa.table({"jpg": [png(5)], "url": ["https://example.com"]}), tmp_path / "b.parquet")
    (item,) = every(tmp_path / "b.parquet")
    assert (item.key, item.url, values([item])) == ("b/0", "https://example.com", [5])


@pytest.mark.parametrize("fixed", [True, False])
def test_parquet_of_embeddings(tmp_path: Path, fixed: bool) -> None:
    """Lists of floats with captions and URLs, without images; rows without one are faults."""
    kind = pa.list_(pa.float16() if fixed else pa.float64(), 3 if fixed else -1)
    vectors = pa.array([[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]], kind)
    table = pa.table({"URL": ["u", "v", "w"], "TEXT": ["a", "b", "c"], "image_embedding": vectors})
    pq.write_table(table, tmp_path / "laion.parquet")
    source = open_source(tmp_path)
    assert source.embedded
    items = every(tmp_path)
    assert [(item.url, item.caption, bool(item.fault)) for item in items] == [
        ("u", "a", False), ("v", "b", True), ("w", "c", False),
    ]  # fmt: skip
    assert items[2].vector is not None
    np.testing.assert_array_equal(items[2].vector, [4, 5, 6])


def test_what_clip_retrieval_writes(tmp_path: Path) -> None:
    """Arrays of embeddings, with captions and URLs in a folder beside them."""
    for folder in ("img_emb", "metadata"):
        (tmp_path / folder).mkdir()
    for part in range(2):
        np.save(tmp_path / "img_emb" / f"img_emb_{part}.npy", np.full((2, 4), part + 1, np.float16))
        table = pa.table({"image_path": [f"{part}0", f"{part}1"], "caption": ["a", "b"], "url": ["u", "v"]})
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{part}.parquet")
    items = every(tmp_path)
    assert [(item.key, item.caption, item.url) for item in items[2:]] == [("10", "a", "u"), ("11", "b", "v")]
    assert items[2].vector is not None
    assert items[2].vector.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("stream", [True, False])
def test_a_data_set_on_disk(tmp_path: Path, stream: bool) -> None:
    """Arrow files with a state beside them, of either layout, one folder for each split."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    folder = tmp_path / "train"
    folder.mkdir()
    rows = [{"bytes": png(n), "path": None} for n in range(5)]
    table = pa.table({"image": pa.array(rows, kind), "text": list("abcde")})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for path in (tmp_path, folder):
        items = every(path)
        assert values(items) == [0, 1, 2, 3, 4]
        assert [item.caption for item in items] == list("abcde")


def test_arrays(tmp_path: Path) -> None:
    """Images in .npz, with captions, and in .npy; embeddings in .npy. They are read row by row."""
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images, captions=np.array(list("abcde")))
    np.save(tmp_path / "b.npy", images[..., 0])
    np.save(tmp_path / "c.npy", np.ones((2, 3), np.float32))
    assert values(every(tmp_path / "a.npz")) == values(every(tmp_path / "b.npy")) == [0, 1, 2, 3, 4]
    assert [item.caption for item in every(tmp_path / "a.npz")] == list("abcde")
    assert values(every(tmp_path / "a.npz", skip=3)) == [3, 4]
    assert [item.vector is not None for item in every(tmp_path / "c.npy")] == [True, True]


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    """Nothing there, an empty folder, tables without images, and files of another kind: each its reason."""
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"url": ["https://example.com"]}), tmp_path / "links.parquet")
    for name in ("words.txt", "fake.parquet", "fake.arrow", "fake.npy"):
        (tmp_path / name).write_text("words")
    for name, reason in (
        ("empty", "IMAGES_EMPTY"), ("links.parquet", "IMAGES_EMPTY"), ("words.txt", "IMAGES_UNREADABLE"),
        ("fake.parquet", "IMAGES_UNREADABLE"), ("fake.arrow", "IMAGES_UNREADABLE"), ("fake.npy", "IMAGES_UNREADABLE"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput) as caught:
            open_source(tmp_path / name)
        assert (caught.value.reason, caught.value.field) == (reason, "images")
    with pytest.raises(NotFound):
        open_source(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["tar", "npz", "arrow", "parquet"])
def test_damaged_files_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """Whatever was done to a file, its items are read or left out, or it is refused in our own words."""
    folder = tmp_path_factory.mktemp("damaged")
    file = folder / f"a.{kind}"
    table = pa.table({"image": [png(n) for n in range(4)], "text": list("abcd")})
    if kind == "tar":
        tar(file, [(f"{n}.png", png(n)) for n in range(4)] + [("x" * 150 + ".png", png(9))])
    elif kind == "npz":
        np.savez_compressed(file, images=np.zeros((4, 5, 6), np.uint8), captions=np.array(list("abcd")))
    elif kind == "arrow":
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, file)
    content = file.read_bytes()

    @run(60)
    @given(mutated(content))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        try:
            items = every(file)
        except InvalidInput:
            return
        assert all(item.fault or item.content is not None for item in items)

    check()


@run(30)
@given(st.text(max_size=20))
def test_text_is_kept_as_far_as_it_is_valid(said: str) -> None:
    """Valid text stays as it is; half a surrogate pair becomes a question mark, also from bytes."""
    assert sources.text(said) == said
    assert sources.text(f"{said}\ud800") == f"{said}?"
    assert sources.text(said.encode()) == said
