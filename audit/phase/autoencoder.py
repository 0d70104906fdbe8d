"""The autoencoder of latent diffusion (Rombach et al. 2022), small: images to latents of four channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

#: Weight of the KL term: latents stay bounded, reconstruction decides.
KL_WEIGHT = 1e-6


class Fit(Protocol):
    """`audit.phase.training.fit` with its run folder filled in."""

    def __call__(
        self,
        name: str,
        modules: nn.ModuleDict,
        loss: Callable[[torch.Generator], Tensor],
        *,
        steps: int,
        learning_rate: float,
        ema_decay: float,
        seed: int,
    ) -> nn.ModuleDict:
        """Train and return the average."""
        ...


def build_autoencoder(widths: Sequence[int], channels: int = 1, side: int = 32) -> AutoencoderKL:
    """Fresh weights.

    Args:
        widths: of the levels; each but the first halves the size.
        channels: of the images.
        side: of the images.
    """
    from diffusers import AutoencoderKL  # takes as long as torch, and pixel space does without

    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=4,
        block_out_channels=tuple(widths),
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=side,
    )


def train_autoencoder(
    pixels: Tensor, widths: Sequence[int], *, steps: int, batch_size: int, seed: int, fit: Fit
) -> AutoencoderKL:
    """Train on images and set the scale at which latents have unit standard deviation (Rombach et al. 2022, G).

    Args:
        pixels: (n, channels, side, side) in [-1, 1].
        widths: of the levels.
        steps: of the optimizer.
        batch_size: images a step.
        seed: of the draws.
        fit: the training loop.
    """
    vae = build_autoencoder(widths, pixels.shape[1], pixels.shape[-1]).to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        batch = pixels[rows].contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return F.mse_loss(decoded, batch) + KL_WEIGHT * posterior.kl().mean()

    trained = fit(
        "autoencoder", nn.ModuleDict({"vae": vae}), loss, steps=steps, learning_rate=2e-3, ema_decay=0.995, seed=seed
    )["vae"]
    vae = cast("AutoencoderKL", trained)
    vae.register_to_config(scaling_factor=1.0 / float(encode(vae, pixels, scale=1.0).std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, scale: float | None = None) -> Tensor:
    """Images (n, channels, side, side) in [-1, 1] to latents, at the autoencoder's own scale unless said."""
    factor = vae.config.scaling_factor if scale is None else scale
    return torch.cat([vae.encode(chunk).latent_dist.mode() * factor for chunk in pixels.split(512)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents back to images in [-1, 1]."""
    return torch.cat(
        [vae.decode(chunk / vae.config.scaling_factor).sample.clamp(-1, 1) for chunk in latents.split(512)]
    )
