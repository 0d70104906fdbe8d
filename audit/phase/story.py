"""Everything that a run found, and every number of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.phase.folder import RunFolder, write_whole
from audit.phase.measure_sweep import classes_of
from audit.phase.sweep import Network, Sweep
from audit.phase.toy import Circle
from audit.phase.transition import Ordering, Thresholds, Transition
from audit.verdict.rule import CLASSES

#: What the paper expects to be larger in memorized and spurious states than in generalized ones: the array, its sign,
#: what people call it.
EXPECTED = (
    ("critical_time", 1, "critical time"),
    ("log_volume", 1, "basin log-volume"),
    ("trace", 1, "curvature: trace"),
    ("flat_share", -1, "curvature: fewer flat directions"),
    ("curvature_volume", 1, "curvature: log-volume"),
    ("energy", -1, "depth of the energy"),
)


@dataclass(frozen=True)
class Story:
    """Everything that a run found.

    Attributes:
        run: its folder.
        sweep: its configuration.
        source: where the data set's files are; the usual places when None.
        thresholds: by space, "pixel" or "latent".
        transitions: by the name of the series.
        orderings: by the name of the series.
        samples: arrays of `audit.phase.measure_sweep.draw`, by network.
        evidence: arrays of `audit.phase.measure_sweep.measure`, by network.
        circles: the toy.
        ladder: the captions of the checkpoint that ships with Basin.
        seconds: wall time of the stages that had something to do.
    """

    run: RunFolder
    sweep: Sweep
    source: Path | None
    thresholds: dict[str, Thresholds]
    transitions: dict[str, Transition]
    orderings: dict[str, list[Ordering]]
    samples: dict[Network, dict[str, NDArray[Any]]]
    evidence: dict[Network, dict[str, NDArray[Any]]]
    circles: list[Circle]
    ladder: list[dict[str, float]]
    seconds: dict[str, float]

    def networks(self, series: str) -> list[Network]:
        """Those of one series."""
        return [network for network in self.sweep.networks if network.series == series]

    def space(self, series: str) -> str:
        """Where a series lives."""
        return self.sweep.series_named(series).space

    def classes(self, network: Network) -> NDArray[np.int64]:
        """Class index of each of its samples."""
        return classes_of(self.samples[network], self.thresholds[self.space(network.series)])


def metrics(story: Story) -> list[dict[str, Any]]:
    """Every number of the page: one entry per network, space, series, ordering, circle and caption."""
    lines: list[dict[str, Any]] = []
    for network in story.sweep.networks:
        classes, evidence = story.classes(network), story.evidence[network]
        line: dict[str, Any] = {"kind": "network", **network.model_dump(), "samples": len(classes)}
        for index, name in enumerate(map(str, CLASSES)):
            line[name] = float((classes == index).mean())
            here = evidence["class"] == index
            line |= {
                f"{name}_{array}": float(evidence[array][here].mean()) if here.any() else None
                for array, _, _ in EXPECTED
            }
        line |= {
            "reference_distance": float(np.median(story.samples[network]["reference_distance"])),
            "sample_distance": float(np.median(story.samples[network]["sample_distance"])),
            "training_trace": float(evidence["training_trace"].mean()),
            "path_dependence": float(np.median(np.abs(evidence["energy"] - evidence["energy_line"]))),
        }
        lines.append(line)
    lines += [{"kind": "thresholds", "space": kind, **asdict(found)} for kind, found in story.thresholds.items()]
    for name, transition in story.transitions.items():
        capacities = {
            part: asdict(getattr(transition, part)) for part in ("memorization", "spurious", "generalization")
        }
        lines.append({"kind": "capacities", "series": name, **capacities, "spurious_peak": transition.spurious_peak})
        lines += [
            {"kind": "ordering", "series": name, **asdict(ordering), "shown": ordering.shown}
            for ordering in story.orderings[name]
        ]
    for circle in story.circles:
        arrays = circle.arrays
        lines.append(
            {
                "kind": "circle",
                "size": circle.size,
                "stored": circle.stored,
                "spurious": circle.spurious,
                "stored_exact": circle.stored_exact,
                "spurious_exact": circle.spurious_exact,
                "score_error": arrays["score_error"].tolist(),
                "score_error_limit": arrays["score_error_limit"].tolist(),
                "ring_energy_spread": float(arrays["ring_energy"].std()),
                "ring_energy_spread_exact": float(arrays["ring_energy_exact"].std()),
            }
        )
    lines += [{"kind": "caption", **found} for found in story.ladder]
    return lines


def write_metrics(story: Story) -> None:
    """Write them as JSON lines, metrics.jsonl of the run folder."""
    write_whole(story.run.path / "metrics.jsonl", "".join(map(_line, metrics(story))))


def _line(entry: dict[str, Any]) -> str:
    # JSON has no infinity: a capacity beyond the sizes that were swept is null.
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps(plain(entry), allow_nan=False) + "\n"
