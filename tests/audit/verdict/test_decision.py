"""From evidence to a verdict: coherence, monotonicity, Bayes' rule, reference sets, coverage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from audit.evidence.gathered import Evidence
from audit.model.checkpoint import Gap
from audit.verdict.calibration import UNCALIBRATED_RMS, Calibration
from audit.verdict.decision import BORROWED, DECIDED, DOUBT, INTERVAL_LEVEL, Decision, Screened, decide, screen
from audit.verdict.estimators import Estimators, shipped
from audit.verdict.features import CONTRASTS, MEETINGS, TRACES, measurements, meetings, normalise
from audit.verdict.rule import CLASSES, PhaseClass
from tests.audit.verdict.evidence_made import (
    CONTRAST,
    DELTA_M,
    DELTA_S,
    calibration,
    constant,
    estimators,
    evidence,
    neighbors,
    screening,
    stability,
    sure_of,
)

#: What 20,000 draws of the prior leave open, five standard errors wide.
MONTE_CARLO = 5 * 0.5 / 20_000**0.5
#: Prompts that recall something without copying.
BLEND: dict[str, Any] = {"pairs": 8, "nearest": 1.0, "contrast": 0.2, "trace": 0.85}


def conclude(
    seen: Evidence,
    *,
    complete: bool = True,
    calibrated: Calibration | None = None,
    samples: int = 512,
    fits: bool = True,
    by: Estimators | None = None,
) -> Decision:
    """`decide` with the usual arguments."""
    return decide(
        seen,
        calibrated or calibration(),
        reference_complete=complete,
        dimension=1024,
        definition_samples=samples,
        fits=fits,
        estimators=by or estimators(),
    )


def test_without_contrasts_the_estimate_is_wider() -> None:
    """Evidence that is missing is not taken for ordinary: less is sure, and more is expected to recur."""
    seen = evidence(8, 0, contrast=0.0, trace=0.0)
    whole, less = conclude(seen), conclude(replace(seen, screening=None))
    assert {one.name for one in less.measurements} == {*TRACES, *MEETINGS}
    assert less.recurring_probability > whole.recurring_probability
    for one, other in zip(less.fractions[1:], whole.fractions[1:], strict=True):
        assert one.upper - one.lower > other.upper - other.lower


def test_gaps_are_among_the_reasons_and_borrowed_measures_are_none() -> None:
    """A checkpoint that lacks evidence is not held against what is ordinary on another one."""
    seen, gap = replace(evidence(8, None, pairs=4), screening=None), Gap("contrast", "It has no other branch.")
    arguments: dict[str, Any] = {
        "reference_complete": False, "dimension": 1024, "definition_samples": 512, "estimators": estimators(),
    }  # fmt: skip
    own = decide(seen, calibration(), fits=True, gaps=[gap], **arguments)
    borrowed = decide(seen, calibration(), fits=False, gaps=[gap], **arguments)
    for found in (own, borrowed):
        assert gap.reason in found.reasons
    assert all(one.ordinary is not None for one in own.measurements if one.name in TRACES)
    assert all(one.ordinary is None for one in borrowed.measurements)
    assert "judged by where seeds meet alone" in borrowed.reasons[0]


def look_at(contrast: float, *, by: Estimators | None = None, samples: int = 512, fits: bool = True) -> Screened:
    """`screen` with the usual arguments."""
    return screen(
        screening(contrast), calibration(), definition_samples=samples, fits=fits, estimators=by or estimators()
    )


@settings(max_examples=25)
@given(data=st.data(), n=st.integers(1, 40), contrast=st.floats(0, 3), trace=st.floats(-2, 3))
def test_decisions_are_coherent(data: Any, n: int, contrast: float, trace: float) -> None:
    """Probabilities sum to 1, intervals hold their estimates within [0, 1], the verdict is the likeliest class."""
    copies = data.draw(st.none() | st.integers(0, n), "copies")
    seen = evidence(
        n,
        copies,
        pairs=data.draw(st.integers(0, n // 2), "pairs"),
        nearest=data.draw(st.floats(0, 50), "nearest"),
        contrast=contrast,
        trace=trace,
        images=data.draw(st.integers(1, 5), "images"),
    )
    found = conclude(
        seen,
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
    assert 0 <= found.recurring_probability <= 1 + 1e-9
    assert found.copies == (copies or 0)
    assert found.distinct_references <= found.copies
    assert 0 <= found.copy_rate_bound <= 1
    assert len(found.sample_classes) == n
    assert found.sample_classes.count(0) == found.copies
    assert (found.delta_m, found.delta_s) == (DELTA_M, DELTA_S)
    assert all(reason.endswith(".") for reason in found.reasons)
    assert [one.name for one in found.measurements] == [*CONTRASTS, *TRACES, *(MEETINGS if n > 1 else ())]
    assert np.isfinite([one.value for one in found.measurements]).all()


@pytest.mark.parametrize("n", [4, 16, 64])
def test_intervals_hold_their_estimates_in_ordinary_cases(n: int) -> None:
    """With evidence of ordinary strength the posterior mean lies inside its interval."""
    for copies in (0, n // 2, n):
        for trace in (0.6, 0.8, 1.0):
            found = conclude(evidence(n, copies, pairs=n // 4, contrast=0.2, trace=trace))
            for fraction in found.fractions:
                assert fraction.lower <= fraction.estimate <= fraction.upper


# --- Bayes' rule ----------------------------------------------------------------------------------------------------


def on_a_grid(
    recurring: tuple[float, float], copied: tuple[float, float], copies: int, n: int
) -> tuple[float, float, float]:
    """Posterior mean of f_m = R C and the ends of its 90% interval; R and C are given as (mean, concentration)."""
    edges = np.linspace(0, 1, 801)
    middle = (edges[1:] + edges[:-1]) / 2
    shares = [
        (1 - DOUBT) * np.diff(beta.cdf(edges, kappa * mean, kappa * (1 - mean))) + DOUBT / 800
        for mean, kappa in (recurring, copied)
    ]
    rate = np.outer(middle, middle).ravel()
    weight = np.outer(*shares).ravel() * np.exp(binom.logpmf(copies, n, rate) - binom.logpmf(copies, n, copies / n))
    weight /= weight.sum()
    lower, upper = np.quantile(rate, [0.05, 0.95], weights=weight, method="inverted_cdf")
    return float(weight @ rate), float(lower), float(upper)


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("concentration", [4.0, 30.0])
@pytest.mark.parametrize(("copies", "n"), [(0, 1), (1, 1), (0, 4), (2, 8), (8, 8), (13, 16), (0, 32)])
def test_copies_found_count_by_bayes_rule(mean: float, concentration: float, copies: int, n: int) -> None:
    """Where all recurs, f_m and its interval are those of a grid forty times as fine, within 0.02."""
    certain = sure_of(constant(1 - 1e-12, 1e7), constant(mean, concentration))
    found = conclude(evidence(n, copies), by=certain).fractions[0]
    expected = on_a_grid((1 - 1e-12, 1e7), (mean, concentration), copies, n)
    assert (found.estimate, found.lower, found.upper) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("mean", "copies", "n"), [(0.2, 1, 8), (0.5, 8, 16), (0.8, 13, 16)])
def test_doubt_moves_hardly_anything_where_nothing_speaks_against_the_estimate(
    mean: float, copies: int, n: int
) -> None:
    """Mean and 90% interval are those of the conjugate posterior without any doubt, within 0.02."""
    certain = sure_of(constant(1 - 1e-12, 1e7), constant(mean, 10.0))
    found = conclude(evidence(n, copies), by=certain).fractions[0]
    posterior = beta(10 * mean + copies, 10 * (1 - mean) + n - copies)
    assert found.estimate == pytest.approx(posterior.mean(), abs=0.02)
    assert (found.lower, found.upper) == pytest.approx(posterior.ppf([0.05, 0.95]), abs=0.02)


@pytest.mark.parametrize(
    ("copies", "n", "recurring", "copied"),
    [(4, 16, 0.8, 0.5), (16, 16, 0.4, 0.03), (32, 32, 0.3, 0.02), (32, 64, 0.3, 0.02), (256, 256, 0.8, 0.3)],
)
def test_posteriors_of_surprises_are_those_of_a_grid(copies: int, n: int, recurring: float, copied: float) -> None:
    """However little of the prior the copies leave, f_m and its interval are within 0.03 of R × C on a fine grid."""
    by = sure_of(constant(recurring, 12.0), constant(copied, 12.0))
    found = conclude(evidence(n, copies), by=by).fractions[0]
    expected = on_a_grid((recurring, 12.0), (copied, 12.0), copies, n)
    assert (found.estimate, found.lower, found.upper) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("n", "concentration"), [(8, 10.0), (16, 100.0), (32, 500.0)])
def test_copies_overrule_estimators_that_expect_none(n: int, concentration: float) -> None:
    """All n seeds gave copies, though nothing was to recur, or nothing was to be a copy: memorized, and decided."""
    for recurring, copied in ((0.5, 1e-3), (1e-3, 0.5), (1e-3, 1e-3)):
        wrong = sure_of(constant(recurring, concentration), constant(copied, concentration))
        assert conclude(evidence(n, 0), by=wrong).probabilities[0] < 0.1
        for complete in (True, False):
            found = conclude(evidence(n, n), by=wrong, complete=complete)
            assert found.verdict == PhaseClass.MEMORIZED
            assert found.decided
            assert found.fractions[0].lower > 0.4


def test_a_complete_set_without_copies_overrules_estimators_that_expect_them() -> None:
    """Sure of copies, and none of 32 seeds gave one: not memorized; in a part of the set it may still be."""
    wrong = sure_of(constant(0.99, 100.0), constant(0.99, 100.0))
    whole, part = (conclude(evidence(32, 0), by=wrong, complete=complete) for complete in (True, False))
    assert whole.probabilities[0] < 0.01
    assert whole.fractions[0].upper < 0.15
    assert part.fractions[0].upper > 0.9


def test_a_partial_set_weighs_copies_by_all_the_shares_it_may_cover() -> None:
    """Binomial(k; n, v f_m) with v uniform, integrated on a grid: means agree within 0.02."""
    n, mean, concentration = 8, 0.6, 8.0
    certain = sure_of(constant(1 - 1e-12, 1e7), constant(mean, concentration))
    worth = concentration * BORROWED
    rate, cover = np.meshgrid(np.linspace(0.001, 0.999, 500), np.linspace(0.001, 0.999, 500))
    density = (1 - DOUBT) * beta.pdf(rate, worth * mean, worth * (1 - mean)) - DOUBT * np.log(rate)
    for copies in (0, 2, 5, 8):
        weight = density * binom.pmf(copies, n, rate * cover)
        found = conclude(evidence(n, copies), by=certain, complete=False).fractions[0].estimate
        assert found == pytest.approx(float((weight * rate).sum() / weight.sum()), abs=0.02)


@settings(max_examples=25)
@given(n=st.integers(1, 32), data=st.data(), contrast=st.floats(0.05, 0.5), trace=st.floats(0.3, 1.1))
def test_more_copies_are_more_memorized(n: int, data: Any, contrast: float, trace: float) -> None:
    """Another copy lowers neither the memorized fraction, nor the ends of its interval, nor the bound."""
    fewer, pairs = data.draw(st.integers(0, n - 1), "copies"), data.draw(st.integers(0, n // 2), "pairs")
    less, more = (
        conclude(evidence(n, copies, pairs=pairs, contrast=contrast, trace=trace)) for copies in (fewer, fewer + 1)
    )
    assert more.fractions[0].estimate >= less.fractions[0].estimate - 1e-9
    assert more.fractions[0].lower >= less.fractions[0].lower - 1e-9
    assert more.fractions[0].upper >= less.fractions[0].upper - 1e-9
    assert more.copy_rate_bound >= less.copy_rate_bound


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("trace", [0.6, 0.8, 1.0])
def test_every_copy_counts_for_memorized(complete: bool, trace: float) -> None:
    """From none to all of 16, its probability rises all along, within Monte Carlo error, and ends near 1."""
    found = [
        conclude(evidence(16, copies, pairs=4, contrast=0.2, trace=trace), complete=complete).probabilities[0]
        for copies in range(17)
    ]
    assert (np.diff(found) >= -MONTE_CARLO).all()
    assert found[-1] > 0.99


# --- what was measured -----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(n=st.integers(4, 32), data=st.data(), change=st.sampled_from(["contrast", "trace", "closeness", "meeting"]))
def test_signs_of_recurrence_raise_its_probability(n: int, data: Any, change: str) -> None:
    """A stronger contrast or trace, nearer samples, more meetings: recurrence is never less likely for them."""
    seen: dict[str, Any] = {
        "pairs": data.draw(st.integers(0, n // 2 - 1), "pairs"),
        "nearest": data.draw(st.floats(DELTA_S + 0.1, 12), "nearest"),
        "contrast": data.draw(st.floats(0.05, 0.5), "contrast"),
        "trace": data.draw(st.floats(0.3, 1.0), "trace"),
    }
    more = {
        "contrast": {"contrast": seen["contrast"] * 1.3},
        "trace": {"trace": seen["trace"] + 0.1},
        "closeness": {"nearest": seen["nearest"] * 0.7},
        "meeting": {"pairs": seen["pairs"] + 1},
    }[change]
    before, after = (conclude(evidence(n, None, **one)) for one in (seen, seen | more))
    assert after.recurring_probability >= before.recurring_probability - MONTE_CARLO
    assert after.fractions[2].estimate <= before.fractions[2].estimate + MONTE_CARLO
    assert after.fractions[0].estimate >= before.fractions[0].estimate - MONTE_CARLO


@settings(max_examples=25)
@given(n=st.integers(1, 32), data=st.data(), samples=st.integers(2, 20_000), factor=st.floats(1.01, 50))
def test_more_samples_recur_more(n: int, data: Any, samples: int, factor: float) -> None:
    """Fractions expected among more samples have more that recurs, and as many copies: N is part of the definition."""
    seen = evidence(n, data.draw(st.none() | st.integers(0, n), "copies"), contrast=0.2, trace=0.8)
    complete = data.draw(st.booleans(), "complete")
    few, many = (conclude(seen, complete=complete, samples=count) for count in (samples, int(samples * factor) + 1))
    assert many.fractions[2].estimate <= few.fractions[2].estimate + 1e-12
    assert many.fractions[1].estimate >= few.fractions[1].estimate - 1e-12
    assert many.fractions[0].estimate == pytest.approx(few.fractions[0].estimate)
    assert many.recurring_probability >= few.recurring_probability - 1e-12


@pytest.mark.parametrize("copied", [1e-9, 0.3, 0.7])
def test_fractions_at_another_size_follow_the_collision_law(copied: float) -> None:
    """The share of what is no copy and does not recur is raised to the power N′/N, copies stay as they are.

    Of estimators that are sure, the ends of the interval are the estimate, within 0.002: doubt lies beyond them.
    """
    returning = 0.6
    sure = sure_of(constant(returning, 1e8), constant(copied, 1e8))
    own = (1 - returning) / (1 - returning * copied)
    for samples in (64, 256, 512, 1024, 2048):
        found = conclude(evidence(16, None), by=sure, samples=samples).fractions
        alone = (1 - returning * copied) * own ** (samples / 512)
        for end in ("lower", "upper"):
            assert getattr(found[0], end) == pytest.approx(returning * copied, abs=2e-3)
            assert getattr(found[2], end) == pytest.approx(alone, abs=2e-3)


def test_evidence_is_weighed_by_the_look_of_its_seeds() -> None:
    """Few seeds are judged by the estimators of few seeds, many by those of many."""
    made = estimators()
    by_look = made.model_copy(
        update={
            "looks": tuple(
                look.model_copy(update={"recurring": constant(mean, 1e6)})
                for look, mean in zip(made.looks, (0.2, 0.4, 0.6), strict=True)
            )
        }
    )
    for n, mean in ((1, 0.4), (2, 0.6), (40, 0.6)):
        found = conclude(evidence(n, None), by=by_look)
        assert found.fractions[2].upper == pytest.approx(1 - mean, abs=0.01)
    assert look_at(CONTRAST, by=by_look).probabilities[2] > 0.9


def test_clear_cases_are_decided() -> None:
    """All copies: memorized. Steep and meeting, none of them copies: spurious. Like ordinary prompts: generalized."""
    memorized = conclude(evidence(16, 16, pairs=8, contrast=0.4, trace=1.0))
    spurious = conclude(evidence(16, 0, **BLEND))
    generalized = conclude(evidence(16, 0, nearest=9.0))
    assert memorized.verdict == PhaseClass.MEMORIZED
    assert spurious.verdict == PhaseClass.SPURIOUS
    assert generalized.verdict == PhaseClass.GENERALIZED
    assert memorized.decided
    assert spurious.decided
    assert generalized.decided


def test_without_estimators_those_that_ship_decide() -> None:
    """They are the default, of decisions and of screens."""
    seen, arguments = evidence(16, 0), {"definition_samples": 512, "fits": True}
    own = conclude(seen, by=shipped())
    assert decide(seen, calibration(), reference_complete=True, dimension=1024, **arguments) == own  # type: ignore
    assert screen(screening(0.2), calibration(), **arguments) == look_at(0.2, by=shipped())  # type: ignore
    assert own != conclude(seen)


# --- reference sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searched", ["partial", "none"])
def test_what_is_not_checked_widens_memorized_against_spurious(searched: str) -> None:
    """Not found in a part, or not looked for, is not "not there": the split of what recurs opens, and stays so."""
    whole = conclude(evidence(16, 0, **BLEND))
    open_ = conclude(evidence(16, 0 if searched == "partial" else None, **BLEND), complete=False)
    assert whole.verdict == PhaseClass.SPURIOUS
    for index in (0, 1):
        width, narrow = (found.fractions[index].upper - found.fractions[index].lower for found in (open_, whole))
        assert width > narrow + 0.1
    assert open_.fractions[0].upper > whole.fractions[0].upper + 0.1
    assert open_.fractions[1].lower < whole.fractions[1].lower - 0.05
    assert open_.confidence < whole.confidence
    assert open_.recurring_probability > 0.9
    said = "partial" if searched == "partial" else "No reference set"
    assert any(said in reason for reason in open_.reasons)
    assert any("complete training set" in reason for reason in whole.reasons)


@pytest.mark.parametrize("complete", [True, False])
def test_without_a_reference_set_copies_are_worth_a_part_of_their_estimate(complete: bool) -> None:
    """Of what recurs for sure, the copied share has the concentration κ · `BORROWED`, and the bound is 1."""
    certain = sure_of(constant(1 - 1e-12, 1e7), constant(0.3, 20.0))
    found = conclude(evidence(8, None), by=certain, complete=complete)
    expected = beta(20 * BORROWED * 0.3, 20 * BORROWED * 0.7)
    # The doubt shifts the ends of the interval, too.
    assert (found.fractions[0].lower, found.fractions[0].upper) == pytest.approx(expected.ppf([0.05, 0.95]), abs=0.03)
    assert found.copy_rate_bound == 1
    assert found.copies == 0
    assert found.reasons[0].startswith("No reference set was searched")


def test_recurrence_is_judged_alike_where_nothing_is_searched() -> None:
    """How probable it is that most recurs is a matter of R alone, which no reference set is needed for."""
    for mean in (0.2, 0.5, 0.9):
        by = sure_of(constant(mean, 10.0), constant(0.5, 10.0))
        expected = (1 - DOUBT) * beta.sf(0.5, 10 * mean, 10 * (1 - mean)) + DOUBT / 2
        assert conclude(evidence(8, None), by=by).recurring_probability == pytest.approx(expected, abs=MONTE_CARLO)


def test_copies_found_in_a_partial_set_are_copies() -> None:
    """A copy is a copy whatever else the set lacks."""
    part = conclude(evidence(16, 16, pairs=8, images=5, contrast=0.4, trace=1.0), complete=False)
    assert part.verdict == PhaseClass.MEMORIZED
    assert part.decided
    assert (part.copies, part.distinct_references) == (16, 5)
    assert "5 different training images" in part.reasons[0]


@pytest.mark.parametrize("n", [1, 2, 16, 200])
def test_copy_rate_bound_is_clopper_pearson(n: int) -> None:
    """At the bound, as few copies as were found have probability 5%; with copies throughout it is 1."""
    for copies in range(0, n + 1, max(1, n // 8)):
        bound = conclude(evidence(n, copies)).copy_rate_bound
        if copies == n:
            assert bound == 1
        else:
            assert binom.cdf(copies, n, bound) == pytest.approx(0.05, abs=1e-6)


def test_copies_are_reported_whatever_dominates() -> None:
    """One copy among generalizing seeds is named first."""
    found = conclude(evidence(16, 1, nearest=9.0))
    assert found.verdict == PhaseClass.GENERALIZED
    assert found.copies == 1
    assert found.reasons[0].startswith("1 of 16 seeds gave copies of one training image")
    assert found.copy_rate_bound > 1 / 16


def test_a_calibration_that_does_not_fit_is_trusted_less() -> None:
    """Intervals of what recurs widen, and the report says that thresholds are rough."""
    seen = evidence(16, None, contrast=0.15, trace=0.75)
    fits, other = (conclude(seen, fits=fits) for fits in (True, False))
    assert other.fractions[2].upper - other.fractions[2].lower > 1.3 * (
        fits.fractions[2].upper - fits.fractions[2].lower
    )
    assert any("No calibration" in reason for reason in other.reasons)
    assert not any("No calibration" in reason for reason in fits.reasons)
    known, borrowed = (look_at(0.3, fits=fits).probabilities[2] for fits in (True, False))
    assert abs(borrowed - 0.5) < abs(known - 0.5)


def test_thresholds_without_a_calibration_are_differences_per_pixel() -> None:
    """Uncalibrated thresholds grow with the square root of the number of pixel values."""
    bare = calibration(delta_m=None, delta_s=None)
    found = conclude(evidence(4, None), calibrated=bare)
    assert found.delta_m == found.delta_s == pytest.approx(UNCALIBRATED_RMS * 32)


@pytest.mark.parametrize(("searched", "fits"), [("complete", True), ("partial", True), ("none", True), ("none", False)])
def test_intervals_cover_prompts_drawn_from_the_model(searched: str, fits: bool) -> None:
    """Of 200 prompts drawn from the model itself, the 90% intervals hold the truth as often as they say, each class.

    R and C are drawn around their predictions, or each in a share `DOUBT` of the prompts anyhow; n samples are copies
    with probability R C, and a partial set holds any share of what they copy.
    """
    rng = np.random.default_rng(7)
    made, by, n, prompts = calibration(), estimators(), 16, 200
    held = np.zeros(3)
    for _ in range(prompts):
        seen = evidence(
            n,
            None,
            pairs=int(rng.integers(0, 4)),
            nearest=float(rng.uniform(2, 10)),
            contrast=float(rng.uniform(0.1, 0.4)),
            trace=float(rng.uniform(0.6, 1.0)),
        )
        features = normalise(measurements(seen.screening, seen.smoothed), made.ordinary)
        features |= meetings(seen.stability, DELTA_S)
        look, trust = by.look(n), 1.0 if fits else BORROWED

        def draw(mean: float, concentration: float) -> float:
            if rng.random() < DOUBT:
                return float(rng.random())
            return float(rng.beta(concentration * mean, concentration * (1 - mean)))

        unchecked = 1.0 if searched == "complete" else BORROWED
        returning = draw(look.recurring.predict(features), look.recurring.concentration * trust)
        copied = draw(look.copied.predict(features), look.copied.concentration * trust * unchecked)
        if searched != "none":
            cover = 1.0 if searched == "complete" else rng.random()
            seen = replace(seen, neighbors=neighbors(n, int(rng.binomial(n, returning * copied * cover))))
        truth = returning * copied, returning * (1 - copied), 1 - returning
        found = conclude(seen, complete=searched == "complete", fits=fits, by=by)
        held += [f.lower <= value <= f.upper for f, value in zip(found.fractions, truth, strict=True)]
    # Four standard errors of a proportion over so many prompts.
    slack = 4 * (INTERVAL_LEVEL * (1 - INTERVAL_LEVEL) / prompts) ** 0.5
    np.testing.assert_allclose(held / prompts, INTERVAL_LEVEL, atol=slack)


def test_the_same_evidence_gives_the_same_decision() -> None:
    """Nothing is drawn."""
    seen = evidence(16, 3, pairs=2, trace=0.9)
    assert conclude(seen) == conclude(seen)


def test_reasons_say_what_was_measured() -> None:
    """Meetings, contrast and trace beside their ordinary ranges, and the expected recurrence are said in words."""
    text = " ".join(conclude(evidence(16, 0, pairs=2, contrast=0.3, trace=0.61)).reasons)
    assert "4 of 16 seeds returned to 2 images" in text
    assert "latent value: 0.30, above the range of ordinary prompts (0.07 to 0.14)." in text
    assert "share again: 0.61, within the range of ordinary prompts (0.52 to 0.68)." in text
    assert "of 512 samples are expected to recur" in text
    apart = " ".join(conclude(evidence(16, 0, trace=0.3), samples=64).reasons)
    assert "No two of 16 seeds met" in apart
    assert "share again: 0.30, below the range of ordinary prompts" in apart
    assert "of 64 samples are expected to recur" in apart
    single = " ".join(conclude(evidence(1, None)).reasons)
    assert "met" not in single
    assert "returned" not in single


def test_measurements_are_shown_beside_what_is_ordinary() -> None:
    """Contrasts as they are and not their logarithms; how seeds meet has no ordinary range."""
    shown = {one.name: one for one in conclude(evidence(16, 0, contrast=0.3, trace=0.7, nearest=DELTA_S)).measurements}
    for name in CONTRASTS:
        assert shown[name].value == pytest.approx(0.3)
        low, high = shown[name].ordinary or (0, 0)
        assert (low, high) == pytest.approx((CONTRAST * math.exp(-0.329), CONTRAST * math.exp(0.329)))
    for name in TRACES:
        assert shown[name].value == pytest.approx(0.7)
        assert shown[name].ordinary == pytest.approx((0.6 - 0.08225, 0.6 + 0.08225))
    assert shown["closeness"].value == pytest.approx(0)
    assert all(shown[name].ordinary is None for name in MEETINGS)


def test_what_one_cannot_know_is_unknown() -> None:
    """Two seeds and estimators that are unsure leave the fractions wide open."""
    found = conclude(evidence(2, 1, contrast=0.15, trace=0.8, nearest=4.5), by=estimators(2.0, 2.0))
    assert not found.decided
    assert max(f.upper - f.lower for f in found.fractions) > 0.5


def test_classes_of_samples_are_by_the_rule() -> None:
    """Copies first, then samples near another one, then the rest."""
    seen = replace(
        evidence(4),
        stability=replace(stability(4), nearest_sample_distance=np.array([9.0, 1.0, 1.0, 9.0])),
        neighbors=replace(neighbors(4, 0), distance=np.array([1.0, 1.0, 9.0, 9.0])),
    )
    assert conclude(seen).sample_classes == (0, 0, 1, 2)


# --- the screen alone ------------------------------------------------------------------------------------------------


def test_a_screen_weighs_what_the_estimators_of_no_sample_say() -> None:
    """P(R > ½) of the mixture, in closed form, and the probabilities of the classes sum to 1."""
    for contrast in (0.05, 0.1, 0.2, 0.4):
        found = look_at(contrast)
        features = normalise(measurements(screening(contrast), None), calibration().ordinary)
        mean = estimators().look(0).recurring.predict(features)
        expected = (1 - DOUBT) * beta.sf(0.5, 12 * mean, 12 * (1 - mean)) + DOUBT / 2
        assert found.recurring_probability == pytest.approx(expected, abs=MONTE_CARLO)
        assert sum(found.probabilities) == pytest.approx(1)
        assert sum(found.fractions) == pytest.approx(1)
        assert found.fractions[2] == pytest.approx((1 - DOUBT) * (1 - mean) + DOUBT / 2, abs=MONTE_CARLO)
        assert [one.name for one in found.measurements] == list(CONTRASTS)


def test_screens_rise_with_the_contrast_and_with_the_number_of_samples() -> None:
    """A stronger contrast, or more samples to meet among, never makes recurrence less probable."""
    rising = [look_at(contrast).recurring_probability for contrast in np.geomspace(0.01, 2, 20)]
    assert (np.diff(rising) >= -MONTE_CARLO).all()
    assert rising[-1] > rising[0] + 0.5
    more = [look_at(0.15, samples=samples).recurring_probability for samples in (16, 128, 512, 4096)]
    assert more == sorted(more)
    assert more[-1] > more[0]


@settings(max_examples=20)
@given(contrast=st.floats(0, 3))
def test_a_screen_flags_what_is_over_the_threshold(contrast: float) -> None:
    """The threshold itself is not over it; the next number below it is one that the same prompt is over."""
    score = look_at(contrast).recurring_probability
    for threshold, flagged in ((score, False), (np.nextafter(score, 0), True), (1.0, False), (0.0, score > 0)):
        found = screen(
            screening(contrast),
            calibration(screen_threshold=float(threshold)),
            definition_samples=512,
            fits=True,
            estimators=estimators(),
        )
        assert found.flagged == flagged
        assert found.recurring_probability == score
