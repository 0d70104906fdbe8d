"""What a server knows of its own speed."""

from __future__ import annotations

import pytest

from service.pace import HALF_LIFE, Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_it_is_the_time_between_passes_that_counts() -> None:
    """All that happens between two passes, but not the time in which nothing was at work."""
    clock = Clock()
    pace = Pace(clock)
    assert pace.seconds == 0
    pace.observe(10, 1.0)  # the first one: only itself
    assert pace.seconds == pytest.approx(0.1)
    clock.now += 2.0
    pace.observe(0, 5.0)  # a batch's, which is nobody's
    assert pace.seconds == pytest.approx(0.1)
    pace.observe(10, 1.8)
    assert 0.1 < pace.seconds < 0.2
    clock.now += 3600
    pace.observe(10, 1.0)
    assert pace.seconds < 0.2


def test_old_observations_are_forgotten() -> None:
    """Half of them after `HALF_LIFE` seconds of work."""
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        clock.now += 1
        pace.observe(1, 1.0)
    for _ in range(int(10 * HALF_LIFE)):
        clock.now += 0.1
        pace.observe(1, 0.1)
    assert 0.1 < pace.seconds < 0.3


def test_audits_that_end_early_lower_the_share_that_is_expected() -> None:
    """Of those that always take a quarter of what they plan, a quarter is expected in the end; all of it at first."""
    pace = Pace(Clock())
    assert pace.share == 1
    shares = []
    for _ in range(60):
        pace.finished(400, 100)
        shares.append(pace.share)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.25, abs=0.01)
