"""PixArt-α and PixArt-Σ: a T5 text encoder whose padding is masked, and a transformer.

Captions are lower-cased and not cleaned further, which is `clean_caption=False` of the pipelines: how they clean
depends on what is installed. Sizes are used as they are, which is `use_resolution_binning=False`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SchedulerMixin,
)
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: What a user of the pipelines gets: steps, guidance, and tokens that T5 reads.
STEPS, GUIDANCE = 20, 4.5
TOKENS: Mapping[str, int] = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class TransformerDenoiser(Denoiser):
    """A `PixArtTransformer2DModel` behind the denoiser interface; timesteps may differ between rows.

    Args:
        transformer: whose learned variances are left out.
        schedule: α and σ per timestep.
        prediction_type: of its output.
        size_factor: pixels per latent cell, for a transformer that is told the size of the image; None for another.
    """

    def __init__(
        self,
        transformer: PixArtTransformer2DModel,
        schedule: Schedule,
        prediction_type: PredictionType,
        size_factor: int | None,
    ) -> None:
        self._transformer = Traced(transformer, "noise", _evaluate)
        self._size_factor = size_factor
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The transformer's output, without the variances."""
        size: tuple[Tensor, ...] = ()
        if self._size_factor is not None:
            height, width = (side * self._size_factor for side in x.shape[-2:])
            told = ([height, width], [float(height / width)])
            size = tuple(torch.tensor(one, dtype=x.dtype, device=x.device).expand(len(x), -1) for one in told)
        output = self._transformer(x, t.to(x.device), condition["text"], condition["mask"], *size)
        return output[:, : x.shape[1]]


def _evaluate(
    transformer: PixArtTransformer2DModel, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, *size: Tensor
) -> Tensor:
    resolution, aspect_ratio = size or (None, None)
    output: Tensor = transformer(
        x,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=t,
        added_cond_kwargs={"resolution": resolution, "aspect_ratio": aspect_ratio},
        return_dict=False,
    )[0]
    return output


def adapt(pipeline: Any) -> Model:
    """See a `PixArtAlphaPipeline` or `PixArtSigmaPipeline` as a model."""
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    schedule, prediction_type = parts.diffusion(scheduler)
    coder = parts.coder(pipeline.vae, transformer)
    channels, out = transformer.config.in_channels, transformer.config.out_channels
    parts.require_same_channels(channels, out // 2 if out == 2 * channels else out, coder.latent_channels)
    limit = TOKENS[type(pipeline).__name__]
    readers = [parts.Reader(pipeline.tokenizer, limit)]
    few = parts.few_steps(scheduler)
    # As the transformer itself decides it.
    told = transformer.use_additional_conditions
    side = transformer.config.sample_size * coder.factor

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        lowered = [prompt.lower().strip() for prompt in prompts]
        parts.require_readable(pipeline, lowered, readers)
        text, mask, _, _ = pipeline.encode_prompt(
            lowered, do_classifier_free_guidance=False, device=transformer.device, max_sequence_length=limit
        )
        return {"text": text, "mask": mask}

    return Model(
        **parts.common(pipeline, transformer, coder),
        denoiser=TransformerDenoiser(transformer, schedule, prediction_type, coder.factor if told else None),
        defaults=SamplerSettings(
            steps=parts.FEW_STEPS if few else STEPS, guidance=1.0 if few else GUIDANCE, height=side, width=side
        ),
        encode_prompts=encode_prompts,
        patch=transformer.config.patch_size,
        distilled=few,
    )


PIXART = partial(
    Family,
    parts={
        "transformer": (PixArtTransformer2DModel,),
        "vae": (AutoencoderKL,),
        "text_encoder": (T5EncoderModel,),
        "tokenizer": (T5Tokenizer,),
        "scheduler": (SchedulerMixin,),
    },
    adapt=adapt,
)
PIXART_ALPHA = PIXART(pipeline=PixArtAlphaPipeline)
PIXART_SIGMA = PIXART(pipeline=PixArtSigmaPipeline)
