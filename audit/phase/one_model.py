"""The whole transition in one model: the ladder checkpoint that ships with Basin, caption by caption.

Every caption of it has K training images of its own (see its model card), so K is swept inside one network. Fractions
are those of its truth table; basins and curvature are measured here.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audit import demo
from audit.bench.truth import TruthRow, load_truth
from audit.evidence.basin import BasinSettings, measure_basins
from audit.evidence.curvature import CurvatureSettings, measure_curvature
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.sampling import build_scheduler
from audit.phase.folder import write_whole
from audit.phase.workers import Job, Report

#: Captions of each K that are measured, the first ones.
CAPTIONS = 2
#: Samples of a caption at which curvature is taken, and how many of them have their basin measured.
SAMPLES, BASINS = 4, 1
#: Seeds apart from those of the truth table.
FIRST_SEED = 1_000_000
#: σ of the curvature, as in an audit.
NOISE_LEVEL = 0.15
#: Floating-point operations of a caption, about.
WEIGHT = 2e11
#: Steps of the sampler between two noise levels of a basin.
LEVEL_STRIDE = 3


def truth() -> tuple[TruthRow, ...]:
    """The truth table of the checkpoint."""
    return load_truth(demo.FOLDER / "truth.jsonl")


def measured_captions() -> list[int]:
    """Rows of the truth table that are measured."""
    rows = truth()
    return [
        index for index, row in enumerate(rows) if sum(other.images == row.images for other in rows[:index]) < CAPTIONS
    ]


def ladder_jobs(folder: Path) -> list[Job]:
    """What is left to measure, one job per caption."""
    return [
        Job(f"caption {index}", WEIGHT, partial(measure_caption, folder, index))
        for index in measured_captions()
        if not (folder / f"{index:03d}.json").is_file()
    ]


def load_ladder(folder: Path) -> list[dict[str, float]]:
    """What `measure_caption` wrote, in the order of the truth table."""
    return [json.loads((folder / f"{index:03d}.json").read_text()) for index in measured_captions()]


@lru_cache(maxsize=1)
def _checkpoint(device: str) -> Checkpoint:
    return load_checkpoint(demo.CHECKPOINT, name="demo", device=device)


def measure_caption(folder: Path, index: int, report: Report, device: str) -> None:
    """Basins and curvature under one caption.

    Written are K as `images`, the `critical_time` and `log_volume` of the basin (means over its samples), and `trace`,
    `flat_share` and `curvature_volume` as in `audit.evidence.curvature.Spectrum`.
    """
    row, checkpoint, calibration = truth()[index], _checkpoint(device), demo.calibration()
    sampler = checkpoint.defaults
    condition, empty = checkpoint.encode_prompts([row.prompt]), checkpoint.encode_prompts([""])
    drawn = checkpoint.sample(sampler, condition, empty, range(FIRST_SEED, FIRST_SEED + SAMPLES)).latents
    report(0.05)
    spectrum = measure_curvature(
        checkpoint.denoiser,
        drawn,
        condition,
        empty,
        CurvatureSettings(samples=SAMPLES, noise_levels=(NOISE_LEVEL,), baseline=False),
    )[0].prompt
    report(0.2)
    points = drawn[:BASINS]
    images = checkpoint.decode(points)

    def recovered(ends: Tensor, which: Tensor) -> Tensor:
        return (checkpoint.decode(ends) - images[which]).flatten(1).norm(dim=1) <= calibration.delta_s

    basins = measure_basins(
        checkpoint.denoiser,
        partial(build_scheduler, sampler.scheduler, checkpoint.scheduler_config),
        sampler,
        points,
        condition,
        empty,
        recovered,
        BasinSettings(stride=LEVEL_STRIDE),
        seed=FIRST_SEED,
    )
    found = {
        "images": row.images,
        "critical_time": float(basins.critical_time.mean()),
        "log_volume": float(basins.log_volume.mean()),
        "trace": spectrum.trace,
        "flat_share": spectrum.flat_share,
        "curvature_volume": spectrum.log_volume,
    }
    write_whole(folder / f"{index:03d}.json", json.dumps(found) + "\n")


def rungs(values: list[dict[str, float]], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """K, and the mean of a quantity over the captions of each."""
    sizes = np.asarray([value["images"] for value in values], dtype=np.int64)
    numbers = np.asarray([value[name] for value in values], dtype=np.float64)
    unique = np.unique(sizes)
    return unique, np.asarray([numbers[sizes == size].mean() for size in unique])
