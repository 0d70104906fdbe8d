"""Basin's trajectories against those of diffusers' own pipeline, on the same weights."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from audit.auditor import Auditor
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.sampling import SCHEDULERS, build_scheduler, draw_noise, sample
from tests.audit.makers import DIFFUSION, copy_demo, save_sd2_pipeline

PROMPT = "a cream linen coat for carnival from turin"
SEEDS = [0, 1, 5]


def assert_congruent(
    checkpoint: Checkpoint,
    pipeline: StableDiffusionPipeline,
    scheduler: str,
    guidance: float,
    *,
    negative: str = "",
    steps: int = 7,
    size: int | None = None,
) -> None:
    """The same seeds, steps and guidance give the same latents and images, to a relative 1e-4."""
    wanted = Auditor(checkpoint).resolve_sampler(
        scheduler=scheduler, steps=steps, guidance=guidance, negative_prompt=negative, height=size, width=size
    )
    ours = sample(
        checkpoint.denoiser,
        build_scheduler(scheduler, checkpoint.scheduler_config),
        wanted,
        checkpoint.encode_prompts([PROMPT]),
        checkpoint.encode_prompts([negative]),
        SEEDS,
        checkpoint.latent_shape(wanted),
    )
    own = pipeline.scheduler
    try:
        if scheduler:
            pipeline.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(own.config)
        start, generators = draw_noise(SEEDS, checkpoint.latent_shape(wanted))
        theirs = pipeline(
            [PROMPT] * len(SEEDS),
            negative_prompt=[negative] * len(SEEDS) if negative else None,
            height=wanted.height,
            width=wanted.width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=start,
            generator=generators,
            output_type="latent",
        ).images
    finally:
        pipeline.scheduler = own
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-4 * scale)
    with torch.no_grad():
        images = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(checkpoint.decode(ours.latents), images, rtol=0, atol=2e-3)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["", *DIFFUSION])
def test_trajectories_are_the_pipelines_own(
    checkpoint: Checkpoint, pipeline: StableDiffusionPipeline, scheduler: str, guidance: float
) -> None:
    """Every scheduler, with and without guidance, ends where StableDiffusionPipeline ends."""
    assert_congruent(checkpoint, pipeline, scheduler, guidance)


def test_negative_prompts_condition_the_other_branch(checkpoint: Checkpoint, pipeline: StableDiffusionPipeline) -> None:
    """A negative prompt does what it does in the pipeline, and changes the result."""
    assert_congruent(checkpoint, pipeline, "ddim", 4.0, negative="a black leather boot")
    condition = checkpoint.encode_prompts([PROMPT])
    wanted = Auditor(checkpoint).resolve_sampler(steps=3, guidance=4.0)
    plain, negative = (
        sample(
            checkpoint.denoiser,
            build_scheduler("", checkpoint.scheduler_config),
            wanted,
            condition,
            checkpoint.encode_prompts([other]),
            [0],
            (4, 8, 8),
        ).latents
        for other in ("", "a black leather boot")
    )
    assert not torch.equal(plain, negative)


@pytest.mark.parametrize("size", [8, 40])
def test_other_image_sizes(checkpoint: Checkpoint, pipeline: StableDiffusionPipeline, size: int) -> None:
    """Sizes other than the checkpoint's own are the pipeline's too."""
    assert_congruent(checkpoint, pipeline, "ddim", 1.0, size=size, steps=3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types(tmp_path: Path, kind: str, guidance: float) -> None:
    """The same UNet declared as another prediction type is stepped as the pipeline steps it."""
    folder = copy_demo(tmp_path / "copy", prediction_type=kind)
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = load_checkpoint(folder)
    assert ours.denoiser.prediction_type == kind
    for scheduler in ("", "euler", "dpm++2m"):
        assert_congruent(ours, theirs, scheduler, guidance, steps=5)


def test_a_pipeline_built_like_stable_diffusion_2(tmp_path: Path) -> None:
    """v-prediction, linear projections, a head size per level, three colour channels: loaded and stepped alike."""
    folder = save_sd2_pipeline(tmp_path / "sd2")
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = load_checkpoint(folder)
    assert (ours.image_channels, ours.size_factor, ours.defaults.height) == (3, 2, 16)
    assert ours.denoiser.prediction_type == "v_prediction"
    for scheduler in ("", "euler", "unipc"):
        for guidance in (1.0, 6.0):
            assert_congruent(ours, theirs, scheduler, guidance, steps=5)


def test_a_schedule_without_signal_at_its_end(tmp_path: Path) -> None:
    """Zero terminal SNR (v-prediction, trailing steps) is stepped as the pipeline steps it, and stays finite."""
    folder = save_sd2_pipeline(tmp_path / "zero", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = load_checkpoint(folder)
    assert float(ours.denoiser.schedule.alphas[-1]) == 0
    for scheduler in ("", "euler", "dpm++2m"):
        assert_congruent(ours, theirs, scheduler, 4.0, steps=5)
