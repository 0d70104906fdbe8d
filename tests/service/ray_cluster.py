"""A Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
#: Ray gives up on a process that starts slowly, as they do where all processors are busy.
TRIES = 5

_T = TypeVar("_T")


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[Cluster]:
    """A cluster of nodes of so many CPUs each, and a head that does no work."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets must have short paths
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", folder)
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        environment.delenv("RAY_ADDRESS", raising=False)
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            for count in cpus:
                add_node(cluster, count)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Cluster, cpus: int) -> None:
    """Add a node of so many CPUs."""
    _patiently(lambda: cluster.add_node(num_cpus=cpus, include_dashboard=False))


def _patiently(start: Callable[[], _T]) -> _T:
    for _ in range(TRIES - 1):
        try:
            return start()
        except Exception:  # Ray has no other
            continue
    return start()
