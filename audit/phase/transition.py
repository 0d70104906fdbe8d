"""From nearest distances to the transition: thresholds, class fractions against K, and the three capacities.

A network has three capacities (the paper, figures 1 and 3), all sizes of training sets: *memorization*, up to which at
least half of its samples are training images; *spurious*, at which the share of states of its own making peaks; and
*generalization*, from which on at least half of its samples are new each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from audit.bench.truth import ORDINARY_RECURRENCE
from audit.verdict.calibration import UNCALIBRATED_RMS
from audit.verdict.rule import CLASSES, find_valley

#: Draws of every bootstrap.
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Thresholds:
    """δ_m and δ_s with where they come from.

    Attributes:
        delta_m: distance to the nearest training image up to which a sample is memorized.
        delta_s: distance to the nearest other sample up to which it recurs.
        source_m: "valley", "given", or what was done for want of a valley.
        source_s: likewise.
    """

    delta_m: float
    delta_s: float
    source_m: str
    source_s: str


def find_thresholds(
    reference: NDArray[np.float64],
    sample: NDArray[np.float64],
    largest: NDArray[np.bool_],
    dimension: int,
    *,
    delta_m: float | None = None,
    delta_s: float | None = None,
) -> Thresholds:
    """The valleys of the distances of all networks together (the paper, figure 3).

    Nearest training images have a valley wherever a transition was swept. Nearest samples may have none: from copies
    through states met now and then to new images they can go without a gap, and δ_s is then the distance that a share
    `ORDINARY_RECURRENCE` of the samples of the largest training sets falls under.

    Args:
        reference: distance to the nearest training image, (n,).
        sample: distance to the nearest other sample, (n,).
        largest: which samples are of networks with the largest training set, (n,).
        dimension: of the space of the distances.
        delta_m: used instead of the valley when given.
        delta_s: likewise.
    """
    source_m = source_s = "given"
    if delta_m is None:
        try:
            delta_m, source_m = find_valley(reference), "valley"
        except ValueError:
            delta_m, source_m = UNCALIBRATED_RMS * dimension**0.5, f"no valley: {UNCALIBRATED_RMS} root mean square"
    if delta_s is None:
        # Samples that coincide lie below any boundary and would only hide it.
        apart = sample[sample > COINCIDENT_RMS * dimension**0.5]
        try:
            if not len(apart):
                raise ValueError("all samples coincide")
            delta_s, source_s = find_valley(apart), "valley"
        except ValueError:
            delta_s = float(np.quantile(sample[largest], ORDINARY_RECURRENCE))
            source_s = f"no valley: {ORDINARY_RECURRENCE:.0%} quantile at the largest K"
    return Thresholds(delta_m, delta_s, source_m, source_s)


#: Root mean square difference per value, on [-1, 1], under which two samples coincide: three of 255 grey levels.
COINCIDENT_RMS = 0.025


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; infinite where it lies beyond the sizes that were swept."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Transition:
    """What a series of networks does as its training set grows.

    Attributes:
        sizes: K, (sizes,).
        fractions: mean over seeds of the shares of the three classes, (sizes, 3).
        lower: of their 95% bootstrap bands, (sizes, 3).
        upper: likewise.
        memorization: capacity, in images.
        spurious: likewise.
        generalization: likewise.
        spurious_peak: the share of spurious samples at the peak, as measured.
    """

    sizes: NDArray[np.int64]
    fractions: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    memorization: Estimate
    spurious: Estimate
    generalization: Estimate
    spurious_peak: float


def crossing(sizes: NDArray[np.int64], shares: NDArray[np.float64], *, rising: bool) -> float:
    """K at which shares cross one half, linear in log K between sizes.

    Returns:
        For a falling curve the end of its first stretch above one half, for a rising one the start of its last; 0
        when that lies before the first size and infinity when it lies beyond the last.
    """
    below = np.flatnonzero(~(shares >= 0.5))
    # The last size before the crossing; -1 before the first.
    left = int([-1, *below][-1]) if rising else int([*below, len(sizes)][0]) - 1
    if left < 0:
        return 0.0
    if left == len(sizes) - 1:
        return float("inf")
    step = (0.5 - shares[left]) / (shares[left + 1] - shares[left])
    logs = np.log(sizes)
    return float(np.exp(logs[left] + step * (logs[left + 1] - logs[left])))


def peak(sizes: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """K of the largest share, by a parabola in log K through it and its two neighbours.

    Returns:
        0 when the first share is the largest, and infinity when the last one is: the peak may lie beyond.
    """
    best = int(shares.argmax())
    if best == 0:
        return 0.0
    if best == len(sizes) - 1:
        return float("inf")
    x, y = np.log(sizes[best - 1 : best + 2]), shares[best - 1 : best + 2]
    bend, slope, _ = np.polyfit(x - x[1], y, 2)
    if bend >= 0:  # a plateau
        return float(sizes[best])
    return float(np.exp(np.clip(x[1] - slope / (2 * bend), x[0], x[2])))


def measure_transitions(
    sizes: Sequence[int], counts: Mapping[str, NDArray[np.int64]], *, seed: int = 0
) -> dict[str, Transition]:
    """Fractions and capacities of every series with their uncertainty.

    Bands and intervals come from a bootstrap that draws seeds with replacement, and within each network its samples. A
    few seeds show little of how trainings differ, so all series lend each other theirs: the interval of a capacity
    reaches at least as far as Student's t interval in log K, whose variance between trainings is pooled over series and
    capacities. Capacities of one training rise and fall together, hence each training but the first of its series
    counts as one degree of freedom. With a single seed only the sampling remains.

    Args:
        sizes: K, ascending.
        counts: samples of each class, (seeds, sizes, 3), by the name of the series; all with the same seeds.
        seed: of the bootstrap.
    """
    ks = np.asarray(sizes, dtype=np.int64)
    shares = {name: own / own.sum(2, keepdims=True) for name, own in counts.items()}
    reach = _reach([[_capacities(ks, training) for training in own] for own in shares.values()])
    found = {}
    for name, own in shares.items():
        drawn = _redraw(counts[name].sum(2), own, np.random.default_rng(seed))
        lower, upper = np.quantile(drawn, [0.025, 0.975], axis=0)
        mean = own.mean(0)
        values = _capacities(ks, mean)
        spread = np.asarray([_capacities(ks, fractions) for fractions in drawn])
        low, high = (np.quantile(spread, q, axis=0, method="nearest") for q in (0.025, 0.975))
        low, high = np.minimum(low, values / reach), np.maximum(high, values * reach)
        first, middle, last = (Estimate(*map(float, row)) for row in zip(values, low, high, strict=True))
        found[name] = Transition(ks, mean, lower, upper, first, middle, last, spurious_peak=float(mean[:, 1].max()))
    return found


def _capacities(sizes: NDArray[np.int64], fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Memorization, spurious and generalization, (3,), of fractions (sizes, 3)."""
    return np.asarray(
        [
            crossing(sizes, fractions[:, 0], rising=False),
            peak(sizes, fractions[:, 1]),
            crossing(sizes, fractions[:, 2], rising=True),
        ]
    )


def _redraw(totals: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Fractions as other seeds and samples might have had them, (BOOTSTRAP, sizes, 3)."""
    chosen = rng.integers(len(shares), size=(BOOTSTRAP, len(shares)))
    redrawn = rng.multinomial(totals[chosen], shares[chosen])
    return (redrawn / totals[chosen][..., None]).mean(1)


def _reach(capacities: Sequence[Sequence[NDArray[np.float64]]]) -> float:
    """The factor that a t interval reaches to both sides of a mean over seeds; 1 where trainings cannot be compared.

    Args:
        capacities: of every training, (3,), by series and seed.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(capacities))  # (series, seeds, 3)
    seeds = logs.shape[1]
    # What lies beyond the sizes for some training has no variance.
    finite = logs.transpose(0, 2, 1)[np.isfinite(logs).all(1)]
    if seeds < 2 or not len(finite):
        return 1.0
    variance = float(finite.var(1, ddof=1).mean())
    quantile = float(stats.t.ppf(0.975, len(logs) * (seeds - 1)))
    return float(np.exp(quantile * (variance / seeds) ** 0.5))


@dataclass(frozen=True)
class Ordering:
    """One expectation of the paper, checked: a quantity is larger in one class than in another.

    Attributes:
        quantity: what is compared.
        larger: the class that the paper has above.
        smaller: the other one.
        within: difference of the means between samples of the same network, averaged over the networks that have both
            classes; NaN without any.
        networks: how many have both.
        overall: difference of the means over all samples, whatever network they are of.
    """

    quantity: str
    larger: str
    smaller: str
    within: Estimate
    networks: int
    overall: Estimate

    @property
    def judged(self) -> Estimate:
        """The difference within networks, or overall where none has both classes."""
        return self.within if self.networks else self.overall

    @property
    def shown(self) -> str:
        """By the interval of `judged`: "yes", "no" when it is the other way round, else "open"."""
        return "yes" if self.judged.lower > 0 else "no" if self.judged.upper < 0 else "open"


def check_ordering(
    quantity: str,
    larger: int,
    smaller: int,
    values: NDArray[np.float64],
    classes: NDArray[np.int64],
    networks: NDArray[np.int64],
    *,
    seed: int = 0,
) -> Ordering:
    """Compare two classes, with a bootstrap over samples.

    Args:
        quantity: its name.
        larger: class index that should lie above.
        smaller: class index that should lie below.
        values: of the quantity, (n,).
        classes: class index of each, (n,).
        networks: which network each belongs to, (n,).
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)

    def means(own: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean, and bootstrap draws of it, (1 + BOOTSTRAP,)."""
        drawn = own[rng.integers(len(own), size=(BOOTSTRAP, len(own)))].mean(1)
        return np.concatenate([[own.mean()], drawn])

    def difference(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        above, below = values[mask & (classes == larger)], values[mask & (classes == smaller)]
        return means(above) - means(below) if min(len(above), len(below)) >= 2 else None

    each = [found for own in np.unique(networks) if (found := difference(networks == own)) is not None]
    overall = difference(np.ones(len(values), dtype=bool))
    return Ordering(
        quantity,
        str(CLASSES[larger]),
        str(CLASSES[smaller]),
        _interval(np.mean(each, axis=0) if each else None),
        len(each),
        _interval(overall),
    )


def _interval(draws: NDArray[np.float64] | None) -> Estimate:
    if draws is None:
        return Estimate(float("nan"), float("nan"), float("nan"))
    lower, upper = np.quantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), float(lower), float(upper))
