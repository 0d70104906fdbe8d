"""Evidence made by hand, for deciding on it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from audit.evidence.gathered import Evidence
from audit.evidence.neighbors import Neighbors
from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.evidence.stability import Mode, Stability
from audit.verdict.calibration import Calibration
from audit.verdict.estimators import Estimators, Look, ShareEstimator
from audit.verdict.features import CONTRASTS, MEETINGS, TRACES, Ordinary

#: The thresholds of `calibration`.
DELTA_M, DELTA_S = 3.0, 4.0
#: What ordinary prompts measure there.
CONTRAST, TRACE = 0.1, 0.6

#: By feature: center, spread, weight for what recurs, weight for what is copied.
_SCALES = {
    "contrast_early": (0.4, 0.4, 0.3, 0.4),
    "contrast_late": (0.4, 0.4, 0.5, 0.4),
    "trace_near": (0.4, 0.4, 0.5, 0.6),
    "trace_far": (0.4, 0.4, 0.5, 0.6),
    "closeness": (0.0, 1.0, 1.0, 0.5),
    "meeting": (-3.0, 1.5, 0.4, 0.2),
}


def calibration(**changes: object) -> Calibration:
    """A plausible calibration."""
    return Calibration(
        checkpoint_digest="sha256:abc",
        delta_m=DELTA_M,
        delta_s=DELTA_S,
        ordinary={name: Ordinary(mean=math.log(CONTRAST), spread=0.2) for name in CONTRASTS}
        | {name: Ordinary(mean=TRACE, spread=0.05) for name in TRACES},
        prompts=50,
        screen_threshold=0.5,
        false_positive_rate=0.05,
        source="made by hand",
    ).model_copy(update=changes)


def _share(names: tuple[str, ...], column: int, intercept: float, concentration: float) -> ShareEstimator:
    scales = [_SCALES[name] for name in names]
    return ShareEstimator(
        features=names,
        knots=tuple((scale[0],) for scale in scales),
        slopes=tuple(2 * (scale[column] / scale[1],) for scale in scales),
        center=len(names) * (0.0,),
        spread=tuple(scale[column] for scale in scales),
        intercept=intercept,
        concentration=concentration,
    )


def estimators(concentration: float = 12.0, copied: float = 6.0) -> Estimators:
    """Plausible estimators for no sample, one, and more; both shares rise with everything."""
    looks = (0, CONTRASTS), (1, CONTRASTS + TRACES), (2, CONTRASTS + TRACES + MEETINGS)
    return Estimators(
        looks=tuple(
            Look(seeds=seeds, recurring=_share(names, 2, 0.0, concentration), copied=_share(names, 3, -3.0, copied))
            for seeds, names in looks
        ),
        definition_samples=512,
        source="made by hand",
    )


def constant(mean: float, concentration: float) -> ShareEstimator:
    """Always the same prediction."""
    return ShareEstimator(
        features=(),
        knots=(),
        slopes=(),
        center=(),
        spread=(),
        intercept=math.log(mean) - math.log1p(-mean),
        concentration=concentration,
    )


def sure_of(recurring: ShareEstimator, copied: ShareEstimator) -> Estimators:
    """Estimators that are the same at every look."""
    return Estimators(
        looks=(Look(seeds=0, recurring=recurring, copied=copied),), definition_samples=512, source="made by hand"
    )


def screening(contrast: float = CONTRAST) -> Screening:
    """Four noises at two levels, all of the same contrast."""
    return Screening((900, 400), (0.92, 0.5), np.full((4, 2), contrast), np.full((4, 2), 0.1))


def smoothed(trace: float, n: int = 4) -> SmoothedTrace:
    """Samples at two levels, all of the same trace."""
    return SmoothedTrace((150, 300), (0.35, 0.7), np.full((n, 2), trace))


def stability(n: int, *, pairs: int = 0, nearest: float = 6.0) -> Stability:
    """N samples, of which `pairs` pairs meet; every sample's nearest other one is at `nearest`, or near in a pair."""
    distances = np.full(n, nearest if n > 1 else np.inf)
    distances[: 2 * pairs] = min(nearest, DELTA_S / 2)
    groups = [(2 * i, 2 * i + 1) for i in range(pairs)] + [(i,) for i in range(2 * pairs, n)]
    mode_of = np.empty(n, dtype=np.int64)
    for index, group in enumerate(groups):
        mode_of[list(group)] = index
    return Stability(
        nearest_sample=np.roll(np.arange(n), 1) if n > 1 else np.full(1, -1),
        nearest_sample_distance=distances,
        modes=tuple(Mode(group, len(group) / n) for group in groups),
        mode_of=mode_of,
        meeting_rate=pairs / (n * (n - 1) / 2) if n > 1 else math.nan,
        final_step=0.01,
    )


def neighbors(n: int, copies: int, *, images: int = 1) -> Neighbors:
    """N samples, of which the first `copies` are copies of `images` different reference images in turn."""
    distance = np.full(n, 3 * DELTA_M)
    distance[:copies] = DELTA_M / 2
    index = np.arange(n) + 100
    index[:copies] = np.arange(copies) % max(1, images)
    return Neighbors(index, distance, distance + 2.5, None, None)


def evidence(
    n: int,
    copies: int | None = 0,
    *,
    pairs: int = 0,
    nearest: float = 6.0,
    contrast: float = CONTRAST,
    trace: float = TRACE,
    images: int = 1,
) -> Evidence:
    """All of it; no reference set was searched where copies are None."""
    return Evidence(
        screening=screening(contrast),
        stability=stability(n, pairs=pairs, nearest=nearest),
        smoothed=smoothed(trace, min(n, 8)),
        neighbors=None if copies is None else neighbors(n, copies, images=images),
    )


def with_ordinary(**changes: Mapping[str, float]) -> Calibration:
    """The calibration with other ordinary measurements, by name."""
    made = calibration()
    return made.model_copy(update={"ordinary": made.ordinary | {k: Ordinary(**v) for k, v in changes.items()}})
