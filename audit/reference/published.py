"""Reference sets whose embeddings are in a LanceDB database, so that many machines can search them.

    reference.json      name, completeness, identity and embedders, as in `audit.reference.manifest`; and the database,
                        the table, and the version of the table
    the table           row, digest, key, caption, url, copies; embedded_0, float16 unit vectors of the first embedder …

A set is built, and kept up, in a folder of its own and then published: the table is brought up to it, whatever was
there. Versions of a table never change, so that a set that is open keeps its state, a kill leaves the old state or the
new one, and the same request finds the same. The database may be a folder, an object store or LanceDB Enterprise.
What is found comes with its vectors and is compared exactly with them.
"""

from __future__ import annotations

import os.path
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from audit.errors import AuditError, BrokenReference, DatabaseAway, InvalidInput
from audit.reference.embedder import Opener, open_embedder, open_embedders, with_path
from audit.reference.folder import broken, format_of, read_published, write_state
from audit.reference.images import in_chunks
from audit.reference.index import EXPLORED, PROBES
from audit.reference.index import GRAPH_CONSTRUCTION as CONSTRUCTION
from audit.reference.index import GRAPH_LINKS as LINKS
from audit.reference.manifest import LOCK, MANIFEST, PUBLISHED, Manifest, Published
from audit.reference.reference_set import Entry, ReferenceSet
from audit.reference.segments import embedded
from audit.reference.settling import Progress

PREFIX, TABLE = "lancedb:", "reference"
#: Rows that are sent at once, and numbers of rows in one condition.
SENT, NAMED = 8192, 1000
#: From so many rows on there is an index: a graph in each of a few lists, over values of eight bits.
INDEXED = 10_000
#: Candidates that the database gives at least, and how many times as many it compares exactly itself.
CANDIDATES, REFINED = 16, 4
#: Old versions of a table are kept so long for those who have them open.
KEPT = timedelta(days=30)

_T = TypeVar("_T")


class PublishedSet(ReferenceSet):
    """A set in a database, without images. It connects when it is first asked, and again after a failure.

    Indices are numbers of rows, of which some may be missing: those of removed images.

    Args:
        folder: that `publish` wrote.
        models: as `ReferenceSet.load` takes it.
        opener: likewise.

    Raises:
        BrokenReference: the folder is damaged, or an embedder has other weights now.
    """

    def __init__(self, folder: Path, *, models: bool = True, opener: Opener = open_embedder) -> None:
        self._state = state = read_published(folder)
        manifest = Manifest(
            name=state.name, complete=state.complete, digest=state.digest, count=state.count,
            unreadable=state.unreadable, duplicates=state.duplicates, embedders=state.embedders,
        )  # fmt: skip
        try:
            embedders = open_embedders(folder, state.embedders, opener) if models else []
        except ValueError as error:
            raise broken(folder, error) from error
        self._open(None, manifest, [], embedders)
        self.folder = folder
        self._lock = threading.Lock()
        self._table: Any = None

    def __len__(self) -> int:
        return self._state.count

    def entries(self, indices: Sequence[int]) -> list[Entry]:
        """What is known of some images.

        Raises:
            DatabaseAway: the database does not answer.
            BrokenReference: it does not know one of them.
        """
        known = dict[int, Entry]()
        for part in in_chunks(len(indices), NAMED):
            for one in self._ask(partial(_described, indices[part])).to_pylist():
                row = one.pop("row")
                known[row] = Entry(**one)
        if missing := set(indices) - known.keys():
            raise self._changed(f"row {min(missing)} is not there")
        return [known[index] for index in indices]

    def picture(self, index: int) -> None:
        """Nothing: no images are kept."""

    def search_vectors(
        self, vectors: NDArray[np.float32], k: int, which: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `ReferenceSet.search_vectors`.

        Raises:
            InvalidInput: the vectors are of another width.
            DatabaseAway: the database does not answer.
            BrokenReference: it has lost rows.
        """
        self._check_width(vectors, which)
        k = min(k, len(self))
        similarities, indices = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        waiting = list(range(len(vectors)))
        for exhaustive in (False, True):  # the lists near to a query may hold too few
            found = self._nearest(vectors[waiting], max(2 * k, CANDIDATES), which, exhaustive) if waiting else []
            for query, (rows, own) in zip(list(waiting), found, strict=True):
                if len(rows) >= k:
                    exact = own @ vectors[query]
                    best = np.argsort(-exact, kind="stable")[:k]
                    similarities[query], indices[query] = exact[best], rows[best]
                    waiting.remove(query)
        if waiting:
            raise self._changed("rows are gone")
        return similarities, indices

    def _nearest(
        self, vectors: NDArray[np.float32], count: int, which: int, exhaustive: bool
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Of each query, rows near to it, in their order, and their vectors."""
        column, width = _column(which), vectors.shape[1]

        def search(table: Any) -> pa.Table:
            builder = table.search(vectors if len(vectors) > 1 else vectors[0], vector_column_name=column)
            builder = builder.distance_type("dot").limit(count).select(["row", column, "_distance"])
            if exhaustive:
                return builder.bypass_vector_index().to_arrow()
            explored = max(EXPLORED, REFINED * count)
            return builder.nprobes(PROBES).ef(explored).refine_factor(REFINED).to_arrow()

        found = self._ask(search)
        rows = found["row"].to_numpy()
        own = found[column].combine_chunks().flatten().to_numpy().reshape(len(rows), width).astype(np.float32)
        query = found["query_index"].to_numpy() if len(vectors) > 1 else np.zeros(len(rows), np.int64)
        order = np.lexsort((rows, query))
        rows, own, query = rows[order], own[order], query[order]
        return [(rows[query == number], own[query == number]) for number in range(len(vectors))]

    def _ask(self, question: Callable[[Any], _T]) -> _T:
        """Ask the table. Whatever goes wrong, nobody takes it for an answer."""
        try:
            with self._lock:
                if self._table is None:
                    self._table = self._connected()
                table = self._table
            return question(table)
        except AuditError:
            raise
        except Exception as error:  # the library raises anything at all, and quotes the database's address
            self._table = None
            raise DatabaseAway(
                f"the database of the reference set {self.name} does not answer",
                reason="DATABASE_AWAY",
                field="reference",
            ) from error

    def _connected(self) -> Any:
        table = _connect(self._state.uri).open_table(self._state.table)
        table.checkout(self._state.version)
        if table.count_rows() != self._state.count:
            raise self._changed("it has another number of rows")
        return table

    def _changed(self, why: str) -> BrokenReference:
        return BrokenReference(
            f"the database of the reference set {self.name} is not what was published: {why}",
            reason="REFERENCE_DAMAGED",
            field="reference",
        )


def publish(
    reference: ReferenceSet,
    folder: Path,
    database: str,
    table: str = TABLE,
    progress: Progress = lambda stage, done, total: None,
) -> PublishedSet:
    """Bring a table up to a reference set, and a folder that names it. Published again, what is there stays.

    Args:
        reference: on disk, with an embedder.
        folder: to write; nothing but an earlier one of these may be there.
        database: "lancedb:" and a URI that LanceDB takes. Credentials are in the environment, as the object store or
            LanceDB wants them, and never in it.
        table: in the database. Nothing else may use it.
        progress: see `audit.reference.settling.Progress`.

    Raises:
        InvalidInput: the set has no embedder, the database is none or names credentials, or something else is in the
            folder.
        DatabaseAway: the database does not answer.
    """
    uri = database_uri(database)
    if not reference.manifest.embedders or isinstance(reference, PublishedSet) or reference.folder is None:
        raise InvalidInput(
            f"the reference set {reference.name} cannot be published: it takes one on disk, with an embedder",
            reason="EMBEDDER_REQUIRED",
            field="reference",
        )
    used = folder.exists() and {path.name for path in folder.iterdir()} - {MANIFEST, LOCK, f".{MANIFEST}"}
    if used or format_of(folder) not in (None, PUBLISHED):
        raise InvalidInput(f"{folder} holds something else already", reason="FOLDER_IN_USE", field="out")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK), _reaching(reference.name):
        version = _synchronise(_connect(uri), reference, table, progress)
        embedders = [
            info.model_copy(update={"model": with_path(info.model, partial(_moved, reference.folder, folder))})
            for info in reference.manifest.embedders
        ]
        manifest = reference.manifest
        write_state(
            folder,
            Published(
                name=reference.name, complete=reference.complete, digest=reference.digest, count=len(reference),
                unreadable=manifest.unreadable, duplicates=manifest.duplicates, embedders=embedders,
                uri=uri, table=table, version=version,
            ),
        )  # fmt: skip
    return PublishedSet(folder, models=bool(reference.embedders))


def database_uri(database: str) -> str:
    """The URI of "lancedb:URI"; that of a folder is absolute.

    Raises:
        InvalidInput: it is none, or holds credentials.
    """
    uri = database.removeprefix(PREFIX)
    if not database.startswith(PREFIX) or not uri:
        raise InvalidInput("a database is lancedb:FOLDER or lancedb:URI", reason="DATABASE_INVALID", field="database")
    parts = urlsplit(uri)
    if parts.username is not None or parts.password is not None or parts.query:
        raise InvalidInput(
            "credentials and options of a database belong into the environment, not into its URI",
            reason="DATABASE_INVALID",
            field="database",
        )
    return uri if "://" in uri else str(Path(uri).absolute())


def _synchronise(connection: Any, reference: ReferenceSet, name: str, progress: Progress) -> int:
    """Make a table's rows those of a set; gives the version."""
    rows = reference.live
    digests = np.concatenate([segment.digests for segment in reference.segments])[rows]
    copies = reference.copies(np.arange(len(rows)))
    schema = _schema(reference)
    table = connection.create_table(name, schema=schema, exist_ok=True)
    if table.schema != schema:
        table = connection.create_table(name, schema=schema, mode="overwrite")
    there = table.search().select(["row", "digest", "copies"]).limit(max(1, table.count_rows())).to_arrow()
    known = {
        row: (digest, count)
        for row, digest, count in zip(
            there["row"].to_pylist(), there["digest"].to_pylist(), there["copies"].to_pylist(), strict=True
        )
    }
    wanted = dict(zip(rows.tolist(), zip(map(bytes, digests), copies.tolist(), strict=True), strict=True))
    stale = [row for row, content in known.items() if wanted.get(row) != content]
    for part in in_chunks(len(stale), NAMED):
        table.delete(_rows_in(stale[part]))
    kept = known.keys() - set(stale)
    missing = np.flatnonzero(~np.isin(rows, np.fromiter(kept, np.int64, len(kept))))
    for part in in_chunks(len(missing), SENT):
        table.add(_rows_of(reference, rows, missing[part], digests, schema))
        progress("publishing", part.stop, len(missing))
    _index(table, len(reference.manifest.embedders), changed=bool(len(missing) or stale))
    return int(table.version)


def _index(table: Any, embedders: int, *, changed: bool) -> None:
    from lancedb.index import HnswSq

    present = {column for index in table.list_indices() for column in index.columns}
    if table.count_rows() < INDEXED:
        return
    if changed and present:
        table.optimize(cleanup_older_than=KEPT)
    for number in range(embedders):
        if _column(number) not in present:
            table.create_index(
                _column(number), config=HnswSq(distance_type="dot", m=LINKS, ef_construction=CONSTRUCTION)
            )


def _schema(reference: ReferenceSet) -> pa.Schema:
    vectors = [
        (_column(number), pa.list_(pa.float16(), info.width))
        for number, info in enumerate(reference.manifest.embedders)
    ]
    return pa.schema(
        [("row", pa.int64()), ("digest", pa.binary(32)), ("key", pa.string()), ("caption", pa.string()),
         ("url", pa.string()), ("copies", pa.int64()), *vectors]
    )  # fmt: skip


def _rows_of(
    reference: ReferenceSet,
    rows: NDArray[np.int64],
    indices: NDArray[np.int64],
    digests: NDArray[np.uint8],
    schema: pa.Schema,
) -> pa.Table:
    entries = reference.entries(indices.tolist())
    columns = [
        pa.array(rows[indices]),
        pa.array([bytes(digest) for digest in digests[indices]], pa.binary(32)),
        *(pa.array([getattr(entry, field) for entry in entries]) for field in ("key", "caption", "url", "copies")),
    ]
    for number, info in enumerate(reference.manifest.embedders):
        vectors = reference.stored(embedded(number), rows[indices]).astype(np.float16)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), info.width))
    return pa.table(columns, schema=schema)


def _moved(old: Path, new: Path, path: str) -> str:
    """A path that is relative to one folder, relative to another one."""
    return os.path.relpath(os.path.normpath(old / path), new)


def _described(rows: Sequence[int], table: Any) -> pa.Table:
    columns = ["row", "key", "caption", "url", "copies"]
    return table.search().where(_rows_in(rows)).select(columns).limit(NAMED).to_arrow()


def _column(embedder: int) -> str:
    return embedded(embedder).removesuffix(".npy").replace("-", "_")


def _rows_in(rows: Sequence[int]) -> str:
    return f"row IN ({', '.join(map(str, rows))})"


def _connect(uri: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise BrokenReference(
            "published reference sets need pip install 'basin-audit[lancedb]'",
            reason="PACKAGE_MISSING",
            field="reference",
        ) from error
    return lancedb.connect(uri)


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Errors of the database in here, which quote its address, as ours."""
    try:
        yield
    except AuditError:
        raise
    except Exception as error:  # the library raises anything at all
        raise DatabaseAway(
            f"the database for the reference set {name} cannot be used: {type(error).__name__}",
            reason="DATABASE_AWAY",
            field="database",
        ) from error
