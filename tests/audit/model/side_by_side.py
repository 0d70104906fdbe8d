"""A pipeline of diffusers and the checkpoint that Basin sees in it, side by side."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from audit.auditor import Auditor
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import SCHEDULERS, SamplerSettings, draw_noise
from tests.audit.model import tiny

PROMPTS = {"text": "a cream linen coat", "label": "golden retriever", "none": ""}
SEEDS = [0, 1, 5]
SIZE = tiny.CELLS * tiny.FACTOR


@dataclass(frozen=True)
class Both:
    """A pipeline, and the checkpoint that Basin loads from what it saved."""

    pipeline: Any
    checkpoint: Checkpoint

    @property
    def prompt(self) -> str:
        """One that it takes."""
        return PROMPTS[self.checkpoint.prompts]

    def settings(self, **given: Any) -> SamplerSettings:
        """Few steps at a small size, guided as by default."""
        size = {} if self.checkpoint.fixed_size else {"height": SIZE, "width": SIZE}
        return Auditor(self.checkpoint).resolve_sampler(**{"steps": 4, **size, **given})

    def ours(self, settings: SamplerSettings) -> Tensor:
        """Where Basin's trajectories end."""
        checkpoint = self.checkpoint
        texts = self.prompt, settings.negative_prompt
        condition, other = (checkpoint.told(checkpoint.encode_prompts([text]), settings) for text in texts)
        return checkpoint.sample(settings, condition, other, SEEDS).latents

    def theirs(self, settings: SamplerSettings, output: str = "latent") -> Tensor:
        """Latents, or images in [0, 1], that the pipeline gives for the same noise and settings."""
        pipeline, rows = self.pipeline, len(SEEDS)
        accepted = inspect.signature(pipeline.__call__).parameters
        start, generators = draw_noise(SEEDS, self.checkpoint.latent_shape(settings))
        if "latents" not in accepted:  # it draws them itself
            generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        packed = isinstance(pipeline, diffusers.FluxPipeline)
        given: dict[str, Any] = {
            "prompt": [self.prompt] * rows,
            "class_labels": [207] * rows,
            "batch_size": rows,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "true_cfg_scale": settings.true_guidance,
            "latents": pipeline._pack_latents(start, *start.shape) if packed else start,
            "generator": generators,
            "clean_caption": False,
            "use_resolution_binning": False,
        }
        if settings.negative_prompt or (packed and settings.guided):
            given["negative_prompt"] = [settings.negative_prompt] * rows
        given = {name: value for name, value in given.items() if name in accepted}
        own, ends = pipeline.scheduler, []
        if settings.scheduler:
            pipeline.scheduler = getattr(diffusers, SCHEDULERS[settings.scheduler]).from_config(own.config)
        step = pipeline.scheduler.step

        @functools.wraps(step)
        def recorded(*arguments: Any, **more: Any) -> Any:
            ends.append(step(*arguments, **more))
            return ends[-1]

        try:
            if output == "latent" and "latents" not in accepted:  # nor does it give them
                pipeline.scheduler.step = recorded
                pipeline(**given, output_type="pt")
                return ends[-1].prev_sample[:rows]
            found: Tensor = pipeline(**given, output_type=output).images
        finally:
            pipeline.scheduler.step = step
            pipeline.scheduler = own
        if output == "latent" and packed:
            return pipeline._unpack_latents(found, settings.height, settings.width, pipeline.vae_scale_factor)
        return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 10⁻⁴ of the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
