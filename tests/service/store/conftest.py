"""A store that is always in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.postgres import Postgres


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """URL of a new database."""
    url = postgres.create()
    yield url
    postgres.drop(url)
