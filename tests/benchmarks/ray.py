"""A batch in a Ray cluster of one process against the same batch in this one."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from audit.bench.markdown import markdown
from audit.evidence.neighbors import NeighborFinder
from service.local_batch import LocalBatch
from service.runners import RayOptions, find_runner, run_here
from service.threads import alone
from tests.benchmarks.batch import captions, wanted
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, reference
from tests.service.ray_cluster import ray_cluster

PROMPTS = 40
PAIRS = 5


def run() -> str:
    """The table, as Markdown."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # of the cluster's processes, too
        with alone():
            NeighborFinder(reference(), checkpoint()).reconstruct(list(range(len(reference()))))
        ratios = _ratios()
    rows = [[f"{np.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"]]
    return f"""# Ray

`python -m tests.benchmarks ray`: {PROMPTS} prompts with the demo checkpoint and reference set at the default budget, by
one process of two CPUs in a Ray cluster on this machine, over the same in this process; {PAIRS} pairs with fresh seeds,
one after the other, each from its first finished audit to its last. All reference images are reconstructed before.

{markdown(["audits a second, Ray / local", "lowest", "highest"], rows)}
"""


def _ratios() -> list[float]:
    found = []
    with ray_cluster(2) as cluster:
        for number in range(PAIRS):
            seed = BENCHMARK_SEED + 100_000 + 1000 * number
            local = _rate(seed, None)
            found.append(_rate(seed, RayOptions(cluster.address, workers=1, cpus=2.0)) / local)
    return found


def _rate(seed: int, ray: RayOptions | None) -> float:
    """Audits a second from the first that was finished on: loading, which a long batch does once, is left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner = run_here if ray is None else find_runner("ray", "cpu", ray)
        work = LocalBatch(wanted(folder, captions(PROMPTS), seed), folder / "run", runner=runner)
        times: list[tuple[float, int]] = []
        work.run(lambda: times.append((time.perf_counter(), work.store.counts(work.batch.id).done)))
        work.close()
    times = [one for one in times if one[1]]
    (begin, first), (end, last) = times[0], times[-1]
    return (last - first) / (end - begin)
