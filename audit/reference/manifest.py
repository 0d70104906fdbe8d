"""What a reference set says of itself: its manifest, which names every other file of its folder.

    reference.json      the manifest: name, complete or partial, embedders, every other file with size and SHA-256
    pending.json        while a build or an addition is unfinished: the manifest to be, and how far the source was read
    segments/NAME/      rows, never changed once written:
        metadata.parquet    key, caption, URL and, on request, a thumbnail of every row
        digests.npy         SHA-256 of every row's content, uint8, (rows, 32)
        images.npy          uint8, (rows, height, width, channels), or compressed in images.npz; not in every set
        pixels.npy          float16, low frequencies of the images, by which near ones are found among very many
        embedded-0.npy      float16 unit vectors of the first embedder; embedded-1.npy of the second …
        left-out.parquet    what the source had besides: duplicates, with the row they are the same as; unreadable ones
    removed/NAME/       rows.parquet: which do not count any more
    indexes/NAME/       trained.faiss and shards, of sets too large to be searched one by one

Folders are named after what is in them and are only ever added; `audit.reference.folder` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT, PUBLISHED = 2, 3
MANIFEST, PENDING, LOCK = "reference.json", "pending.json", ".lock"
#: Folders of a set.
SEGMENTS, REMOVED, INDEXES = "segments", "removed", "indexes"
#: The file in `REMOVED`.
ROWS = "rows.parquet"

IndexKind = Literal["flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"]
_Name = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_FileName = Annotated[str, Field(pattern=r"^[a-z0-9-]+\.(npy|npz|parquet|faiss)$")]
_Count = Annotated[int, Field(ge=0, le=2**48)]
#: Of an image that is kept, in pixels.
MAX_SIDE = 2**14
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class File(_Part):
    """A file as it was written."""

    bytes: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SegmentInfo(_Part):
    """Consecutive rows.

    Attributes:
        name: of its folder.
        rows: number of them; none where all that a source had was there already.
        files: by name.
    """

    name: _Name
    rows: Annotated[int, Field(ge=0, le=2**31)]
    files: dict[_FileName, File]


class EmbedderInfo(_Part):
    """Who embedded.

    Attributes:
        model: as `audit.reference.embedder.open_embedder` spells it, files relative to the set's folder.
        digest: of its weights and configuration.
        width: of its vectors.
    """

    model: str
    digest: str
    width: Annotated[int, Field(ge=1, le=2**16)]


class IndexInfo(_Part):
    """An index over one kind of vectors.

    Attributes:
        name: of its folder.
        vectors: the file of each segment that it indexes, e.g. embedded-0.npy.
        kind: how.
        trained_rows: rows that there were when it was trained.
        shard_rows: rows of each shard, in order; together they cover the set.
        files: by name.
    """

    name: _Name
    vectors: _FileName
    kind: IndexKind
    trained_rows: _Count
    shard_rows: list[_Count]
    files: dict[_FileName, File]


class Options(_Part):
    """How a set takes images in; decided when it is built.

    Attributes:
        images: whether images are kept, as pixel comparison needs them.
        side: height and width that images are brought to; None keeps theirs, which must then be one size.
        thumbnails: longer side of the thumbnails, in pixels; 0 for none.
        deduplicate: whether images of the same content become one row.
        near_duplicates: cosine similarity from which on images become one row too; None leaves them.
        index: kind of index; "auto" goes by size.
    """

    images: bool = True
    side: tuple[_Side, _Side] | None = None
    thumbnails: Annotated[int, Field(ge=0, le=1024)] = 0
    deduplicate: bool = True
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    index: IndexKind | Literal["auto"] = "auto"


class Manifest(_Part):
    """One state of a set.

    Attributes:
        format: of the folder.
        name: what people call it.
        complete: whether these are a checkpoint's whole training set.
        digest: identity of what is in it, in order, and of completeness.
        count: rows that count.
        side: height and width of its images; None where none are kept.
        unreadable: images of the sources that could not be read.
        duplicates: that became one row with another.
        options: how images are taken in.
        embedders: whose vectors it holds.
        segments: its rows, in order.
        removed: name and file of the list of removed rows.
        indexes: of what is too large to be searched one by one.
        origin: of the last source, and of what was asked for with it: the same again is nothing to do.
    """

    format: Literal[2] = 2
    name: str
    complete: bool
    digest: str = ""
    count: _Count = 0
    side: tuple[_Side, _Side] | None = None
    unreadable: _Count = 0
    duplicates: _Count = 0
    options: Options = Options()
    embedders: list[EmbedderInfo] = []
    segments: list[SegmentInfo] = []
    removed: tuple[_Name, File] | None = None
    indexes: list[IndexInfo] = []
    origin: str = ""

    @property
    def rows(self) -> int:
        """Removed ones too."""
        return sum(segment.rows for segment in self.segments)

    def files(self) -> Iterator[tuple[str, File]]:
        """Paths below the set's folder."""
        for folder, parts in ((SEGMENTS, self.segments), (INDEXES, self.indexes)):
            for part in parts:
                for name, file in part.files.items():
                    yield f"{folder}/{part.name}/{name}", file
        if self.removed is not None:
            yield f"{REMOVED}/{self.removed[0]}/{ROWS}", self.removed[1]


class Published(_Part):
    """A state of a set whose embeddings are in a database: see `audit.reference.published`.

    Attributes:
        format: of the folder.
        name: as in `Manifest`, like what is not described here.
        uri: of the database, as LanceDB takes it.
        table: in it.
        version: of the table, which never changes.
    """

    format: Literal[3] = 3
    name: str
    complete: bool
    digest: str
    count: _Count
    unreadable: _Count
    duplicates: _Count
    embedders: Annotated[list[EmbedderInfo], Field(min_length=1)]
    uri: str
    table: str
    version: _Count


class Pending(_Part):
    """A build or an addition that is not finished.

    Attributes:
        manifest: so far.
        base: checksum of the set's own manifest; once that is another one, this is done or in vain.
        origin: of the source, and of what was asked for.
        part: of the source that is to be read next.
        item: within it.
    """

    manifest: Manifest
    base: str
    origin: str
    part: _Count = 0
    item: _Count = 0
