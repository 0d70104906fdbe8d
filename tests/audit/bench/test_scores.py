"""AUC, TPR at a bounded FPR, Brier score, calibration error and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from audit.bench.scores import (
    area_under_curve,
    bootstrap_auc,
    brier_score,
    calibration_error,
    resamples,
    true_positive_rate,
)  # fmt: skip

#: Labels of both kinds, with scores that tie often.
LABELED = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@given(pairs=LABELED)
def test_areas_are_those_of_scikit_learn(pairs: list[tuple[bool, int]]) -> None:
    """Ties count half."""
    labels, scores = map(np.asarray, zip(*pairs, strict=True))
    assert area_under_curve(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@settings(max_examples=200)
@given(pairs=LABELED, bound=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_the_rate_is_the_best_of_the_curve_within_the_bound(pairs: list[tuple[bool, int]], bound: float) -> None:
    """The largest TPR of any threshold whose FPR is at most the bound, never interpolated."""
    labels, scores = map(np.asarray, zip(*pairs, strict=True))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert true_positive_rate(labels, scores, false_positive_rate=bound) == pytest.approx(
        true[false <= bound + 1e-9].max()
    )


def test_brier_scores_of_known_cases() -> None:
    """Certainty that is right scores 0, that is wrong 2, and a third each 2/3."""
    assert brier_score([0, 1], [[1, 0, 0], [0, 1, 0]]) == 0
    assert brier_score([0], [[0, 1, 0]]) == 2
    assert brier_score([2], [[1 / 3, 1 / 3, 1 / 3]]) == pytest.approx(2 / 3)


def test_honest_confidence_has_no_calibration_error() -> None:
    """Right as often as said: the plug-in error would be √(Σ p(1−p)/n), the debiased one is near zero on average."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        sure = rng.uniform(0.5, 1.0, 300)
        found.append(calibration_error(rng.random(300) < sure, sure))
    assert np.mean(found) < 0.025
    assert np.median(found) < 0.02


@pytest.mark.parametrize("excess", [0.1, 0.2])
def test_boasting_is_found(excess: float) -> None:
    """Confidence that is over the truth by so much has that error, within 0.02 of it at 20,000 verdicts."""
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.6, 1.0, 20_000)
    right = rng.random(20_000) < sure - excess
    assert calibration_error(right, sure) == pytest.approx(excess, abs=0.02)


@given(pairs=LABELED, data=st.data())
def test_counts_are_repeats(pairs: list[tuple[bool, int]], data: st.DataObject) -> None:
    """A prompt that counts three times is three prompts, in every resample at once."""
    labels, scores = map(np.asarray, zip(*pairs, strict=True))
    times = st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)).filter(
        lambda own: len(set(labels.repeat(own).tolist())) == 2
    )
    counts = np.asarray(data.draw(st.lists(times, min_size=1, max_size=3)))
    for measure in (area_under_curve, true_positive_rate):
        expected = [float(measure(labels.repeat(own), scores.repeat(own))) for own in counts]
        np.testing.assert_allclose(measure(labels, scores, counts), expected)


def test_resamples_keep_the_number_of_every_class() -> None:
    """So no resample lacks a class; they are the same for everybody, and each prompt comes once on average."""
    classes = np.array(["m"] * 3 + ["g"] * 7)
    counts = resamples(classes, draws=2000)
    assert counts.shape == (2000, 10)
    assert set(counts[:, :3].sum(1)) == {3}
    assert set(counts[:, 3:].sum(1)) == {7}
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.1)
    np.testing.assert_array_equal(counts, resamples(classes, draws=2000))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of the 95% intervals of a Gaussian AUC, 90% to 99% hold the true one (120 draws of 60 prompts)."""
    rng = np.random.default_rng(2)
    positive = np.arange(60) < 25
    true = 0.760250  # Φ(1/√2)
    held = []
    for _ in range(120):
        scores = rng.normal(size=60) + positive
        found = bootstrap_auc(positive.tolist(), scores.tolist(), draws=300)
        held.append(found.lower <= true <= found.upper)
    assert 0.88 <= np.mean(held) <= 0.99
