"""Basin beside every published detector, on the ladders that nothing was tuned on: tables, and docs/detection.png.

The same as `basin bench`, a process for each ladder, written where the documentation has it.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from audit.bench.comparison import Comparison, compare
from audit.bench.ladders import open_ladder, shipped
from audit.bench.tables import Scored, draw, page
from audit.progress import progress_bar

FIGURE = Path(__file__).parents[2] / "docs" / "detection.png"


def run() -> str:
    """The tables, as Markdown."""
    folders = shipped("held-out")
    threads = max(1, torch.get_num_threads() // len(folders))
    with ProcessPoolExecutor(len(folders), multiprocessing.get_context("spawn")) as pool, progress_bar() as bar:
        task = bar.add_task("ladders", total=len(folders), note="")
        scored = []
        for found in pool.map(_compare, folders, [threads] * len(folders)):
            scored.append(Scored(found))
            bar.advance(task)
    draw(scored).savefig(FIGURE, dpi=130)
    return "\n\n".join(page(one) for one in scored) + "\n"


def _compare(folder: Path, threads: int) -> Comparison:
    torch.set_num_threads(threads)
    ladder = open_ladder(folder)
    return compare(ladder, ladder.split("held-out"))
