"""What is measured of every network of a sweep: its samples and their neighbours, then evidence at some of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.basin import measure_basins
from audit.evidence.curvature import PointSpectrum, dense_spectra
from audit.evidence.energy import relative_energy
from audit.model.sampling import SamplerSettings, build_scheduler, sample
from audit.phase.folder import RunFolder, read_arrays, write_arrays
from audit.phase.similarity import embed, nearest
from audit.phase.space import Space, open_space
from audit.phase.sweep import Network, Sweep
from audit.phase.train_sweep import load_network, training_rows
from audit.phase.transition import Thresholds
from audit.phase.workers import Job, Report
from audit.reference.images import in_chunks
from audit.verdict.rule import CLASSES, classify_samples

#: Rows side by side in one call of a network.
ROWS = 1024
#: Seeds of the noise of basins, far above those of samples: noise that a sample was drawn from leads back to it.
BASIN_SEEDS = 2**48
#: Evaluations of one relative energy.
ENERGY_NODES = 128


def sampler_of(sweep: Sweep) -> SamplerSettings:
    """DDIM, without guidance."""
    return SamplerSettings(steps=sweep.sampler_steps, guidance=1.0)


def space_of(run: Path, sweep: Sweep, network: Network, source: Path | None) -> Space:
    """Where a network lives."""
    return open_space(run, sweep.series_named(network.series).space, sweep.data, source)


def sampling_jobs(run: RunFolder, sweep: Sweep, source: Path | None) -> list[Job]:
    """What is left to draw."""
    return [
        Job(network.name, sweep.series_named(network.series).width, partial(draw, run.path, sweep, network, source))
        for network in sweep.networks
        if not run.samples(network).is_file()
    ]


def draw(path: Path, sweep: Sweep, network: Network, source: Path | None, report: Report, device: str) -> None:
    """Draw N samples of a network and find their nearest training image and nearest other sample.

    Written are `latents` (float16, (N, *shape)), `reference_distance`, `reference_index` (of the data set),
    `sample_distance` and `sample_index`, each (N,).
    """
    space = space_of(path, sweep, network, source)
    denoiser = load_network(path, network, sweep, source).to(device)
    parts = []
    for part in in_chunks(sweep.samples, ROWS):
        parts.append(
            sample(
                denoiser,
                build_scheduler("", sweep.scheduler_config),
                sampler_of(sweep),
                {},
                {},
                range(network.seed * sweep.samples + part.start, network.seed * sweep.samples + part.stop),
                space.latents.shape[1:],
                device=device,
            ).latents.cpu()
        )
        report(part.stop / sweep.samples / 2)
    latents = torch.cat(parts)
    vectors = embed(space.decode(latents), sweep.distance)
    rows = training_rows(network.size, network.seed, len(space.images))
    reference_distance, reference_index = nearest(vectors, embed(space.images[rows], sweep.distance))
    sample_distance, sample_index = nearest(vectors)
    write_arrays(
        RunFolder(path).samples(network),
        {
            "latents": latents.half().numpy(),
            "reference_distance": reference_distance,
            "reference_index": rows.numpy()[reference_index],
            "sample_distance": sample_distance,
            "sample_index": sample_index,
        },
    )


def evidence_jobs(run: RunFolder, sweep: Sweep, thresholds: dict[str, Thresholds], source: Path | None) -> list[Job]:
    """What is left to measure, or was measured with other thresholds.

    Args:
        run: the folder.
        sweep: its configuration.
        thresholds: by the name of the space.
        source: where the data set's files are.
    """
    jobs = []
    for network in sweep.networks:
        series = sweep.series_named(network.series)
        deltas = thresholds[series.space]
        file = run.evidence(network)
        if file.is_file():
            found = read_arrays(file)
            if (float(found["delta_m"]), float(found["delta_s"])) == (deltas.delta_m, deltas.delta_s):
                continue
        jobs.append(Job(network.name, series.width, partial(measure, run.path, sweep, network, deltas, source)))
    return jobs


def classes_of(samples: dict[str, NDArray[np.generic]], thresholds: Thresholds) -> NDArray[np.int64]:
    """Class index of every sample that `draw` wrote."""
    return classify_samples(
        samples["reference_distance"], samples["sample_distance"], thresholds.delta_m, thresholds.delta_s
    )


def measure(
    path: Path,
    sweep: Sweep,
    network: Network,
    thresholds: Thresholds,
    source: Path | None,
    report: Report,
    device: str,
) -> None:
    """Basins, spectra and energies at the first samples of each class, spectra at the first training images.

    Written are, per sample, `index`, `class`, `critical_time`, `radius`, `log_volume`, `recovery`, `singular`, `trace`,
    `flat_share`, `curvature_volume`, `asymmetry`, `energy` and `energy_line` (relative to the mean of the data set,
    along the arc and along the line); the spectra again per training image, named `training_…`; and `timesteps`,
    `delta_m`, `delta_s`.
    """
    space = space_of(path, sweep, network, source)
    denoiser = load_network(path, network, sweep, source).to(device)
    samples = read_arrays(RunFolder(path).samples(network))
    classes = classes_of(samples, thresholds)
    index = np.concatenate([np.flatnonzero(classes == c)[: sweep.points] for c in range(len(CLASSES))])
    points = torch.from_numpy(samples["latents"][index]).float().to(device)
    t = denoiser.schedule.timestep(sweep.noise_level)

    own = torch.from_numpy(embed(space.decode(points.cpu()), sweep.distance))

    def recovered(ends: Tensor, which: Tensor) -> Tensor:
        apart = torch.from_numpy(embed(space.decode(ends.cpu()), sweep.distance)) - own[which]
        return apart.norm(dim=1) <= thresholds.delta_s

    basins = measure_basins(
        denoiser,
        partial(build_scheduler, "", sweep.scheduler_config),
        sampler_of(sweep),
        points,
        {},
        {},
        recovered,
        sweep.basin,
        seed=BASIN_SEEDS + network.seed,
        rows=ROWS,
    )
    report(0.4)
    spectra = dense_spectra(denoiser, points, t, {}, rows=2 * ROWS)
    report(0.7)
    rows = training_rows(network.size, network.seed, len(space.latents))[: sweep.points]
    training = dense_spectra(denoiser, space.latents[rows].to(device), t, {}, rows=2 * ROWS)
    report(0.9)
    center = space.latents.mean(0).to(device)
    energy = partial(relative_energy, denoiser, points, center, t, {}, nodes=ENERGY_NODES, rows=ROWS)
    write_arrays(
        RunFolder(path).evidence(network),
        {
            "index": index,
            "class": classes[index],
            "timesteps": basins.timesteps,
            "recovery": basins.recovery,
            "critical_time": basins.critical_time,
            "radius": basins.radius,
            "log_volume": basins.log_volume,
            **_columns(spectra, ""),
            **_columns(training, "training_"),
            "energy": energy(path="arc").numpy(),
            "energy_line": energy(path="line").numpy(),
            "delta_m": np.asarray(thresholds.delta_m),
            "delta_s": np.asarray(thresholds.delta_s),
        },
    )


def _columns(spectra: list[PointSpectrum], prefix: str) -> dict[str, NDArray[np.float64]]:
    return {
        f"{prefix}singular": np.stack([spectrum.singular for spectrum in spectra]),
        f"{prefix}trace": np.asarray([spectrum.trace for spectrum in spectra]),
        f"{prefix}flat_share": np.asarray([spectrum.flat_share for spectrum in spectra]),
        f"{prefix}curvature_volume": np.asarray([spectrum.log_volume for spectrum in spectra]),
        f"{prefix}asymmetry": np.asarray([spectrum.asymmetry for spectrum in spectra]),
    }
