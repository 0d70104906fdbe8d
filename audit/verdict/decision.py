"""From the evidence of n seeds to the class fractions at N, the verdict and its reasons.

Two shares are estimated: R, of the samples that recur among N, and C, of those that are copies:

    R ~ Beta(κr̂, κ(1 − r̂)),   C ~ Beta(κĉ, κ(1 − ĉ))       r̂, ĉ and κ from `audit.verdict.estimators`
    f_m = R C,   f_s = R (1 − C),   f_g = 1 − R

The estimators see no reference set. What is found there comes in by Bayes' rule: k of n samples within δ_m of a
reference image have the likelihood Binomial(k; n, f_m) where the set is complete, and where it is a part that covers a
share v ~ Uniform(0, 1) of what is copied, Binomial(k; n, v f_m). The probability of a class is the share of the
posterior in which its fraction is the largest. Estimators can be wrong: a share `DOUBT` of either prior is uniform, so
that samples can overrule them. All of it is summed over a grid of R and C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc
from scipy.stats import beta

from audit.evidence.gathered import Evidence
from audit.evidence.screening import Screening
from audit.model.checkpoint import Gap
from audit.verdict.calibration import Calibration
from audit.verdict.estimators import Estimators, ShareEstimator, shipped
from audit.verdict.features import Measurement, against, measurements, meetings, normalise
from audit.verdict.reasons import give_reasons
from audit.verdict.rule import CLASSES, PhaseClass, classify_samples

#: Version of the way from evidence to verdict. Raised whenever the same evidence would give another answer, so that
#: no kept answer is served any more.
ALGORITHM = 4
#: Probability that each interval holds the true fraction.
INTERVAL_LEVEL = 0.9
#: A verdict of less confidence is reported as not decided.
DECIDED = 0.9
#: At this probability a question is settled, and no more seeds are drawn for it.
SETTLED = 0.95
#: Share of either prior that does not believe its estimator.
DOUBT = 0.02
#: What an estimate is worth, of its own concentration, with a calibration of another checkpoint or sampler; and what
#: the share of copies is worth where no complete reference set can contradict it.
BORROWED = 0.25
#: Cells of a share, and the step that interval ends are rounded to.
_CELLS, _STEP = 128, 1e-3


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
        settled: whether more seeds would hardly change it: the class is settled, or whether samples recur is, and of
            what recurs no number of seeds could say whether it is copied.
        sample_classes: index into `CLASSES` of each sample, among the samples drawn.
        copies: samples within δ_m of a reference image.
        distinct_references: different reference images among them.
        copy_rate_bound: upper end of the one-sided 95% Clopper–Pearson interval of the copy rate; 1 unsearched.
        reasons: in plain sentences, the weightiest first.
        measurements: that the estimators saw.
        delta_m: as used.
        delta_s: as used.
    """

    verdict: PhaseClass
    confidence: float
    probabilities: tuple[float, float, float]
    fractions: tuple[Interval, Interval, Interval]
    recurring_probability: float
    settled: bool
    sample_classes: tuple[int, ...]
    copies: int
    distinct_references: int
    copy_rate_bound: float
    reasons: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    delta_m: float
    delta_s: float

    @property
    def decided(self) -> bool:
        """Whether the confidence is high enough to call it an answer."""
        return self.confidence >= DECIDED


@dataclass(frozen=True)
class Screened:
    """What the screen alone says of a prompt.

    Attributes:
        probabilities: that each class dominates, in the order of `CLASSES`.
        fractions: of each class expected at N.
        recurring_probability: that memorized and spurious samples together outnumber generalized ones.
        flagged: whether that is over the threshold of the calibration.
        measurements: that the estimators saw.
    """

    probabilities: tuple[float, float, float]
    fractions: tuple[float, float, float]
    recurring_probability: float
    flagged: bool
    measurements: tuple[Measurement, ...]


def screen(
    screening: Screening,
    calibration: Calibration,
    *,
    definition_samples: int,
    fits: bool,
    estimators: Estimators | None = None,
) -> Screened:
    """Weigh a screening.

    Args:
        screening: of the prompt.
        calibration: of the checkpoint.
        definition_samples: N.
        fits: whether the calibration was made with this checkpoint and sampler.
        estimators: those that ship when None.
    """
    measured = measurements(screening, None)
    features = normalise(measured, calibration.ordinary)
    posterior = _prior(features, 0, estimators or shipped(), definition_samples, fits=fits, unchecked=True)
    recurring = posterior.recurring_probability
    memorized, spurious, generalized = (float(mean) for mean in posterior.means)
    return Screened(
        probabilities=posterior.probabilities,
        fractions=(memorized, spurious, generalized),
        recurring_probability=recurring,
        flagged=recurring > calibration.screen_threshold,
        measurements=against(measured, calibration.ordinary),
    )


def decide(
    evidence: Evidence,
    calibration: Calibration,
    *,
    reference_complete: bool,
    dimension: int,
    definition_samples: int,
    fits: bool,
    gaps: Sequence[Gap] = (),
    estimators: Estimators | None = None,
) -> Decision:
    """Weigh the evidence.

    Args:
        evidence: of at least one sample.
        calibration: thresholds, and what is ordinary.
        reference_complete: whether "not found" means "not there".
        dimension: of pixel vectors.
        definition_samples: N.
        fits: whether the calibration was made with this checkpoint and sampler.
        gaps: evidence that is missing. With any, the measurements of a calibration that is not its own are no measure.
        estimators: those that ship when None.
    """
    stability, neighbors = evidence.stability, evidence.neighbors
    n = len(stability.mode_of)
    delta_m, delta_s = calibration.thresholds(dimension)
    searched = neighbors is not None and neighbors.compared
    reference_distance = np.full(n, np.inf) if neighbors is None else neighbors.distance
    classes = classify_samples(reference_distance, stability.nearest_sample_distance, delta_m, delta_s)
    is_copy = reference_distance <= delta_m
    copies = int(is_copy.sum())
    distinct = 0 if neighbors is None else len(set(neighbors.index[is_copy].tolist()))

    measured = measurements(evidence.screening, evidence.smoothed)
    met = meetings(stability, delta_s)
    # What is ordinary on one checkpoint is so on another of the same kind at best.
    lacking = any(gap.evidence != "explanation" for gap in gaps)
    ordinary = {} if lacking and not fits else calibration.ordinary
    features = normalise(measured, ordinary) | met
    shown = against(measured, ordinary) + tuple(Measurement(name, value, None) for name, value in met.items())
    unchecked = not searched or not reference_complete
    estimators = estimators or shipped()
    posterior = _prior(features, n, estimators, definition_samples, fits=fits, unchecked=unchecked)
    if searched:
        posterior = posterior.given(copies, n, complete=reference_complete)
    best = int(np.argmax(posterior.probabilities))
    recurs = posterior.recurring_probability
    judged = unchecked and n >= estimators.seeds_for_copies and max(recurs, 1 - recurs) >= SETTLED
    return Decision(
        verdict=CLASSES[best],
        confidence=posterior.probabilities[best],
        probabilities=posterior.probabilities,
        fractions=posterior.intervals,
        recurring_probability=recurs,
        settled=posterior.probabilities[best] >= SETTLED or judged,
        sample_classes=tuple(int(c) for c in classes),
        copies=copies,
        distinct_references=distinct,
        copy_rate_bound=1.0 if not searched or copies == n else float(beta.ppf(0.95, copies + 1, n - copies)),
        reasons=tuple(
            give_reasons(
                evidence, shown, features, fits=fits, expected=1 - float(posterior.means[2]), copies=copies,
                distinct=distinct, delta_m=delta_m, delta_s=delta_s, complete=reference_complete,
                definition_samples=definition_samples, gaps=gaps,
            )
        ),
        measurements=shown,
        delta_m=delta_m,
        delta_s=delta_s,
    )  # fmt: skip


@dataclass(frozen=True)
class _Posterior:
    """The three fractions on a grid, (points, 3), and the weight of every point."""

    fractions: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def probabilities(self) -> tuple[float, float, float]:
        memorized, spurious, generalized = np.bincount(self.fractions.argmax(1), self.weights, 3)
        return float(memorized), float(spurious), float(generalized)

    @property
    def recurring_probability(self) -> float:
        return float(self.weights[self.fractions[:, 2] < 0.5].sum())

    @property
    def means(self) -> NDArray[np.float64]:
        return self.weights @ self.fractions

    @property
    def intervals(self) -> tuple[Interval, Interval, Interval]:
        tail = (1 - INTERVAL_LEVEL) / 2
        lower, upper = np.quantile(self.fractions, [tail, 1 - tail], 0, weights=self.weights, method="inverted_cdf")
        # Outward to what the grid can tell apart.
        lower, upper = np.floor(lower / _STEP) * _STEP, np.minimum(np.ceil(upper / _STEP) * _STEP, 1.0)
        memorized, spurious, generalized = (
            Interval(float(mean), float(low), float(high))
            for mean, low, high in zip(self.means, lower, upper, strict=True)
        )
        return memorized, spurious, generalized

    def given(self, copies: int, n: int, *, complete: bool) -> _Posterior:
        """After k of n samples were found in a reference set.

        Where it covers a share v ~ Uniform(0, 1) of what is copied, the likelihood is the mean over v of
        Binomial(k; n, v f), in closed form a regularised incomplete beta function over f.
        """
        rate = np.clip(self.fractions[:, 0], 1e-12, 1 - 1e-12)
        if complete:
            log_likelihood = copies * np.log(rate) + (n - copies) * np.log1p(-rate)
        else:
            log_likelihood = np.log(np.maximum(betainc(copies + 1, n - copies + 1, rate), 1e-300)) - np.log(rate)
        weights = self.weights * np.exp(log_likelihood - log_likelihood[self.weights > 0].max())
        return _Posterior(self.fractions, weights / weights.sum())


def _prior(
    features: dict[str, float],
    n: int,
    estimators: Estimators,
    definition_samples: int,
    *,
    fits: bool,
    unchecked: bool,
) -> _Posterior:
    """Before anything is looked up in a reference set; `unchecked` when nothing, or too little, can be."""
    look, trust = estimators.look(n), 1.0 if fits else BORROWED
    returning, recurring_weights = _cells(look.recurring, features, trust)
    copied, copied_weights = _cells(look.copied, features, trust * (BORROWED if unchecked else 1.0))
    memorized = np.outer(returning, copied)
    # A state of probability p is met again among N samples with probability 1 − (1 − p)^(N−1) ≈ 1 − exp(−pN): the share
    # that does not recur at another N is raised to the power of the ratio of the two. Copies are copies at any N.
    rest = np.maximum(1 - memorized, 1e-12)
    alone = ((1 - returning[:, None]) / rest) ** (definition_samples / estimators.definition_samples)
    fractions = np.stack([memorized, rest * (1 - alone), rest * alone], axis=2).reshape(-1, 3)
    return _Posterior(fractions, np.outer(recurring_weights, copied_weights).ravel())


def _cells(
    estimator: ShareEstimator, features: dict[str, float], trust: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution of a share in `_CELLS` cells of [0, 1], narrow at its ends: mean within, and mass of each."""
    mean, concentration = estimator.distribution(features)
    concentration *= trust
    a, b = concentration * mean + 1e-3, concentration * (1 - mean) + 1e-3
    edges = np.sin(np.linspace(0, np.pi / 2, _CELLS + 1)) ** 2
    # E[x; x in a cell] of Beta(a, b) is a/(a + b) times the mass that Beta(a + 1, b) has there.
    mass = (1 - DOUBT) * np.diff(betainc(a, b, edges)) + DOUBT * np.diff(edges)
    moment = (1 - DOUBT) * a / (a + b) * np.diff(betainc(a + 1, b, edges)) + DOUBT * np.diff(edges**2) / 2
    return moment / mass, mass
