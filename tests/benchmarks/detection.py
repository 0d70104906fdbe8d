"""Basin beside every published detector, on the ladders that nothing was tuned on: tables, and docs/detection.png.

The same as `basin bench`, written where the documentation has it.
"""

from __future__ import annotations

from pathlib import Path

from audit.bench.comparison import compare
from audit.bench.ladders import open_ladder, shipped
from audit.bench.tables import Scored, draw, page
from audit.progress import stage_bars

FIGURE = Path(__file__).parents[2] / "docs" / "detection.png"


def run() -> str:
    """The tables, as Markdown."""
    scored = []
    for folder in shipped("held-out"):
        ladder = open_ladder(folder)
        rows = ladder.split("held-out")
        with stage_bars(f"{ladder.name}: ", len(rows)) as advance:
            scored.append(Scored(compare(ladder, rows, advance)))
    draw(scored).savefig(FIGURE, dpi=130)
    return "\n\n".join(page(one) for one in scored) + "\n"
