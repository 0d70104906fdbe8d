"""A checkpoint that many audits use at once: its functions run in the thread of its device, its batches are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint import Checkpoint
from service.threads import Devices


def share(
    checkpoint: Checkpoint,
    devices: Devices,
    *,
    max_rows: int,
    max_wait: float,
    on_batch: Callable[[int, int, float], None] = lambda rows, background, seconds: None,
) -> tuple[Checkpoint, BatchingDenoiser]:
    """Make a checkpoint fit for several threads.

    Args:
        checkpoint: as it was loaded.
        devices: that compute.
        max_rows: most rows in a forward pass.
        max_wait: longest wait of a denoiser call for others, in seconds.
        on_batch: called after every forward pass with its rows, how many of them are of batches, and its seconds.

    Returns:
        The checkpoint, and the denoiser whose lanes its audits take; close it at the end.
    """
    run = partial(devices.run, str(checkpoint.device))
    shared = replace(
        checkpoint,
        decode=lambda latents: run(partial(checkpoint.decode, latents)),
        encode=lambda images: run(partial(checkpoint.encode, images)),
        # Tokenizers do not bear several threads at once either.
        encode_prompts=lambda prompts: run(partial(checkpoint.encode_prompts, prompts)),
    )
    batching = BatchingDenoiser(checkpoint.denoiser, max_rows=max_rows, max_wait=max_wait, run=run, on_batch=on_batch)
    return shared, batching
