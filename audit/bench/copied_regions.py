"""Maps of where a copy sits, against the half that is the same in all training images of a caption.

Captions of a ladder that are there to locate have a template: one half of all their images (`audit.phase.ladder`).
Every map is averaged over the same samples and compared with that half, at the latent's resolution: as a mask by Otsu's
threshold; as the cells over the median, which knows how large the copy is; and by AUC, which needs no threshold.

    error ratio   `audit.evidence.localization`
    last step     Σ_channels ε_Δ²/σ² at the last step of the trajectory (Kim & Lee, ICML 2026)
    diagonal      Σ_channels max(0, diag H_prompt − diag H_empty) at samples noised to that step (likewise)
    spread        −log of the variance over samples, which needs no evaluation

each as it is and with the mean over cells that touch. A template that the model did not learn cannot be found: how far
samples are from it is measured beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from audit.bench.detectors import kim_diagonal_map
from audit.evidence.localization import error_ratio, otsu, overlap, smooth
from audit.evidence.screening import measure_contrast
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.sampling import SamplerSettings, build_scheduler, draw_noise
from audit.phase.data import load_fashion_mnist
from audit.phase.ladder import Half, Ladder, Recipe, lay_out, template_mask
from audit.reference.images import to_float

#: Seeds of the samples, and of the noise that brings them back to the last step.
SEEDS = range(5_000_000, 5_000_008)
NOISE_SEED = 5_100_000
#: Samples that are farther from the template than this share of how much the other half varies do not copy it.
LEARNED = 0.75


@dataclass(frozen=True)
class Found:
    """How well one map finds one template.

    Attributes:
        caption: of the ladder.
        half: that all its images share.
        distance: root mean square distance of samples to the template, as a share of the spread of the other half
            among the training images.
        method: of the map.
        by_otsu: intersection over union of the cells over Otsu's threshold with the template.
        by_median: of those over the median.
        auc: of the cells of the template against the others.
    """

    caption: str
    half: Half
    distance: float
    method: str
    by_otsu: float
    by_median: float
    auc: float

    @property
    def learned(self) -> bool:
        """Whether samples copy the template at all."""
        return self.distance < LEARNED


def measure_ladder(folder: Path, seeds: Sequence[int] = SEEDS) -> list[Found]:
    """Every map on every caption of a ladder that is there to locate.

    Args:
        folder: written by `basin train ladder`, with its recipe.
        seeds: of the samples.

    Raises:
        FileNotFoundError: there is no recipe, or no data set to lay the ladder out from.
        BrokenCheckpoint: the checkpoint cannot be loaded.
    """
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
    checkpoint = load_checkpoint(folder / "checkpoint", name=folder.name)
    sampler = recipe.settings(checkpoint.defaults)
    return list(measure_captions(checkpoint, lay_out(recipe, load_fashion_mnist()), sampler, seeds))


def measure_captions(
    checkpoint: Checkpoint, ladder: Ladder, sampler: SamplerSettings, seeds: Sequence[int]
) -> Iterator[Found]:
    """As `measure_ladder`, of a ladder that is laid out.

    Args:
        checkpoint: trained on it.
        ladder: with captions to locate.
        sampler: that samples are drawn with.
        seeds: of the samples, two at least.
    """
    for index, half in ladder.templates.items():
        caption = ladder.captions[index]
        own = checkpoint.encode(to_float(ladder.images[ladder.owners == index][..., None]))
        mask = template_mask(half, tuple(own.shape[2:]))
        latents, maps = _maps(checkpoint, caption, sampler, seeds)
        distance = _distance(latents, own, torch.from_numpy(mask))
        for name, values in maps.items():
            for method, cells in ((name, values), (f"{name}, smooth", smooth(values))):
                found = cells.cpu().double().numpy()
                yield Found(
                    caption=caption,
                    half=half,
                    distance=distance,
                    method=method,
                    by_otsu=overlap(found > otsu(found), mask),
                    by_median=overlap(found > np.median(found), mask),
                    auc=_auc(found, mask),
                )


def _maps(
    checkpoint: Checkpoint, caption: str, sampler: SamplerSettings, seeds: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples of a caption, and every map of them, (height, width)."""
    denoiser = checkpoint.denoiser
    condition, empty = checkpoint.encode_prompts([caption]), checkpoint.encode_prompts([""])
    samples = checkpoint.sample(sampler, condition, empty, seeds)
    latents = samples.latents
    scheduler = build_scheduler(sampler.scheduler, checkpoint.scheduler_config)
    scheduler.set_timesteps(sampler.steps)
    last = int(scheduler.timesteps[-1])
    alpha, sigma = denoiser.schedule.at(torch.tensor([last]), latents)
    noise = draw_noise(range(NOISE_SEED, NOISE_SEED + len(latents)), latents.shape[1:])[0].to(latents)
    noised = alpha * latents + sigma * noise
    contrast = samples.contrast_map
    if contrast is None:  # without guidance the trajectory does not know the other branch
        with torch.inference_mode():
            found = measure_contrast(denoiser, noised, last, condition, empty)
        contrast = (found.difference / found.sigma).square().sum(1)
    return latents, {
        "error ratio": error_ratio(denoiser, latents, condition, empty),
        "last step": contrast.mean(0),
        "diagonal": kim_diagonal_map(denoiser, noised, last, condition, empty).mean(0),
        "spread": -latents.var(0).sum(0).clamp_min(1e-12).log(),
    }


def _distance(latents: Tensor, own: Tensor, mask: Tensor) -> float:
    """Of samples to the template, as a share of the spread of the other half among the training images."""
    template = own.mean(0)
    apart = (latents - template)[..., mask].square().mean().sqrt()
    return float(apart / (own - template)[..., ~mask].square().mean().sqrt())


def _auc(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    return float(roc_auc_score(mask.flatten(), values.flatten()))
