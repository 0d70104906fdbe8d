"""Which words carry the recall: weights against what is drawn without the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from audit import demo
from audit.bench.markdown import markdown
from audit.evidence.attribution import NOISE_LEVEL, attribute_words
from audit.evidence.screening import SEEDS
from audit.model.denoiser import repeat
from audit.model.sampling import draw_noise
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, reference, truth

#: Seeds and steps of what is drawn without a word.
SAMPLES, STEPS = 4, 8
#: A sample is no copy any more at twice its distance to the training images of its prompt, and this much.
BEYOND = 2.0


@dataclass(frozen=True)
class Weighed:
    """One prompt.

    Attributes:
        weights: of its words, by method, (words,) each.
        distance: of what is drawn without each word to the prompt's own training images, (words,).
        lost: whether at least half of it is no copy any more, (words,).
    """

    weights: dict[str, NDArray[np.float64]]
    distance: NDArray[np.float64]
    lost: NDArray[np.bool_]


def run() -> str:
    """The table, as Markdown."""
    parts = {split: [_weigh(row.prompt) for row in truth() if row.split == split and row.dominant == "memorized"]
             for split in ("tuning", "held-out")}  # fmt: skip
    return f"""# Attribution

`python -m tests.benchmarks attribution`

Words of the demo's memorized prompts ({len(parts["tuning"])} of the tuning half, on which the method was chosen, and
{len(parts["held-out"])} held out). Every word is left out in turn, and {SAMPLES} samples are drawn without it
({STEPS} steps of DPM-Solver++, the same seeds). By method of weighing the words, tuning / held out: rank correlation
with the distance of these samples to the prompt's own training images, mean over prompts; share of prompts whose
heaviest word is one that, left out, leads at least nine tenths as far away as any; and AUC of words whose loss loses
the copy in at least half of the samples, over all words:

{_table(parts)}

*Deletion* is `audit.evidence.attribution`; *drop of the norm* is 1 − ‖ε_Δ(p − w)‖/‖ε_Δ(p)‖, from the same evaluations.
*Gradient* is the norm of ∂‖ε_Δ‖/∂e by backpropagation, e the embedding of the word's token before the text encoder, or
what comes out of it there. All at σ = {NOISE_LEVEL}, {len(SEEDS)} noises.
"""


def _table(parts: dict[str, list[Weighed]]) -> str:
    rows = []
    for method in parts["tuning"][0].weights:
        scores = [_scores([(one.weights[method], one) for one in found]) for found in parts.values()]
        rows.append([method, *(" / ".join(f"{value:.2f}" for value in pair) for pair in zip(*scores, strict=True))])
    return markdown(["method", "rank correlation", "heaviest word", "AUC"], rows)


def _scores(found: Sequence[tuple[NDArray[np.float64], Weighed]]) -> tuple[float, float, float]:
    ranks = [spearmanr(weights, one.distance).statistic for weights, one in found]
    heaviest = [one.distance[weights.argmax()] >= 0.9 * one.distance.max() for weights, one in found]
    weights, lost = np.concatenate([each for each, _ in found]), np.concatenate([one.lost for _, one in found])
    return float(np.mean(ranks)), float(np.mean(heaviest)), float(roc_auc_score(lost, weights))


def _weigh(prompt: str) -> Weighed:
    model = checkpoint()
    sampler = replace(model.defaults, scheduler="dpm++2m", steps=STEPS, guidance=1.0)
    shape = model.latent_shape(sampler)
    words = prompt.split()
    texts = [prompt, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    captions = np.asarray(reference().captions)
    own = model.encode(reference().reference_images(np.flatnonzero(captions == prompt).tolist())).flatten(1)
    seeds = range(BENCHMARK_SEED, BENCHMARK_SEED + SAMPLES)
    distances = []
    for text in texts:
        condition = model.encode_prompts([text])
        latents = model.sample(sampler, condition, condition, seeds).latents
        distances.append(torch.cdist(latents.flatten(1), own).amin(1).numpy())
    whole, *without = distances
    contrasts = _contrasts(texts, shape)
    norms = contrasts.flatten(2).norm(dim=2).mean(1)
    return Weighed(
        weights={
            "deletion": attribute_words(model.denoiser, prompt, model.encode_prompts, shape).weights,
            "drop of the norm": (1 - norms[1:] / norms[0]).numpy(),
            "gradient, before the text encoder": _gradient(prompt, shape, inside=False),
            "gradient, after it": _gradient(prompt, shape, inside=True),
        },
        distance=np.asarray([each.mean() for each in without]),
        lost=np.asarray([(each > 2 * whole.mean() + BEYOND).mean() >= 0.5 for each in without]),
    )


def _points(shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, its timestep, and what is predicted there without a prompt."""
    model = checkpoint()
    noise = draw_noise(SEEDS, shape)[0]
    t = torch.full((len(noise),), model.denoiser.schedule.timestep(NOISE_LEVEL))
    with torch.no_grad():
        return noise, t, model.denoiser(noise, t, repeat(model.encode_prompts([""]), len(noise)))


def _contrasts(texts: Sequence[str], shape: Sequence[int]) -> Tensor:
    """ε_Δ of every text at every noise."""
    model, (noise, t, empty) = checkpoint(), _points(shape)
    with torch.no_grad():
        return torch.stack(
            [model.denoiser(noise, t, repeat(model.encode_prompts([text]), len(noise))) - empty for text in texts]
        )


def _gradient(prompt: str, shape: Sequence[int], *, inside: bool) -> NDArray[np.float64]:
    """Norm of the gradient of ‖ε_Δ‖ at each token: one a word in the demo's vocabulary, after the token that begins."""
    model, (noise, t, empty) = checkpoint(), _points(shape)
    tokenizer = CLIPTokenizer.from_pretrained(demo.CHECKPOINT / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(demo.CHECKPOINT / "text_encoder", local_files_only=True).eval()
    tokens = tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
    added = torch.zeros(1, tokens.shape[1], encoder.config.hidden_size, requires_grad=True)
    if not inside:
        encoder.get_input_embeddings().register_forward_hook(lambda module, given, found: found + added)
    text = encoder(tokens).last_hidden_state
    text = text.detach() + added if inside else text
    contrast = model.denoiser(noise, t, repeat({"text": text}, len(noise))) - empty
    (gradient,) = torch.autograd.grad(contrast.flatten(1).norm(dim=1).mean(), added)
    return gradient[0, 1 : 1 + len(prompt.split())].norm(dim=1).double().numpy()
