"""A release's upgrade and rollback, with its jobs' commands at work on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.deploy.chart import CHART, ROOT, Object
from tests.deploy.cluster import Cluster, running_cluster
from tests.service.postgres import Postgres


class Images:
    """Basin, and one that is older by the newest version of the tables: each runs the commands of its jobs.

    Args:
        folder: for the older one.
        store: URL of the database.
    """

    def __init__(self, folder: Path, store: str) -> None:
        for package in ("audit", "service"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("demo", "__pycache__"))
        (folder / "audit" / "demo").symlink_to(ROOT / "audit" / "demo")
        versions = sorted((folder / "service/store/migrations/versions").glob("0*.py"))
        versions[-1].unlink()
        self.newest, self.before = (version.name.partition("_")[0] for version in versions[:-3:-1])
        self.folders = {"old": folder, "new": ROOT}
        self.store = store
        self.said: list[str] = []  # by the commands

    def run(self, job: Object) -> bool:
        """Run the command of a job, in the image that it names."""
        container = job["spec"]["template"]["spec"]["containers"][0]
        (variable,) = container["env"]
        environment = {**os.environ, variable["name"]: self.store, "PYTHONSAFEPATH": "1"}
        environment["PYTHONPATH"] = str(self.folders[container["image"].partition(":")[2]])
        command = [sys.executable, "-m", "service.cli", *container["args"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.said.append(done.stdout + done.stderr)
        return done.returncode == 0

    def revision(self) -> str:
        """The version of the tables."""
        with psycopg.connect(self.store) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert row is not None
        return row[0]


@pytest.fixture
def images(tmp_path: Path, postgres: Postgres) -> Iterator[Images]:
    """Both, on an empty database."""
    store = postgres.create()
    yield Images(tmp_path / "old", store)
    postgres.drop(store)


def apply(cluster: Cluster, command: str, tag: str, to: str = "") -> int:
    """`helm install` or `helm upgrade`; the exit code."""
    store = {"type": "postgresql", "postgresql": {"existingSecret": "store"}, "migrations": {"to": to}}
    values = {"image": {"tag": tag}, "store": store}
    return cluster.helm(command, "basin", CHART, "--disable-openapi-validation", values=values).returncode


def test_upgrade_and_rollback_of_real_tables(tmp_path: Path, images: Images) -> None:
    """Up with the newer image; not back with the older one alone; back with the newer one first, and then the older."""
    with running_cluster(tmp_path, images.run) as cluster:
        assert apply(cluster, "install", "old") == 0, images.said
        assert images.revision() == images.before
        assert apply(cluster, "upgrade", "new") == 0, images.said
        assert images.revision() == images.newest
        assert cluster.helm("rollback", "basin", "1").returncode != 0
        assert "newer version" in images.said[-1]
        assert images.revision() == images.newest
        assert cluster.helm("rollback", "basin", "2").returncode == 0, images.said
        assert apply(cluster, "upgrade", "new", to=images.before) == 0, images.said
        assert images.revision() == images.before
        assert cluster.helm("rollback", "basin", "1").returncode == 0, images.said
        assert images.revision() == images.before


def test_the_health_command_is_there() -> None:
    """The image's health check and `helm test` call it with these arguments; nobody answers at this port."""
    command = [sys.executable, "-m", "service.cli", "health", "127.0.0.1:1", "--service", "readiness"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
