"""A process that may have hardly more memory than it has, in a module that it can import."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from audit import demo
from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint_source import CheckpointSource
from audit.model.denoiser import Denoiser, repeat
from audit.model.memory import in_halves, is_out_of_memory
from audit.model.sources import open_source

LANES, ROWS, SIDE = 8, 16, 12
#: Rows that there is memory for.
FEW = 4
#: Latents of eight cells a side, as the demo has them.
DECODED = 256
#: Latents of one row that take more than any other test's.
HUGE = 1024
PROMPT = "a red shirt"
LONG = 300.0


def latents(rows: int, side: int = SIDE) -> Tensor:
    """Always the same, (rows, 4, side, side)."""
    return torch.randn(rows, 4, side, side, generator=torch.Generator().manual_seed(rows))


def timesteps(rows: int) -> Tensor:
    """All over the schedule."""
    return torch.linspace(20, 980, rows).long()


def work(pipe: Connection) -> None:
    """Fill batches and decode while there is too little memory, and tell what came of it."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # it never again makes a primitive that it had no memory for
    source = open_source(CheckpointSource(str(demo.CHECKPOINT)), torch.device("cpu"), torch.float32)
    checkpoint = source.family.adapt(source.pipeline)  # which does not yet look after memory itself
    condition = checkpoint.encode_prompts([PROMPT])
    x, t, huge = latents(LANES * ROWS), timesteps(LANES * ROWS), latents(2, HUGE)
    ready = threading.Barrier(LANES)
    decoded: list[int] = []

    def merged(batching: BatchingDenoiser, rows: int) -> Tensor:
        def one(index: int) -> Tensor:
            part = slice(index * rows, (index + 1) * rows)
            with batching.lane() as lane:
                ready.wait(LONG)
                return lane.native(x[part], t[part], repeat(condition, rows))

        return torch.cat(list(pool.map(one, range(LANES))))

    def decode(rows: Tensor) -> Tensor:
        images = checkpoint.decode(rows)
        decoded.append(len(rows))
        return images

    with (
        ThreadPoolExecutor(LANES) as pool,
        closing(BatchingDenoiser(checkpoint.denoiser, max_rows=LANES * ROWS, max_wait=LONG)) as batching,
    ):
        merged(batching, 1)  # all threads are there
        # Far less than all rows together take: how much the C library has in reserve differs from run to run.
        leave_little(lambda: checkpoint.denoiser.native(x[:FEW], t[:FEW], repeat(condition, FEW)))
        outputs = merged(batching, ROWS)
        pipe.send((outputs.numpy(), batching.max_rows))
        leave_little(lambda: checkpoint.decode(latents(ROWS, 8)))
        pipe.send((in_halves(decode, latents(DECODED, 8)).numpy(), decoded))
        with batching.lane() as lane:
            pipe.send((refusal(lane, huge, repeat(condition, 2)), batching.max_rows))
            pipe.send(lane.native(x[:2], t[:2], repeat(condition, 2)).numpy())


def leave_little(sample: Callable[[], object]) -> None:
    """Limit this process's memory to twice what a sample of its work takes above what it has."""
    megabytes = 8
    while True:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, resource.RLIM_INFINITY))
        try:
            sample()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            megabytes *= 2
        else:
            resource.setrlimit(resource.RLIMIT_AS, (size + 2 * megabytes * 2**20, resource.RLIM_INFINITY))
            return


def refusal(lane: Denoiser, x: Tensor, condition: dict[str, Tensor]) -> str:
    """What is said of rows of which not one fits."""
    try:
        lane.native(x, timesteps(len(x)), condition)
    except RuntimeError as error:
        return str(error)
    return ""
