"""A real Prometheus, with the configuration and the rules that ship, scrapes a real server under load."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from audit import demo
from service.config import load_settings
from service.server import start_server
from tests.deploy.exposition import DEPLOY
from tests.service.batch_calls import create, ended
from tests.service.helpers import LONG, Client, eventually, small


class Prometheus:
    """A running one, and what it answers."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its HTTP API."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=LONG) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success"
        return answer["data"]

    def value(self, expression: str) -> float:
        """The sum of what an expression gives now; -1 where there is nothing."""
        found = self.ask("query", query=expression)["result"]
        return sum(float(series["value"][1]) for series in found) if found else -1.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Prometheus]]:
    """A server, and the Prometheus that watches it, as the files in deploy/prometheus say, but more often."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = load_settings(
        listen="127.0.0.1:0", metrics="127.0.0.1:0", batches={"store": f"sqlite:///{folder}/basin.db"}
    )
    with start_server(settings) as server, closing(socket.create_server(("127.0.0.1", 0))) as free:
        assert server.wait_ready(LONG)
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
        configuration["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
        (job,) = configuration["scrape_configs"]
        job["static_configs"] = [{"targets": [server.metrics_address]}]
        rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        process = _start(folder, address)
        try:
            yield Client.of(server), Prometheus(address)
        finally:
            process.terminate()
            process.wait(LONG)


def _start(folder: Path, address: str) -> subprocess.Popen[bytes]:
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1) as reply:
                return reply.status == 200
        except OSError:
            return False

    eventually(ready)
    return process


def test_it_sees_what_the_server_does(watched: tuple[Client, Prometheus]) -> None:
    """Audits, failures and batches arrive in its series, and its rates are those of the load."""
    client, prometheus = watched
    eventually(lambda: prometheus.value('up{job="basin"}') == 1)
    prompts = demo.prompts()
    before = client.metric("basin_audits_total")

    def audit(number: int) -> None:
        client.audit(small(prompts[number % len(prompts)], reference="demo"))

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(audit, range(60)))
    with pytest.raises(grpc.RpcError):
        client.audit(small(" "))
    ended(client, create(client, prompts[:4]))
    made = client.metric("basin_audits_total") - before
    assert made == 61
    eventually(lambda: prometheus.value("sum(basin_audits_total)") == before + made)
    for expression in (
        'sum(rate(basin_audits_total{code="OK"}[1m]))',
        'sum(rate(basin_rpcs_total{method="AuditService/Audit",code="INVALID_ARGUMENT"}[1m]))',
        "histogram_quantile(0.99, sum by (le) (rate(basin_audit_seconds_bucket[1m])))",
        'sum(rate(basin_denoiser_evaluations_total{work="audit"}[1m]))',
        'sum(rate(basin_denoiser_evaluations_total{work="batch"}[1m]))',
        "sum(rate(basin_store_seconds_count[1m]))",
        "basin_batch_last_success_timestamp_seconds",
        "basin_ready",
    ):
        eventually(lambda expression=expression: prometheus.value(expression) > 0)
    eventually(lambda: prometheus.value('basin_batches{state="done"}') == 1)


def test_its_rules_run_and_no_alert_fires(watched: tuple[Client, Prometheus]) -> None:
    """Every rule is evaluated without an error on what it has scraped; a server that is well wakes nobody."""
    _, prometheus = watched

    def groups() -> list[dict[str, Any]]:
        return prometheus.ask("rules")["groups"]

    eventually(lambda: all(rule["health"] == "ok" for group in groups() for rule in group["rules"]))
    assert sum(len(group["rules"]) for group in groups()) > 50
    assert [alert for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"] == []


def test_the_dashboard_has_something_to_show(watched: tuple[Client, Prometheus]) -> None:
    """What its panels ask for is answered without an error."""
    _, prometheus = watched
    dashboard = json.loads((DEPLOY / "grafana" / "basin.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 40
    filled = {"$job": "basin", "$instance": ".*", "$checkpoint": ".*", "$__rate_interval": "1m"}
    shown = 0
    for expression in expressions:
        for variable, value in filled.items():
            expression = expression.replace(variable, value)
        shown += bool(prometheus.ask("query", query=expression)["result"])
    assert shown > len(expressions) / 2
