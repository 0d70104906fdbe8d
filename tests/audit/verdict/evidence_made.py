"""Evidence made by hand, for deciding on it."""

from __future__ import annotations

import numpy as np

from audit.evidence.curvature import CurvatureLevel, Spectrum
from audit.evidence.neighbors import Neighbors
from audit.evidence.stability import Mode, Stability
from audit.verdict.calibration import Calibration, RecurrenceEstimator

#: The thresholds of `calibration`.
DELTA_M, DELTA_S = 3.0, 4.0


def calibration(concentration: float = 12.0, **changes: object) -> Calibration:
    """A plausible calibration: recurrence rises with meeting, closeness and trace."""
    estimator = RecurrenceEstimator(
        features=("meeting", "closeness", "trace"),
        center=(-3.0, 0.0, 0.85),
        spread=(1.5, 1.0, 0.15),
        weights=(0.4, 1.0, 1.5),
        intercept=0.0,
        concentration=concentration,
    )
    without = RecurrenceEstimator(
        features=("meeting", "closeness"),
        center=(-3.0, 0.0),
        spread=(1.5, 1.0),
        weights=(0.6, 1.5),
        intercept=0.0,
        concentration=concentration,
    )
    return Calibration(
        checkpoint_digest="sha256:abc",
        noise_levels=(0.15, 0.35),
        delta_m=DELTA_M,
        delta_s=DELTA_S,
        with_curvature=estimator,
        without_curvature=without,
        typical={"trace": (0.6, 0.8)},
        source="made by hand",
    ).model_copy(update=changes)


def stability(n: int, *, pairs: int = 0, nearest: float = 6.0) -> Stability:
    """N samples, of which `pairs` pairs meet; every sample's nearest other one is at `nearest`, or near in a pair."""
    distances = np.full(n, nearest)
    distances[: 2 * pairs] = min(nearest, DELTA_S / 2)
    groups = [(2 * i, 2 * i + 1) for i in range(pairs)] + [(i,) for i in range(2 * pairs, n)]
    mode_of = np.empty(n, dtype=np.int64)
    for index, group in enumerate(groups):
        mode_of[list(group)] = index
    return Stability(
        nearest_sample=np.roll(np.arange(n), 1),
        nearest_sample_distance=distances,
        modes=tuple(Mode(group, len(group) / n) for group in groups),
        mode_of=mode_of,
        meeting_rate=pairs / (n * (n - 1) / 2),
        final_step=0.01,
    )


def neighbors(n: int, copies: int, *, images: int = 1) -> Neighbors:
    """N samples, of which the first `copies` are copies of `images` different reference images in turn."""
    distance = np.full(n, 3 * DELTA_M)
    distance[:copies] = DELTA_M / 2
    index = np.arange(n) + 100
    index[:copies] = np.arange(copies) % max(1, images)
    return Neighbors(index, distance, distance + 2.5, None, None)


def curvature(trace: float, levels: int = 2) -> tuple[CurvatureLevel, ...]:
    """Levels with a trace."""
    spectrum = Spectrum(trace, 0.01, 0.1, -0.3, (9.0,), (0.1,), 0.05)
    return tuple(CurvatureLevel(21 + 80 * i, 0.15 + 0.2 * i, spectrum, None) for i in range(levels))
