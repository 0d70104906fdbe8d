"""What the rest of Basin sees of a latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser
from audit.model.sampling import (
    FLOW_SCHEDULERS,
    SCHEDULERS,
    SamplerSettings,
    Samples,
    build_scheduler,
    sample,
    set_timesteps,
)

#: How a checkpoint is guided: by two branches of which one has no prompt, by a weight that the network is told, or not.
Guidance = Literal["free", "embedded", "none"]
#: What a checkpoint draws images of: a text, the name of a class, or nothing.
Prompts = Literal["text", "label", "none"]


@dataclass(frozen=True)
class Gap:
    """Evidence that a checkpoint cannot give, or that means something else there.

    Attributes:
        evidence: "contrast", "explanation" or "energy".
        reason: in a plain sentence.
    """

    evidence: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a family makes of a diffusers pipeline.

    Attributes:
        family: the kind of pipeline, e.g. "StableDiffusionPipeline".
        denoiser: ε̂(x, t, c).
        scheduler_config: of the checkpoint's own diffusers scheduler.
        defaults: the settings that a user of the pipeline gets, height and width filled in.
        size_factor: pixels per latent cell.
        latent_channels: of the denoiser's input.
        image_channels: of decoded images, 1 or 3.
        device: where the weights are.
        dtype: of the weights.
        encode_prompts: prompts to a condition of as many rows, with the default guidance where it is embedded; raises
            InvalidInput for a prompt over its length, or of no known class.
        decode: latents (n, c, h, w) to images (n, channels, height, width), float32 in [-1, 1].
        encode: images, as `decode` gives them, to latents.
        parameters: number of weights, over all networks.
        guidance: how it is guided. Without "free" guidance there is no branch that was trained to have no prompt.
        prompts: what it draws images of.
        patch: latent cells per side of the network's patches; image sizes are multiples of `size_factor` times this.
        distilled: whether it was distilled to few steps, as far as its scheduler tells.
        fixed_size: whether it makes images of its default size alone.
        timesteps: arguments of the scheduler's `set_timesteps`, of settings and latent shape, where the pipeline has
            its own; None where it gives the number of steps.
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
    guidance: Guidance = "free"
    prompts: Prompts = "text"
    patch: int = 1
    distilled: bool = False
    fixed_size: bool = False
    timesteps: Callable[[SamplerSettings, Sequence[int]], dict[str, Any]] | None = None


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

    @property
    def size_multiple(self) -> int:
        """Pixels that sides of images are multiples of."""
        return self.size_factor * self.patch

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Keys of `SCHEDULERS` that can step it."""
        flow = self.denoiser.prediction_type == "flow"
        return tuple(name for name in SCHEDULERS if (name in FLOW_SCHEDULERS) is flow)

    def contrasts(self, settings: SamplerSettings) -> bool:
        """Whether there is a branch without the prompt that predictions under it can be compared with.

        A network that was distilled from guidance has none, unless the settings ask for two branches all the same.
        """
        return self.guidance == "free" or (self.prompts != "none" and settings.guided)

    def gaps(self, settings: SamplerSettings) -> tuple[Gap, ...]:
        """Evidence that is missing under these settings, or means something else."""
        found = []
        contrasts = self.contrasts(settings)
        if self.prompts == "none":
            found.append(
                Gap("contrast", "This checkpoint takes no prompt: there are no contrasts, and the estimate is wider.")
            )
        elif not contrasts:
            found.append(
                Gap(
                    "contrast",
                    "This checkpoint was distilled from guidance and has no branch without a prompt: there are no "
                    "contrasts, and the estimate is wider.",
                )
            )
        if self.prompts != "text" or not contrasts:
            found.append(
                Gap("explanation", "Neither words nor places are told apart, which takes a text and its contrasts.")
            )
        if self.distilled or self.guidance == "embedded":
            found.append(
                Gap(
                    "energy",
                    f"This checkpoint was distilled {'to few steps' if self.distilled else 'from guidance'}: what it "
                    "predicts is no mean of what was trained, so that traces, curvature and steps compare with its own "
                    "ordinary prompts alone. Where seeds meet means the same as everywhere.",
                )
            )
        return tuple(found)

    def told(self, condition: Condition, settings: SamplerSettings) -> Condition:
        """A condition with the guidance of the settings, where the network is told of it."""
        if "guidance" not in condition:
            return condition
        return {**condition, "guidance": torch.full_like(condition["guidance"], settings.guidance)}

    def scheduler(self, settings: SamplerSettings) -> Any:
        """A fresh diffusers scheduler, its timesteps set as the pipeline sets them."""
        scheduler = build_scheduler(settings.scheduler, self.scheduler_config)
        if self.timesteps is not None:
            scheduler.set_timesteps(**self.timesteps(settings, self.latent_shape(settings)))
        set_timesteps(scheduler, settings.steps)
        return scheduler

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
            self.scheduler(settings),
            settings,
            self.told(condition, settings),
            self.told(unconditional, settings),
            seeds,
            self.latent_shape(settings),
            device=self.device,
            dtype=self.dtype,
        )
