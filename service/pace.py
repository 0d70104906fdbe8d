"""How fast denoiser evaluations are made, so that callers learn beforehand what cannot be done in time."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds of work after which an observation counts half.
HALF_LIFE = 10.0
#: Weight of the last audit in the share that audits make of what they plan.
FORGETTING = 0.1
#: Seconds between two forward passes after which nothing was at work.
PAUSE = 0.5


class Pace:
    """Seconds per evaluation that callers' audits wait for, all that happens between forward passes included.

    Observed by one thread, read by any.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = float("-inf")
        self._seconds = self._rows = 0.0
        #: Seconds per evaluation; 0 while nothing was observed.
        self.seconds = 0.0
        #: Share of the evaluations that audits plan at most which they make; 1 while nothing was observed.
        self.share = 1.0

    def finished(self, planned: int, made: int) -> None:
        """An audit has ended with its answer."""
        self.share += FORGETTING * (made / planned - self.share)

    def observe(self, rows: int, seconds: float) -> None:
        """A forward pass has just ended.

        Args:
            rows: of callers' audits in it; 0 is no observation, but takes time from the next one.
            seconds: that it took.
        """
        if not rows:
            return
        now = self._clock()
        since = now - self._last
        self._last = now
        spent = since if since - seconds < PAUSE else seconds
        keep = 0.5 ** (spent / HALF_LIFE)
        self._seconds, self._rows = keep * self._seconds + spent, keep * self._rows + rows
        self.seconds = self._seconds / self._rows
