"""A `UNet2DConditionModel` behind the denoiser interface, as Stable Diffusion and what descends from it have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.families import parts
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: A further input of the UNet, one entry per row, from latents and condition.
Input = Callable[[Tensor, Condition], Tensor]


class UNetDenoiser(Denoiser):
    """The UNet's output from latents, timesteps and condition["text"]; timesteps may differ between rows.

    Args:
        unet: in evaluation mode.
        schedule: α and σ per timestep.
        prediction_type: of its output.
        inputs: more that it is told, by the names that it has for them: timestep_cond, or those of added conditions.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: Schedule,
        prediction_type: PredictionType,
        inputs: Mapping[str, Input] | None = None,
    ) -> None:
        parts.lay_out(unet)
        self._inputs = inputs or {}
        self._unet = Traced(unet, " ".join(["noise", *self._inputs]), partial(_evaluate, names=tuple(self._inputs)))
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's output."""
        told = (find(x, condition) for find in self._inputs.values())
        return self._unet(x, t.to(x.device), condition["text"], *told)


def _evaluate(
    unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor, *told: Tensor, names: tuple[str, ...]
) -> Tensor:
    added = dict(zip(names, told, strict=True))
    weight = added.pop("timestep_cond", None)
    output: Tensor = unet(x, t, text, timestep_cond=weight, added_cond_kwargs=added or None, return_dict=False)[0]
    return output


def embedded_guidance(pipeline: object, unet: UNet2DConditionModel) -> dict[str, Input]:
    """The input by which a UNet that was distilled from guidance is told of its weight; none of another UNet.

    The embedding is the pipeline's own, of the weight as Imagen counts it: 1 less than diffusers does.
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return {}
    embed = pipeline.get_guidance_scale_embedding  # type: ignore[attr-defined]
    return {"timestep_cond": lambda x, condition: embed(condition["guidance"].cpu() - 1, embedding_dim=width).to(x)}


def told_guidance(text: Tensor, guidance: float | None) -> dict[str, Tensor]:
    """What `embedded_guidance` reads, one weight for every row of a text; nothing where there is none to tell."""
    return {} if guidance is None else {"guidance": torch.full((len(text),), guidance, device=text.device)}


def unet_model(
    pipeline: Any,
    coder: parts.Coder,
    denoiser: UNetDenoiser,
    encode_prompts: Callable[[Sequence[str]], Condition],
    *,
    steps: int,
    guidance: float,
    embedded: bool,
) -> Model:
    """A pipeline around a UNet as a model.

    Args:
        pipeline: of diffusers.
        coder: its autoencoder.
        denoiser: its UNet.
        encode_prompts: prompts to what the denoiser reads.
        steps: that a user of it gets, unless it was distilled to few.
        guidance: likewise.
        embedded: whether the denoiser is told the guidance: see `embedded_guidance`.
    """
    unet, few = pipeline.unet, parts.few_steps(pipeline.scheduler)
    height, width = parts.sides(unet.config.sample_size)
    return Model(
        **parts.common(pipeline, unet, coder),
        denoiser=denoiser,
        defaults=SamplerSettings(
            steps=parts.FEW_STEPS if few else steps,
            guidance=guidance,
            height=height * coder.factor,
            width=width * coder.factor,
            embedded=embedded,
        ),
        encode_prompts=encode_prompts,
        guidance="embedded" if embedded else "free",
        distilled=few,
    )
