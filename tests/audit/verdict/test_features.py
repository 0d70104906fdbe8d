"""What decides: measurements on a scale that every checkpoint shares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm

from audit.evidence.stability import Stability
from audit.verdict.features import CONTRASTS, MEETINGS, TRACES, Ordinary, measurements, meetings, normalise
from tests.audit.verdict.evidence_made import DELTA_S, calibration, screening, smoothed, stability

NUMBERS = st.floats(-1e6, 1e6)
ORDINARY = st.builds(Ordinary, mean=NUMBERS, spread=st.floats(0, 1e6))


def test_measurements_are_means_over_noises_and_samples() -> None:
    """Mean log contrast of each level, mean trace of each level, by their names."""
    screened = replace(screening(), contrast=np.array([[1.0, math.e], [math.e**2, math.e**3]]))
    traced = replace(smoothed(0.0, 2), values=np.array([[0.2, 0.6], [0.4, 1.0]]))
    found = measurements(screened, traced)
    assert found == pytest.approx({"contrast_early": 1.0, "contrast_late": 2.0, "trace_near": 0.3, "trace_far": 0.8})
    assert measurements(screened, None) == {name: found[name] for name in CONTRASTS}


def test_a_prompt_that_changes_nothing_is_measured() -> None:
    """No contrast has no logarithm, and is the least there is."""
    found = measurements(screening(0.0), None)
    assert all(math.isfinite(value) for value in found.values())
    assert max(found.values()) < measurements(screening(1e-9), None)["contrast_early"]


@given(means=st.lists(st.floats(-3, 0.9), min_size=4, max_size=4), spread=st.floats(0.01, 10))
def test_ordinary_becomes_zero_and_an_isolated_point_one(means: list[float], spread: float) -> None:
    """A prompt that measures what ordinary ones do has features 0; a trace of 1 is 1, whatever the checkpoint.

    A contrast is 1 where it is e times the ordinary one.
    """
    usual = {name: Ordinary(mean=mean, spread=spread) for name, mean in zip((*CONTRASTS, *TRACES), means, strict=True)}
    middle = {name: one.mean for name, one in usual.items()}
    assert normalise(middle, usual) == dict.fromkeys(usual, 0.0)
    isolated = {name: usual[name].mean + 1 for name in CONTRASTS} | dict.fromkeys(TRACES, 1.0)
    assert normalise(isolated, usual) == pytest.approx(dict.fromkeys(usual, 1.0))


@given(value=NUMBERS, more=st.floats(0, 1e6), usual=ORDINARY, name=st.sampled_from((*CONTRASTS, *TRACES)))
def test_features_are_bounded_and_rise(value: float, more: float, usual: Ordinary, name: str) -> None:
    """Whatever is measured, and on whatever checkpoint, features are in [−20, 20] and rise with the measurement."""
    low, high = (normalise({name: one}, {name: usual})[name] for one in (value, value + more))
    assert -20 <= low <= high <= 20


def test_only_what_was_measured_is_normalised() -> None:
    """The screen alone gives the features of the screen alone."""
    assert normalise(measurements(screening(), None), calibration().ordinary).keys() == set(CONTRASTS)


@given(
    n=st.integers(2, 40),
    pairs=st.integers(0, 20),
    nearest=st.floats(0, 1e9) | st.just(math.inf),
    scale=st.floats(0.1, 9),
)
def test_meetings_are_finite_and_know_no_unit(n: int, pairs: int, nearest: float, scale: float) -> None:
    """Finite at any distance, and the same where distances and threshold are in another unit."""
    seen = stability(n, pairs=min(pairs, n // 2), nearest=nearest)
    found = meetings(seen, DELTA_S)
    assert found.keys() == set(MEETINGS)
    assert np.isfinite(list(found.values())).all()
    larger = replace(seen, nearest_sample_distance=scale * seen.nearest_sample_distance)
    assert meetings(larger, scale * DELTA_S) == pytest.approx(found)


def test_one_sample_meets_nobody() -> None:
    """There is nothing to say of it, rather than a guess."""
    assert meetings(stability(1), DELTA_S) == {}


def test_meetings_rise_with_recurrence() -> None:
    """Another pair raises the rate, nearer samples the closeness, which is 0 at the threshold."""
    none, one = (meetings(stability(16, pairs=pairs), DELTA_S) for pairs in (0, 1))
    assert one["meeting"] > none["meeting"]
    far, near, at = (meetings(stability(16, nearest=d), DELTA_S)["closeness"] for d in (9.0, 5.0, DELTA_S))
    assert far < near < at == pytest.approx(0)


def test_the_rate_of_meetings_is_smoothed_by_half_a_pair() -> None:
    """log((k + ½)/(pairs + 1)) for k of the pairs."""
    seen: Stability = stability(4, pairs=2)
    assert meetings(seen, DELTA_S)["meeting"] == pytest.approx(math.log(2.5 / 7))


def test_the_range_is_nine_tenths_of_a_normal_distribution() -> None:
    """From the 5% to the 95% quantile."""
    assert Ordinary(mean=2.0, spread=0.5).range == pytest.approx(norm(2, 0.5).ppf([0.05, 0.95]), abs=1e-3)


def test_a_spread_is_not_negative() -> None:
    """Such a file is refused."""
    with pytest.raises(ValidationError):
        Ordinary(mean=0.0, spread=-0.1)
