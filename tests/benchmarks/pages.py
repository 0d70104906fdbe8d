"""How long a report of many prompts takes to write and to open in a browser."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.v1 import report_pb2
from service import wire
from service.pages.report import write_report
from service.results import open_run
from tests.benchmarks.common import checkpoint, reference, truth
from tests.service.pages.browser import chromium
from tests.service.pages.reading import LOADED, column, press
from tests.service.runs import make_up

LENGTHS = (100, 1000, 10_000)
OPENINGS = 10


def run() -> str:
    """The table, as Markdown."""
    auditor = Auditor(checkpoint(), reference(), demo.calibration())
    report = wire.report_to_proto(auditor.audit(truth()[-1].prompt, include_images=True))
    report.verdict = report_pb2.generalized
    rows = [_opened(length, report) for length in LENGTHS]
    header = ["prompts", "seconds to write", "page", "files beside it", "seconds to open", "slowest", "to open a card"]
    return f"""# Pages

`python -m tests.benchmarks pages`: `report.html` of runs of copies of one result with its pictures
({report.ByteSize():,} bytes) in Chromium; seconds until it is loaded and shows its first hundred rows, median of
{OPENINGS} and the slowest, and until the card of the first of them is open with its pictures.

{markdown(header, rows)}
"""


def _opened(length: int, report: report_pb2.Report) -> list[str]:
    def change(made: report_pb2.Report, position: int) -> None:
        made.recurring_probability = position / length

    with tempfile.TemporaryDirectory() as name:
        folder = make_up(Path(name) / "run", length, report, change)
        start = time.perf_counter()
        with open_run(folder) as opened:
            page = write_report(opened)
        writing = time.perf_counter() - start
        times, card = [], 0.0
        with chromium(Path(name) / "profile") as tab:
            for _ in range(OPENINGS):
                start = time.perf_counter()
                tab.open(page)
                assert column(tab, "prompt")[0] == f"prompt {length - 1}"
                times.append(time.perf_counter() - start)
            start = time.perf_counter()
            press(tab, ".open")
            tab.evaluate(LOADED)
            card = time.perf_counter() - start
            assert tab.complaints == []
        beside = page.with_suffix("")
        files = list(beside.iterdir()) if beside.exists() else []
        size = sum(file.stat().st_size for file in files)
        return [
            f"{length:,}", f"{writing:.1f}", f"{page.stat().st_size / 1e6:.1f} MB",
            f"{len(files)}, {size / 1e6:,.0f} MB" if files else "none",
            f"{np.median(times):.2f}", f"{max(times):.2f}", f"{card:.2f}",
        ]  # fmt: skip
