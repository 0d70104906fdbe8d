"""Mixed load on a server in a process of its own, for a minute, or for as long as SOAK_SECONDS says."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from PIL import Image

from audit import demo
from audit.v1 import audit_pb2, batch_pb2, checkpoint_pb2, info_pb2, reference_pb2
from tests.service.batch_calls import create, ended, results, spec
from tests.service.helpers import LONG, SERVING, SMALL, Client, endless, failure_of, small, until_sampling
from tests.service.processes import Process

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
#: Megabytes and handles by which a server may differ between an early and a late part of the time.
MEGABYTES, HANDLES = 64, 16


class Load:
    """What clients do, over and over, and what came of it."""

    def __init__(self, address: str, prompts: list[str]) -> None:
        self.client = Client(address)
        self.prompts = prompts
        self.done: Counter[str] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self._count = itertools.count()

    def audit(self) -> None:
        """One prompt after the other, against the reference set."""
        number = next(self._count)
        request = small(self.prompts[number % len(self.prompts)], reference="demo", request_id=f"soak {number}")
        request.budget.first_seed = number
        assert self.client.audit(request).cost.evaluations == SMALL

    def leave(self) -> None:
        """Begin something long, and go away."""
        request = small(self.prompts[0], reference="demo")
        request.budget.seeds, request.sampler.steps = 16, 100
        call = self.client.stream(request)
        until_sampling(call)
        call.cancel()

    def hurry(self) -> None:
        """Ask for more than there is time for."""
        time.sleep(0.05)
        with pytest.raises(grpc.RpcError) as late:
            self.client.audit(endless(self.prompts[0]), timeout=0.2)
        assert failure_of(late.value).code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)

    def search(self) -> None:
        """Look an image up."""
        image = io.BytesIO()
        Image.new("L", (32, 32), next(self._count) % 256).save(image, "PNG")
        request = reference_pb2.SearchReferenceRequest(reference="demo", image=image.getvalue(), include_images=True)
        assert self.client.references.SearchReference(request, timeout=LONG).pixel

    def batch(self) -> None:
        """A batch from its beginning to its deletion."""
        id_ = create(self.client, self.prompts[:6], spec(reference="demo", pictures=batch_pb2.BATCH_PICTURES_ALL))
        assert ended(self.client, id_).progress.state == batch_pb2.BATCH_STATE_DONE
        assert len(results(self.client, id_, include_reports=True)) == 6
        self.client.batches.DeleteBatch(batch_pb2.DeleteBatchRequest(batch=id_), timeout=LONG)

    def change(self) -> None:
        """Load another checkpoint, use it, and unload it."""
        self.client.checkpoints.LoadCheckpoint(checkpoint_pb2.LoadCheckpointRequest(checkpoint="copy"), timeout=LONG)
        self.client.audit(small(self.prompts[0], checkpoint="copy"))
        request = checkpoint_pb2.UnloadCheckpointRequest(checkpoint="copy")
        self.client.checkpoints.UnloadCheckpoint(request, timeout=LONG)

    def nonsense(self) -> None:
        """What no server answers, beside what every one does."""
        for bad in (small(""), small("x", checkpoint="none"), small("x", reference="none"), audit_pb2.AuditRequest()):
            with pytest.raises(grpc.RpcError) as refused:
                self.client.audit(bad)
            assert failure_of(refused.value).code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert self.client.info.GetInfo(info_pb2.GetInfoRequest(), timeout=LONG).version
        assert self.client.health() == self.client.health("liveness") == SERVING

    def go_on(self, what: Callable[[], None], until: float) -> None:
        """Do something over and over. What is refused for want of room is tried again."""
        while time.monotonic() < until:
            try:
                what()
            except grpc.RpcError as error:
                found = failure_of(error)
                self.refused[what.__name__, found.reason] += 1
                if found.retry_seconds is None:
                    raise
                time.sleep(min(1.0, found.retry_seconds))
            else:
                self.done[what.__name__] += 1


@pytest.mark.timeout(SECONDS + 600)
def test_nothing_grows_and_nothing_fails(spawn: Callable[..., Process], tmp_path: Path) -> None:
    """Audits, batches, searches, loads, nonsense and leaving clients side by side: only room may be wanting."""
    process = spawn(
        batches={"store": f"sqlite:///{tmp_path}/basin.db"},
        checkpoints={"copy": {"source": str(demo.CHECKPOINT), "preload": False}},
        demo=True,
    )
    bound = process.says("listening")
    process.says("ready")
    load, server = Load(bound["address"], demo.prompts()), psutil.Process(process.pid)
    metrics = Client(bound["address"], bound["metrics"])
    samples: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            with suppress(psutil.Error):
                samples.append((server.memory_info().rss / 2**20, server.num_fds() + server.num_threads()))

    until = time.monotonic() + SECONDS
    works = [load.audit] * 3 + [load.leave, load.hurry, load.search, load.batch, load.change, load.nonsense]
    with ThreadPoolExecutor(len(works) + 1) as pool:
        watching = pool.submit(watch)
        try:
            for future in [pool.submit(load.go_on, work, until) for work in works]:
                future.result(SECONDS + LONG)
        finally:
            over.set()
        watching.result()
    assert set(load.done) == {work.__name__ for work in works}
    assert {reason for _, reason in load.refused} <= {"QUEUE_FULL", "DEADLINE_BEHIND_QUEUE"}
    assert metrics.metric("basin_rpcs_total", code="INTERNAL") == metrics.metric("basin_store_errors_total") == 0
    assert metrics.metric("basin_audits_in_flight") == metrics.metric("basin_queue_evaluations") == 0
    # The first half fills what remembers: reconstructions, compiled kernels, answers.
    late = np.array(samples[len(samples) // 2 :])
    early, last = late[: len(late) // 3].mean(0), late[-len(late) // 3 :].mean(0)
    print(dict(load.done), dict(load.refused), early, last)
    assert last[0] < early[0] + MEGABYTES
    assert last[1] < early[1] + HANDLES
