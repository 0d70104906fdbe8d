"""The class of an image that already exists, from evidence made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from audit import demo
from audit.evidence.existing import Basin, Found
from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.verdict.existing import Conclusion, conclude
from audit.verdict.features import TRACES

DELTA_M, DELTA_S = 3.0, 4.0


def basin(critical_time: int, noise_time: int = 100) -> Basin:
    """One that reaches so far."""
    times = np.array([0, 100, 200])
    return Basin(times, np.ones(3), critical_time, noise_time, 0.0)


def found(recall: float = 0.0) -> Found:
    """A sample of an ordinary prompt of the demo, or of one with so much recall, from 0 to 1."""
    usual = demo.calibration().ordinary
    late = math.exp(usual["contrast_late"].mean + 16 * recall * usual["contrast_late"].spread)
    early = math.exp(usual["contrast_early"].mean + 2 * recall * usual["contrast_early"].spread)
    traces = [usual[name].mean + recall * (1 - usual[name].mean) for name in TRACES]
    return Found(
        reconstruction=0.5,
        near=10.0,
        draws=np.full(4, 9.0),
        basin=basin(200),
        screening=Screening((900, 500), (0.92, 0.5), np.full((4, 2), [early, late]), np.zeros((4, 2))),
        smoothed=SmoothedTrace((300, 600), (0.35, 0.7), np.full((8, 2), traces)),
        prompted=True,
    )


RECALLED = found(0.7)


def concluded(evidence: Found, *, complete: bool | None = True, fits: bool = True) -> Conclusion:
    """With the demo's calibration, and thresholds that are easier to remember."""
    own = demo.calibration().model_copy(update={"delta_m": DELTA_M, "delta_s": DELTA_S})
    return conclude(evidence, own, complete=complete, dimension=1024, fits=fits)


def test_trace_and_contrast_tell_recurring_from_new() -> None:
    """Of what is not found in the whole training set."""
    new, again = concluded(found()), concluded(RECALLED)
    assert (new.verdict, again.verdict) == ("generalized", "spurious")
    for one in (new, again):
        assert one.probabilities is not None
        assert one.probabilities[0] == 0
        assert sum(one.probabilities) == pytest.approx(1)
    assert {one.name for one in new.measurements} == {"contrast_early", "contrast_late", "trace_near", "trace_far"}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("reaches", [0, 100, 200])
def test_a_copy_is_memorized_whatever_else(complete: bool, reaches: int) -> None:
    """By the paper's rule; where it does not come back, a sentence says what that may mean."""
    one = concluded(replace(found(), near=DELTA_M, basin=basin(reaches), reconstruction=99.0), complete=complete)
    assert (one.verdict, one.probabilities) == ("memorized", (1, 0, 0))
    assert any("may come from the training set itself" in reason for reason in one.reasons) == (reaches < 200)


def test_what_is_not_found_may_still_be_there() -> None:
    """A partial set halves the weight of memorized, no set leaves it as it is, the whole one excludes it."""
    whole, part, none = (concluded(RECALLED, complete=complete).probabilities for complete in (True, False, None))
    assert whole is not None
    assert part is not None
    assert none is not None
    assert none[0] > part[0] > whole[0] == 0
    assert part[0] / part[1] == pytest.approx(none[0] / none[1] / 2)


def test_a_draw_that_is_the_same_image_makes_it_recur() -> None:
    """One is enough, also where it lies in no basin."""
    one = concluded(replace(found(), draws=np.array([9.0, DELTA_S, 9.0, 9.0]), basin=basin(100)))
    assert (one.verdict, one.probabilities) == ("spurious", (0, 1, 0))
    assert any(reason.startswith("1 of 4 samples") for reason in one.reasons)


@pytest.mark.parametrize(
    "evidence",
    [
        replace(RECALLED, basin=basin(100)),
        replace(RECALLED, basin=basin(0)),
        replace(RECALLED, reconstruction=DELTA_S + 0.1),
    ],
)
@pytest.mark.parametrize("complete", [True, False, None])
def test_what_is_no_sample_has_no_class(evidence: Found, complete: bool | None) -> None:
    """Neither an all-clear nor an alarm is given for what the checkpoint would not make under the prompt."""
    one = concluded(evidence, complete=complete)
    assert one.verdict is one.probabilities is None


@pytest.mark.parametrize(
    ("complete", "expected"), [(True, (0, 1 / 2, 1 / 2)), (False, (1 / 3,) * 3), (None, (1 / 3,) * 3)]
)
def test_without_a_prompt_what_is_not_excluded_is_as_likely(
    complete: bool | None, expected: tuple[float, float, float]
) -> None:
    """No verdict is made of that; the trace is shown, and no contrast is made up."""
    one = concluded(replace(RECALLED, screening=None, prompted=False), complete=complete)
    assert one.verdict is None
    assert one.probabilities == pytest.approx(expected)
    assert {measured.name for measured in one.measurements} == {"trace_near", "trace_far"}
    assert any("Without a prompt" in reason for reason in one.reasons)


def test_a_rough_calibration_is_said() -> None:
    """And decides less."""
    rough, own = concluded(RECALLED, fits=False), concluded(RECALLED)
    assert any("rough" in reason for reason in rough.reasons)
    assert not any("rough" in reason for reason in own.reasons)
