"""From distances to capacities, against curves whose capacities are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from audit.phase import transition
from audit.phase.transition import (
    COINCIDENT_RMS,
    ORDINARY_RECURRENCE,
    Estimate,
    Ordering,
    Transition,
    check_ordering,
    crossing,
    find_thresholds,
    measure_transitions,
    peak,
)
from audit.verdict.calibration import UNCALIBRATED_RMS

DIMENSION = 64
#: Nothing lies below this distance but samples that coincide.
COINCIDENT = COINCIDENT_RMS * DIMENSION**0.5

ascending = st.sets(st.integers(1, 10**6), min_size=3, max_size=12).map(lambda found: np.asarray(sorted(found)))


def lognormal(center: float, spread: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    """A peak of distances."""
    return np.exp(np.random.default_rng([seed, int(1000 * center)]).normal(math.log(center), spread, count))


# Capacities.


@pytest.mark.parametrize(
    ("shares", "rising", "expected"),
    [
        ([1.0, 0.75, 0.25, 0.0], False, 16.0),  # half-way between 8 and 32
        ([0.0, 0.25, 0.75, 1.0], True, 16.0),
        ([1.0, 0.8, 0.4, 0.0], False, 8 * 4**0.75),
        ([0.2, 0.4, 0.9, 1.0], True, 8 * 4**0.2),
        ([1.0, 0.5, 0.0, 0.0], False, 8.0),  # one half counts as above
        ([0.0, 0.0, 0.5, 1.0], True, 32.0),
        ([1.0, 0.0, 1.0, 0.0], False, 2 * 4**0.5),  # the first stretch above one half
        ([1.0, 0.0, 1.0, 0.0], True, math.inf),
        ([0.0, 1.0, 0.0, 1.0], True, 32 * 4**0.5),  # the last one
        ([0.0, 1.0, 0.0, 1.0], False, 0.0),
        ([0.4, 0.3, 0.2, 0.1], False, 0.0),
        ([0.9, 0.8, 0.7, 0.6], False, math.inf),
        ([0.1, 0.2, 0.3, 0.4], True, math.inf),
        ([0.6, 0.7, 0.8, 0.9], True, 0.0),
    ],
)
def test_shares_cross_one_half_linearly_in_the_logarithm(shares: list[float], rising: bool, expected: float) -> None:
    """Between the two sizes around it; 0 before the first size and infinity beyond the last."""
    assert crossing(np.asarray([2, 8, 32, 128]), np.asarray(shares), rising=rising) == pytest.approx(expected)


@given(sizes=ascending, data=st.data())
def test_a_monotonic_curve_is_one_half_at_its_crossing(sizes: NDArray[np.int64], data: st.DataObject) -> None:
    """Wherever it crosses, rising or falling, and both directions agree."""
    values = st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes), unique=True)
    shares = np.asarray(sorted(data.draw(values)))
    assume(not (shares == 0.5).any())
    found = crossing(sizes, shares, rising=True)
    assert crossing(sizes, 1 - shares, rising=False) == pytest.approx(found)
    if shares[0] > 0.5:
        assert found == 0
    elif shares[-1] < 0.5:
        assert found == math.inf
    else:
        assert sizes[0] * (1 - 1e-9) <= found <= sizes[-1] * (1 + 1e-9)
        # Far from flat only: a curve of 0.5 ± 1e-16 crosses wherever rounding says.
        steep = np.diff(shares)[max(0, int(np.searchsorted(shares, 0.5)) - 1)] > 1e-6
        assert not steep or np.interp(math.log(found), np.log(sizes), shares) == pytest.approx(0.5, abs=1e-6)


@given(sizes=ascending, middle=st.floats(0, 1), height=st.floats(0.01, 1), bend=st.floats(0.001, 10))
def test_the_peak_of_a_parabola_is_found_wherever_it_is(
    sizes: NDArray[np.int64], middle: float, height: float, bend: float
) -> None:
    """Its vertex, where the largest share has neighbours on both sides, or else 0 or infinity."""
    logs = np.log(sizes)
    vertex = logs[0] + middle * (logs[-1] - logs[0])
    shares = height - bend * (logs - vertex) ** 2
    found = peak(sizes, shares)
    best = int(shares.argmax())
    if 0 < best < len(sizes) - 1:
        # The curvature that is left of rounding decides how well the vertex is known.
        rounding = 1e-12 * np.abs(shares[best - 1 : best + 2]).max() / (bend * np.diff(logs).min() ** 2)
        assume(rounding < 1e-3)
        assert math.log(found) == pytest.approx(vertex, abs=1e-6 + 10 * rounding)
    else:
        assert found == (math.inf if best else 0)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([0.5, 0.2, 0.1], 0.0), ([0.1, 0.2, 0.5], math.inf), ([0.0, 0.0, 0.0], 0.0), ([0.1, 0.3, 0.3], 16.0)],
)
def test_a_peak_at_the_border_or_on_a_plateau(shares: list[float], expected: float) -> None:
    """At the border it may lie beyond; of two equal neighbours the peak lies half-way."""
    assert peak(np.asarray([2, 8, 32]), np.asarray(shares)) == pytest.approx(expected)


SIZES = (8, 32, 64, 128, 256, 512, 2048)


def curve(shift: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    """Class shares that memorize up to some size and generalize from another, logistic in log K, (..., sizes, 3)."""
    logs = np.log(SIZES) - np.asarray(shift)[..., None]
    memorized = 1 / (1 + np.exp(2.0 * (logs - math.log(80))))
    generalized = 1 / (1 + np.exp(-2.0 * (logs - math.log(350))))
    return np.stack([memorized, 1 - memorized - generalized, generalized], -1)


def capacities_of(shares: NDArray[np.float64]) -> tuple[float, float, float]:
    """What a measurement without noise would find."""
    sizes = np.asarray(SIZES)
    return (
        crossing(sizes, shares[:, 0], rising=False),
        peak(sizes, shares[:, 1]),
        crossing(sizes, shares[:, 2], rising=True),
    )


def measure_one(sizes: Sequence[int], counts: NDArray[np.int64]) -> Transition:
    """A series by itself."""
    return measure_transitions(sizes, {"only": counts})["only"]


@pytest.mark.parametrize(
    ("series", "seeds", "spread", "least", "widest"),
    [(1, 1, 0.0, 85, 0.5), (1, 4, 0.0, 85, 0.5), (2, 2, 0.2, 90, 1.6), (1, 3, 0.2, 90, 1.2), (1, 8, 0.2, 85, 0.5)],
)
def test_intervals_of_capacities_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch, series: int, seeds: int, spread: float, least: int, widest: float
) -> None:
    """Of 100 intervals of 95%, so many hold the true capacity, whether trainings differ among themselves or not."""
    monkeypatch.setattr(transition, "BOOTSTRAP", 200)
    rng = np.random.default_rng(5)
    truth = capacities_of(curve(rng.normal(0, spread, 20_000)).mean(0))
    held = np.zeros(3, dtype=int)
    widths = np.zeros(3)
    for repeat in range(100):
        counts = {str(index): rng.multinomial(400, curve(rng.normal(0, spread, seeds))) for index in range(series)}
        found = measure_transitions(SIZES, counts, seed=repeat)["0"]
        for index, estimate in enumerate((found.memorization, found.spurious, found.generalization)):
            held[index] += estimate.lower <= truth[index] <= estimate.upper
            widths[index] += (estimate.upper - estimate.lower) / truth[index] / 100
    assert (held >= least).all(), held
    # An interval that held everything would say nothing.
    assert (widths < widest).all(), widths


def test_more_samples_narrow_the_intervals() -> None:
    """A hundred times as many make them about ten times as narrow."""
    few, many = (
        measure_one(SIZES, np.round(count * curve()[None]).astype(np.int64)).memorization for count in (200, 20_000)
    )
    ratio = (few.upper - few.lower) / (many.upper - many.lower)
    assert 6 < ratio < 16
    assert many.lower < capacities_of(curve())[0] < many.upper


@settings(max_examples=40)
@given(data=st.data(), seeds=st.integers(1, 4))
def test_bands_and_intervals_hold_what_was_measured(data: st.DataObject, seeds: int) -> None:
    """Shares are means over seeds that add up to one and lie in their bands, whatever was counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transition, "BOOTSTRAP", 200)
        row = st.tuples(*[st.integers(0, 50)] * 3).filter(any)
        table = st.lists(st.lists(row, min_size=3, max_size=3), min_size=seeds, max_size=seeds)
        counts = np.asarray(data.draw(table))
        found = measure_one((2, 8, 32), counts)
        again = measure_one((2, 8, 32), counts)
    shares = counts / counts.sum(2, keepdims=True)
    assert found.fractions == pytest.approx(shares.mean(0))
    assert found.fractions.sum(1) == pytest.approx(np.ones(3))
    assert (found.lower <= found.fractions + 1e-12).all()
    assert (found.fractions <= found.upper + 1e-12).all()
    assert found.spurious_peak == pytest.approx(found.fractions[:, 1].max())
    for estimate in (found.memorization, found.spurious, found.generalization):
        assert estimate.lower <= estimate.upper
    assert (again.memorization, again.spurious, again.generalization) == (
        found.memorization, found.spurious, found.generalization,
    )  # fmt: skip


def test_networks_that_only_copy_have_an_infinite_capacity() -> None:
    """Certain counts leave no room: the interval is infinite at both ends, as is where generalization begins."""
    counts = np.zeros((2, 3, 3), dtype=np.int64)
    counts[..., 0] = 100
    found = measure_one((2, 8, 32), counts)
    assert found.memorization == found.generalization == Estimate(math.inf, math.inf, math.inf)
    assert found.fractions[:, 0].tolist() == found.lower[:, 0].tolist() == found.upper[:, 0].tolist() == [1.0] * 3


def test_seeds_that_disagree_widen_the_interval() -> None:
    """Two seeds that cross at 40 and at 160 leave everything between them possible; two that agree do not."""
    shifts = np.log([0.5, 2.0])
    apart, alike = (
        measure_one(SIZES, np.round(5000 * curve(shift)).astype(np.int64)).memorization
        for shift in (shifts, np.zeros(2))
    )
    assert apart.lower < 1.1 * 40
    assert apart.upper > 160 / 1.1
    assert alike.upper / alike.lower < 1.1


# Thresholds.


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("near", "far", "spread"), [(0.5, 4.0, 0.3), (0.3, 5.0, 0.5)])
def test_thresholds_are_the_valleys_between_two_peaks(share: float, near: float, far: float, spread: float) -> None:
    """Where the two lognormal densities cross, within a fifth of the way between the peaks; both alike."""
    count = 4000
    distances = np.concatenate(
        [lognormal(near, spread, int(share * count)), lognormal(far, spread, count - int(share * count))]
    )
    between = math.log(far / near)
    # In log-distance, weights shift the crossing by s² log(w₁/w₂)/Δ from the middle.
    expected = (math.log(near) + math.log(far)) / 2 + spread**2 * math.log(share / (1 - share)) / between
    assert 10 * distances.min() > COINCIDENT
    found = find_thresholds(distances, 10 * distances, np.ones(count, dtype=bool), DIMENSION)
    assert (found.source_m, found.source_s) == ("valley", "valley")
    assert math.log(found.delta_m) == pytest.approx(expected, abs=between / 5)
    assert math.log(found.delta_s / 10) == pytest.approx(expected, abs=between / 5)


def test_without_valleys_the_documented_fallbacks_hold() -> None:
    """δ_m is `UNCALIBRATED_RMS` a value; δ_s is what 5% of the samples of the largest training sets fall under."""
    reference, sample = lognormal(3.0, 0.4, 4000), lognormal(2.0, 0.4, 4000, seed=1)
    largest = np.arange(4000) >= 3000
    sample[largest] *= 1.5
    found = find_thresholds(reference, sample, largest, DIMENSION)
    assert found.delta_m == pytest.approx(UNCALIBRATED_RMS * 8)
    assert (sample[largest] <= found.delta_s).mean() == pytest.approx(ORDINARY_RECURRENCE, abs=0.002)
    # The others are nearer: the quantile is not one of all of them.
    assert (sample <= found.delta_s).mean() > 2 * ORDINARY_RECURRENCE
    assert found.source_m.startswith("no valley")
    assert found.source_s.startswith("no valley")


@given(delta_m=st.floats(0, 100), delta_s=st.none() | st.floats(0, 100))
def test_given_thresholds_win(delta_m: float, delta_s: float | None) -> None:
    """Even where there are valleys; one that is not given is found as ever."""
    two = np.concatenate([lognormal(0.5, 0.2, 500), lognormal(5.0, 0.2, 500)])
    every = np.ones(len(two), dtype=bool)
    found = find_thresholds(two, two, every, DIMENSION, delta_m=delta_m, delta_s=delta_s)
    assert (found.delta_m, found.source_m) == (delta_m, "given")
    if delta_s is None:
        assert found.delta_s == find_thresholds(two, two, every, DIMENSION).delta_s
        assert found.source_s == "valley"
    else:
        assert (found.delta_s, found.source_s) == (delta_s, "given")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_coincident_samples_do_not_decide_when_a_sample_recurs(share: float) -> None:
    """However many samples are one and the same, δ_s is where it is without them."""
    apart = np.concatenate([lognormal(0.8, 0.3, 1000), lognormal(5.0, 0.3, 1000)])
    apart = apart[apart > 1.01 * COINCIDENT]
    count = int(len(apart) * share / (1 - share))
    same = np.random.default_rng(2).uniform(0, 0.99 * COINCIDENT, count)
    reference = lognormal(3.0, 0.4, len(apart) + count)
    every = np.ones(len(apart) + count, dtype=bool)
    found = find_thresholds(reference, np.concatenate([same, apart]), every, DIMENSION)
    alone = find_thresholds(reference[: len(apart)], apart, every[: len(apart)], DIMENSION)
    assert found.source_s == "valley"
    assert found.delta_s == alone.delta_s
    assert 1.0 < found.delta_s < 4.0


@pytest.mark.parametrize("apart", [0, 1, 2])
def test_thresholds_exist_where_all_samples_coincide(apart: int) -> None:
    """Networks that know one image each: a quantile is left, without a warning."""
    sample = np.zeros(500)
    sample[:apart] = 3.0
    found = find_thresholds(lognormal(3.0, 0.4, 500), sample, np.ones(500, dtype=bool), DIMENSION)
    assert found.delta_s == 0.0
    assert found.source_s.startswith("no valley")


# Orderings.


def ordering(values: list[float], classes: list[int], networks: list[int]) -> Ordering:
    """Whether class 0 lies above class 2."""
    return check_ordering("depth", 0, 2, np.asarray(values), np.asarray(classes), np.asarray(networks))


def made(difference: float, *, networks: int = 3, each: int = 20) -> tuple[list[float], list[int], list[int]]:
    """Networks with both classes, whose values differ by about one within a class."""
    rng = np.random.default_rng(3)
    values, classes, owners = [], [], []
    for network in range(networks):
        for index in (0, 2):
            noise = rng.normal(0, 1, each)
            values += list(noise - noise.mean() + 100 * network + (difference if index == 0 else 0.0))
            classes += [index] * each
            owners += [network] * each
    return values, classes, owners


@pytest.mark.parametrize(("difference", "shown"), [(2.0, "yes"), (-2.0, "no"), (0.0, "open")])
def test_an_ordering_is_shown_refuted_or_open(difference: float, shown: str) -> None:
    """By the interval within networks, which holds the difference however far networks lie apart."""
    found = ordering(*made(difference))
    assert found.shown == shown
    assert (found.larger, found.smaller, found.networks) == ("memorized", "generalized", 3)
    assert found.within.value == pytest.approx(difference)
    assert found.within.lower < difference < found.within.upper
    # Of means of 20 values of deviation 1, averaged over three networks.
    assert found.within.upper - found.within.lower == pytest.approx(2 * 1.96 * (2 / 20 / 3) ** 0.5, rel=0.25)
    # Networks lie 100 apart: overall nothing can be told.
    assert found.overall.lower < -20
    assert found.overall.upper > 20


def test_a_difference_between_networks_is_none_within_them() -> None:
    """Where a network has both classes their values are alike, and only the network tells which is met more often."""
    values, classes, networks = [], [], []
    for network, (level, memorized, generalized) in enumerate([(10.0, 40, 4), (0.0, 4, 40)]):
        for index, count in ((0, memorized), (2, generalized)):
            values += [level + (-1) ** i for i in range(count)]
            classes += [index] * count
            networks += [network] * count
    found = ordering(values, classes, networks)
    assert found.networks == 2
    assert found.within.value == 0
    assert found.shown == "open"
    assert found.overall.value == pytest.approx(10 * (40 - 4) / 44)
    assert found.overall.lower > 0


def test_without_a_network_that_has_both_classes_all_samples_are_compared() -> None:
    """The difference within is unknown, and the one overall decides."""
    found = ordering([5.0, 6.0, 5.0, 1.0, 2.0, 1.0], [0, 0, 0, 2, 2, 2], [0, 0, 0, 1, 1, 1])
    assert found.networks == 0
    assert math.isnan(found.within.value)
    assert found.overall.value == pytest.approx(4)
    assert found.shown == "yes"


def test_a_network_with_a_single_sample_of_a_class_does_not_count() -> None:
    """One value has no spread: its interval would be certain."""
    values, classes, networks = made(2.0, networks=2)
    found = ordering([*values, 500.0, 0.0, 0.0], [*classes, 0, 2, 2], [*networks, 7, 7, 7])
    assert found.networks == 2
    assert found.within.value == pytest.approx(2)


@pytest.mark.parametrize("classes", [[0, 0, 0, 0], [0, 0, 0, 2], [1, 1, 1, 1]])
def test_without_two_classes_an_ordering_is_open(classes: list[int]) -> None:
    """Nothing is compared with nothing."""
    found = ordering([1.0, 2.0, 3.0, 4.0], classes, [0, 0, 0, 0])
    assert found.shown == "open"
    assert math.isnan(found.overall.value)
