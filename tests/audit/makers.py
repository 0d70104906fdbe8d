"""Small things made from scratch: noise schedules, point sets, random pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from scipy.linalg import hadamard
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from audit import demo
from audit.model.denoiser import Condition, Denoiser, Schedule
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import FLOW_SCHEDULERS, SCHEDULERS
from audit.phase.ladder import VOCABULARY
from audit.phase.networks import CONTEXT_LENGTH, build_tokenizer

#: Names of the schedulers that step along a diffusion.
DIFFUSION = sorted(set(SCHEDULERS) - set(FLOW_SCHEDULERS))
#: Stable Diffusion's.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def stable_diffusion_schedule() -> Schedule:
    """α and σ of `SCHEDULER_CONFIG`."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return Schedule.from_alphas_cumprod((1 - betas).cumprod(0))


def timestep_of(schedule: Schedule, sigma: float) -> int:
    """The timestep whose σ is nearest."""
    return int((schedule.sigmas - sigma).abs().argmin())


def clusters(
    centers: int, members: int, width: float, *, dimension: int = 16, spread: float = 3.0, seed: int = 0
) -> Tensor:
    """Gaussian clusters of points, float64, (centers × members, dimension), centre by centre."""
    generator = torch.Generator().manual_seed(seed)
    middle = spread * torch.randn(centers, 1, dimension, generator=generator, dtype=torch.float64)
    around = width * torch.randn(centers, members, dimension, generator=generator, dtype=torch.float64)
    return (middle + around).reshape(-1, dimension)


def exact_denoiser(points: Tensor, priors: Tensor | None = None) -> EmpiricalDenoiser:
    """The exact denoiser of points, all of one prompt unless priors say otherwise."""
    return EmpiricalDenoiser(
        points, torch.ones(1, len(points)) if priors is None else priors, stable_diffusion_schedule()
    )


class SignPatterns(Denoiser):
    r"""The exact denoiser of d points in d dimensions, with the spectrum that one likes; an evaluation costs O(d√d).

    With h_k the rows of Sylvester's Hadamard matrix B and Q = BS/√d orthogonal, S random signs, the points are

        y_k = Q (√c ∘ h_k),   c = (1 − λ) σ²/α².

    They are equally far from 0, so that all weigh alike there, Cov_w(y) = Q diag(c) Qᵀ, and σ²H = I − (α²/σ²) Cov_w(y)
    has the eigenvalues λ. The first of them is 1, because the rows do not average to 0 in the first entry.

    Args:
        spectrum: λ ≤ 1, float64, (d,); d is a power of 4.
        sigma: σ of the noise level at which it is that.
        shape: of one latent.
        seed: of S.
    """

    prediction_type = "epsilon"

    def __init__(self, spectrum: Tensor, sigma: float, shape: tuple[int, ...], seed: int = 0) -> None:
        self.schedule = stable_diffusion_schedule()
        self.timestep = self.schedule.timestep(sigma)
        alpha, sigma = float(self.schedule.alphas[self.timestep]), float(self.schedule.sigmas[self.timestep])
        self.spectrum = torch.cat([torch.ones(1, dtype=torch.float64), spectrum[1:]])
        self.origin = torch.zeros(1, *shape, dtype=torch.float64)
        self._lengths = (1 - self.spectrum).sqrt() * sigma / alpha
        signs = torch.randint(0, 2, spectrum.shape, generator=torch.Generator().manual_seed(seed))
        self._signs = 2 * signs.double() - 1
        self._root = torch.from_numpy(hadamard(round(len(spectrum) ** 0.5))).double()

    @property
    def points(self) -> Tensor:
        """y, (d, *latent shape)."""
        rows = self._hadamard(torch.eye(len(self.spectrum), dtype=torch.float64))
        return self._turn(self._lengths * rows).reshape(-1, *self.origin.shape[1:])

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε̂ in closed form."""
        alpha, sigma = self.schedule.at(t, x.flatten(1))
        turned = self._signs.to(x) * self._hadamard(x.flatten(1)) / len(self.spectrum) ** 0.5
        weights = (alpha / sigma**2 * self._hadamard(self._lengths.to(x) * turned)).softmax(1)
        clean = self._turn(self._lengths.to(x) * self._hadamard(weights))
        return ((x.flatten(1) - alpha * clean) / sigma).reshape(x.shape)

    def _turn(self, x: Tensor) -> Tensor:
        """Qx of every row."""
        return self._hadamard(self._signs.to(x) * x) / len(self.spectrum) ** 0.5

    def _hadamard(self, x: Tensor) -> Tensor:
        """Bx of every row, where B of size r² is the Kronecker product of two of size r."""
        root = self._root.to(x)
        return (root @ x.reshape(len(x), *root.shape) @ root).reshape(x.shape)


def power_law(dimension: int, exponent: float, share: float) -> Tensor:
    """Eigenvalues of σ²H, descending, for Gaussian data whose variances fall as rank^−exponent.

    λ = 1/(1 + v), v the data's variance over the noise's; v = 9, which is λ = 0.1, at rank share · dimension.
    """
    ranks = torch.arange(dimension, 0, -1, dtype=torch.float64)
    return 1 / (1 + 9 * (ranks / (share * dimension)) ** -exponent)


def copy_demo(folder: Path, **scheduler: Any) -> Path:
    """The demo checkpoint, byte by byte, or with another scheduler configuration."""
    shutil.copytree(demo.CHECKPOINT, folder)
    if not scheduler:
        return folder
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **scheduler}))
    return folder


def save_sd2_pipeline(folder: Path, **scheduler: Any) -> Path:
    """A random pipeline built like Stable Diffusion 2: v-prediction, linear projections, head sizes per level."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(VOCABULARY)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_act="gelu",
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    settings = {**SCHEDULER_CONFIG, "prediction_type": "v_prediction", **scheduler}
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
