"""Images that already exist, inspected: samples and training images of the demo's held-out captions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.inspection import Inspection
from tests.benchmarks.common import checkpoint, reference, truth

#: Captions of each K, and the seed of their samples, which no inspection draws.
CAPTIONS, SEED = 2, 123_456
CLASSES = ("memorized", "spurious", "generalized", "none")


def run() -> str:
    """The table, as Markdown."""
    training = reference()
    auditor = Auditor(checkpoint(), training, demo.calibration())
    held_out = [row for row in truth() if row.split == "held-out"]
    foreign = next(row.prompt for row in held_out if row.images == 1)
    noise = np.random.default_rng(SEED).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    rows = []
    for images in sorted({row.images for row in held_out}):
        prompts = [row.prompt for row in held_out if row.images == images and row.prompt != foreign][:CAPTIONS]
        drawn = [_sample(auditor, prompt) for prompt in prompts]
        stored = [np.asarray(training.images[training.captions.index(prompt)]) for prompt in prompts]
        own = [auditor.inspect(image, prompt) for image, prompt in zip(drawn, prompts, strict=True)]
        trained = [auditor.inspect(image, prompt) for image, prompt in zip(stored, prompts, strict=True)]
        elsewhere = [auditor.inspect(image, foreign) for image in drawn]
        rough = [auditor.inspect(noise, prompt) for prompt in prompts]
        rows.append(
            [
                str(images),
                *(_classes(found) for found in (own, trained, elsewhere, rough)),
                _mean([found.smoothed.values[:, 0].mean() for found in own], ".2f"),
                *(_mean([one.basin.critical_time for one in found], ".0f") for found in (own, elsewhere)),
                _mean([found.cost.evaluations for found in own], ".0f"),
            ]
        )
    heads = [
        "K", "sample, own caption", "training image, own caption", "sample, a caption of K = 1", "noise",
        "trace", "back up to t", "of K = 1", "NFE",
    ]  # fmt: skip
    return f"""# Inspected images

`python -m tests.benchmarks inspections`: the classes that `Auditor.inspect` gives, against the complete training set,
on the demo's held-out captions ({CAPTIONS} of each K where there are as many, one sample each, seed {SEED:,}; the first
training image; the same samples under a foreign caption of K = 1; uniform noise). Beside them, means over the samples:
the smoothed trace at σ ≈ 0.35 and the critical time under the own caption, the critical time under the foreign one, and
denoiser evaluations. The truth of these captions is in the [model card](../../audit/demo/README.md).

{markdown(heads, rows)}
"""


def _sample(auditor: Auditor, prompt: str) -> torch.Tensor:
    model = auditor.checkpoint
    conditions = model.encode_prompts([prompt]), model.encode_prompts([""])
    return model.decode(model.sample(auditor.defaults, *conditions, [SEED]).latents)[0].clamp(-1, 1)


def _classes(found: list[Inspection]) -> str:
    counts = Counter("none" if one.verdict is None else str(one.verdict) for one in found)
    return ", ".join(f"{counts[name]} {name}" for name in CLASSES if counts[name])


def _mean(values: list[float], form: str) -> str:
    return format(float(np.mean(values)), form)
