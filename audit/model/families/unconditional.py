"""Models without prompts, a `UNet2DModel` each: of pixels (DDPM, DDIM), or of the latents of an autoencoder (LDM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDPMPipeline,
    LDMPipeline,
    SchedulerMixin,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

from audit.errors import InvalidInput
from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: Steps that a user of each pipeline gets.
STEPS = {"DDPMPipeline": 1000, "DDIMPipeline": 50, "LDMPipeline": 50}


class UNetDenoiser(Denoiser):
    """A `UNet2DModel` behind the denoiser interface; timesteps may differ between rows, conditions say nothing."""

    def __init__(self, unet: UNet2DModel, schedule: Schedule, prediction_type: PredictionType) -> None:
        parts.lay_out(unet)
        self._unet = Traced(unet, "noise", lambda unet, x, t: unet(x, t, return_dict=False)[0])
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's output."""
        return self._unet(x, t.to(x.device))


def adapt(pipeline: Any) -> Model:
    """See a `DDPMPipeline`, `DDIMPipeline` or `LDMPipeline` as a model."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    schedule, prediction_type = parts.diffusion(scheduler)
    vqvae = getattr(pipeline, "vqvae", None)
    coder = _pixels(unet) if vqvae is None else parts.coder(vqvae, unet)
    parts.require_same_channels(unet.config.in_channels, unet.config.out_channels, coder.latent_channels)
    height, width = parts.sides(unet.config.sample_size)

    def encode_prompts(prompts: Sequence[str]) -> Condition:
        if any(prompt.strip() for prompt in prompts):
            raise InvalidInput(
                "this checkpoint draws images of nothing in particular: leave the prompt empty",
                reason="PROMPT_UNSUPPORTED",
                field="prompt",
            )
        return {"nothing": torch.zeros(len(prompts), 0, device=unet.device)}

    return Model(
        **parts.common(pipeline, unet, coder),
        denoiser=UNetDenoiser(unet, schedule, prediction_type),
        defaults=SamplerSettings(
            steps=min(STEPS[type(pipeline).__name__], len(schedule)),
            guidance=1.0,
            height=height * coder.factor,
            width=width * coder.factor,
        ),
        encode_prompts=encode_prompts,
        guidance="none",
        prompts="none",
        fixed_size=True,
    )


def _pixels(unet: UNet2DModel) -> parts.Coder:
    """Images that are their own latents."""
    channels = unet.config.in_channels

    def encode(images: Tensor) -> Tensor:
        return images.to(unet.device, unet.dtype)

    return parts.Coder(lambda latents: latents.float().clamp(-1, 1), encode, 1, channels, channels)


PIXELS: dict[str, tuple[type[Any], ...]] = {"unet": (UNet2DModel,), "scheduler": (SchedulerMixin,)}
DDPM = Family(pipeline=DDPMPipeline, parts=PIXELS, adapt=adapt, autoencoder="")
DDIM = Family(pipeline=DDIMPipeline, parts=PIXELS, adapt=adapt, autoencoder="")
LDM = Family(
    pipeline=LDMPipeline, parts={**PIXELS, "vqvae": (VQModel, AutoencoderKL)}, adapt=adapt, autoencoder="vqvae"
)
