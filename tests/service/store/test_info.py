"""What a store says of itself."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from service.store import engine as engines
from service.store.info import store_info
from service.store.records import DONE, RUNNING
from service.store.retention import Retention, expire
from service.store.store import Store
from tests.service.postgres import PASSWORD
from tests.service.store.aged import NOW, ended, given


def test_an_empty_store(engine: Engine) -> None:
    """It has a version and a size, and nothing in it."""
    found = store_info(engine)
    assert found.version == engines._scripts().get_current_head()
    assert (found.batches, found.prompts, found.removed, found.results) == ({}, 0, 0, 0)
    assert (found.oldest_batch, found.oldest_result) == (None, None)
    assert found.size > 10_000


def test_what_is_in_a_store(engine: Engine) -> None:
    """Counts, ages in UTC, and where it is, without a password."""
    old = ended(engine, ["a", "b"], 40)
    ended(engine, ["c"], 10)
    begun = Store(engine).create(given(["d", "e", "f"]), {})  # now, and so before the others
    found = store_info(engine)
    assert (found.batches, found.prompts, found.results) == ({RUNNING: 1, DONE: 2}, 6, 6)
    assert found.oldest_batch == begun.created
    assert found.oldest_result == old.finished == NOW - timedelta(days=40)
    assert found.url.startswith(f"{engine.dialect.name}://")
    assert PASSWORD not in found.url
    assert str(engine.url.database) in found.url
    expire(engine, Retention(prompts=30), NOW)
    assert store_info(engine).removed == 1
