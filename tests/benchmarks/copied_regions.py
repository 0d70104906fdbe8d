"""Where copies sit: maps against the known half, on the trained ladders that have captions for it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from audit.bench.copied_regions import SEEDS, Found, measure_ladder
from audit.bench.ladders import shipped
from audit.bench.markdown import markdown
from audit.bench.scores import resamples


def run() -> str:
    """The tables, as Markdown: a ladder that maps were chosen on, and those that nothing was."""
    parts = []
    for split, told in (("tuning", "on which maps were chosen"), ("held-out", "on which nothing was chosen")):
        for folder in shipped(split):
            if not (found := measure_ladder(folder)):
                continue  # it has no captions to locate
            learned = [one for one in found if one.learned]
            captions, copied = ({one.caption for one in each} for each in (found, learned))
            parts.append(
                f"## {folder.name}, {told}\n\nAll {len(captions)} captions:\n\n{_table(found)}\n\n"
                f"The {len(copied)} whose samples copy the template:\n\n{_table(learned)}"
            )
    tables = "\n\n".join(parts)
    return f"""# Where copies sit

`python -m tests.benchmarks copied_regions`: captions whose training images share one half and differ in the other, so
that the region that can be copied is known. Maps are averages over {len(SEEDS)} samples; ± is half of the 95% bootstrap
interval over captions. "last step" and "diagonal" are Kim & Lee's; each map also as the mean over cells that touch.
"By median" knows that half of the cells are copied, Otsu's threshold does not; AUC takes no threshold.

{tables}
"""


def _table(found: Iterable[Found]) -> str:
    """A row for every map: means over captions."""
    by_method: dict[str, list[Found]] = {}
    for one in found:
        by_method.setdefault(one.method, []).append(one)
    rows = []
    for method, each in by_method.items():
        draws = resamples(np.zeros(len(each)))
        cells = []
        for name in ("by_otsu", "by_median", "auc"):
            values = np.asarray([getattr(one, name) for one in each])
            lower, upper = np.quantile(draws @ values / len(each), [0.025, 0.975])
            cells.append(f"{values.mean():.2f} ± {(upper - lower) / 2:.2f}")
        rows.append([method, *cells])
    return markdown(["map", "IoU by Otsu", "IoU by median", "AUC"], rows)
