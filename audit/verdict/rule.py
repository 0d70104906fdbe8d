"""The paper's rule: the class of one sample, the fractions of a prompt, and the thresholds.

A sample whose nearest reference image is within δ_m is memorized; otherwise one whose nearest other sample is within
δ_s is spurious; otherwise it is generalized (Pham et al. 2025, section on the transition). The class of a prompt is
the one that dominates among N samples. N is part of the definition: the more are drawn, the more recur.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks


class PhaseClass(StrEnum):
    """The three answers, in the order of every table and array of class fractions."""

    MEMORIZED = "memorized"
    SPURIOUS = "spurious"
    GENERALIZED = "generalized"


CLASSES = tuple(PhaseClass)

#: N of the definition.
DEFINITION_SAMPLES = 512
#: Share of the distances that a peak holds at least: stragglers make no peak of their own.
SMALLEST_PEAK = 0.01
#: Standard errors by which a peak stands out of the valley beside it at least.
SIGNIFICANCE = 4.0


def classify_samples(
    reference_distance: ArrayLike, sample_distance: ArrayLike, delta_m: float, delta_s: float
) -> NDArray[np.int64]:
    """Class of each sample, as an index into `CLASSES`.

    Args:
        reference_distance: to the nearest reference image, (n,); inf where nothing was searched.
        sample_distance: to the nearest other sample, (n,).
        delta_m: threshold of the first.
        delta_s: threshold of the second.
    """
    memorized = np.asarray(reference_distance) <= delta_m
    recurring = np.asarray(sample_distance) <= delta_s
    return np.where(memorized, 0, np.where(recurring, 1, 2))


def class_fractions(classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fractions of the three classes, (3,)."""
    return np.bincount(classes, minlength=len(CLASSES)) / len(classes)


def find_valley(distances: ArrayLike) -> float:
    """The threshold between the two peaks of nearest distances near the transition.

    Distances are compared on a logarithmic scale, where the narrow peak of copies and the broad peak of new images
    have comparable widths, smoothed by a Gaussian kernel whose width grows until exactly one valley is left. Peaks of
    less than `SMALLEST_PEAK` of the distances are none, nor are those that stand out of the valley by less than
    `SIGNIFICANCE` standard errors: samples of one peak have ripples too.

    Args:
        distances: non-negative, (n,).

    Returns:
        The distance at the valley.

    Raises:
        ValueError: the distances have a single peak.
    """
    logs = np.log(np.maximum(np.asarray(distances, dtype=np.float64), 1e-6))
    n, spread = len(logs), logs.std()
    counts, edges = np.histogram(logs, bins=2048)
    step = edges[1] - edges[0]
    below = np.cumsum(counts) / n
    for width in np.geomspace(0.02, 1.0, 40) * spread if spread > 1e-9 else ():
        density = gaussian_filter1d(counts / (n * step), width / step, mode="constant")
        valleys = []
        for v in find_peaks(-density)[0]:  # of an empty stretch, its middle
            peak = min(density[:v].max(), density[v:].max())
            # A kernel estimate f̂ has variance f/(2√π n h) (Silverman 1986, section 3.3).
            error = ((peak + density[v]) / (2 * np.pi**0.5 * n * width)) ** 0.5
            if SMALLEST_PEAK <= below[v] <= 1 - SMALLEST_PEAK and peak - density[v] > SIGNIFICANCE * error:
                valleys.append(v)
        if len(valleys) == 1:
            return float(np.exp((edges[valleys[0]] + edges[valleys[0] + 1]) / 2))
    raise ValueError("the distances have one peak: there is no valley between copies and new images")
