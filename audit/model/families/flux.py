"""FLUX.1: a CLIP and a T5 text encoder, and a transformer that flows, distilled from guidance.

FLUX.1 [dev] is told the weight of the guidance; FLUX.1 [schnell] has none, and few steps. Neither has a branch that was
trained without a prompt: classifier-free guidance on top is what the pipeline calls true_cfg_scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, Schedule
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: What a user of the pipeline gets: steps, guidance, tokens that T5 reads, and the end of the dynamic shifting.
STEPS, GUIDANCE, TOKENS, LARGEST_SHIFT = 28, 3.5, 512, 1.15
#: Latent cells per side of what the transformer sees as one token.
PATCH = 2


class TransformerDenoiser(Denoiser):
    """A `FluxTransformer2DModel` behind the denoiser interface; timesteps may differ between rows.

    Latents are images, (n, channels, height, width): they are packed into tokens here.
    """

    prediction_type = "flow"

    def __init__(self, transformer: FluxTransformer2DModel, schedule: Schedule) -> None:
        self._transformer = Traced(transformer, "flow", _evaluate)
        self._timesteps = len(schedule) - 1
        self.schedule = schedule

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The transformer's output, as an image."""
        told = (condition["guidance"],) if "guidance" in condition else ()
        time = t.to(x.device, x.dtype) / self._timesteps
        return self._transformer(x, time, condition["text"], condition["pooled"], *told)


def _evaluate(
    transformer: FluxTransformer2DModel, x: Tensor, time: Tensor, text: Tensor, pooled: Tensor, *guidance: Tensor
) -> Tensor:
    rows, channels, height, width = x.shape
    output = transformer(
        hidden_states=FluxPipeline._pack_latents(x.contiguous(), rows, channels, height, width),
        timestep=time,
        guidance=guidance[0] if guidance else None,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=FluxPipeline._prepare_latent_image_ids(rows, height // PATCH, width // PATCH, x.device, x.dtype),
        return_dict=False,
    )[0]
    image: Tensor = FluxPipeline._unpack_latents(output, height, width, 1)
    return image


def adapt(pipeline: FluxPipeline) -> Model:
    """See a FLUX pipeline as a model."""
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    schedule = parts.flow(scheduler)
    coder = parts.coder(pipeline.vae, transformer)
    config = transformer.config
    out_channels = config.out_channels or config.in_channels
    parts.require_same_channels(config.in_channels, out_channels, PATCH**2 * coder.latent_channels)
    reader = parts.clip_reader(pipeline.tokenizer, pipeline.text_encoder)
    pipeline.tokenizer_max_length = reader.limit
    readers = [reader, parts.Reader(pipeline.tokenizer_2, TOKENS)]
    parts.keep_prompts_private(pipeline)
    told, side = config.guidance_embeds, pipeline.default_sample_size * coder.factor

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        parts.require_readable(pipeline, prompts, readers)
        text, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, device=transformer.device, max_sequence_length=TOKENS
        )
        weights = torch.full((len(text),), GUIDANCE, device=text.device)
        return {"text": text, "pooled": pooled, **({"guidance": weights} if told else {})}

    def timesteps(settings: SamplerSettings, shape: Sequence[int]) -> dict[str, Any]:
        tokens = (shape[1] // PATCH) * (shape[2] // PATCH)
        return {
            "sigmas": np.linspace(1.0, 1 / settings.steps, settings.steps),
            "mu": parts.shift(scheduler, tokens, LARGEST_SHIFT),
        }

    return Model(
        **parts.common(pipeline, transformer, coder),
        denoiser=TransformerDenoiser(transformer, schedule),
        defaults=SamplerSettings(
            steps=STEPS if told else parts.FEW_STEPS,
            guidance=GUIDANCE if told else 1.0,
            height=side,
            width=side,
            embedded=True,
        ),
        encode_prompts=encode_prompts,
        guidance="embedded" if told else "none",
        patch=PATCH,
        distilled=not told,
        timesteps=timesteps,
    )


FLUX = Family(
    pipeline=FluxPipeline,
    parts={
        "transformer": (FluxTransformer2DModel,),
        "vae": (AutoencoderKL,),
        "text_encoder": (CLIPTextModel,),
        "tokenizer": (CLIPTokenizer,),
        "text_encoder_2": (T5EncoderModel,),
        "tokenizer_2": (T5Tokenizer,),
        "scheduler": (FlowMatchEulerDiscreteScheduler,),
    },
    adapt=adapt,
)
