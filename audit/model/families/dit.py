"""DiT: a transformer that is told a class. A prompt is the name of a class, or its number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, SchedulerMixin
from torch import Tensor

from audit.errors import InvalidInput
from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.families import parts
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
from audit.model.traced import Traced

#: What a user of the pipeline gets.
STEPS, GUIDANCE = 50, 4.0


class TransformerDenoiser(Denoiser):
    """A `DiTTransformer2DModel` behind the denoiser interface; its learned variances are left out."""

    def __init__(self, transformer: DiTTransformer2DModel, schedule: Schedule, prediction_type: PredictionType) -> None:
        self._transformer = Traced(
            transformer,
            "noise",
            lambda network, x, t, label: network(x, timestep=t, class_labels=label, return_dict=False)[0],
        )
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The transformer's output, without the variances."""
        return self._transformer(x, t.to(x.device), condition["label"])[:, : x.shape[1]]


def adapt(pipeline: DiTPipeline) -> Model:
    """See a DiT pipeline as a model."""
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    schedule, prediction_type = parts.diffusion(scheduler)
    coder = parts.coder(pipeline.vae, transformer)
    channels, out = transformer.config.in_channels, transformer.out_channels
    parts.require_same_channels(channels, out // 2 if out == 2 * channels else out, coder.latent_channels)
    classes = transformer.config.num_embeds_ada_norm
    numbers = {str(label): label for label in range(classes)} | {
        name.lower(): number for name, number in pipeline.labels.items() if number < classes
    }
    side = transformer.config.sample_size * coder.factor

    def encode_prompts(prompts: Sequence[str]) -> Condition:
        labels = []
        for prompt in prompts:
            name = prompt.strip().lower()
            if name and name not in numbers:
                raise InvalidInput(
                    f"{prompt!r} is no class of this checkpoint, whose classes are numbers from 0 to {classes - 1}"
                    + (f" and names such as {next(iter(pipeline.labels))!r}" if pipeline.labels else ""),
                    reason="PROMPT_NO_CLASS",
                    field="prompt",
                )
            # What stands for no class comes after the last one.
            labels.append(numbers[name] if name else classes)
        return {"label": torch.tensor(labels, device=transformer.device)}

    return Model(
        **parts.common(pipeline, transformer, coder),
        denoiser=TransformerDenoiser(transformer, schedule, prediction_type),
        defaults=SamplerSettings(steps=STEPS, guidance=GUIDANCE, height=side, width=side),
        encode_prompts=encode_prompts,
        prompts="label",
        patch=transformer.config.patch_size,
        fixed_size=True,
    )


DIT = Family(
    pipeline=DiTPipeline,
    parts={"transformer": (DiTTransformer2DModel,), "vae": (AutoencoderKL,), "scheduler": (SchedulerMixin,)},
    adapt=adapt,
    options=("id2label",),
)
