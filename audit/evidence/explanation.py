"""What stands behind a verdict: the words that carry the recall, and where in the image it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from audit.evidence import attribution, localization
from audit.evidence.attribution import Attribution, attribute_words
from audit.evidence.localization import Localization, locate_recall
from audit.model.denoiser import Condition, Denoiser


@dataclass(frozen=True)
class Explanation:
    """Of one prompt.

    Attributes:
        attribution: the words and their weights.
        localization: the map.
        evaluations: of the denoiser that both took.
    """

    attribution: Attribution
    localization: Localization
    evaluations: int

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(np.isfinite(self.attribution.weights).all() and np.isfinite(self.localization.values).all())


def evaluations(prompt: str, samples: int) -> int:
    """What `explain_recall` takes."""
    return attribution.evaluations(prompt) + localization.evaluations(samples)


def explain_recall(
    denoiser: Denoiser, prompt: str, encode: Callable[[Sequence[str]], Condition], latents: Tensor
) -> Explanation:
    """Weigh the words of a prompt, and map where its samples recall something: `evaluations` in all.

    Args:
        denoiser: ε̂.
        prompt: of one word at least.
        encode: prompts to a condition of as many rows.
        latents: samples ẑ₀ of the prompt, (n, channels, height, width), one at least.
    """
    words = attribute_words(denoiser, prompt, encode, latents.shape[1:], device=latents.device, dtype=latents.dtype)
    places = locate_recall(denoiser, latents, encode([prompt]), encode([""]))
    return Explanation(words, places, evaluations(prompt, len(latents)))
