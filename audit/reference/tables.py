"""Rows of Parquet and Arrow files: which columns are what, and one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from audit.errors import InvalidInput

#: Names of columns, in the order in which they are preferred; letters count as lower case.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
EMBEDDINGS = ("embedding", "image_embedding", "img_emb", "clip_embedding", "embeddings", "vector", "features")
CAPTIONS = ("caption", "text", "prompt", "alt_text", "label_text", "description")
URLS = ("url", "image_url", "img_url", "uri")
KEYS = ("key", "__key__", "id", "image_id", "sample_id", "hash", "md5", "filename", "file_name", "image_path")
#: Rows of images that are decoded from Parquet at once: each may be megabytes.
IMAGE_ROWS, VECTOR_ROWS = 64, 4096
#: Characters of a caption, a URL or a key that are kept.
MAX_CHARACTERS = 65_536


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; "" where there is none.

    Attributes:
        image: files of images, or structs of `bytes` and `path`, as `datasets` has them.
        embedding: lists of floats; None unless there are no images.
        caption: of the image.
        url: where it came from.
        key: its name.
    """

    image: str
    embedding: str | None
    caption: str
    url: str
    key: str


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        schema: of its columns.
        batches: called with names of columns and rows at once; gives the batches.
    """

    schema: pa.Schema
    batches: Callable[[list[str], int], Iterator[pa.RecordBatch]]

    def rows(self, columns: Columns, most_bytes: int) -> Iterator[dict[str, Any]]:
        """Arguments of `audit.reference.sources.Item`, row by row.

        Args:
            columns: from `split_columns`.
            most_bytes: of an image.
        """
        names = [columns.image, columns.embedding or "", columns.caption, columns.url, columns.key]
        size = VECTOR_ROWS if not columns.image else IMAGE_ROWS
        for batch in self.batches([name for name in dict.fromkeys(names) if name], size):
            texts = {
                field: [text(value.as_py()) for value in batch[name]] if name else [""] * batch.num_rows
                for field, name in (("caption", columns.caption), ("url", columns.url), ("key", columns.key))
            }
            if columns.embedding is not None:
                found: Iterator[dict[str, Any]] = _vectors(batch[columns.embedding])
            elif columns.image:
                found = (_image(value, most_bytes) for value in batch[columns.image])
            else:
                found = iter([{}] * batch.num_rows)
            for number, row in enumerate(found):
                yield {**row, **{field: values[number] for field, values in texts.items()}}


def text(value: object) -> str:
    """A value as valid text, cut to what is kept."""
    if value is None:
        return ""
    said = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return said[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


def read_parquet(file: Path) -> Table:
    """A Parquet file.

    Raises:
        InvalidInput: it is none.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet") from error

    def batches(names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(file, memory_map=True) as opened:
            yield from opened.iter_batches(batch_size=rows, columns=names)

    return Table(schema, batches)


def read_arrow(file: Path) -> Table:
    """An Arrow file, of either layout.

    Raises:
        InvalidInput: it is none.
    """

    def opened(mapped: pa.MemoryMappedFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        try:
            stream = pa.ipc.open_stream(mapped)
            return stream.schema, iter(stream)
        except pa.ArrowInvalid:
            mapped.seek(0)
            whole = pa.ipc.open_file(mapped)
            return whole.schema, (whole.get_batch(number) for number in range(whole.num_record_batches))

    try:
        with pa.memory_map(str(file)) as mapped:
            schema = opened(mapped)[0]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Arrow") from error

    def batches(names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(file)) as mapped:
            for batch in opened(mapped)[1]:
                own = batch.select(names)
                own.validate(full=True)  # offsets in a hostile file may point anywhere
                yield from (own.slice(start, rows) for start in range(0, own.num_rows, rows))

    return Table(schema, batches)


def _unreadable(file: Path, kind: str) -> InvalidInput:
    return InvalidInput(f"{file.name} is no {kind} file", reason="IMAGES_UNREADABLE", field="images")


def split_columns(schema: pa.Schema, name: str, *, needed: bool = True) -> Columns:
    """Which columns hold what, by their names and types.

    Args:
        schema: of the table.
        name: of the file, for people.
        needed: whether there must be images or embeddings.

    Raises:
        InvalidInput: there are neither.
    """

    def pick(names: tuple[str, ...], fits: Callable[[pa.DataType], bool], *, any_name: bool = False) -> str:
        fitting = [field.name for field in schema if fits(field.type)]
        ranked = sorted(
            (field for field in fitting if field.lower() in names), key=lambda field: names.index(field.lower())
        )
        return next(iter(ranked or (fitting if any_name else [])), "")

    image = pick(IMAGES, _holds_images) or pick((), _is_image_struct, any_name=True)
    embedding = None if image else pick(EMBEDDINGS, _holds_vectors, any_name=True) or None
    if needed and not image and embedding is None:
        raise InvalidInput(
            f"{name} has no column of image files and none of embeddings, only {', '.join(schema.names[:20])}",
            reason="IMAGES_EMPTY",
            field="images",
        )
    return Columns(
        image=image,
        embedding=embedding,
        caption=pick(CAPTIONS, _holds_text),
        url=pick(URLS, _holds_text),
        key=pick(KEYS, lambda kind: _holds_text(kind) or pa.types.is_integer(kind)),
    )


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _is_image_struct(kind)


def _holds_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _image(value: pa.Scalar, most_bytes: int) -> dict[str, Any]:
    content = value.get("bytes") if value.is_valid and pa.types.is_struct(value.type) else value
    if content is None or not content.is_valid:
        return {"fault": "the file is not in the table"}
    if content.as_buffer().size > most_bytes:
        return {"fault": "the file is too large"}
    return {"content": content.as_py()}


def _vectors(column: pa.Array) -> Iterator[dict[str, Any]]:
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    offsets, values = column.offsets.to_numpy(), column.values
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    for row in range(len(column)):
        vector = numbers[offsets[row] : offsets[row + 1]]
        if column[row].is_valid and len(vector):
            yield {"vector": vector}
        else:
            yield {"fault": "there is no embedding"}
