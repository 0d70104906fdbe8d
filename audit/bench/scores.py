"""How well scores and probabilities agree with the truth, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def area_under_curve(positive: ArrayLike, scores: ArrayLike, counts: ArrayLike | None = None) -> NDArray[np.float64]:
    """The chance that a positive scores higher than a negative, ties counting half.

    For all resamples at once, since a bootstrap asks thousands of times, and scikit-learn's function takes
    milliseconds.

    Args:
        positive: (n,).
        scores: (n,).
        counts: how often every prompt counts, (..., n); once when None.

    Returns:
        (...).
    """
    ups, downs, last = _sorted_counts(positive, scores, counts)
    through = downs.cumsum(-1)
    first = np.concatenate([[-1], last[:-1]])
    below = np.where(first >= 0, through[..., first], 0)
    # Of every group of equal scores: positives, times the negatives below and half of those beside them.
    higher = np.diff(ups.cumsum(-1)[..., last], axis=-1, prepend=0) * (below + through[..., last]) / 2
    return np.asarray(higher.sum(-1) / (ups.sum(-1) * downs.sum(-1)))


def true_positive_rate(
    positive: ArrayLike, scores: ArrayLike, counts: ArrayLike | None = None, *, false_positive_rate: float = 0.01
) -> NDArray[np.float64]:
    """The largest share of positives over a threshold that at most this share of negatives is over.

    Args:
        positive: (n,).
        scores: (n,).
        counts: how often every prompt counts, (..., n); once when None.
        false_positive_rate: the share.

    Returns:
        (...).
    """
    ups, downs, last = _sorted_counts(positive, -np.asarray(scores, dtype=np.float64), counts)
    over = downs.cumsum(-1)[..., last]
    within = over <= np.floor(false_positive_rate * downs.sum(-1) + 1e-9)[..., None]
    return np.asarray(np.where(within, ups.cumsum(-1)[..., last], 0).max(-1) / ups.sum(-1))


def _sorted_counts(
    positive: ArrayLike, scores: ArrayLike, counts: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts of positives and of negatives by rising score, (..., n), and the last place of every score, (groups,)."""
    labels, values = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ranked = (np.ones(len(values), dtype=np.int64) if counts is None else np.asarray(counts))[..., order]
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    return ranked * labels[order], ranked * ~labels[order], last


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
) -> NDArray[np.int64]:
    """Prompts drawn with replacement within each class, `draws` times.

    They are the same for all detectors, so that differences between them are paired.

    Args:
        classes: of every prompt, (n,).
        draws: how many resamples.
        seed: of the draws.
        families: of every prompt, (n,): prompts of one family are drawn together, since they are hardly evidence twice;
            each is its own when None.

    Returns:
        How often each prompt was drawn, (draws, n).
    """
    rng, labels = np.random.default_rng(seed), np.asarray(classes)
    own = np.arange(len(labels)) if families is None else np.asarray(families)
    found = np.zeros((draws, len(labels)), dtype=np.int64)
    for value in np.unique(labels):
        part = np.flatnonzero(labels == value)
        groups, group = np.unique(own[part], return_inverse=True)
        drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=draws)
        found[:, part] = drawn[:, group]
    return found


def estimate(measure: Callable[[NDArray[np.int64]], NDArray[np.float64]], counts: NDArray[np.int64]) -> Estimate:
    """A number and its percentile interval.

    Args:
        measure: the number, (draws,), given how often each prompt counts, (draws, n).
        counts: from `resamples`.
    """
    lower, upper = np.quantile(measure(counts), [0.025, 0.975])
    return Estimate(float(measure(np.ones_like(counts[:1]))[0]), float(lower), float(upper))


def bootstrap_auc(positive: Sequence[bool], scores: Sequence[float], draws: int = DRAWS) -> Estimate:
    """AUC of scores that should be higher where `positive`, with a bootstrap over the items of each class."""
    labels = np.asarray(positive, dtype=bool)
    return estimate(lambda counts: area_under_curve(labels, scores, counts), resamples(labels, draws))
