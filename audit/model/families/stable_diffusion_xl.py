"""Stable Diffusion XL: two CLIP text encoders, a UNet that is also told the pooled text and the size of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from audit.errors import BrokenCheckpoint
from audit.model.checkpoint import Model
from audit.model.denoiser import Condition
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.families.unet import UNetDenoiser, embedded_guidance, told_guidance, unet_model

#: What a user of the pipeline gets.
STEPS, GUIDANCE = 50, 5.0
#: What the UNet is told of the image: original size, corner of the crop and size, two numbers each.
TIME_IDS = 6


def adapt(pipeline: StableDiffusionXLPipeline) -> Model:
    """See a Stable Diffusion XL pipeline as a model."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    schedule, prediction_type = parts.diffusion(scheduler)
    coder = parts.coder(pipeline.vae, unet)
    parts.require_same_channels(unet.config.in_channels, unet.config.out_channels, coder.latent_channels)
    _require_base(pipeline)
    readers = [
        parts.clip_reader(pipeline.tokenizer, pipeline.text_encoder),
        parts.clip_reader(pipeline.tokenizer_2, pipeline.text_encoder_2),
    ]
    told = embedded_guidance(pipeline, unet)
    guidance = 1.0 if parts.few_steps(scheduler) and not told else GUIDANCE

    def time_ids(x: Tensor, condition: Condition) -> Tensor:
        size = [side * coder.factor for side in x.shape[-2:]]
        return torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), TIME_IDS)

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        parts.require_readable(pipeline, prompts, readers[:1])
        parts.require_readable(pipeline, prompts, readers[1:])
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=unet.device, do_classifier_free_guidance=False
        )
        if pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
            text, pooled = text * given[:, None, None], pooled * given[:, None]
        return {"text": text, "pooled": pooled, **told_guidance(text, guidance if told else None)}

    inputs = {**told, "text_embeds": lambda x, condition: condition["pooled"], "time_ids": time_ids}
    denoiser = UNetDenoiser(unet, schedule, prediction_type, inputs)
    return unet_model(pipeline, coder, denoiser, encode_prompts, steps=STEPS, guidance=guidance, embedded=bool(told))


def _require_base(pipeline: StableDiffusionXLPipeline) -> None:
    """Raises BrokenCheckpoint for a UNet that is told other things of the image, as a refiner is."""
    config, pooled = pipeline.unet.config, pipeline.text_encoder_2.config.projection_dim
    if (
        config.addition_embed_type != "text_time"
        or TIME_IDS * config.addition_time_embed_dim + pooled != config.projection_class_embeddings_input_dim
    ):
        raise BrokenCheckpoint(
            "the UNet is told something else than the pooled text and the size of the image: a refiner, which goes on "
            "from another checkpoint's image, cannot be audited on its own",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )


STABLE_DIFFUSION_XL = Family(
    pipeline=StableDiffusionXLPipeline,
    parts={
        "unet": (UNet2DConditionModel,),
        "vae": (AutoencoderKL,),
        "text_encoder": (CLIPTextModel,),
        "tokenizer": (CLIPTokenizer,),
        "text_encoder_2": (CLIPTextModelWithProjection,),
        "tokenizer_2": (CLIPTokenizer,),
        "scheduler": (SchedulerMixin,),
    },
    adapt=adapt,
    options=("force_zeros_for_empty_prompt",),
)
