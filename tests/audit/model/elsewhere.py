"""What a checkpoint gives on a device without float64, in a process that stands in for one; see `stand_in`."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import torch
from numpy.typing import NDArray

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.evidence.energy import absolute_energy, relative_energy
from audit.model.checkpoint import Checkpoint
from audit.model.checkpoint_source import CheckpointSource
from audit.model.loading import load_checkpoint, see
from audit.model.sources import open_source
from tests.audit.makers import clusters, exact_denoiser
from tests.audit.model import stand_in

PROMPT = "a pink nylon sandal for monsoon from arles"
PARTS = ("unet", "vae", "text_encoder")
Numbers = dict[str, NDArray[Any]]


def work(pipe: Connection) -> None:
    """Measure on the CPU and on the device, with and without offloading, and tell what came of it."""
    torch.set_num_threads(1)
    stand_in.begin()
    places = {"cpu": ("cpu", False), "device": (stand_in.NAME, False), "offloaded": (stand_in.NAME, True)}
    pipe.send(
        {
            name: measure(load_checkpoint(demo.CHECKPOINT, device=place, offload=offload))
            for name, (place, offload) in places.items()
        }
    )
    pipe.send({place: energies(place) for place in ("cpu", stand_in.NAME)})
    pipe.send(whereabouts())


def measure(checkpoint: Checkpoint) -> Numbers:
    """An audit with everything that it can measure beside a reference set, and an inspection."""
    auditor = Auditor(checkpoint)
    sampler = auditor.resolve_sampler(steps=3)
    report = auditor.audit(
        PROMPT, sampler=sampler, budget=Budget(seeds=4, minimum_seeds=4), explain=True, include_images=True
    )
    evidence = report.evidence
    drawn = checkpoint.decode(torch.ones(1, *checkpoint.latent_shape(sampler)))
    found = auditor.inspect(drawn[0].cpu(), PROMPT, sampler=sampler)
    assert evidence.screening is not None
    return {
        "screening": evidence.screening.contrast,
        "trace": evidence.smoothed.values,
        "inspected": found.smoothed.values,
    }


def energies(place: str) -> Numbers:
    """Of the exact denoiser of a few points."""
    points = clusters(2, 2, 0.3, dimension=2).float().reshape(-1, 2, 1, 1).to(place)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    return {
        "relative": relative_energy(denoiser, points, points[0], 200, condition).numpy(),
        "absolute": absolute_energy(denoiser, points, 200, condition, steps=4).numpy(),
    }


def whereabouts() -> list[tuple[str, dict[str, str]]]:
    """Where each network is before and after every use of an offloaded checkpoint, and while it is used."""
    source = open_source(
        CheckpointSource(str(demo.CHECKPOINT)), torch.device(stand_in.NAME), torch.float32, offload=True
    )
    checkpoint, seen = see(source, "demo"), []

    def look(when: str) -> None:
        seen.append((when, {part: getattr(source.pipeline, part).device.type for part in PARTS}))

    source.pipeline.text_encoder.encoder.register_forward_hook(lambda *_: look("while encoding a prompt"))
    source.pipeline.vae.decoder.register_forward_hook(lambda *_: look("while decoding"))
    source.pipeline.vae.encoder.register_forward_hook(lambda *_: look("while encoding an image"))
    look("before")
    condition = checkpoint.encode_prompts([PROMPT])
    look("between")
    samples = checkpoint.sample(checkpoint.defaults, condition, condition, [0])
    checkpoint.encode(checkpoint.decode(samples.latents))
    look("after")
    return seen
