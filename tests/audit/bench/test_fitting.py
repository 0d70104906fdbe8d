"""The estimator of recurrence recovers what was planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from audit.bench.fitting import WITH_CURVATURE, fit_recurrence

SAMPLES = 512


def planted(
    n: int, weights: dict[str, float], intercept: float = 0.3, concentration: float = 20.0, seed: int = 0
) -> tuple[list[dict[str, float]], list[float]]:
    """Features and the recurrence that a logistic relation with beta-binomial scatter gives."""
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(center, spread, n) for name, center, spread in
              (("meeting", -3, 1.5), ("closeness", 0, 1), ("trace", 0.85, 0.15))}  # fmt: skip
    scaled = {name: (v - v.mean()) / v.std() for name, v in values.items()}
    mean = expit(intercept + sum(weight * scaled[name] for name, weight in weights.items()))
    recurring = rng.binomial(SAMPLES, rng.beta(concentration * mean, concentration * (1 - mean))) / SAMPLES
    return [{name: float(v[i]) for name, v in values.items()} for i in range(n)], recurring.tolist()


def test_a_planted_relation_is_recovered() -> None:
    """Weights, intercept and scatter of a thousand prompts come back within a fifth."""
    weights = {"meeting": 0.5, "closeness": 1.0, "trace": 2.0}
    fitted = fit_recurrence(*planted(1000, weights), WITH_CURVATURE, SAMPLES)
    assert dict(zip(fitted.features, fitted.weights, strict=True)) == pytest.approx(weights, rel=0.2)
    assert fitted.intercept == pytest.approx(0.3, abs=0.15)
    assert fitted.concentration == pytest.approx(20, rel=0.25)


def test_predictions_are_those_of_the_relation() -> None:
    """On fresh prompts the prediction is near the planted mean."""
    weights = {"meeting": 0.5, "closeness": 1.0, "trace": 2.0}
    fitted = fit_recurrence(*planted(600, weights), WITH_CURVATURE, SAMPLES)
    features, recurring = planted(600, weights, seed=1)
    found = np.array([fitted.predict(row) for row in features])
    assert np.corrcoef(found, recurring)[0, 1] > 0.9
    assert abs(np.mean(found) - np.mean(recurring)) < 0.03


@settings(max_examples=10)
@given(
    signs=st.tuples(*[st.sampled_from([-1.5, 0.0, 1.5])] * 3),
    n=st.integers(3, 60),
    seed=st.integers(0, 1000),
)
def test_weights_are_never_negative(signs: tuple[float, float, float], n: int, seed: int) -> None:
    """A relation the other way round, against theory, gets weight 0 and never a negative one."""
    features, recurring = planted(n, dict(zip(WITH_CURVATURE, signs, strict=True)), seed=seed)
    fitted = fit_recurrence(features, recurring, WITH_CURVATURE, SAMPLES)
    assert min(fitted.weights) >= 0
    assert np.isfinite([*fitted.weights, fitted.intercept, fitted.concentration]).all()
    for row in features:
        assert 0 < fitted.predict(row) < 1


def test_a_feature_that_does_not_vary_stays_silent() -> None:
    """A constant feature moves no prediction far, also where it takes another value."""
    features, recurring = planted(100, {"meeting": 0.0, "closeness": 2.0, "trace": 0.0})
    features = [{**row, "trace": 0.7} for row in features]
    fitted = fit_recurrence(features, recurring, WITH_CURVATURE, SAMPLES)
    before = fitted.predict(features[0])
    assert fitted.predict({**features[0], "trace": 0.9}) == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_certainty_is_not_infinite(share: float) -> None:
    """Where every prompt has the same class the estimate is near it, and finite."""
    features, _ = planted(30, {"trace": 0.0})
    fitted = fit_recurrence(features, [share] * 30, WITH_CURVATURE, SAMPLES)
    assert fitted.predict(features[0]) == pytest.approx(share, abs=0.05)
