"""What is done about the store of batches from time to time, whoever asks for what."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import Engine

from service.log import Logger
from service.metrics import Metrics
from service.status import StoreDown
from service.store.records import BATCH_STATES, TASK_STATES
from service.store.retention import Retention, expire
from service.store.store import Store
from service.store_calls import StoreCalls

#: Between two looks for what has been kept long enough.
RETENTION_SECONDS = 3600
#: Between two looks at how the batches stand.
WATCH_SECONDS = 5.0


async def apply_retention(engine: Engine, retention: Retention, ask: StoreCalls, logger: Logger) -> None:
    """Every hour, remove what has been kept long enough."""
    while any(days is not None for _, days in retention):
        with suppress(StoreDown):
            found = await ask(lambda: expire(engine, retention, datetime.now(UTC)))
            logger.info("retention", **asdict(found))
        await asyncio.sleep(RETENTION_SECONDS)


async def watch(store: Store, ask: StoreCalls, metrics: Metrics) -> None:
    """Tell the metrics how the batches stand, which is too much to find out for every scrape."""
    while True:
        with suppress(StoreDown):
            states, done, tasks = await ask(store.states), await ask(store.last_done), Counter[str]()
            for (_, _, state), count in (await ask(store.tasks)).items():
                tasks[state] += count
            for state in BATCH_STATES:
                metrics.batches.labels(state).set(states.get(state, 0))
            for state in TASK_STATES:
                metrics.batch_items.labels(state).set(tasks[state])
            metrics.batch_last_success.set(0 if done is None else done.timestamp())
        await asyncio.sleep(WATCH_SECONDS)
