"""`basin phase run`: train, draw, measure, and tell the story. Whatever was done before is not done again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.errors import InvalidInput, NotFound
from audit.phase.architectures import SIDE_MULTIPLE, WIDTH_MULTIPLE
from audit.phase.data import load_data
from audit.phase.folder import RunFolder, read_arrays
from audit.phase.measure_sweep import classes_of, evidence_jobs, sampling_jobs
from audit.phase.one_model import ladder_jobs, load_ladder
from audit.phase.page import write_page
from audit.phase.similarity import embed, embedder
from audit.phase.space import open_space, prepare_autoencoder
from audit.phase.story import EXPECTED, Story, write_metrics
from audit.phase.sweep import Network, Sweep
from audit.phase.toy import load_toy, toy_jobs
from audit.phase.train_sweep import training_jobs
from audit.phase.transition import (
    Ordering,
    Thresholds,
    Transition,
    check_ordering,
    find_thresholds,
    measure_transitions,
)
from audit.phase.workers import default_devices, run_jobs
from audit.verdict.rule import CLASSES

#: What AlexNet's stages need.
LPIPS_SIDE = 32


def run_phase(
    sweep: Sweep,
    out: Path,
    *,
    source: Path | None = None,
    delta_m: float | None = None,
    delta_s: float | None = None,
    devices: Sequence[str] | None = None,
) -> Story:
    """Train and measure what a sweep says, and write the page.

    Work is done by processes of one thread each. They import the module that calls this, so a script needs
    `if __name__ == "__main__":` around the call; a notebook does not.

    Args:
        sweep: what to do, e.g. one of `audit.phase.sweep.PRESETS`.
        out: the run folder; a run of the same sweep on the same images goes on there.
        source: where the data set's files are; the usual places when None.
        delta_m: distance to a training image up to which a sample is memorized; found when None.
        delta_s: distance to another sample up to which it recurs; found when None.
        devices: one worker each; all GPUs, or else all cores, when None.

    Raises:
        InvalidInput: the sweep is impossible with these images, the folder holds something else, a threshold is no
            distance, or a network diverged.
        NotFound: the images, or what a distance needs, are not there.
    """
    for name, delta in (("delta_m", delta_m), ("delta_s", delta_s)):
        if delta is not None and not 0 <= delta < np.inf:
            raise InvalidInput(f"{name} must be a finite distance, not {delta}", reason="THRESHOLD_INVALID", field=name)
    source = None if source is None else source.resolve()
    devices = default_devices() if devices is None else devices
    try:
        images = load_data(sweep.data, source).images
    except FileNotFoundError as error:
        raise NotFound(str(error), reason="DATA_NOT_FOUND", field="data") from error
    except ValueError as error:
        raise InvalidInput(str(error), reason="DATA_UNREADABLE", field="data") from error
    check_sweep(sweep, images)
    embedder(sweep.distance)
    run, seconds = RunFolder(out.resolve()), {}
    run.claim(sweep, images)

    def timed(name: str, work: Any) -> None:
        start = time.monotonic()
        work()
        seconds[name] = time.monotonic() - start

    if any(series.space == "latent" for series in sweep.series):
        timed("autoencoder", lambda: prepare_autoencoder(run, sweep, source))
    jobs = [
        *training_jobs(run, sweep, source),
        *toy_jobs(run.path / "toy", sweep.seeds[0]),
        *ladder_jobs(run.path / "ladder"),
    ]
    timed("networks, circle and ladder", lambda: run_jobs("networks", jobs, devices))
    timed("samples", lambda: run_jobs("samples", sampling_jobs(run, sweep, source), devices))
    samples = {network: read_arrays(run.samples(network)) for network in sweep.networks}
    _check_samples(samples)
    thresholds = _thresholds(run, sweep, source, samples, delta_m, delta_s)
    timed("evidence", lambda: run_jobs("evidence", evidence_jobs(run, sweep, thresholds, source), devices))
    evidence = {network: read_arrays(run.evidence(network)) for network in sweep.networks}

    story = Story(
        run=run,
        sweep=sweep,
        source=source,
        thresholds=thresholds,
        transitions=_transitions(sweep, samples, thresholds),
        orderings={series.name: _orderings(sweep, series.name, evidence) for series in sweep.series},
        samples=samples,
        evidence=evidence,
        circles=load_toy(run.path / "toy"),
        ladder=load_ladder(run.path / "ladder"),
        seconds=seconds,
    )
    write_metrics(story)
    write_page(story)
    return story


def check_sweep(sweep: Sweep, images: NDArray[np.uint8]) -> None:
    """Refuse what cannot be trained.

    Raises:
        InvalidInput: too few images, or sides and widths that an architecture cannot take.
    """
    height, width = images.shape[1:3]
    if sweep.distance == "lpips" and min(height, width) < LPIPS_SIDE:
        raise InvalidInput(
            f"LPIPS needs images of at least {LPIPS_SIDE} pixels a side, not {height}×{width}; take another distance",
            reason="IMAGES_WRONG_SIZE",
            field="distance",
        )
    if sweep.sizes[-1] > len(images):
        raise InvalidInput(
            f"{sweep.data} has {len(images):,} images, fewer than K = {sweep.sizes[-1]:,}; leave out larger sizes",
            reason="TOO_FEW_IMAGES",
            field="sizes",
        )
    for series in sweep.series:
        shrink = 2 ** (len(sweep.autoencoder_widths) - 1) if series.space == "latent" else 1
        side = shrink * SIDE_MULTIPLE[series.architecture]
        if height % side or width % side:
            raise InvalidInput(
                f"{series.name} needs images whose sides are multiples of {side}, not {height}×{width}; crop them",
                reason="IMAGES_WRONG_SIZE",
                field="series",
            )
        multiple = WIDTH_MULTIPLE[series.architecture]
        if series.width % multiple:
            raise InvalidInput(
                f"the width of {series.name} must be a multiple of {multiple}",
                reason="WIDTH_IMPOSSIBLE",
                field="series",
            )


def _check_samples(samples: dict[Network, dict[str, NDArray[Any]]]) -> None:
    for network, found in samples.items():
        if not np.isfinite(found["latents"]).all():
            raise InvalidInput(
                f"{network.name} diverged; lower the learning rate of {network.series} and name another --out folder",
                reason="TRAINING_DIVERGED",
                field="series",
            )


def _thresholds(
    run: RunFolder,
    sweep: Sweep,
    source: Path | None,
    samples: dict[Network, dict[str, NDArray[Any]]],
    delta_m: float | None,
    delta_s: float | None,
) -> dict[str, Thresholds]:
    found: dict[str, Thresholds] = {}
    for kind in sorted({series.space for series in sweep.series}):
        own = [network for network in sweep.networks if sweep.series_named(network.series).space == kind]
        space = open_space(run.path, kind, sweep.data, source)
        found[kind] = find_thresholds(
            np.concatenate([samples[network]["reference_distance"] for network in own]),
            np.concatenate([samples[network]["sample_distance"] for network in own]),
            np.concatenate([np.full(sweep.samples, network.size == sweep.sizes[-1]) for network in own]),
            embed(space.images[:1], sweep.distance).shape[1],
            delta_m=delta_m,
            delta_s=delta_s,
        )
    return found


def _transitions(
    sweep: Sweep, samples: dict[Network, dict[str, NDArray[Any]]], thresholds: dict[str, Thresholds]
) -> dict[str, Transition]:
    def count(network: Network, space: str) -> NDArray[np.int64]:
        return np.bincount(classes_of(samples[network], thresholds[space]), minlength=len(CLASSES))

    counts = {
        series.name: np.asarray(
            [
                [count(Network(series=series.name, size=size, seed=seed), series.space) for size in sweep.sizes]
                for seed in sweep.seeds
            ]
        )
        for series in sweep.series
    }
    return measure_transitions(sweep.sizes, counts)


def _orderings(sweep: Sweep, series: str, evidence: dict[Network, dict[str, NDArray[Any]]]) -> list[Ordering]:
    own = [found for network, found in evidence.items() if network.series == series]
    classes = np.concatenate([found["class"] for found in own])
    networks = np.repeat(np.arange(len(own)), [len(found["class"]) for found in own])
    return [
        check_ordering(
            name,
            larger,
            CLASSES.index("generalized"),
            sign * np.concatenate([found[array] for found in own]).astype(np.float64),
            classes,
            networks,
        )
        for array, sign, name in EXPECTED
        for larger in (0, 1)
    ]
