"""The page of a run: one HTML file that tells the story with its figures and needs nothing beside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from audit.palette import COLOURS
from audit.phase.figures import draw_figures
from audit.phase.folder import write_whole
from audit.phase.story import Story
from audit.phase.toy import SIGMA_SHOWN, SIGMAS_COMPARED
from audit.phase.transition import Estimate
from audit.version import library_versions

#: Dots per inch of PNG files.
RESOLUTION = 130


def write_page(story: Story) -> Path:
    """Draw all figures, as PNG and SVG, and write index.html.

    Returns:
        The page.
    """
    embedded = {}
    for name, figure in draw_figures(story).items():
        for suffix in ("png", "svg"):
            content = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(content, format=suffix, dpi=RESOLUTION, metadata=metadata)
            figure.set_layout_engine("none")  # both have the same, which takes as long as to draw
            write_whole(story.run.path / "figures" / f"{name}.{suffix}", content.getvalue())
            if suffix == "png":
                embedded[name] = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"capacity": show_capacity, "estimate": show_estimate}
    text = environment.get_template("page.html.j2").render(**_contents(story), figures=embedded)
    page = story.run.path / "index.html"
    write_whole(page, text)
    return page


def _contents(story: Story) -> dict[str, Any]:
    sweep = story.sweep
    return {
        "story": story,
        "sweep": sweep,
        "colours": COLOURS,
        "versions": library_versions(),
        "sigma_shown": SIGMA_SHOWN,
        "sigmas_compared": SIGMAS_COMPARED,
        "effects": capacity_effects(story),
        "orderings": list(zip(*story.orderings.values(), strict=True)),
        "starred": any(not found.networks for orderings in story.orderings.values() for found in orderings),
        "path_dependence": {name: _path_dependence(story, name) for name in story.transitions},
    }


@dataclass(frozen=True)
class Effect:
    """What width does to an architecture.

    Attributes:
        narrow: name of the narrower series.
        wide: name of the wider one, in the same space.
        capacity: "memorization" or, where that lies beyond the sizes of the sweep, "generalization"; "" if both do.
        ratio: of the capacities, wide over narrow; NaN without any.
        apart: whether their intervals are.
    """

    narrow: str
    wide: str
    capacity: str
    ratio: float
    apart: bool


def capacity_effects(story: Story) -> list[Effect]:
    """What width does, wherever an architecture was trained in two of them in the same space."""
    found = []
    for narrow in story.sweep.series:
        wider = [
            other
            for other in story.sweep.series
            if (other.architecture, other.space) == (narrow.architecture, narrow.space) and other.width > narrow.width
        ]
        for wide in sorted(wider, key=lambda other: other.width)[:1]:
            found.append(_effect(story, narrow.name, wide.name))
    return found


def _effect(story: Story, narrow: str, wide: str) -> Effect:
    for capacity in ("memorization", "generalization"):
        low, high = (getattr(story.transitions[name], capacity) for name in (narrow, wide))
        if 0 < low.value < np.inf and 0 < high.value < np.inf:
            apart = high.lower > low.upper or high.upper < low.lower
            return Effect(narrow, wide, capacity, high.value / low.value, apart)
    return Effect(narrow, wide, "", float("nan"), False)


def _path_dependence(story: Story, name: str) -> float:
    own = [found for network, found in story.evidence.items() if network.series == name]
    arcs, lines = (np.concatenate([found[array] for found in own]) for array in ("energy", "energy_line"))
    return float(np.median(np.abs(arcs - lines)) / max(float(arcs.std()), 1e-12))


def show_capacity(found: Estimate, sizes: tuple[int, ...]) -> str:
    """A size of a training set with its interval, or which end of the sweep it lies beyond."""

    def one(value: float) -> str:
        if value > sizes[-1]:
            return f"over {sizes[-1]:,}"
        return f"under {sizes[0]:,}" if value < sizes[0] else f"{value:,.0f}"

    value, lower, upper = one(found.value), one(found.lower), one(found.upper)
    return value if value == lower == upper else f"{value} ({lower} to {upper})"


def show_estimate(found: Estimate) -> str:
    """A difference with its interval."""
    if np.isnan(found.value):
        return "–"
    return f"{show_number(found.value)} ({show_number(found.lower)} to {show_number(found.upper)})"


def show_number(value: float) -> str:
    """A difference, with its sign and three digits or all before the point; a dash where there is none."""
    if np.isnan(value):
        return "–"
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.3g}"
