"""How well scores and probabilities agree with the truth, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

#: Resamples of an interval.
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% bootstrap interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.lower:.3f} to {self.upper:.3f})"


def area_under_curve(positive: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive scores higher than a negative, ties counting half.

    By ranks, since a bootstrap asks thousands of times, and scikit-learn's function takes milliseconds.
    """
    labels = np.asarray(positive, dtype=bool)
    ups, downs = int(labels.sum()), int((~labels).sum())
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[labels].sum() - ups * (ups + 1) / 2) / (ups * downs))


def true_positive_rate(positive: ArrayLike, scores: ArrayLike, false_positive_rate: float = 0.01) -> float:
    """The largest share of positives over a threshold that at most this share of negatives is over."""
    labels, values = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    negatives = np.sort(values[~labels])[::-1]
    # So many negatives may be over the threshold; it lies just over the next one.
    allowed = int(np.floor(false_positive_rate * len(negatives) + 1e-9))
    threshold = negatives[allowed] if allowed < len(negatives) else -np.inf
    return float((values[labels] > threshold).mean())


def brier_score(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean over prompts of Σ_classes (probability − truth)², in [0, 2] (Brier 1950).

    Args:
        truth: class index of every prompt, (n,).
        probabilities: (n, classes).
    """
    predicted = np.asarray(probabilities, dtype=np.float64)
    return float(((predicted - np.eye(predicted.shape[1])[np.asarray(truth)]) ** 2).sum(1).mean())


def calibration_error(right: ArrayLike, confidence: ArrayLike, bins: int = 10) -> float:
    """Debiased calibration error: root mean square over bins of accuracy − confidence.

    The plug-in estimate counts the noise of each bin's accuracy as miscalibration; its expectation is subtracted
    (Kumar, Liang & Ma 2019), and what falls below zero is zero.

    Args:
        right: whether each verdict was right, (n,).
        confidence: the probability that it gave itself, (n,).
        bins: of equal numbers of prompts.
    """
    hits, sure = np.asarray(right, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    total = 0.0
    for own in np.array_split(np.argsort(sure, kind="stable"), bins):
        if len(own) > 1:
            accuracy = hits[own].mean()
            noise = accuracy * (1 - accuracy) / (len(own) - 1)
            total += len(own) / len(hits) * ((accuracy - sure[own].mean()) ** 2 - noise)
    return float(max(total, 0.0) ** 0.5)


def resamples(
    classes: ArrayLike, draws: int = DRAWS, seed: int = 0, families: ArrayLike | None = None
) -> list[NDArray[np.int64]]:
    """Prompts drawn with replacement within each class, `draws` times.

    They are the same for all detectors, so that differences between them are paired.

    Args:
        classes: of every prompt, (n,).
        draws: how many resamples.
        seed: of the draws.
        families: of every prompt, (n,): prompts of one family are drawn together, since they are hardly evidence twice;
            each is its own when None.
    """
    rng, labels = np.random.default_rng(seed), np.asarray(classes)
    parts = [np.flatnonzero(labels == value) for value in np.unique(labels)[::-1]]
    if families is None:
        return [np.concatenate([rng.choice(part, len(part)) for part in parts]) for _ in range(draws)]
    own = np.asarray(families)
    groups = [[part[own[part] == family] for family in np.unique(own[part])] for part in parts]
    return [
        np.concatenate([group[index] for group in groups for index in rng.choice(len(group), len(group))])
        for _ in range(draws)
    ]


def estimate(measure: Callable[[NDArray[np.int64]], float], rows: Sequence[NDArray[np.int64]], count: int) -> Estimate:
    """A number and its percentile interval.

    Args:
        measure: the number, given which prompts count and how often.
        rows: from `resamples`.
        count: of prompts.
    """
    drawn = [measure(own) for own in rows]
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    return Estimate(measure(np.arange(count)), float(lower), float(upper))


def estimate_difference(
    measure: Callable[[NDArray[np.float64], NDArray[np.int64]], float],
    ours: Sequence[float],
    theirs: Sequence[float],
    rows: Sequence[NDArray[np.int64]],
) -> Estimate:
    """How much higher a number is for one detector's scores than for another's, on the same prompts."""
    one, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return estimate(lambda own: measure(one, own) - measure(other, own), rows, len(one))


def bootstrap_auc(positive: Sequence[bool], scores: Sequence[float], draws: int = DRAWS) -> Estimate:
    """AUC of scores that should be higher where `positive`, with a bootstrap over the items of each class."""
    labels, values = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    return estimate(lambda own: area_under_curve(labels[own], values[own]), resamples(labels, draws), len(labels))
