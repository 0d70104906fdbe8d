"""From the evidence of n seeds to the class fractions at N, the verdict and its reasons.

Neighbours tell memorized from the rest, curvature and modes tell recurring from the rest. With k of n samples within
δ_m of a complete reference set and R the share that recurs among N samples,

    f_m ~ Beta(k + ½, n − k + ½)          (Jeffreys)
    R   ~ Beta(κr̂, κ(1 − r̂))              r̂ and κ from the calibration's estimator
    f_s = (1 − f_m) R,   f_g = (1 − f_m)(1 − R)

and the probability of a class is the share of the posterior in which its fraction is the largest. Against a partial
set (or none) a recurring sample that was not found may still be a copy of an image that is not in the set: a share
u ~ Uniform(0, 1) of the recurring rest counts as memorized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from audit.evidence.curvature import CurvatureLevel
from audit.evidence.neighbors import Neighbors
from audit.evidence.stability import Stability
from audit.verdict.calibration import Calibration, recurrence_features
from audit.verdict.rule import CLASSES, PhaseClass, classify_samples

#: Version of the way from evidence to verdict. Raised whenever the same evidence would give another answer, so that
#: no kept answer is served any more.
ALGORITHM = 1
#: Probability that each interval holds the true fraction.
INTERVAL_LEVEL = 0.9
#: A verdict of less confidence is reported as not decided.
DECIDED = 0.9
_DRAWS = 20_000


@dataclass(frozen=True)
class Interval:
    """An estimate (posterior mean) with the ends of its central interval of `INTERVAL_LEVEL`."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Decision:
    """The verdict and all that belongs to it.

    Attributes:
        verdict: the class that most probably dominates.
        confidence: its probability.
        probabilities: that each class dominates, in the order of `CLASSES`.
        fractions: of each class at N.
        recurring_probability: that memorized and spurious samples together outnumber generalized ones.
        sample_classes: index into `CLASSES` of each sample, among the samples drawn.
        copies: samples within δ_m of a reference image.
        distinct_references: different reference images among them.
        copy_rate_bound: upper end of the one-sided 95% Clopper–Pearson interval of the copy rate; 1 unsearched.
        reasons: in plain sentences, the weightiest first.
        delta_m: as used.
        delta_s: as used.
    """

    verdict: PhaseClass
    confidence: float
    probabilities: tuple[float, float, float]
    fractions: tuple[Interval, Interval, Interval]
    recurring_probability: float
    sample_classes: tuple[int, ...]
    copies: int
    distinct_references: int
    copy_rate_bound: float
    reasons: tuple[str, ...]
    delta_m: float
    delta_s: float

    @property
    def decided(self) -> bool:
        """Whether the confidence is high enough to call it an answer."""
        return self.confidence >= DECIDED


def decide(
    stability: Stability,
    neighbors: Neighbors | None,
    curvature: tuple[CurvatureLevel, ...],
    calibration: Calibration,
    *,
    reference_complete: bool,
    dimension: int,
    definition_samples: int,
    fits: bool,
) -> Decision:
    """Weigh the evidence.

    Args:
        stability: of the seeds drawn.
        neighbors: nearest references; None when nothing was searched.
        curvature: one entry per noise level; empty when it was not measured.
        calibration: thresholds and estimators.
        reference_complete: whether "not found" means "not there".
        dimension: of pixel vectors.
        definition_samples: N.
        fits: whether the calibration was made with this checkpoint and sampler.
    """
    n = len(stability.mode_of)
    delta_m, delta_s = calibration.thresholds(dimension)
    reference_distance = np.full(n, np.inf) if neighbors is None else neighbors.distance
    classes = classify_samples(reference_distance, stability.nearest_sample_distance, delta_m, delta_s)
    is_copy = reference_distance <= delta_m
    copies = int(is_copy.sum())
    distinct = 0 if neighbors is None else len(set(neighbors.index[is_copy].tolist()))

    features = recurrence_features(stability, curvature, delta_s)
    estimator = calibration.with_curvature if curvature else calibration.without_curvature
    recurrence = estimator.predict(features)
    # A calibration of another checkpoint or sampler is worth a fraction of its own.
    concentration = estimator.concentration * (1.0 if fits else 0.25)
    rng = np.random.default_rng(0)
    returning = rng.beta(concentration * recurrence + 1e-3, concentration * (1 - recurrence) + 1e-3, _DRAWS)
    # A state of probability p is met again among N samples with probability 1 − (1 − p)^(N−1) ≈ 1 − exp(−pN): the share
    # that does not recur at another N is raised to the power of the ratio of the two.
    returning = 1 - (1 - returning) ** (definition_samples / calibration.definition_samples)
    copied = np.zeros(_DRAWS)
    if neighbors is not None:
        copied = rng.beta(copies + 0.5, n - copies + 0.5, _DRAWS)
    hidden = np.zeros(_DRAWS)
    if neighbors is None or not reference_complete:
        hidden = rng.random(_DRAWS)
    rest = 1 - copied
    fractions = np.stack(
        [copied + rest * returning * hidden, rest * returning * (1 - hidden), rest * (1 - returning)], axis=1
    )
    winners = np.bincount(fractions.argmax(1), minlength=3) / _DRAWS
    tail = (1 - INTERVAL_LEVEL) / 2
    lower, upper = np.quantile(fractions, [tail, 1 - tail], axis=0)
    best = int(winners.argmax())
    memorized, spurious, generalized = (
        Interval(float(fractions[:, i].mean()), float(lower[i]), float(upper[i])) for i in range(3)
    )
    return Decision(
        verdict=CLASSES[best],
        confidence=float(winners[best]),
        probabilities=(float(winners[0]), float(winners[1]), float(winners[2])),
        fractions=(memorized, spurious, generalized),
        recurring_probability=float((fractions[:, 2] < 0.5).mean()),
        sample_classes=tuple(int(c) for c in classes),
        copies=copies,
        distinct_references=distinct,
        copy_rate_bound=1.0 if neighbors is None or copies == n else float(beta.ppf(0.95, copies + 1, n - copies)),
        reasons=tuple(
            _reasons(
                stability, neighbors, curvature, calibration, features, recurrence, copies, distinct, delta_m, delta_s,
                reference_complete, definition_samples, fits,
            )
        ),
        delta_m=delta_m,
        delta_s=delta_s,
    )  # fmt: skip


def _reasons(
    stability: Stability,
    neighbors: Neighbors | None,
    curvature: tuple[CurvatureLevel, ...],
    calibration: Calibration,
    features: dict[str, float],
    recurrence: float,
    copies: int,
    distinct: int,
    delta_m: float,
    delta_s: float,
    complete: bool,
    definition_samples: int,
    fits: bool,
) -> list[str]:
    n = len(stability.mode_of)
    sentences = []
    if neighbors is None:
        sentences.append(
            "No reference set was searched: recurring images cannot be told from copies of training images."
        )
    elif copies:
        images = "one training image" if distinct == 1 else f"{distinct} different training images"
        sentences.append(
            f"{copies} of {n} seeds gave copies of {images}: the nearest is at distance "
            f"{neighbors.distance.min():.2f}, copies are within {delta_m:.2f}."
        )
    else:
        whole = "complete training set" if complete else "partial reference set"
        sentences.append(
            f"None of {n} seeds came near an image of the {whole}: the nearest is at distance "
            f"{neighbors.distance.min():.2f}, copies are within {delta_m:.2f}."
        )
        if not complete:
            sentences.append(
                "The reference set is partial: an image that recurs may still be a copy of one outside it."
            )
    recurring = sum(len(mode.members) for mode in stability.modes if mode.recurs)
    if recurring:
        meeting = f"two seeds meet with probability {stability.meeting_rate:.2f}"
        count = sum(mode.recurs for mode in stability.modes)
        places = "one image" if count == 1 else f"{count} images"
        sentences.append(f"{recurring} of {n} seeds returned to {places} that another seed also reached; {meeting}.")
    else:
        sentences.append(f"No two of {n} seeds met (closer than {delta_s:.2f}).")
    if curvature:
        low, high = calibration.typical["trace"]
        trace = features["trace"]
        place = "above" if trace > high else "below" if trace < low else "within"
        sentences.append(
            f"The curvature's trace is {trace:.2f}, {place} the range of generalizing prompts "
            f"({low:.2f} to {high:.2f}); {features['flat_share']:.0%} of the directions are flat."
        )
    sentences.append(
        f"From this, {recurrence:.0%} of {calibration.definition_samples} samples are expected to recur."
        if definition_samples == calibration.definition_samples
        else f"From this, {recurrence:.0%} of {calibration.definition_samples} samples are expected to recur; the "
        f"fractions are carried over to {definition_samples} samples."
    )
    if not fits:
        sentences.append(
            "No calibration of this checkpoint with these sampler settings: thresholds and estimates are rough."
        )
    return sentences
