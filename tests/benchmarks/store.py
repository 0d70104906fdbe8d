"""How fast the store takes results, and how long a page of a long list takes."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.v1 import report_pb2
from service import wire
from service.chunks import chunks
from service.store.engine import connect
from service.store.queue import Finished, Queue, result_row
from service.store.records import Entry
from service.store.schema import ResultRow
from service.store.store import Store
from tests.benchmarks.common import checkpoint, reference, truth

RESULTS = 20_000
#: Of one commit.
GROUPS = (1, 8, 64)
ITEMS = 1_000_000
PAGE = 1000


def run() -> str:
    """The tables, as Markdown."""
    auditor = Auditor(checkpoint(), reference(), demo.calibration())
    budget = Budget(curvature=CurvatureSettings())
    report = wire.report_to_proto(auditor.audit(truth()[-1].prompt, budget=budget))
    with tempfile.TemporaryDirectory() as folder:
        rates = {group: _rate(Path(folder) / f"{group}.db", report, group) for group in GROUPS}
        pages = _pages(Path(folder) / "long.db", report)
    times = [[f"{number:,}", f"{np.median(own):.1f}", f"{max(own):.1f}"] for number, own in pages.items()]
    return f"""# The store

`python -m tests.benchmarks store`: SQLite on disk (write-ahead log, synchronous=FULL, secure_delete=ON), results of
{report.ByteSize():,} bytes without pictures, taken and finished in groups that are one commit each:

{markdown(["results a commit", "results a second"], [[str(group), f"{rate:,.0f}"] for group, rate in rates.items()])}

A page of {PAGE:,} items and their results, of a batch of {ITEMS:,} that is done (median of 30, and the slowest):

{markdown(["page", "milliseconds", "slowest"], times)}
"""


def _entries(count: int) -> Iterator[Entry]:
    for position in range(count):
        prompt = f"prompt {position}"
        yield Entry("demo", position, prompt, hashlib.sha256(prompt.encode()).hexdigest(), {"row": position})


def _rate(file: Path, report: report_pb2.Report, group: int) -> float:
    engine = connect(f"sqlite:///{file}")
    with closing(Store(engine)) as store:
        queue = Queue(engine)
        count = min(RESULTS, 500 * group)
        batch = store.create(_entries(count), {"subjects": {"demo": {}}})
        start = time.perf_counter()
        while tasks := queue.take(batch.id, "demo", group, idle=True):
            queue.finish(batch.id, [Finished(task, report, "") for task in tasks])
        return count / (time.perf_counter() - start)


def _pages(file: Path, report: report_pb2.Report) -> dict[int, list[float]]:
    engine = connect(f"sqlite:///{file}")
    result, entries = result_row("", report), _entries(ITEMS)
    for some in chunks(entries, 10_000):
        with engine.begin() as connection:
            connection.execute(insert(ResultRow), [{**result, "key": entry.key} for entry in some])
    found = {}
    with closing(Store(engine)) as store:
        batch = store.create(_entries(ITEMS), {"subjects": {"demo": {}}})
        for page in (1, 10, 100, 1000):
            times = []
            for _ in range(30):
                start = time.perf_counter()
                rows = store.rows(batch.id, after=("demo", (page - 1) * PAGE - 1), limit=PAGE)
                times.append(1000 * (time.perf_counter() - start))
                assert sum(row.first is not None for row in rows) == PAGE
            found[page] = times
    return found
