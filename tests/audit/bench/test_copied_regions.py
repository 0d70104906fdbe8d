"""Maps of copies on a ladder whose model is the exact denoiser of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from audit.bench.copied_regions import Found, measure_captions, measure_ladder
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import SamplerSettings
from audit.phase.ladder import Half, Ladder, template_mask
from audit.reference.images import to_float
from tests.audit.makers import SCHEDULER_CONFIG, stable_diffusion_schedule

SIDE = 8
CAPTIONS = ("shared", "other")
SIZES = (40, 260)


def laid_out(half: Half) -> Ladder:
    """Forty images with one half in common, and many others."""
    rng = np.random.default_rng(1)
    images = rng.normal(128, 40, (sum(SIZES), SIDE, SIDE)).clip(0, 255).astype(np.uint8)
    mask = template_mask(half, (SIDE, SIDE))
    images[: SIZES[0], mask] = images[0, mask]
    return Ladder(
        captions=CAPTIONS,
        sizes=SIZES,
        weights=(1, 1),
        splits=("locate", "tuning"),
        templates={0: half},
        owners=np.repeat(np.arange(2), SIZES),
        images=images,
    )


def exact_checkpoint(ladder: Ladder) -> Checkpoint:
    """What a perfect training would give: the exact denoiser, whose latents are the pixels."""
    priors = torch.ones(3, sum(SIZES))
    priors[1, SIZES[0] :] = 0
    priors[2, : SIZES[0]] = 0
    denoiser = EmpiricalDenoiser(to_float(ladder.images[..., None]), priors, stable_diffusion_schedule())

    def encode_prompts(prompts: Sequence[str]) -> Condition:
        return {"prompt": torch.tensor([("", *CAPTIONS).index(prompt) for prompt in prompts])}

    return Checkpoint(
        name="exact",
        digest="",
        autoencoder="",
        family="",
        denoiser=denoiser,
        scheduler_config=SCHEDULER_CONFIG,
        defaults=SamplerSettings(height=SIDE, width=SIDE),
        size_factor=1,
        latent_channels=1,
        image_channels=1,
        device=torch.device("cpu"),
        dtype=torch.float32,
        encode_prompts=encode_prompts,
        decode=lambda latents: latents,
        encode=lambda images: images,
        parameters=0,
    )


@pytest.mark.parametrize(("half", "guidance"), [("left", 1.0), ("bottom", 1.5)])
def test_the_half_is_found_by_the_error_ratio(half: Half, guidance: float) -> None:
    """At 0.9 or more by either threshold; every map is scored, with guidance and without."""
    ladder = laid_out(half)
    sampler = SamplerSettings(height=SIDE, width=SIDE, steps=10, guidance=guidance)
    found = list(measure_captions(exact_checkpoint(ladder), ladder, sampler, range(4)))
    assert [one.method for one in found] == [
        name + kind for name in ("error ratio", "last step", "diagonal", "spread") for kind in ("", ", smooth")
    ]
    assert {(one.caption, one.half, one.learned) for one in found} == {("shared", half, True)}
    assert found[0].distance < 0.15
    best = next(one for one in found if one.method == "error ratio, smooth")
    assert min(best.by_otsu, best.by_median) >= 0.9
    assert best.auc >= 0.99
    for one in found:
        assert all(0 <= value <= 1 for value in (one.by_otsu, one.by_median, one.auc)), one


def test_a_template_that_is_not_copied_is_told() -> None:
    """A model of other images is far from it."""
    ladder = laid_out("top")
    other = ladder.model_copy(update={"images": ladder.images[::-1].copy()})
    sampler = SamplerSettings(height=SIDE, width=SIDE, steps=10, guidance=1.0)
    found: list[Found] = list(measure_captions(exact_checkpoint(other), ladder, sampler, range(2)))
    assert not any(one.learned for one in found)


def test_a_folder_needs_its_recipe(tmp_path: Path) -> None:
    """Templates are known from it alone."""
    with pytest.raises(FileNotFoundError):
        measure_ladder(tmp_path)
