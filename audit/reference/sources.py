"""Where reference sets are built from: images, or embeddings that somebody has made, one after the other.

| source | what is read |
|---|---|
| folder of images | searched recursively in the order of the names; a caption beside each in NAME.txt or NAME.json |
| tar shards | WebDataset: the members of one key are an image with its .txt or .json |
| Parquet | a column of image files, or one of embeddings (then no images), with captions and URLs |
| `datasets` on disk | what `save_to_disk` of Hugging Face's library writes: Arrow, with the same columns |
| img_emb/ and metadata/ | what clip-retrieval writes, and LAION publishes: embeddings, with captions and URLs |
| .npz | `images`, uint8, and optionally `captions` |
| .npy | images, uint8, or embeddings, floats |

Whoever made a source may be hostile: nothing is unpacked, nothing outside of it is opened, links in archives are not
followed, and sizes are bounded before anything is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from audit.errors import InvalidInput, NotFound
from audit.reference.images import IMAGE_SUFFIXES
from audit.reference.tables import read_arrow, read_parquet, split_columns, text

#: An image file of more bytes is not read, nor more of a caption's.
MAX_FILE_BYTES, MAX_TEXT_BYTES = 2**26, 2**20
#: Bytes that an archive may make us read at once: long names have sizes of their own.
MAX_READ_BYTES = MAX_FILE_BYTES
#: Rows of arrays that are read at once.
ROWS = 1024


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        key: its name there.
        caption: "" where there is none.
        url: likewise.
        content: an image file, where it is, or pixels, uint8, (height, width) or (height, width, 1 or 3).
        vector: what an embedder made of it, (d,); there are no pixels then.
        fault: why there is neither, in words.
    """

    key: str
    caption: str = ""
    url: str = ""
    content: bytes | Path | NDArray[np.uint8] | None = None
    vector: NDArray[np.float32] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Source:
    """Something to build a set from.

    Attributes:
        kind: of it.
        parts: files that are read one after the other; a folder of images is one part.
        identity: the same for the same files.
        embedded: whether it gives vectors instead of images.
        keyed: whether an image of the same key and content is the same one, however often it comes. What is sent again
            then changes nothing; otherwise it is one more copy.
        read: the items of a part, in the same order every time.
    """

    kind: Literal["folder", "tar", "parquet", "arrow", "embeddings", "arrays", "upload"]
    parts: Sequence[Path]
    identity: str
    embedded: bool
    read: Callable[[Path], Iterator[Item]]
    keyed: bool = False

    def items(self, part: int, skip: int = 0) -> Iterator[Item]:
        """Items of a part from the one numbered `skip` on. Where the rest cannot be read, the last one says so."""
        path = self.parts[part]
        try:
            for number, item in enumerate(self.read(path)):
                if number >= skip:
                    yield item
        except InvalidInput:
            raise
        except Exception as error:  # damaged archives make the libraries raise anything at all
            why = str(error).replace(f"{path.parent}{os.sep}", "").splitlines() or [type(error).__name__]
            yield Item(key=text(path.name), fault=f"the rest of the file cannot be read: {why[0][:200]}")


def open_source(path: Path) -> Source:
    """What is at a path.

    Raises:
        NotFound: there is nothing.
        InvalidInput: it holds no images and no embeddings, or arrays of the wrong kind.
    """
    if not path.exists():
        raise NotFound(f"no images at {path}", reason="IMAGES_NOT_FOUND", field="images")
    if path.is_dir():
        return _open_folder(path)
    suffix = path.name.lower()
    if suffix.endswith((".tar", ".tar.gz", ".tgz")):
        return _source("tar", [path], _read_tar)
    if suffix.endswith(".parquet"):
        return _open_tables("parquet", [path])
    if suffix.endswith(".arrow"):
        return _open_tables("arrow", [path])
    if suffix.endswith(".npz"):
        return _source("arrays", [path], _read_npz)
    if suffix.endswith(".npy"):
        floats = _open_npy(path).dtype.kind == "f"
        return _source("embeddings" if floats else "arrays", [path], _read_npy, embedded=floats)
    raise InvalidInput(
        f"{path.name} is no source of images: a folder, .tar, .parquet, .arrow, .npz or .npy",
        reason="IMAGES_UNREADABLE",
        field="images",
    )


def _source(
    kind: Literal["folder", "tar", "parquet", "arrow", "embeddings", "arrays"],
    parts: Sequence[Path],
    read: Callable[[Path], Iterator[Item]],
    *,
    embedded: bool = False,
) -> Source:
    files = [f"{part.name} {part.stat().st_size if part.is_file() else 0}" for part in parts]
    identity = hashlib.sha256("\n".join([kind, str(parts[0].parent.resolve()), *files]).encode("utf-8", "replace"))
    return Source(kind, parts, identity.hexdigest(), embedded, read)


def _open_folder(folder: Path) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        arrow = sorted(
            path for path in folder.rglob("*.arrow") if path.is_file() and not path.name.startswith("cache-")
        )
        if arrow:
            return _open_tables("arrow", arrow)
    if (folder / "img_emb").is_dir():
        arrays = sorted((folder / "img_emb").glob("*.npy"))
        if arrays:
            return _source("embeddings", arrays, _read_embeddings, embedded=True)
    # A shard's metadata, as img2dataset writes it, lies beside the shard: images go first.
    for pattern, kind in (("*.tar", "tar"), ("*.parquet", "parquet"), ("*.arrow", "arrow")):
        files = sorted(folder.glob(pattern))
        if files and kind == "tar":
            return _source("tar", files, _read_tar)
        if files:
            return _open_tables("parquet" if kind == "parquet" else "arrow", files)
    if next(_walk(folder), None) is None:
        raise InvalidInput(f"{folder.name} holds no images", reason="IMAGES_EMPTY", field="images")
    return _source("folder", [folder], _read_folder)


def _open_tables(kind: Literal["parquet", "arrow"], files: Sequence[Path]) -> Source:
    read = read_parquet if kind == "parquet" else read_arrow
    columns = split_columns(read(files[0]).schema, files[0].name)

    def items(file: Path) -> Iterator[Item]:
        for number, row in enumerate(read(file).rows(columns, MAX_FILE_BYTES)):
            item = Item(**row)
            yield item if item.key else replace(item, key=f"{text(file.stem)}/{number}")

    return _source(kind, files, items, embedded=columns.embedding is not None)


def _walk(folder: Path) -> Iterator[Path]:
    """Image files below a folder, in the order of their names; folders that are links are left alone."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield Path(entry.path)


def _read_folder(folder: Path) -> Iterator[Item]:
    for path in _walk(folder):
        key = text(path.relative_to(folder).as_posix())
        said: dict[str, bytes] = {}
        for suffix in (".txt", ".json"):
            beside = path.with_suffix(suffix)
            if beside.is_file() and beside.stat().st_size <= MAX_TEXT_BYTES:
                said[suffix[1:]] = beside.read_bytes()
        caption, url = _told(said)
        if path.stat().st_size > MAX_FILE_BYTES:
            yield Item(key, caption or key, url, fault="the file is too large")
        else:
            yield Item(key, caption or key, url, content=path)


def _told(said: dict[str, bytes]) -> tuple[str, str]:
    """Caption and URL of what stands beside an image, by its suffix."""
    caption, url = text(said.get("txt", b"")).strip(), ""
    if "json" in said:
        try:
            content = json.loads(said["json"])
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            named = (content.get(name) for name in ("caption", "text", "prompt", "TEXT"))
            caption = caption or next((text(value) for value in named if isinstance(value, str)), "")
            url = text(content["url"]) if isinstance(content.get("url"), str) else ""
    return caption, url


class _Bounded(io.RawIOBase):
    """A file of which nobody reads much at once: a header may promise names of any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError("it holds something too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _read_tar(file: Path) -> Iterator[Item]:
    """Members that follow each other with the same key, the name up to its first dot, are one item."""
    import gzip

    packed = not file.name.lower().endswith(".tar")
    with ExitStack() as stack:
        opening: Callable[..., Any] = gzip.open if packed else Path.open
        stream = stack.enter_context(opening(file, "rb"))
        archive: Any = stack.enter_context(tarfile.open(fileobj=_Bounded(stream), mode="r:", errors="replace"))
        key, parts = "", dict[str, Any]()
        for member in archive:
            archive.members = []  # it would remember every member
            folder, _, name = member.name.rpartition("/")
            own, _, extension = name.partition(".")
            own = f"{folder}/{own}" if folder else own
            if own != key:
                yield from _grouped(key, parts)
                key, parts = own, {}
            extension = extension.lower()
            image = f".{extension}" in IMAGE_SUFFIXES
            if not image and extension not in ("txt", "json"):
                continue
            path = PurePosixPath(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts:
                fault = "it is no plain file"
            elif member.size > (MAX_FILE_BYTES if image else MAX_TEXT_BYTES):
                fault = "the file is too large"
            else:
                fault = ""
            if fault:
                if image:
                    parts["fault"] = fault
                continue
            content = archive.extractfile(member)
            parts["image" if image else extension] = content.read(member.size)
        yield from _grouped(key, parts)


def _grouped(key: str, parts: dict[str, Any]) -> Iterator[Item]:
    if "image" in parts or "fault" in parts:
        caption, url = _told(parts)
        fault = "" if "image" in parts else parts["fault"]
        yield Item(text(key), caption, url, content=parts.get("image"), fault=fault)


def _open_npy(file: Path) -> NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises anything at all for a damaged file
        raise InvalidInput(f"{file.name} is no NumPy array", reason="IMAGES_UNREADABLE", field="images") from error
    if array.dtype.kind == "f" and array.ndim == 2 and array.size:
        return array
    _check_images(array.dtype, array.shape, file.name)
    return array


def _check_images(dtype: Any, shape: tuple[int, ...], name: str) -> None:
    """Raises InvalidInput unless these are images."""
    three = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not three or 0 in shape:
        raise InvalidInput(
            f"`images` of {name} must be uint8, (n, height, width) or (n, height, width, 3), not {dtype} {shape}",
            reason="IMAGES_WRONG_SHAPE",
            field="images",
        )


def _read_npy(file: Path) -> Iterator[Item]:
    array = _open_npy(file)
    for number, row in enumerate(array):
        key = f"{text(file.stem)}/{number}"
        if array.dtype == np.uint8:
            yield Item(key, content=np.array(row))
        else:
            yield Item(key, vector=np.asarray(row, np.float32))


def _read_npz(file: Path) -> Iterator[Item]:
    """Arrays in an archive are read block by block: as a whole they might not fit into memory."""
    wrong = f"{file.name} is not a NumPy archive with an array `images`"
    try:
        with zipfile.ZipFile(file) as archive, archive.open("images.npy") as images:
            dtype, shape = _npy_header(images)
            _check_images(dtype, shape, file.name)
            captions: Iterator[Any] = iter(())
            if "captions.npy" in archive.namelist():
                with archive.open("captions.npy") as stream:
                    kind, count = _npy_header(stream)
                    if kind.kind not in "US" or count != shape[:1]:
                        raise InvalidInput(
                            f"{file.name} has {shape[0]} images but captions {kind} {count}",
                            reason="IMAGES_WRONG_SHAPE",
                            field="images",
                        )
                    captions = _npy_rows(stream, kind, count)
                    yield from _paired(file, _npy_rows(images, dtype, shape), captions)
            else:
                yield from _paired(file, _npy_rows(images, dtype, shape), captions)
    except InvalidInput:
        raise
    except Exception as error:  # zipfile and numpy raise anything at all for a damaged file
        raise InvalidInput(wrong, reason="IMAGES_UNREADABLE", field="images") from error


def _paired(file: Path, images: Iterator[Any], captions: Iterator[Any]) -> Iterator[Item]:
    for number, image in enumerate(images):
        yield Item(f"{text(file.stem)}/{number}", text(str(next(captions, ""))), content=image)


def _npy_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran or dtype.hasobject:
        raise ValueError("of another layout")
    return dtype, shape


def _npy_rows(stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[Any]:
    row = dtype.itemsize * int(np.prod(shape[1:]))
    if row > 2**31:
        raise ValueError("of rows too large")
    for start in range(0, shape[0], ROWS):
        for number in range(start, min(start + ROWS, shape[0])):
            content = stream.read(row)
            if len(content) != row:
                raise ValueError(f"cut short at row {number}")
            yield np.frombuffer(content, dtype).reshape(shape[1:])[()]


def _read_embeddings(file: Path) -> Iterator[Item]:
    """As clip-retrieval writes them: img_emb/img_emb_0.npy with metadata/metadata_0.parquet."""
    array = _open_npy(file)
    number = file.stem.rpartition("_")[2]
    beside = file.parent.parent / "metadata" / f"metadata_{number}.parquet"
    described: Iterator[dict[str, Any]] = iter(())
    if beside.is_file():
        table = read_parquet(beside)
        described = table.rows(split_columns(table.schema, beside.name, needed=False), MAX_FILE_BYTES)
    for row, vector in enumerate(array):
        own = next(described, {})
        key = own.get("key") or f"{text(file.stem)}/{row}"
        yield Item(key, own.get("caption", ""), own.get("url", ""), vector=np.asarray(vector, np.float32))
