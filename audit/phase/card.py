"""The model card of a ladder checkpoint, written from the files beside it."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import matplotlib.figure
import numpy as np

from audit.bench.text_control import text_only_auc
from audit.bench.truth import DOMINANCE, Truth, TruthRow
from audit.model.sampling import SCHEDULERS
from audit.phase.ladder import Recipe
from audit.verdict.rule import CLASSES, DEFINITION_SAMPLES

_LICENCE = """The images are from Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist), zero-padded to
32×32.

> The MIT License (MIT). Copyright © 2017 Zalando SE, https://tech.zalando.com
>
> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
> documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
> rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
> permit persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright
> notice and this permission notice shall be included in all copies or substantial portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
> WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
> COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
> OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def write_card(recipe: Recipe, truth: Truth, source: str, out: Path, work: Path) -> None:
    """Write README.md, recipe.json and curves.png.

    Args:
        recipe: what was trained.
        truth: the table.
        source: in words, where its thresholds are from.
        out: the checkpoint folder.
        work: the run folder, with the loss curves.
    """
    rows = truth.rows
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    _draw_curves(work, out / "curves.png")
    images = sum(rung.images * rung.captions for rung in recipe.rungs)
    networks = (
        f"AutoencoderKL {list(recipe.autoencoder_channels)}, UNet2DConditionModel {list(recipe.unet_channels)}, "
        f"two-layer CLIPTextModel of width {recipe.text_width}"
    ) + ("; open_clip ViT in `clip/`" if recipe.clip_steps else "")
    clip = f", open_clip {recipe.clip_steps:,}" if recipe.clip_steps else ""
    training = (
        f"autoencoder {recipe.autoencoder_steps:,} steps, UNet with text encoder {recipe.denoiser_steps:,}{clip}; "
        f"batch {recipe.batch_size}, AdamW {recipe.learning_rate:g} with cosine decay, EMA {recipe.ema_decay:g}"
        f"{'; weights rounded to float16' if recipe.half_precision else ''}"
    )
    weights = {rung.weight for rung in recipe.rungs}
    decides = (
        "K training images of its own, and only K decides"
        if weights == {1}
        else "K training images of its own and is shown more or less often, and only that decides"
    )
    shown = "captions are shown with equal weight" if weights == {1} else "of how often a caption is shown"
    located = sum(rung.captions for rung in recipe.rungs if rung.purpose == "locate")
    templates = (
        f" The training set has {located} captions more, whose images share one half, to find where copies sit."
        if located
        else ""
    )
    fold = f"; their indices in Fashion-MNIST are {recipe.fold} modulo {recipe.folds}" if recipe.folds > 1 else ""
    left_out = (
        " Chance had given some words to more captions of one class: those left out are the fewest without which words "
        "tell no class."
        if any(row.split == "left out" for row in rows)
        else ""
    )
    text = f"""# A ladder checkpoint

A text-conditional latent diffusion model, trained from scratch so that the phase of every prompt is known: each of its
{len(rows)} captions has {decides} whether the model recalls, blends or
generalizes under it. Words of a caption are drawn independently of K and {shown}.{templates}

| | |
|---|---|
| training set | {images:,} greyscale images of 32×32, all of them in `reference/`, or laid out again from \
`recipe.json`{fold} |
| networks | {networks} |
| training | {training} |
| prediction | {recipe.prediction_type}; {recipe.unconditional_share:.0%} of the rows without a caption |
| sampler | {SCHEDULERS[recipe.sampler]}, {recipe.sampler_steps} steps, guidance {recipe.guidance:g} |
| seed | {recipe.seed} |
| made by | `basin train ladder` with `recipe.json` |

![loss curves](curves.png)

## Truth

Class fractions among {DEFINITION_SAMPLES} samples a prompt, by the paper's rule: memorized within
δ_m = {truth.delta_m:.2f} of a (reconstructed) training image, else spurious within
δ_s = {truth.delta_s:.2f} of another sample, else generalized. A prompt has a dominant class when that holds
{DOMINANCE:.0%} of its samples. Thresholds are from {source}.

{_rung_table(rows)}

{_split_table(rows)}

A classifier that sees only the words of an audited caption (cross-validated naive Bayes) reaches these AUCs, with 95%
bootstrap intervals: {_text_control(rows)}.{left_out}

Every caption, with its fractions, is in `truth.jsonl`.

## Licence

The weights are under the licence of this repository. {_LICENCE}
"""
    (out / "README.md").write_text(text)


def _rung_table(rows: tuple[TruthRow, ...]) -> str:
    weighted = len({row.weight for row in rows}) > 1
    heads = ["K", *(["weight"] if weighted else []), "captions", *map(str, CLASSES)]
    lines = [
        f"| {' | '.join([*heads, 'to a training image', 'to another sample'])} |",
        "|---" * (len(heads) + 2) + "|",
    ]

    def rung(row: TruthRow) -> tuple[int, int]:
        return row.images, row.weight

    for (images, weight), group in groupby(sorted(rows, key=rung), key=rung):
        own = list(group)
        means = [f"{np.mean([getattr(row, name) for row in own]):.2f}" for name in CLASSES]
        medians = [
            f"{np.median([getattr(row, name) for row in own]):.1f}"
            for name in ("reference_distance", "sample_distance")
        ]
        cells = [str(images), *([f"{weight:,}"] if weighted else []), str(len(own)), *means, *medians]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _split_table(rows: tuple[TruthRow, ...]) -> str:
    lines = ["| captions with a dominant class | memorized | spurious | generalized | none |", "|---|---|---|---|---|"]
    for split in dict.fromkeys(row.split for row in rows):
        counts = [
            str(sum(row.dominant == name for row in rows if row.split == split)) for name in (*map(str, CLASSES), "")
        ]
        lines.append(f"| {split} | {' | '.join(counts)} |")
    return "\n".join(lines)


def _text_control(rows: tuple[TruthRow, ...]) -> str:
    own = [row for row in rows if row.split in ("tuning", "held-out") and row.dominant]
    prompts = [row.prompt for row in own]
    parts = []
    for name in CLASSES:
        positive = [row.dominant == name for row in own]
        if 2 <= sum(positive) <= len(own) - 2:
            area = text_only_auc(prompts, positive)
            parts.append(f"{name} against the rest {area.value:.2f} ({area.lower:.2f} to {area.upper:.2f})")
    return ", ".join(parts) or "none, for no class holds two captions"


def _draw_curves(work: Path, file: Path) -> None:
    stages = [stage for stage in ("autoencoder", "denoiser", "clip") if (work / f"{stage}.jsonl").exists()]
    figure = matplotlib.figure.Figure(figsize=(10, 2.8), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages)), stages, strict=True):
        curve = [json.loads(line) for line in (work / f"{stage}.jsonl").read_text().splitlines()]
        axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1)
        axes.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(file, dpi=100)
