"""Stable Diffusion 1.x and 2.x, and its latent consistency models: a CLIP text encoder, a UNet, an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    LatentConsistencyModelPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.families.unet import UNetDenoiser, embedded_guidance, told_guidance, unet_model

#: What a user of each pipeline gets: steps and guidance.
STEPS, GUIDANCE = 50, 7.5
CONSISTENT_GUIDANCE = 8.5


def adapt(pipeline: Any) -> Model:
    """See a `StableDiffusionPipeline` or `LatentConsistencyModelPipeline` as a model."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    schedule, prediction_type = parts.diffusion(scheduler)
    coder = parts.coder(pipeline.vae, unet)
    parts.require_same_channels(unet.config.in_channels, unet.config.out_channels, coder.latent_channels)
    reader = parts.clip_reader(pipeline.tokenizer, pipeline.text_encoder)
    told = embedded_guidance(pipeline, unet)
    guidance = CONSISTENT_GUIDANCE if told else 1.0 if parts.few_steps(scheduler) else GUIDANCE

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        parts.require_readable(pipeline, prompts, [reader])
        text = pipeline.encode_prompt(list(prompts), unet.device, 1, False)[0]
        return {"text": text, **told_guidance(text, guidance if told else None)}

    denoiser = UNetDenoiser(unet, schedule, prediction_type, told)
    return unet_model(pipeline, coder, denoiser, encode_prompts, steps=STEPS, guidance=guidance, embedded=bool(told))


PARTS: dict[str, tuple[type[Any], ...]] = {
    "unet": (UNet2DConditionModel,),
    "vae": (AutoencoderKL,),
    "text_encoder": (CLIPTextModel,),
    "tokenizer": (CLIPTokenizer,),
    "scheduler": (SchedulerMixin,),
}
STABLE_DIFFUSION = Family(pipeline=StableDiffusionPipeline, parts=PARTS, adapt=adapt)
LATENT_CONSISTENCY = Family(pipeline=LatentConsistencyModelPipeline, parts=PARTS, adapt=adapt)
