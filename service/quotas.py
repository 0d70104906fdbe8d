"""How much each client may ask for: a token bucket of denoiser evaluations. Lives on one event loop."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from service.config_parts import Quota, QuotaPart
from service.status import QuotaExceeded

#: Clients that are remembered; a full bucket is that of a client that was forgotten.
MOST_CLIENTS = 10_000


class _Bucket:
    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self.level = quota.burst_evaluations
        self.since = now

    def fill(self, now: float) -> None:
        flown = (now - self.since) * self.quota.evaluations_per_second
        self.level = min(self.quota.burst_evaluations, self.level + flown)
        self.since = now


class Quotas:
    """The buckets of all clients.

    A request takes all that it plans, also where that is more than its bucket holds: what it owes then has to flow in
    before the next one is admitted. So large requests are neither impossible nor free.

    Args:
        settings: of the server.
        clock: monotonic, in seconds.
    """

    def __init__(self, settings: QuotaPart, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, client: str) -> None:
        """Raises QuotaExceeded while a client's bucket is empty."""
        bucket = self._bucket(client)
        if bucket is not None and bucket.level <= 0:
            rate = bucket.quota.evaluations_per_second
            raise QuotaExceeded(
                f"{client or 'this client'} has used up its quota of {rate:g} denoiser evaluations a second",
                reason="QUOTA_EXCEEDED",
                retry_seconds=max(1.0, -bucket.level) / rate,
            )

    def take(self, client: str, evaluations: int) -> None:
        """Take them from a client's bucket; of less than 0, give them back."""
        if (bucket := self._bucket(client)) is not None:
            bucket.level = min(bucket.quota.burst_evaluations, bucket.level - evaluations)

    def _bucket(self, client: str) -> _Bucket | None:
        quota = self._settings.clients.get(client, self._settings.default)
        if quota is None:
            return None
        now = self._clock()
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(quota, now)
        bucket.fill(now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > MOST_CLIENTS:  # the one that was quiet for longest
            self._buckets.popitem(last=False)
        return bucket
