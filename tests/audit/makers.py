"""Small things made from scratch: noise schedules, point sets, random pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from audit import demo
from audit.model.denoiser import Schedule
from audit.model.empirical import EmpiricalDenoiser
from audit.phase.ladder import VOCABULARY
from audit.phase.networks import CONTEXT_LENGTH, build_tokenizer

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
