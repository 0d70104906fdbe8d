"""Installing, upgrading, rolling back and testing a release, with Helm itself, on a pretended cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import CHART, Object
from tests.deploy.cluster import Cluster, running_cluster

#: The tables that an image knows, by its tag; each knows how to undo the newest of its own.
KNOWS = {"old": ["0001", "0002"], "patched": ["0001", "0002"], "new": ["0001", "0002", "0003"]}


class Store:
    """A database whose tables jobs bring up to date, or back."""

    def __init__(self) -> None:
        self.revision: str | None = None
        self.commands: list[str] = []  # of jobs, with the tag of their image
        self.reachable = True

    def run(self, one: Object) -> bool:
        """What `basin store migrate` does, in an image of that tag."""
        pod = one["spec"]["template"]["spec"] if one["kind"] == "Job" else one["spec"]
        container = pod["containers"][0]
        tag = container["image"].partition(":")[2]
        self.commands.append(" ".join([tag, *container["args"]]))
        known = KNOWS[tag]
        if not self.reachable or self.revision not in (None, *known):  # STORE_TOO_NEW
            return False
        to = container["args"][-1] if "--to" in container["args"] else known[-1]
        self.revision = to
        return to in known


@pytest.fixture
def store() -> Store:
    """An empty database."""
    return Store()


@pytest.fixture
def cluster(tmp_path: Path, store: Store) -> Iterator[Cluster]:
    """A cluster where hooks work on that database."""
    with running_cluster(tmp_path, store.run) as running:
        yield running


def apply(cluster: Cluster, command: str, tag: str, **migrations: Any) -> int:
    """`helm install` or `helm upgrade` with three servers on PostgreSQL; the exit code."""
    values = {
        "replicaCount": 3,
        "image": {"tag": tag},
        "store": {"type": "postgresql", "postgresql": {"existingSecret": "store"}, "migrations": migrations},
    }
    # The cluster describes no types: whether objects are of theirs is tested without it.
    done = cluster.helm(command, "basin", CHART, "--disable-openapi-validation", values=values)
    return done.returncode


def servers(cluster: Cluster) -> tuple[str, int]:
    """The tag of the servers' image, and how many there are to be."""
    spec = cluster.get("Deployment", "basin")["spec"]
    return spec["template"]["spec"]["containers"][0]["image"].partition(":")[2], spec["replicas"]


def test_tables_are_made_before_servers(cluster: Cluster, store: Store) -> None:
    """An installation makes the tables first, and leaves no job behind."""
    assert apply(cluster, "install", "old") == 0
    assert cluster.log[:2] == ["make Job/basin-migrate", "delete Job/basin-migrate"]
    assert "make Deployment/basin" in cluster.log[2:]
    assert store.commands == ["old store migrate"]


def test_an_upgrade_migrates_before_it_replaces_servers(cluster: Cluster, store: Store) -> None:
    """The new image brings the tables up to date while the old servers still work."""
    apply(cluster, "install", "old")
    cluster.log.clear()
    assert apply(cluster, "upgrade", "new") == 0
    assert cluster.log.index("make Job/basin-migrate") < cluster.log.index("change Deployment/basin")
    assert (store.commands[-1], store.revision, servers(cluster)) == ("new store migrate", "0003", ("new", 3))


def test_a_failed_migration_replaces_no_server(cluster: Cluster, store: Store) -> None:
    """Where the tables cannot be brought up to date, the upgrade ends before anything else changes."""
    apply(cluster, "install", "old")
    cluster.log.clear()
    store.reachable = False
    assert apply(cluster, "upgrade", "new") != 0
    assert cluster.log == ["make Job/basin-migrate"]  # which stays, for its log
    assert servers(cluster) == ("old", 3)
    store.reachable = True
    assert apply(cluster, "upgrade", "new") == 0


def test_a_rollback_with_the_same_tables_needs_nothing_else(cluster: Cluster, store: Store) -> None:
    """Between versions with the same tables `helm rollback` is enough."""
    apply(cluster, "install", "old")
    apply(cluster, "upgrade", "patched")
    assert cluster.helm("rollback", "basin", "1").returncode == 0
    assert (servers(cluster), store.revision) == (("old", 3), "0002")


def test_a_rollback_to_an_image_too_old_for_the_tables_changes_nothing(cluster: Cluster, store: Store) -> None:
    """Helm runs the older image's hook, which refuses newer tables; the servers work on, and the way back is open."""
    apply(cluster, "install", "old")
    apply(cluster, "upgrade", "new")
    cluster.log.clear()
    refused = cluster.helm("rollback", "basin", "1")
    assert refused.returncode != 0
    assert "basin-migrate" in refused.stderr
    assert store.commands[-1] == "old store migrate"
    assert "change Deployment/basin" not in cluster.log
    assert servers(cluster) == ("new", 3)
    # Helm takes the release to be in the middle of something until it is told where it stands.
    assert apply(cluster, "upgrade", "new", to="0002") != 0
    assert cluster.helm("rollback", "basin", "2").returncode == 0
    assert apply(cluster, "upgrade", "new", to="0002") == 0


def test_stepping_back_and_then_rolling_back(cluster: Cluster, store: Store) -> None:
    """The newer image undoes its tables when there is no server; then the older release is rolled back to."""
    apply(cluster, "install", "old")
    apply(cluster, "upgrade", "new")
    cluster.log.clear()
    assert apply(cluster, "upgrade", "new", to="0002") == 0
    assert cluster.log.index("change Deployment/basin") < cluster.log.index("make Job/basin-migrate")
    assert (store.commands[-1], servers(cluster)) == ("new store migrate --to 0002", ("new", 0))
    assert cluster.helm("rollback", "basin", "1").returncode == 0
    assert (servers(cluster), store.revision) == (("old", 3), "0002")


def test_stepping_back_can_be_taken_back(cluster: Cluster, store: Store) -> None:
    """Without `to`, the newer image brings the tables up to date again, and its servers are there again."""
    apply(cluster, "install", "old")
    apply(cluster, "upgrade", "new")
    apply(cluster, "upgrade", "new", to="0002")
    assert apply(cluster, "upgrade", "new") == 0
    assert (servers(cluster), store.revision) == (("new", 3), "0003")


def test_without_the_hook_no_job_is_made(cluster: Cluster, store: Store) -> None:
    """A database of the same release is not there before the servers, so nothing asks for it."""
    assert apply(cluster, "install", "old", hook=False) == 0
    assert store.commands == []


@pytest.mark.parametrize("well", [True, False])
def test_helm_test_asks_whether_servers_are_ready(tmp_path: Path, well: bool) -> None:
    """`helm test` ends as the health check of readiness does."""
    asked: list[list[str]] = []

    def run(pod: Object) -> bool:
        asked.append(pod["spec"]["containers"][0]["args"])
        return well

    with running_cluster(tmp_path, run) as cluster:
        assert cluster.helm("install", "basin", CHART, "--disable-openapi-validation").returncode == 0
        assert (cluster.helm("test", "basin").returncode == 0) is well
    assert asked == [["health", "basin-headless:50052", "--service", "readiness"]]


def test_checkpoints_outlive_the_release(cluster: Cluster) -> None:
    """`helm uninstall` keeps the volume of models, and removes the rest."""
    values = {"models": {"persistence": {"enabled": True}}}
    assert cluster.helm("install", "basin", CHART, "--disable-openapi-validation", values=values).returncode == 0
    cluster.log.clear()
    assert cluster.helm("uninstall", "basin").returncode == 0
    assert "delete StatefulSet/basin" in cluster.log
    assert cluster.get("PersistentVolumeClaim", "basin-models")
