"""From evidence to a verdict: coherence, monotonicity, reference sets, coverage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from audit.evidence.curvature import CurvatureLevel
from audit.evidence.neighbors import Neighbors
from audit.evidence.stability import Stability
from audit.verdict.calibration import UNCALIBRATED_RMS, Calibration, recurrence_features
from audit.verdict.decision import DECIDED, INTERVAL_LEVEL, Decision, decide
from audit.verdict.rule import CLASSES, PhaseClass
from tests.audit.verdict.evidence_made import DELTA_M, DELTA_S, calibration, curvature, neighbors, stability

#: What 20,000 draws of the posterior leave open, five standard errors wide.
MONTE_CARLO = 5 * 0.5 / 20_000**0.5


def conclude(
    seen: Stability,
    near: Neighbors | None,
    curved: tuple[CurvatureLevel, ...] = (),
    *,
    complete: bool = True,
    calibrated: Calibration | None = None,
    samples: int = 512,
    fits: bool = True,
) -> Decision:
    """`decide` with the usual arguments."""
    return decide(
        seen,
        near,
        curved,
        calibrated or calibration(),
        reference_complete=complete,
        dimension=1024,
        definition_samples=samples,
        fits=fits,
    )


@settings(max_examples=40)
@given(data=st.data(), n=st.integers(2, 40), trace=st.none() | st.floats(-2, 3))
def test_decisions_are_coherent(data: Any, n: int, trace: float | None) -> None:
    """Probabilities sum to 1, intervals hold their estimates within [0, 1], the verdict is the likeliest class."""
    copies = data.draw(st.none() | st.integers(0, n), "copies")
    found = conclude(
        stability(n, pairs=data.draw(st.integers(0, n // 2), "pairs"), nearest=data.draw(st.floats(0, 50), "nearest")),
        None if copies is None else neighbors(n, copies, images=data.draw(st.integers(1, 5), "images")),
        () if trace is None else curvature(trace),
        complete=data.draw(st.booleans(), "complete"),
        samples=data.draw(st.integers(2, 100_000), "samples"),
        fits=data.draw(st.booleans(), "fits"),
    )
    assert sum(found.probabilities) == pytest.approx(1)
    assert min(found.probabilities) >= 0
    assert sum(fraction.estimate for fraction in found.fractions) == pytest.approx(1)
    for fraction in found.fractions:
        assert 0 <= fraction.lower <= fraction.upper <= 1
        # A mean may lie outside the central 90% of a very skewed distribution, but by very little.
        assert fraction.lower - 0.05 <= fraction.estimate <= fraction.upper + 0.05
    assert found.verdict == CLASSES[int(np.argmax(found.probabilities))]
    assert found.confidence == max(found.probabilities)
    assert found.decided == (found.confidence >= DECIDED)
    assert 0 <= found.recurring_probability <= 1
    assert found.copies == (copies or 0)
    assert found.distinct_references <= found.copies
    assert 0 <= found.copy_rate_bound <= 1
    assert len(found.sample_classes) == n
    assert found.sample_classes.count(0) == found.copies
    assert (found.delta_m, found.delta_s) == (DELTA_M, DELTA_S)
    assert all(reason.endswith(".") for reason in found.reasons)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_intervals_hold_their_estimates_in_ordinary_cases(n: int) -> None:
    """With evidence of ordinary strength the posterior mean lies inside its interval."""
    for copies in (0, n // 2, n):
        for trace in (0.7, 0.9, 1.1):
            found = conclude(stability(n, pairs=n // 4), neighbors(n, copies), curvature(trace))
            for fraction in found.fractions:
                assert fraction.lower <= fraction.estimate <= fraction.upper


@settings(max_examples=40)
@given(n=st.integers(2, 32), data=st.data(), complete=st.booleans(), trace=st.none() | st.floats(0.3, 1.4))
def test_more_copies_are_more_memorized(n: int, data: Any, complete: bool, trace: float | None) -> None:
    """Another copy never lowers the memorized fraction, its probability or the bound, nor raises the others."""
    fewer = data.draw(st.integers(0, n - 1), "copies")
    seen, curved = stability(n, pairs=n // 4), () if trace is None else curvature(trace)
    less, more = (conclude(seen, neighbors(n, copies), curved, complete=complete) for copies in (fewer, fewer + 1))
    assert more.fractions[0].estimate > less.fractions[0].estimate - MONTE_CARLO
    assert more.probabilities[0] >= less.probabilities[0] - MONTE_CARLO
    assert more.fractions[2].estimate <= less.fractions[2].estimate + MONTE_CARLO
    assert more.recurring_probability >= less.recurring_probability - MONTE_CARLO
    assert more.copy_rate_bound >= less.copy_rate_bound


@settings(max_examples=40)
@given(
    n=st.integers(4, 32),
    data=st.data(),
    change=st.sampled_from(["meeting", "closeness", "trace"]),
    referenced=st.sampled_from(["complete", "partial", "none"]),
)
def test_signs_of_recurrence_raise_its_probability(n: int, data: Any, change: str, referenced: str) -> None:
    """Seeds that meet more often, lie nearer, or sit in steeper curvature never make recurrence less likely."""
    trace, nearest = data.draw(st.floats(0.5, 1.1)), data.draw(st.floats(DELTA_S + 0.1, 12))
    pairs = data.draw(st.integers(0, n // 2 - 1))
    near = None if referenced == "none" else neighbors(n, 0)
    complete = referenced == "complete"
    less = conclude(stability(n, pairs=pairs, nearest=nearest), near, curvature(trace), complete=complete)
    if change == "meeting":
        pairs += 1
    elif change == "closeness":
        nearest *= 0.7
    else:
        trace += 0.2
    more = conclude(stability(n, pairs=pairs, nearest=nearest), near, curvature(trace), complete=complete)
    assert more.recurring_probability >= less.recurring_probability - MONTE_CARLO
    assert more.fractions[2].estimate <= less.fractions[2].estimate + MONTE_CARLO


@settings(max_examples=40)
@given(n=st.integers(2, 32), data=st.data(), samples=st.integers(2, 20_000), factor=st.floats(1.01, 50))
def test_more_samples_recur_more(n: int, data: Any, samples: int, factor: float) -> None:
    """Fractions expected among more samples have more that recurs: N is part of the definition."""
    copies = data.draw(st.none() | st.integers(0, n))
    near = None if copies is None else neighbors(n, copies)
    complete = data.draw(st.booleans())
    few, many = (
        conclude(stability(n), near, curvature(0.8), complete=complete, samples=count)
        for count in (samples, int(samples * factor) + 1)
    )
    assert many.fractions[2].estimate <= few.fractions[2].estimate + 1e-12
    assert many.fractions[1].estimate >= few.fractions[1].estimate - 1e-12
    assert many.fractions[0].estimate >= few.fractions[0].estimate - 1e-12
    if copies is not None and complete:
        assert many.fractions[0].estimate == pytest.approx(few.fractions[0].estimate)
    assert many.recurring_probability >= few.recurring_probability - 1e-12


def test_fractions_at_another_size_follow_the_collision_law() -> None:
    """The share that does not recur is raised to the power N′/N, draw by draw: with certainty, in the estimate."""
    sure = calibration(concentration=1e7)
    at = {
        samples: conclude(stability(16), neighbors(16, 0), (), calibrated=sure, samples=samples)
        for samples in (256, 512, 1024)
    }
    alone = {n: d.fractions[2].estimate / (1 - d.fractions[0].estimate) for n, d in at.items()}
    assert alone[1024] == pytest.approx(alone[512] ** 2, rel=1e-3)
    assert alone[256] == pytest.approx(alone[512] ** 0.5, rel=1e-3)


def test_clear_cases_are_decided() -> None:
    """All copies: memorized. Steep and meeting, none of them copies: spurious. Flat and apart: generalized."""
    n = 16
    memorized = conclude(stability(n, pairs=8), neighbors(n, n), curvature(1.15))
    spurious = conclude(stability(n, pairs=8, nearest=1.0), neighbors(n, 0), curvature(1.1))
    generalized = conclude(stability(n, nearest=9.0), neighbors(n, 0), curvature(0.6))
    assert memorized.verdict == PhaseClass.MEMORIZED
    assert spurious.verdict == PhaseClass.SPURIOUS
    assert generalized.verdict == PhaseClass.GENERALIZED
    assert memorized.decided
    assert spurious.decided
    assert generalized.decided


def test_without_a_reference_set_memorized_and_spurious_stay_undecided() -> None:
    """Nothing was searched: what recurs may be either, the bound is 1, and the report says so."""
    found = conclude(stability(16, pairs=8, nearest=1.0), None, curvature(1.1))
    assert found.probabilities[0] == pytest.approx(found.probabilities[1], abs=2 * MONTE_CARLO)
    assert found.recurring_probability > 0.95
    assert not found.decided
    assert found.copy_rate_bound == 1
    assert found.copies == 0
    assert any("No reference set" in reason for reason in found.reasons)
    for fraction in found.fractions[:2]:
        assert fraction.upper - fraction.lower > 0.6
    ordinary = conclude(stability(16, nearest=9.0), None, curvature(0.6))
    assert ordinary.verdict == PhaseClass.GENERALIZED
    assert ordinary.decided
    assert ordinary.copy_rate_bound == 1


def test_a_partial_set_without_copies_widens_memorized_against_spurious() -> None:
    """Not found in a part is not "not there": the memorized interval widens, recurrence stays what it was."""
    seen, near, curved = stability(16, pairs=6, nearest=1.0), neighbors(16, 0), curvature(1.1)
    whole, part = (conclude(seen, near, curved, complete=complete) for complete in (True, False))
    assert whole.verdict == PhaseClass.SPURIOUS
    assert part.fractions[0].upper > whole.fractions[0].upper + 0.3
    assert part.fractions[1].lower < whole.fractions[1].lower - 0.3
    assert part.confidence < whole.confidence
    assert part.recurring_probability == pytest.approx(whole.recurring_probability, abs=MONTE_CARLO)
    assert part.fractions[2].estimate == pytest.approx(whole.fractions[2].estimate, abs=MONTE_CARLO)
    assert any("partial" in reason for reason in part.reasons)
    assert any("complete training set" in reason for reason in whole.reasons)


def test_copies_found_in_a_partial_set_are_copies() -> None:
    """A copy is a copy whatever else the set lacks."""
    part = conclude(stability(16, pairs=8), neighbors(16, 16, images=5), curvature(1.1), complete=False)
    assert part.verdict == PhaseClass.MEMORIZED
    assert part.decided
    assert (part.copies, part.distinct_references) == (16, 5)
    assert "5 different training images" in part.reasons[0]


@pytest.mark.parametrize("n", [2, 16, 200])
def test_copy_rate_bound_is_clopper_pearson(n: int) -> None:
    """At the bound, as few copies as were found have probability 5%; with copies throughout it is 1."""
    for copies in range(0, n + 1, max(1, n // 8)):
        bound = conclude(stability(n), neighbors(n, copies)).copy_rate_bound
        if copies == n:
            assert bound == 1
        else:
            assert binom.cdf(copies, n, bound) == pytest.approx(0.05, abs=1e-6)


def test_copies_are_reported_whatever_dominates() -> None:
    """One copy among generalizing seeds is named first."""
    found = conclude(stability(16, nearest=9.0), neighbors(16, 1), curvature(0.6))
    assert found.verdict == PhaseClass.GENERALIZED
    assert found.copies == 1
    assert found.reasons[0].startswith("1 of 16 seeds gave copies of one training image")
    assert found.copy_rate_bound > 1 / 16


def test_a_calibration_that_does_not_fit_is_trusted_less() -> None:
    """Intervals of what recurs widen, and the report says that thresholds are rough."""
    seen, near, curved = stability(16), neighbors(16, 0), curvature(0.85)
    fits, other = (conclude(seen, near, curved, fits=fits) for fits in (True, False))
    assert other.fractions[1].upper - other.fractions[1].lower > fits.fractions[1].upper - fits.fractions[1].lower
    assert any("No calibration" in reason for reason in other.reasons)
    assert not any("No calibration" in reason for reason in fits.reasons)


def test_thresholds_without_a_calibration_are_differences_per_pixel() -> None:
    """Uncalibrated thresholds grow with the square root of the number of pixel values."""
    bare = calibration(delta_m=None, delta_s=None)
    found = conclude(stability(4), None, calibrated=bare)
    assert found.delta_m == found.delta_s == pytest.approx(UNCALIBRATED_RMS * 32)


@pytest.mark.parametrize("complete", [True, False, None])
def test_intervals_cover_prompts_drawn_from_the_model(complete: bool | None) -> None:
    """Of 400 prompts drawn from the model itself, the 90% intervals hold the truth in 85 to 95% of them, each class."""
    rng = np.random.default_rng(7)
    made = calibration()
    held = np.zeros(3)
    prompts = 400
    n = 16
    for _ in range(prompts):
        curved = curvature(float(rng.uniform(0.6, 1.1)))
        seen = stability(n, pairs=int(rng.integers(0, 4)), nearest=float(rng.uniform(1, 10)))
        mean = made.with_curvature.predict(recurrence_features(seen, curved, DELTA_S))
        kappa = made.with_curvature.concentration
        recurring = rng.beta(kappa * mean, kappa * (1 - mean))
        copied = 0.0 if complete is None else rng.beta(0.5, 0.5)
        hidden = 0.0 if complete else rng.random()
        truth = np.array(
            [
                copied + (1 - copied) * recurring * hidden,
                (1 - copied) * recurring * (1 - hidden),
                (1 - copied) * (1 - recurring),
            ]
        )
        near = None if complete is None else neighbors(n, int(rng.binomial(n, copied)))
        found = conclude(seen, near, curved, complete=bool(complete))
        held += [f.lower <= value <= f.upper for f, value in zip(found.fractions, truth, strict=True)]
    # Four standard errors of a proportion over 400 prompts, and a little for the discreteness of the copies.
    slack = 4 * (INTERVAL_LEVEL * (1 - INTERVAL_LEVEL) / prompts) ** 0.5
    np.testing.assert_allclose(held / prompts, INTERVAL_LEVEL, atol=slack)


def test_the_same_evidence_gives_the_same_decision() -> None:
    """The posterior is drawn with a fixed seed."""
    arguments = (stability(16, pairs=2), neighbors(16, 3), curvature(0.9))
    assert conclude(*arguments) == conclude(*arguments)


def test_reasons_say_what_was_measured() -> None:
    """Meetings, curvature and its typical range, and the expected recurrence are said in words."""
    found = conclude(stability(16, pairs=2), neighbors(16, 0), curvature(1.1))
    text = " ".join(found.reasons)
    assert "4 of 16 seeds returned to 2 images" in text
    assert "trace is 1.10, above the range of generalizing prompts (0.60 to 0.80)" in text
    assert "of 512 samples are expected to recur" in text
    apart = " ".join(conclude(stability(16), neighbors(16, 0), curvature(0.5)).reasons)
    assert "No two of 16 seeds met" in apart
    assert "below the range" in apart
    carried = " ".join(conclude(stability(16), neighbors(16, 0), samples=64).reasons)
    assert "carried over to 64 samples" in carried
    assert "curvature" not in carried


def test_what_one_cannot_know_is_unknown() -> None:
    """Two seeds and no more leave the fractions wide open."""
    found = conclude(stability(2, nearest=4.5), neighbors(2, 1), (), calibrated=calibration(concentration=2.0))
    assert not found.decided
    assert max(f.upper - f.lower for f in found.fractions) > 0.5


def test_classes_of_samples_are_by_the_rule() -> None:
    """Copies first, then samples near another one, then the rest."""
    seen = replace(stability(4), nearest_sample_distance=np.array([9.0, 1.0, 1.0, 9.0]))
    near = replace(neighbors(4, 0), distance=np.array([1.0, 1.0, 9.0, 9.0]))
    assert conclude(seen, near).sample_classes == (0, 0, 1, 2)
