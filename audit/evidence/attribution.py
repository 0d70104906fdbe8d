r"""Which words of a prompt carry its recall: what is lost of the contrast when a word is left out.

With ε_Δ(p) = ε̂(z, t, p) − ε̂(z, t, empty prompt) on pure noise z, as in `audit.evidence.screening`, and p − w the prompt
without its word w,

    weight(w) = E_z[1 − ⟨ε_Δ(p − w), ε_Δ(p)⟩ / ‖ε_Δ(p)‖²],

leave-one-out (Li, Monroe & Jurafsky 2016) on the contrast of Wen et al. (ICLR 2024): 0 where nothing of ε_Δ is lost, 1
where all of it is. The projection tells a prompt that now leads to another image from one that still leads to the same,
which the norm of ε_Δ(p − w) alone does not.

Wen et al. take the gradient of ‖ε_Δ‖ with respect to the tokens' embeddings. It needs a network that backpropagates, or
as many evaluations as this where it is taken by differences, and tells less. A step that small does not show what is
lost where ‖ε_Δ‖ is saturated; and what a text encoder gives at one token holds the words before it too, so that a
word's own place is not where its effect is. A prompt without the word asks what is meant, of any family of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from audit.evidence.screening import NOISE_LEVELS, SEEDS
from audit.model.denoiser import Condition, Denoiser, select
from audit.model.sampling import draw_noise
from audit.reference.images import in_chunks

#: How the words are weighed.
METHOD = "deletion"
#: σ/√(α² + σ²) of the noise level, near pure noise, where it is decided which image comes.
NOISE_LEVEL = NOISE_LEVELS[0]


@dataclass(frozen=True)
class Attribution:
    """How much of the recall each word carries.

    Attributes:
        words: of the prompt, in their order, as they stand between spaces.
        weights: share of the contrast that is lost without the word, (words,): 0 for none of it, 1 for all of it, under
            0 where the word holds the others back.
    """

    words: tuple[str, ...]
    weights: NDArray[np.float64]


def evaluations(prompt: str) -> int:
    """What `attribute_words` takes: the empty prompt, the whole one, and one without each word, at every noise."""
    return len(SEEDS) * (2 + len(prompt.split()))


@torch.inference_mode()
def attribute_words(
    denoiser: Denoiser,
    prompt: str,
    encode: Callable[[Sequence[str]], Condition],
    latent_shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    rows: int = 256,
) -> Attribution:
    """Weigh every word of a prompt: `evaluations` in all.

    Args:
        denoiser: ε̂.
        prompt: of one word at least.
        encode: prompts to a condition of as many rows.
        latent_shape: of one row.
        device: where latents live.
        dtype: of latents.
        rows: most rows in one call of the denoiser.
    """
    words = prompt.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    texts = ["", prompt, *without]
    conditions = encode(texts)
    noise = draw_noise(SEEDS, latent_shape)[0].to(device, dtype)
    timestep = denoiser.schedule.timestep_at_level(NOISE_LEVEL)
    noise = denoiser.schedule.pure_noise(noise, torch.tensor(timestep))
    found = []
    for part in in_chunks(len(texts) * len(noise), rows):
        index = torch.arange(part.start, part.stop)
        place, owner = index % len(noise), index // len(noise)
        times = torch.full((len(index),), timestep)
        predicted = denoiser(noise[place.to(noise.device)], times, select(conditions, owner))
        found.append(predicted.flatten(1).cpu().double())
    empty, whole, *rest = torch.cat(found).split(len(noise))
    contrast = whole - empty
    # A prompt that changes nothing has nothing to lose.
    size = contrast.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    weights = [float((((whole - other) * contrast).sum(1) / size).mean()) for other in rest]
    return Attribution(tuple(words), np.asarray(weights))
