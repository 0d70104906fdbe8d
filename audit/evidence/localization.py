r"""Where in the image a copy sits: how much better the prompt foretells each place than no prompt does.

A sample ẑ₀ is noised to x = αẑ₀ ± σε, and the network is asked for the noise under the prompt and under the empty one.
With the mean squared errors over channels at a cell of the latent, over both signs,

    e(c) = mean (ε̂(x, t, c) ∓ ε)²,        m = log (e(empty) + ρ)/(e(prompt) + ρ),

m is averaged over noise levels and samples, and over each cell with those that touch it. 0: the prompt tells nothing of
this place that the network does not know anyway; log 2: it halves the error. The difference of the errors, integrated
over noise levels, is the information that the prompt holds about the cell (Kong et al., ICLR 2024; Guo, Shamai & Verdú
2005); their ratio does not favour places that are hard to foretell whatever the prompt. A part that is the same in all
images of a prompt is known from the prompt alone, however much noise there is; where they differ, it helps little.

Kim & Lee's map (ICML 2026), Σ_channels ε_Δ²/σ² at the last step of the trajectory, comes free with guided sampling
(`Samples.contrast_map`): there the noise is so low that both branches see nearly all of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, concatenate, repeat
from audit.model.sampling import draw_noise
from audit.reference.images import in_chunks

#: How the map is made.
METHOD = "error-ratio"
#: σ/√(α² + σ²) of the noise levels.
NOISE_LEVELS = (0.7, 0.9)
#: Samples that the map is averaged over, at most.
SAMPLES = 8
#: First of the seeds of the noise: none that users are likely to audit with.
FIRST_SEED = 7_100_000_000
#: ρ. The noise itself has mean square 1.
RIDGE = 1e-3


@dataclass(frozen=True)
class Localization:
    """Where the prompt is recalled.

    Attributes:
        values: m of each cell of the latent, (height, width); 0 where the prompt tells nothing.
        threshold: Otsu's: cells over it are where the copy sits, if there is one.
        samples: that the map is averaged over.
    """

    values: NDArray[np.float64]
    threshold: float
    samples: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the copy sits, if there is one, (height, width)."""
        return self.values > self.threshold


def evaluations(samples: int) -> int:
    """What `locate_recall` takes: two branches, both signs of a noise, at every sample and level."""
    return 4 * len(NOISE_LEVELS) * min(samples, SAMPLES)


def locate_recall(
    denoiser: Denoiser, latents: Tensor, condition: Condition, unconditional: Condition, *, rows: int = 256
) -> Localization:
    """Map the recall: `evaluations` in all.

    Args:
        denoiser: ε̂.
        latents: samples ẑ₀ of the prompt, (n, channels, height, width), one at least; `SAMPLES` are looked at.
        condition: of the prompt, one row.
        unconditional: of the empty prompt, one row.
        rows: most rows in one call of the denoiser.
    """
    seen = latents[:SAMPLES]
    values = smooth(error_ratio(denoiser, seen, condition, unconditional, rows=rows)).numpy()
    return Localization(values, otsu(values), len(seen))


@torch.inference_mode()
def error_ratio(
    denoiser: Denoiser, latents: Tensor, condition: Condition, unconditional: Condition, *, rows: int = 256
) -> Tensor:
    """The map m averaged over noise levels and all samples, float64, (height, width); see `locate_recall`."""
    noise = draw_noise(range(FIRST_SEED, FIRST_SEED + len(latents)), latents.shape[1:])[0].to(latents)
    found = torch.zeros(latents.shape[2:], dtype=torch.float64)
    for level in NOISE_LEVELS:
        timestep = denoiser.schedule.timestep_at_level(level)
        for part in in_chunks(len(latents), max(1, rows // 4)):
            clean, added = latents[part].repeat(2, 1, 1, 1), torch.cat([noise[part], -noise[part]])
            n, t = len(added), torch.full((2 * len(added),), timestep)
            alpha, sigma = denoiser.schedule.at(t[:n], added)
            x = alpha * clean + sigma * added
            branches = concatenate([repeat(condition, n), repeat(unconditional, n)])
            wrong = denoiser(torch.cat([x, x]), t, branches) - torch.cat([added, added])
            # By branch, sign and sample.
            by_sign = wrong.cpu().double().square().mean(1).reshape(2, 2, n // 2, *found.shape)
            prompt, empty = by_sign.mean(1) + RIDGE
            found += (empty / prompt).log().sum(0)
    return found / (len(NOISE_LEVELS) * len(latents))


def smooth(values: Tensor) -> Tensor:
    """The mean over each cell of (height, width) and those that touch it; the border's are repeated outside."""
    padded = F.pad(values[None, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)[0, 0]


def otsu(values: ArrayLike) -> float:
    """The threshold that parts values so that the means of both parts are as far apart as they can be (Otsu 1979).

    It maximises n₁n₂(μ₁ − μ₂)², and lies half-way between the two values that it parts. Values that are all the same
    are not over it.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    n = len(ordered)
    if n < 2:
        return float(ordered[0])
    below, sums = np.arange(1, n), np.cumsum(ordered)
    apart = (sums[-1] - sums[:-1]) / (n - below) - sums[:-1] / below
    place = int(np.argmax(below * (n - below) * apart**2))
    return float(ordered[place] + ordered[place + 1]) / 2


def overlap(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 1 for two that are empty."""
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 1.0
