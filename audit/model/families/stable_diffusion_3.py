"""Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 where it is there, and a transformer that flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, Schedule
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: What a user of the pipeline gets: steps, guidance, tokens that T5 reads, and the end of the dynamic shifting.
STEPS, GUIDANCE, TOKENS, LARGEST_SHIFT = 28, 7.0, 256, 1.16


class TransformerDenoiser(Denoiser):
    """A `SD3Transformer2DModel` behind the denoiser interface; timesteps may differ between rows."""

    prediction_type = "flow"

    def __init__(self, transformer: SD3Transformer2DModel, schedule: Schedule) -> None:
        self._transformer = Traced(transformer, "flow", _evaluate)
        self.schedule = schedule

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The transformer's output."""
        return self._transformer(x, t.to(x.device), condition["text"], condition["pooled"])


def _evaluate(transformer: SD3Transformer2DModel, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    output: Tensor = transformer(
        hidden_states=x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled, return_dict=False
    )[0]
    return output


def adapt(pipeline: StableDiffusion3Pipeline) -> Model:
    """See a Stable Diffusion 3 pipeline as a model."""
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    schedule = parts.flow(scheduler)
    coder = parts.coder(pipeline.vae, transformer)
    parts.require_same_channels(transformer.config.in_channels, transformer.config.out_channels, coder.latent_channels)
    readers = [
        parts.clip_reader(pipeline.tokenizer, pipeline.text_encoder),
        parts.clip_reader(pipeline.tokenizer_2, pipeline.text_encoder_2),
    ]
    pipeline.tokenizer_max_length = min(reader.limit for reader in readers)
    if pipeline.text_encoder_3 is not None:
        readers.append(parts.Reader(pipeline.tokenizer_3, TOKENS))
    parts.keep_prompts_private(pipeline)
    patch = transformer.config.patch_size

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        parts.require_readable(pipeline, prompts, readers)
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=transformer.device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def timesteps(settings: SamplerSettings, shape: Sequence[int]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_inference_steps": settings.steps}
        if scheduler.config.use_dynamic_shifting:
            tokens = (shape[1] // patch) * (shape[2] // patch)
            arguments["mu"] = parts.shift(scheduler, tokens, LARGEST_SHIFT)
        return arguments

    side = transformer.config.sample_size * coder.factor
    return Model(
        **parts.common(pipeline, transformer, coder),
        denoiser=TransformerDenoiser(transformer, schedule),
        defaults=SamplerSettings(steps=STEPS, guidance=GUIDANCE, height=side, width=side),
        encode_prompts=encode_prompts,
        patch=patch,
        timesteps=timesteps,
    )


STABLE_DIFFUSION_3 = Family(
    pipeline=StableDiffusion3Pipeline,
    parts={
        "transformer": (SD3Transformer2DModel,),
        "vae": (AutoencoderKL,),
        "text_encoder": (CLIPTextModelWithProjection,),
        "tokenizer": (CLIPTokenizer,),
        "text_encoder_2": (CLIPTextModelWithProjection,),
        "tokenizer_2": (CLIPTokenizer,),
        "text_encoder_3": (T5EncoderModel,),
        "tokenizer_3": (T5Tokenizer,),
        "scheduler": (FlowMatchEulerDiscreteScheduler,),
    },
    adapt=adapt,
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
)
