"""Where copies sit: maps against the known half, on trained ladders that have captions for it.

`python -m tests.benchmarks.copied_regions FOLDER...`, each written by `basin train ladder`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from audit.bench.copied_regions import Found, measure_ladder
from audit.bench.markdown import markdown


def table(found: Iterable[Found]) -> str:
    """A row for every map: means over captions."""
    by_method: dict[str, list[Found]] = {}
    for one in found:
        by_method.setdefault(one.method, []).append(one)
    rows = [
        [
            method,
            *(f"{np.mean([getattr(one, name) for one in each]):.2f}" for name in ("by_otsu", "by_median", "auc")),
            f"{min(one.by_median for one in each):.2f}",
        ]
        for method, each in by_method.items()
    ]
    return markdown(["map", "IoU by Otsu", "IoU by median", "AUC", "lowest IoU by median"], rows)


def main() -> None:
    """Print a table for every folder: all captions, and those whose template the samples copy."""
    for folder in map(Path, sys.argv[1:]):
        found = measure_ladder(folder)
        learned = [one for one in found if one.learned]
        captions, copied = ({one.caption for one in each} for each in (found, learned))
        print(f"\n{folder.name}: {len(captions)} captions\n\n{table(found)}")
        print(f"\nof which samples copy the template of {len(copied)}\n\n{table(learned)}", flush=True)


if __name__ == "__main__":
    main()
