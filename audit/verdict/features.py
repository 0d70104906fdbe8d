"""What decides: a few numbers from the evidence, each of which rises with recall, comparable across checkpoints.

    contrast_early, contrast_late   log ‖ε_Δ‖ on pure noise at the two levels of `audit.evidence.screening`, over the
                                    mean of ordinary prompts
    trace_near, trace_far           the smoothed trace at the two levels of `NOISE_LEVELS`, on a scale where 0 is
                                    ordinary and 1 an isolated stored point
    closeness                       −log of the median distance to the nearest other sample, in units of δ_s
    meeting                         log of the rate at which seeds meet, smoothed by half a pair

The first two are there before any image is drawn, the next two from the first sample on, the last two from the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.evidence.stability import Stability

#: σ/√(α² + σ²) of the levels at which the smoothed trace is taken.
NOISE_LEVELS = (0.35, 0.7)
#: Samples it is taken at, at most: more would tell nothing new of a prompt.
TRACED = 8

CONTRASTS = ("contrast_early", "contrast_late")
TRACES = ("trace_near", "trace_far")
MEETINGS = ("closeness", "meeting")
#: Where an estimator may weigh more of a feature otherwise than less of it.
KNOTS = (
    dict.fromkeys(CONTRASTS, (0.0, 0.5, 1.0))
    | dict.fromkeys(TRACES, (0.0, 0.2, 0.5))
    | {"closeness": (-0.5, 0.0), "meeting": (-4.0, -2.0)}
)


class Ordinary(BaseModel):
    """A measurement over ordinary prompts.

    Attributes:
        mean: over prompts.
        spread: standard deviation over prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    spread: NonNegativeFloat

    @property
    def range(self) -> tuple[float, float]:
        """Where nine tenths of ordinary prompts are, if they are normally distributed."""
        return self.mean - 1.645 * self.spread, self.mean + 1.645 * self.spread


def measurements(screening: Screening | None, smoothed: SmoothedTrace | None) -> dict[str, float]:
    """The measurements that have a scale of their own on every checkpoint, before it is taken away.

    Returns:
        By name, mean log contrast and mean smoothed trace, each when it was measured.
    """
    found: dict[str, float] = {}
    if screening is not None:
        # A prompt that changes nothing has no contrast, and no logarithm.
        contrast = np.log(np.maximum(screening.contrast, 1e-12)).mean(0)
        found |= {name: float(value) for name, value in zip(CONTRASTS, contrast, strict=True)}
    if smoothed is not None:
        found |= {name: float(value) for name, value in zip(TRACES, smoothed.values.mean(0), strict=True)}
    return found


def normalise(measured: Mapping[str, float], ordinary: Mapping[str, Ordinary]) -> dict[str, float]:
    """Features from measurements: what is ordinary on a checkpoint becomes 0, what nobody knows of is left out."""
    found = {}
    for name, value in measured.items():
        usual = ordinary.get(name)
        if usual is None:
            continue
        # How much ordinary prompts differ among themselves is no scale: it varies more from checkpoint to checkpoint
        # than what recall adds. A checkpoint that only copies may not divide by nothing.
        scale = 1.0 if name in CONTRASTS else max(1.0 - usual.mean, 0.1)
        found[name] = min(max((value - usual.mean) / scale, -20.0), 20.0)
    return found


def meetings(stability: Stability, delta_s: float) -> dict[str, float]:
    """How near samples come to each other; nothing for a single sample."""
    n = len(stability.mode_of)
    if n < 2:
        return {}
    pairs = n * (n - 1) / 2
    nearest = float(np.median(stability.nearest_sample_distance))
    return {
        "closeness": -math.log(min(max(nearest / delta_s, 1e-3), 1e3)),
        "meeting": math.log((stability.meeting_rate * pairs + 0.5) / (pairs + 1)),
    }


@dataclass(frozen=True)
class Measurement:
    """What decides, one number of it.

    Attributes:
        name: one of the above.
        value: rises with recall; contrasts as they are, not their logarithms.
        ordinary: where nine tenths of ordinary prompts are; None where they were not measured.
    """

    name: str
    value: float
    ordinary: tuple[float, float] | None


def against(measured: Mapping[str, float], ordinary: Mapping[str, Ordinary]) -> tuple[Measurement, ...]:
    """Measurements beside what is ordinary. People read contrasts, not their logarithms."""
    shown = []
    for name, value in measured.items():
        usual = ordinary.get(name)
        values = (value, *(usual.range if usual is not None else ()))
        own, *ends = (math.exp(v) for v in values) if name in CONTRASTS else values
        shown.append(Measurement(name, own, (ends[0], ends[1]) if ends else None))
    return tuple(shown)
