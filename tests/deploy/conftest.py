"""What a server really exposes."""

from __future__ import annotations

import pytest

from service.config import load_settings
from service.server import start_server
from tests.deploy.exposition import Exposition, Series, elsewhere, evaluate, scraped
from tests.deploy.rules import recordings
from tests.service.helpers import LONG, Client


@pytest.fixture(scope="session")
def own_series() -> list[Series]:
    """Of a server that has done nothing yet."""
    with start_server(load_settings(listen="127.0.0.1:0", metrics="127.0.0.1:0", demo=True)) as server:
        assert server.wait_ready(LONG)
        return scraped(Client.of(server).metrics_text())


@pytest.fixture(scope="session")
def exposition(own_series: list[Series], tmp_path_factory: pytest.TempPathFactory) -> Exposition:
    """All series that an expression may read: the server's, Prometheus's own, and those that the rules record."""
    own = {each.family for each in own_series}  # with a GPU, its memory too
    series = [*own_series, *(each for each in elsewhere() if each.family not in own)]
    results = evaluate(recordings(), series, tmp_path_factory.mktemp("recorded"))
    recorded = [Series(name, labels, name, "") for name, found in results.items() for labels in found]
    return Exposition([*series, *recorded])
