"""Truth on a ladder checkpoint: N samples a prompt, nearest distances, the paper's rule.

δ_m is the valley between copies and everything else. Distances between samples have no such valley on a ladder: as K
grows they go from copies through blends to new images without a gap. δ_s is therefore conformal: the distance that a
share `ORDINARY_RECURRENCE` of the samples of plain captions falls under. Both come from the tuning split alone where
there is one; on a ladder that is held out whole, δ_m is the valley over all of it, and δ_s is the captions' that are
there to calibrate with. Neither looks at a label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audit.bench.text_control import balanced
from audit.evidence.neighbors import NeighborFinder
from audit.evidence.stability import pairwise_distances
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import SamplerSettings
from audit.progress import progress_bar
from audit.reference.reference_set import ReferenceSet
from audit.verdict.rule import CLASSES, DEFINITION_SAMPLES, class_fractions, classify_samples, find_valley

#: Share of the samples that the dominant class must hold for a prompt to count in accuracies.
DOMINANCE = 0.6
#: Share of the samples of plain captions that count as recurring: the rate of false alarms that δ_s allows.
ORDINARY_RECURRENCE = 0.05
#: Rows per denoiser call.
ROWS = 128


@dataclass(frozen=True)
class Caption:
    """A prompt of a ladder.

    Attributes:
        prompt: the words.
        images: K, its number of training images.
        split: "tuning" or "held-out" when it is audited, "calibrate" when it is there to calibrate with, "left out"
            when nothing is done with it.
        weight: how often it was shown in training, relative to the others.
    """

    prompt: str
    images: int
    split: str
    weight: int = 1


@dataclass(frozen=True)
class Distances:
    """Nearest distances of a prompt's N samples.

    Attributes:
        reference: to the nearest reference image after reconstruction, (N,).
        original: to that image as it is stored, (N,).
        sample: to the nearest other sample, (N,).
    """

    reference: NDArray[np.float64]
    original: NDArray[np.float64]
    sample: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TruthRow(Caption):
    """One prompt of the truth table.

    Attributes:
        memorized: fraction among the N samples.
        spurious: likewise.
        generalized: likewise.
        dominant: the class that holds `DOMINANCE` of the samples, or "" when none does.
        reference_distance: median distance to the nearest training image, after reconstruction.
        original_distance: median distance to it as it is stored.
        sample_distance: median distance to the nearest other sample.
    """

    memorized: float
    spurious: float
    generalized: float
    dominant: str
    reference_distance: float
    original_distance: float
    sample_distance: float


@dataclass(frozen=True)
class Truth:
    """The table, with the thresholds that made it.

    Attributes:
        rows: one per prompt.
        delta_m: nearest reference distance up to which a sample is memorized.
        delta_s: nearest sample distance up to which it recurs.
        valley: whether δ_m is the valley of the distances, not the fallback.
    """

    rows: tuple[TruthRow, ...]
    delta_m: float
    delta_s: float
    valley: bool


def measure_distances(
    checkpoint: Checkpoint,
    reference: ReferenceSet,
    prompts: Sequence[str],
    sampler: SamplerSettings,
    work: Path,
    samples: int = DEFINITION_SAMPLES,
) -> list[Distances]:
    """Draw `samples` seeds under every prompt, from seed 0 on; a prompt that is done is never drawn again.

    Args:
        checkpoint: what is sampled.
        reference: its complete training set.
        prompts: all captions.
        sampler: the settings under audit.
        work: one file per prompt is kept here.
        samples: N.
    """
    work.mkdir(parents=True, exist_ok=True)
    finder = NeighborFinder(reference, checkpoint)
    unconditional = checkpoint.encode_prompts([sampler.negative_prompt])
    found = []
    with progress_bar() as bar:
        task = bar.add_task("truth", total=len(prompts), note="")
        for index, prompt in enumerate(prompts):
            file = work / f"{index:04d}.npz"
            if not file.exists():
                condition = checkpoint.encode_prompts([prompt])
                vectors, near, original = [], [], []
                for start in range(0, samples, ROWS):
                    seeds = range(start, min(start + ROWS, samples))
                    drawn = checkpoint.sample(sampler, condition, unconditional, seeds)
                    images = checkpoint.decode(drawn.latents).cpu()
                    neighbors = finder.find(images)
                    vectors.append(reference.vectors(images).numpy())
                    near.append(neighbors.distance)
                    original.append(neighbors.original_distance)
                between = pairwise_distances(np.concatenate(vectors))
                np.fill_diagonal(between, np.inf)
                partial = file.with_suffix(".tmp.npz")
                np.savez(
                    partial, reference=np.concatenate(near), original=np.concatenate(original), sample=between.min(1)
                )
                partial.replace(file)
            with np.load(file) as arrays:
                found.append(Distances(arrays["reference"], arrays["original"], arrays["sample"]))
            bar.advance(task)
    return found


def tabulate(captions: Sequence[Caption], distances: Sequence[Distances], fallback: float) -> Truth:
    """Apply the paper's rule, with thresholds from the captions that are not held out.

    Args:
        captions: the captions that were measured.
        distances: of each.
        fallback: δ_m where distances have a single peak: the ladder holds no transition, or the model was trained
            too little.
    """
    pairs = list(zip(captions, distances, strict=True))
    tuning = [own for caption, own in pairs if caption.split == "tuning"]
    largest = max(caption.images for caption in captions)
    plain = [own for caption, own in pairs if caption.split == "calibrate"] or [
        own for caption, own in pairs if caption.split == "tuning" and caption.images == largest
    ]
    delta_s = float(np.quantile(np.concatenate([own.sample for own in plain or tuning]), ORDINARY_RECURRENCE))
    valley = True
    try:
        delta_m = find_valley(np.concatenate([own.reference for own in tuning or distances]))
    except ValueError:
        delta_m, valley = fallback, False
    rows = []
    for caption, own in pairs:
        fractions = class_fractions(classify_samples(own.reference, own.sample, delta_m, delta_s))
        memorized, spurious, generalized = (round(float(f), 4) for f in fractions)
        rows.append(
            TruthRow(
                **asdict(caption),
                memorized=memorized,
                spurious=spurious,
                generalized=generalized,
                dominant=str(CLASSES[int(fractions.argmax())]) if fractions.max() >= DOMINANCE else "",
                reference_distance=round(float(np.median(own.reference)), 3),
                original_distance=round(float(np.median(own.original)), 3),
                sample_distance=round(float(np.median(own.sample)), 3),
            )
        )
    return Truth(tuple(rows), delta_m, delta_s, valley)


def leave_out_telling(truth: Truth) -> Truth:
    """The table with the fewest held-out captions left out that the words of the others tell no class: see `balanced`.

    Chance gives some words to more of the captions that are copied, and a detector could live by them. A table that is
    too small for that stays as it is; the model card says what words tell.
    """
    classed = [index for index, row in enumerate(truth.rows) if row.split == "held-out" and row.dominant]
    try:
        kept = balanced([truth.rows[i].prompt for i in classed], [truth.rows[i].dominant for i in classed])
    except ValueError:
        return truth
    gone = {index for index, keep in zip(classed, kept, strict=True) if not keep}
    rows = [replace(row, split="left out") if index in gone else row for index, row in enumerate(truth.rows)]
    return replace(truth, rows=tuple(rows))


def save_truth(truth: Truth, file: Path) -> None:
    """One JSON line per prompt."""
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in truth.rows))


def load_truth(file: Path) -> tuple[TruthRow, ...]:
    """What `save_truth` wrote."""
    return tuple(TruthRow(**json.loads(line)) for line in file.read_text().splitlines())


def save_distances(distances: Sequence[Distances], file: Path) -> None:
    """What the table counts, in half precision: `reference` and `sample`, each (captions, N)."""
    np.savez_compressed(
        file,
        reference=np.stack([own.reference for own in distances]).astype(np.float16),
        sample=np.stack([own.sample for own in distances]).astype(np.float16),
    )
