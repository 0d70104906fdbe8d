"""The card of a prompt: everything that its audits found."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from PIL import Image

from audit.batch.discovery import Outcome
from audit.v1 import report_pb2
from audit.verdict.rule import CLASSES
from service.pages.text import moment, shorten, visible
from service.results import Concluded

#: Modes that are shown one by one, and pixels on the longer side of their pictures.
MOST_MODES = 8
PICTURE_SIDE = 128
#: Columns of the prompt file that are shown, and characters of each.
MOST_COLUMNS = 30
MOST_VALUE = 1_000
#: Size of a plot, its margins, and what its axis shows at least.
PLOT_WIDTH, PLOT_HEIGHT, PLOT_LEFT, PLOT_EDGE = 320, 150, 30, 12
LEAST_TOP = 1.2


#: What a card shows of one checkpoint: see `audits_shown`.
Shown = dict[str, Any]
Reports = tuple[report_pb2.Report | None, report_pb2.Report | None]


def audits_shown(item: Concluded, reports: Reports) -> Shown:
    """What the template shows of a prompt's audits.

    Args:
        item: with what the batch says of it.
        reports: its first and its second audit.
    """
    last = reports[1] or reports[0]
    shown: Shown = {"error": visible(item.row.error), "last": last}
    if last is None:
        return shown
    audits = [
        {"name": name, "report": report, "finished": moment(report.provenance.finish_time.ToDatetime(UTC))}
        for name, report in zip(("first", "second"), reports, strict=True)
        if report is not None
    ]
    found = [report.probabilities for report in reports if report is not None]
    return shown | {
        "audits": audits,
        "classes": [
            (str(kind), [getattr(one, kind) for one in found], getattr(last.fractions, kind)) for kind in CLASSES
        ],
        "modes": _modes(last),
        "more_modes": max(0, len(last.stability.modes) - MOST_MODES),
        "plots": [_plot(level) for level in last.curvature],
    }


def columns_shown(item: Concluded) -> dict[str, Any]:
    """What the template shows of the prompt file's other columns."""
    extra = item.row.entry.extra.items()
    return {
        "columns": [(_value(name), _value(value)) for name, value in list(extra)[:MOST_COLUMNS]],
        "more": max(0, len(extra) - MOST_COLUMNS),
    }


def why(item: Concluded, *, is_open: bool, rate: float) -> str:
    """How the audits led to the outcome.

    Args:
        item: with what the batch says of it.
        is_open: whether an audit of it is still to be done.
        rate: false discovery rate of the batch.
    """
    first, second = item.row.first, item.row.second
    if is_open:
        return "Still to be audited." if first is None else "The first audit flags it; the second is still to be done."
    if first is None:
        return "The audit failed."
    if second is None:
        return (
            "The first audit flags it; the second one failed." if first.flagged
            else "The audit is sure of it." if item.outcome is Outcome.GENERALIZED
            else "The audit leans towards generalized and is not sure."
        )  # fmt: skip
    if item.outcome is Outcome.GENERALIZED:
        return "The first audit flags it; the second, with fresh seeds, is sure that it generalizes."
    if item.outcome is Outcome.RECURRING:
        return (
            "The first audit flags it, and the second, with fresh seeds, confirms that it recurs, but not whether to "
            "reference images or to others."
        )
    if item.outcome is not Outcome.UNDECIDED:
        return "The first audit flags it, and the second, with fresh seeds, confirms it."
    if not second.flagged:
        return "The first audit flags it; the second, with fresh seeds, leans towards generalized and is not sure."
    return (
        f"Both audits flag it, but the second is not sure enough: with it, more than {rate:.0%} of the prompts found "
        f"would be expected to be errors."
    )


def _value(value: object) -> str:
    """A column of the prompt file."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return visible(shorten(text, MOST_VALUE))


def _modes(report: report_pb2.Report) -> list[dict[str, Any]]:
    samples = {sample.seed: sample for sample in report.samples}
    found = []
    for mode in report.stability.modes[:MOST_MODES]:
        central, searched = samples[mode.seeds[0]], mode.HasField("nearest_reference")
        near = mode.nearest_reference
        found.append(
            {
                "verdict": report_pb2.Verdict.Name(mode.verdict),
                "seeds": len(mode.seeds),
                "seed": central.seed,
                "sample": _picture(central.image),
                "met": central.nearest_sample_distance,
                "near": near if searched else None,
                "name": visible(near.key) or str(near.index),
                "caption": visible(near.caption),
                "url": visible(near.url),
                "reference": _picture(near.image),
                "is_copy": searched and near.distance <= report.subject.calibration.delta_m,
            }
        )
    return found


def _picture(image: report_pb2.Image) -> dict[str, Any] | None:
    """A picture as a data URI, no larger than it is shown."""
    if not image.png:
        return None
    content, width, height = image.png, image.width, image.height
    if max(width, height) > PICTURE_SIDE:
        with Image.open(io.BytesIO(content)) as picture:
            picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            width, height = picture.size
            smaller = io.BytesIO()
            picture.save(smaller, "PNG", optimize=True)
            content = smaller.getvalue()
    whole = max(1, 96 // max(width, height))  # small ones grow by whole factors: their pixels stay square
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"source": source, "width": whole * width, "height": whole * height, "pixels": whole > 1}


def _plot(level: report_pb2.CurvatureEvidence) -> dict[str, Any]:
    """Singular values at one noise level, from the largest to the smallest, as points of a small drawing."""
    spectra = [("prompt", level.prompt)]
    if level.HasField("unconditional"):
        spectra.append(("unconditional", level.unconditional))
    parts = {name: _ends(spectrum) for name, spectrum in spectra}
    ceiling = max([LEAST_TOP, *(value for own in parts.values() for part in own for value in part)])
    slots = max(sum(map(len, own)) + len(own) - 1 for own in parts.values())

    def place(slot: int, value: float) -> tuple[float, float]:
        x = PLOT_LEFT + (PLOT_WIDTH - PLOT_LEFT - PLOT_EDGE) * (slot + 0.5) / max(1, slots)
        return round(x, 1), height(value)

    def height(value: float) -> float:
        return round(PLOT_HEIGHT - PLOT_EDGE - (PLOT_HEIGHT - 2 * PLOT_EDGE) * max(0.0, value) / ceiling, 1)

    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for name, own in parts.items():
        slot, curves[name] = 0, []
        for part in own:
            curves[name].append([place(slot + index, value) for index, value in enumerate(part)])
            slot += len(part) + 1  # a gap stands for all the values in between
    return {
        "level": level,
        "curves": curves,
        "ticks": [(value, height(value)) for value in (0, 0.5, 1)],
        "ranges": {name: (own[0][0], own[-1][-1]) for name, own in parts.items() if own[0]},
        "rows": [(name, spectrum) for name, spectrum in spectra],
    }


def _ends(spectrum: report_pb2.Spectrum) -> list[list[float]]:
    """Both ends of a spectrum, descending; one piece where they overlap, as they do when few values are known."""
    top, bottom = list(spectrum.top), list(spectrum.bottom)[::-1]
    for shared in range(min(len(top), len(bottom)), 0, -1):
        if _same(top[-shared:], bottom[:shared]):
            return [top + bottom[shared:]]
    return [top, bottom]


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(one, other, strict=True))
