"""The estimators recover what was planted, and see prompts as audits do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from audit import demo
from audit.auditor import Auditor
from audit.bench.fitting import (
    FITTING_SEED,
    LOOKS,
    Example,
    carried_over,
    fit_estimators,
    fit_share,
    measure_examples,
    names_of,
)
from audit.bench.truth import load_truth
from audit.model.checkpoint import Checkpoint
from audit.reference.reference_set import ReferenceSet
from audit.verdict.estimators import FEATURES, segments
from audit.verdict.features import CONTRASTS, MEETINGS, TRACED, TRACES, measurements, meetings, normalise

SAMPLES = 512
NAMES = ("contrast_late", "trace_far", "closeness")
#: Center and spread of the planted features.
SCALES = {"contrast_late": (0.6, 0.8), "trace_far": (0.4, 0.3), "closeness": (-0.5, 1.0)}
WEIGHTS = {"contrast_late": 0.5, "trace_far": 1.0, "closeness": 2.0}


def planted(
    n: int, weights: dict[str, float], intercept: float = 0.3, concentration: float = 20.0, seed: int = 0
) -> tuple[list[dict[str, float]], NDArray[np.float64]]:
    """Features, and the counts of N that a logistic relation with beta-binomial scatter gives."""
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(*SCALES[name], n) for name in NAMES}
    scaled = {name: (v - v.mean()) / v.std() for name, v in values.items()}
    mean = expit(intercept + sum((weight * scaled[name] for name, weight in weights.items()), np.zeros(n)))
    counts = rng.binomial(SAMPLES, rng.beta(concentration * mean, concentration * (1 - mean)))
    return [{name: float(v[i]) for name, v in values.items()} for i in range(n)], counts.astype(float)


def totals(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every example has N samples."""
    return np.full(len(counts), float(SAMPLES))


def test_a_planted_relation_is_recovered() -> None:
    """Curves, their spread, intercept and scatter of a thousand prompts come back within a fifth."""
    features, counts = planted(1000, WEIGHTS)
    fitted = fit_share(features, counts, totals(counts), NAMES)
    assert fitted.features == NAMES
    for name, knots, slopes, spread in zip(NAMES, fitted.knots, fitted.slopes, fitted.spread, strict=True):
        center, scale = SCALES[name]
        high, low = (float(segments(center + side * scale, knots) @ np.asarray(slopes)) for side in (1, -1))
        assert (high - low) / 2 == pytest.approx(WEIGHTS[name], rel=0.2)
        assert spread == pytest.approx(WEIGHTS[name], rel=0.2)
    assert fitted.intercept == pytest.approx(0.3, abs=0.15)
    assert fitted.concentration == pytest.approx(20, rel=0.25)


def test_a_relation_that_saturates_is_recovered() -> None:
    """A feature that says no more beyond a knot rises before it and hardly after it."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-0.5, 2.5, 600)
    mean = expit(-2 + 8 * np.clip(values, 0, 0.5))
    counts = rng.binomial(SAMPLES, rng.beta(20 * mean, 20 * (1 - mean))).astype(float)
    features = [{"contrast_late": float(value)} for value in values]
    fitted = fit_share(features, counts, totals(counts), ("contrast_late",))
    for value, share in ((-0.25, expit(-2)), (0.25, 0.5), (0.75, expit(2)), (2.2, expit(2))):
        assert fitted.predict({"contrast_late": value}) == pytest.approx(share, abs=0.06)


def test_predictions_are_those_of_the_relation() -> None:
    """On fresh prompts the prediction is near the planted mean."""
    features, counts = planted(600, WEIGHTS)
    fitted = fit_share(features, counts, totals(counts), NAMES)
    features, counts = planted(600, WEIGHTS, seed=1)
    found = np.array([fitted.predict(row) for row in features])
    assert np.corrcoef(found, counts / SAMPLES)[0, 1] > 0.9
    assert abs(np.mean(found) - np.mean(counts) / SAMPLES) < 0.03


@settings(max_examples=10)
@given(signs=st.tuples(*[st.sampled_from([-1.5, 0.0, 1.5])] * 3), n=st.integers(3, 60), seed=st.integers(0, 1000))
def test_slopes_are_never_negative(signs: tuple[float, float, float], n: int, seed: int) -> None:
    """A relation the other way round, against theory, gets slope 0 and never a negative one."""
    features, counts = planted(n, dict(zip(NAMES, signs, strict=True)), seed=seed)
    fitted = fit_share(features, counts, totals(counts), NAMES)
    slopes = [slope for curve in fitted.slopes for slope in curve]
    assert min(slopes) >= 0
    assert np.isfinite([*slopes, fitted.intercept, fitted.concentration]).all()
    for row in features:
        assert 0 < fitted.predict(row) < 1


def test_a_feature_that_does_not_vary_stays_silent() -> None:
    """A constant feature moves no prediction far, also where it takes another value."""
    features, counts = planted(100, {"closeness": 2.0})
    features = [{**row, "trace_far": 0.7} for row in features]
    fitted = fit_share(features, counts, totals(counts), NAMES)
    before = fitted.predict(features[0])
    assert fitted.predict({**features[0], "trace_far": 0.9}) == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_certainty_is_not_infinite(share: float) -> None:
    """Where every prompt has the same class the estimate is near it, and finite."""
    features, counts = planted(30, {})
    fitted = fit_share(features, np.full(30, share * SAMPLES), totals(counts), NAMES)
    assert fitted.predict(features[0]) == pytest.approx(share, abs=0.05)


def test_examples_weigh_as_much_as_they_have_to_count() -> None:
    """Prompts of which nothing recurs tell nothing of how much of it is copied, whatever their features.

    Theirs are the others', each feature shuffled by itself, which leaves the scale of segments where it was.
    """
    features, counts = planted(200, WEIGHTS)
    alone = fit_share(features, counts, totals(counts), NAMES)
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation([row[name] for row in features]) for name in NAMES]
    empty = [dict(zip(NAMES, map(float, row), strict=True)) for row in zip(*shuffled, strict=True)]
    joined = fit_share(
        features + empty, np.concatenate([counts, 0 * counts]), np.concatenate([totals(counts), 0 * counts]), NAMES
    )
    for row in features[:20]:
        assert joined.predict(row) == pytest.approx(alone.predict(row), abs=1e-3)


def test_seeds_bring_features() -> None:
    """The screen alone has contrasts, one sample its traces, two whether they meet; together they are all there are."""
    assert names_of(0) == CONTRASTS
    assert names_of(1) == CONTRASTS + TRACES
    assert names_of(2) == names_of(32) == FEATURES == CONTRASTS + TRACES + MEETINGS


#: What prompts of a trace give: shares of memorized and spurious samples.
KINDS = {0.0: (0.0, 0.04), 0.5: (0.06, 0.44), 1.0: (0.84, 0.12)}


def by_trace(shift: float = 0.0) -> list[Example]:
    """Prompts whose traces alone tell what they give; on another ladder traces may be shifted."""
    rng = np.random.default_rng(0)
    examples = []
    for trace, (memorized, spurious) in list(KINDS.items()) * 40:
        values = {name: float(rng.normal(0, 1)) for name in FEATURES}
        values |= {name: trace + shift + float(rng.normal(0, 0.05)) for name in TRACES}
        looks = tuple({name: values[name] for name in names_of(seeds)} for seeds in LOOKS)
        examples.append(Example(looks, memorized, spurious))
    return examples


def test_estimators_are_tried_on_the_ladder_that_they_did_not_see() -> None:
    """Where ladders are alike they are right; where traces mean something else they are not, and the table says so."""
    alike, shifted = (carried_over({"one": by_trace(), "other": by_trace(shift)}) for shift in (0.0, -0.9))
    for table, low, high in ((alike, 0.99, 1.0), (shifted, 0.0, 0.7)):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        assert [(name, int(seeds)) for name, seeds, *_ in rows] == [(n, s) for n in ("one", "other") for s in LOOKS]
        shares = [
            (float(right), float(sure)) for name, seeds, right, sure, *_ in rows if name == "other" and seeds != "0"
        ]
        assert all(low <= right <= high and sure > 0.5 for right, sure in shares)


def test_every_look_is_fitted_to_its_own_features() -> None:
    """What recurs is memorized or spurious; what is copied is counted among what recurs.

    Prompts of three kinds, told apart by their traces: estimates at every look that has traces are near the truth.
    """
    fitted = fit_estimators(by_trace(), source="made by hand")
    assert tuple(look.seeds for look in fitted.looks) == LOOKS
    assert (fitted.definition_samples, fitted.source) == (SAMPLES, "made by hand")
    for look in fitted.looks:
        assert look.recurring.features == look.copied.features == names_of(look.seeds)
        if look.seeds == 0:
            continue
        for trace, (memorized, spurious) in KINDS.items():
            values = dict.fromkeys(FEATURES, 0.0) | dict.fromkeys(TRACES, trace)
            assert look.recurring.predict(values) == pytest.approx(memorized + spurious, abs=0.12)
            if trace:
                assert look.copied.predict(values) == pytest.approx(memorized / (memorized + spurious), abs=0.12)


@pytest.fixture
def quick(checkpoint: Checkpoint, reference: ReferenceSet) -> Auditor:
    """Of the demo, calibrated for two steps."""
    own = demo.calibration()
    assert own.sampler is not None
    return Auditor(checkpoint, reference, own.model_copy(update={"sampler": replace(own.sampler, steps=2)}))


def test_prompts_are_measured_as_audits_see_them(quick: Auditor) -> None:
    """At every look the features of so many seeds, which no audit begins with, at most `TRACED` of them traced."""
    rows = [row for row in load_truth(demo.TRUTH) if row.images in (1, 1000)][:2]
    count = 0

    def note() -> None:
        nonlocal count
        count += 1

    on_prompt: Callable[[], None] = note
    examples = measure_examples(quick, rows, repeats=2, on_prompt=on_prompt)
    assert count == len(rows)
    assert [(one.memorized, one.spurious) for one in examples] == [
        (row.memorized, row.spurious) for row in rows for _ in range(2)
    ]
    for one in examples:
        assert [set(features) for features in one.features] == [set(names_of(seeds)) for seeds in LOOKS]
    assert examples[0].features[3] != examples[1].features[3]
    for seeds in (1, 4, 16):
        screening, draws = quick.measure(rows[0].prompt, range(FITTING_SEED, FITTING_SEED + seeds))
        delta_s = quick.calibration.thresholds(draws.vectors.shape[1])[1]
        expected = normalise(
            measurements(screening, draws.first(min(seeds, TRACED)).smoothed), quick.calibration.ordinary
        ) | meetings(draws.evidence(screening, delta_s).stability, delta_s)
        assert examples[0].features[LOOKS.index(seeds)] == pytest.approx(expected, rel=1e-3, abs=1e-3)
