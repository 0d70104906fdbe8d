"""What the rest of Basin sees of a latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser
from audit.model.sampling import SCHEDULERS, SamplerSettings, Samples, build_scheduler, sample


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a family makes of a diffusers pipeline.

    Attributes:
        family: the kind of pipeline, e.g. "StableDiffusionPipeline".
        denoiser: ε̂(x, t, c).
        scheduler_config: of the checkpoint's own diffusers scheduler.
        defaults: the checkpoint's own sampler settings, height and width filled in.
        size_factor: pixels per latent cell; image sizes are multiples of it.
        latent_channels: of the denoiser's input.
        image_channels: of decoded images, 1 or 3.
        device: where the weights are.
        dtype: of the weights.
        encode_prompts: prompts to a condition of as many rows; raises InvalidInput for a prompt over its length.
        decode: latents (n, c, h, w) to images (n, channels, height, width), float32 in [-1, 1].
        encode: images, as `decode` gives them, to latents.
        parameters: number of weights, over all networks.
    """

    family: str
    denoiser: Denoiser
    scheduler_config: dict[str, Any]
    defaults: SamplerSettings
    size_factor: int
    latent_channels: int
    image_channels: int
    device: torch.device
    dtype: torch.dtype
    encode_prompts: Callable[[Sequence[str]], Condition]
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Model):
    """A diffusion model as the rest of Basin sees it.

    Attributes:
        name: what people call it.
        digest: "sha256:…" over the weights and configurations that were loaded.
        autoencoder: "sha256:…" of its autoencoder alone, which checkpoints may have in common.
        source: what it was loaded from, without folders; see `audit.model.checkpoint_source`.
    """

    name: str
    digest: str
    autoencoder: str
    source: str = ""

    def latent_shape(self, settings: SamplerSettings) -> tuple[int, int, int]:
        """Shape of one latent row at an image size."""
        return (self.latent_channels, settings.height // self.size_factor, settings.width // self.size_factor)

    def scheduler_class(self, settings: SamplerSettings) -> str:
        """The diffusers class of the scheduler that draws samples."""
        return SCHEDULERS.get(settings.scheduler, self.scheduler_config["_class_name"])

    @property
    def place(self) -> str:
        """Device and precision of the weights, e.g. "cpu float32"."""
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"

    def sample(
        self,
        settings: SamplerSettings,
        condition: Condition,
        unconditional: Condition,
        seeds: Sequence[int],
        denoiser: Denoiser | None = None,
    ) -> Samples:
        """Draw one latent per seed, all in one batch; see `audit.model.sampling.sample`.

        Args:
            settings: with height and width filled in.
            condition: of the prompt, one row.
            unconditional: of the empty or negative prompt, one row.
            seeds: one per sample.
            denoiser: stands in for the checkpoint's own, e.g. one that counts or merges batches.
        """
        return sample(
            denoiser or self.denoiser,
            build_scheduler(settings.scheduler, self.scheduler_config),
            settings,
            condition,
            unconditional,
            seeds,
            self.latent_shape(settings),
            device=self.device,
            dtype=self.dtype,
        )
