"""What is drawn and measured of the networks of a sweep, on a tiny one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.basin import BasinSettings, ball_log_volume
from audit.evidence.energy import relative_energy
from audit.model import sampling
from audit.model.sampling import build_scheduler, sample
from audit.phase import measure_sweep
from audit.phase.folder import RunFolder, read_arrays, write_arrays
from audit.phase.measure_sweep import (
    ENERGY_NODES,
    classes_of,
    draw,
    evidence_jobs,
    measure,
    sampler_of,
    sampling_jobs,
)
from audit.phase.space import open_space, prepare_autoencoder
from audit.phase.sweep import Network, Series, Sweep
from audit.phase.train_sweep import load_network, training_jobs, training_rows
from audit.phase.transition import Thresholds

N, POINTS = 32, 2
PIXEL = Series(architecture="mlp", width=16, learning_rate=3e-3)
LATENT = Series(architecture="unet", width=8, space="latent", learning_rate=1e-3)
SWEEP = Sweep(
    data="digits",
    sizes=(2, 4, 8),
    series=(PIXEL, LATENT),
    seeds=(1,),
    steps=20,
    batch_size=16,
    ema_decay=0.5,
    autoencoder_widths=(8, 16),
    autoencoder_steps=60,
    samples=N,
    sampler_steps=6,
    points=POINTS,
    basin=BasinSettings(trials=2, share=0.5, stride=3),
)
SPACES = {"pixel": (1, 8, 8), "latent": (4, 4, 4)}


def quiet(share: float) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained sweep whose samples are drawn."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    prepare_autoencoder(folder, SWEEP, None)
    for job in [*training_jobs(folder, SWEEP, None), *sampling_jobs(folder, SWEEP, None)]:
        job.function(quiet, "cpu")
    return folder


def network_of(series: Series, size: int = 4) -> Network:
    """One network of `SWEEP`."""
    return Network(series=series.name, size=size, seed=1)


def thresholds_of(samples: dict[str, NDArray[Any]]) -> Thresholds:
    """Thresholds that call a quarter of the samples memorized, and half of the others spurious."""
    delta_m = float(np.quantile(samples["reference_distance"], 0.25))
    others = samples["sample_distance"][samples["reference_distance"] > delta_m]
    return Thresholds(delta_m, float(np.quantile(others, 0.5)), "given", "given")


def brute(vectors: NDArray[Any], among: NDArray[Any]) -> NDArray[np.float64]:
    """All distances, in double precision."""
    return np.linalg.norm(vectors.astype(np.float64)[:, None] - among.astype(np.float64)[None], axis=2)


@pytest.mark.parametrize("series", [PIXEL, LATENT])
@pytest.mark.parametrize("size", [2, 8])
def test_samples_are_written_with_their_nearest_neighbours(run: RunFolder, series: Series, size: int) -> None:
    """In the documented arrays and shapes; distances are those of brute force, among the network's own images."""
    network = network_of(series, size)
    found = read_arrays(run.samples(network))
    assert {name: array.shape for name, array in found.items()} == {
        "latents": (N, *SPACES[series.space]),
        **dict.fromkeys(["reference_distance", "reference_index", "sample_distance", "sample_index"], (N,)),
    }
    assert found["latents"].dtype == np.float16
    space = open_space(run.path, series.space, "digits", None)
    vectors = space.decode(torch.from_numpy(found["latents"]).float()).flatten(1).numpy()
    rows = training_rows(size, 1, 1797).numpy()
    every = brute(vectors, space.images[rows].flatten(1).numpy())
    among = brute(vectors, vectors)
    np.fill_diagonal(among, np.inf)
    # Latents are kept in half precision; neighbours differ by much more.
    atol = 2e-3
    assert np.ptp(found["sample_distance"]) > 10 * atol
    assert np.ptp(found["reference_distance"]) > 10 * atol
    np.testing.assert_allclose(found["reference_distance"], every.min(1), atol=atol)
    np.testing.assert_allclose(found["sample_distance"], among.min(1), atol=atol)
    assert set(found["reference_index"]) <= set(rows)
    place = [rows.tolist().index(index) for index in found["reference_index"]]
    np.testing.assert_allclose(every[np.arange(N), place], every.min(1), atol=atol)
    assert (found["sample_index"] != np.arange(N)).all()
    np.testing.assert_allclose(among[np.arange(N), found["sample_index"]], among.min(1), atol=atol)


def test_a_sample_is_the_one_of_its_own_seed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed × N + place, by the averaged network and DDIM without guidance, in however large batches."""
    network = network_of(PIXEL)
    denoiser = load_network(run.path, network, SWEEP)
    expected = sample(
        denoiser, build_scheduler("", SWEEP.scheduler_config), sampler_of(SWEEP), {}, {}, [N + 5, N + 31], (1, 8, 8)
    )  # fmt: skip
    before = read_arrays(run.samples(network))
    np.testing.assert_allclose(before["latents"][[5, 31]], expected.latents.numpy(), atol=2e-3)
    copy = RunFolder(run.path / "copy")
    copy.weights(network).parent.mkdir(parents=True)
    copy.weights(network).write_bytes(run.weights(network).read_bytes())
    monkeypatch.setattr(measure_sweep, "ROWS", 7)
    shares: list[float] = []
    draw(copy.path, SWEEP, network, None, shares.append, "cpu")
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    for name, array in read_arrays(copy.samples(network)).items():
        np.testing.assert_allclose(array, before[name], rtol=1e-3, atol=2e-3)


def test_sampling_jobs_are_what_is_left_to_draw(run: RunFolder, tmp_path: Path) -> None:
    """All networks at first, none at the end, wide ones first."""
    jobs = sampling_jobs(RunFolder(tmp_path), SWEEP, None)
    assert [job.name for job in jobs] == [network.name for network in SWEEP.networks]
    assert {job.weight for job in jobs} == {16, 8}
    assert sampling_jobs(run, SWEEP, None) == []


@pytest.mark.parametrize("series", [PIXEL, LATENT])
def test_evidence_is_written_in_the_documented_arrays(run: RunFolder, series: Series) -> None:
    """Per sample and per training image; of each class the first samples."""
    network = network_of(series)
    samples = read_arrays(run.samples(network))
    thresholds = thresholds_of(samples)
    shares: list[float] = []
    measure(run.path, SWEEP, network, thresholds, None, shares.append, "cpu")
    assert shares == sorted(shares)
    found = read_arrays(run.evidence(network))
    d, n, levels = 64, 3 * POINTS, 2
    columns = ["trace", "flat_share", "curvature_volume", "asymmetry"]
    assert {name: array.shape for name, array in found.items()} == {
        **dict.fromkeys(["index", "class", "critical_time", "radius", "log_volume", *columns], (n,)),
        **dict.fromkeys(["energy", "energy_line"], (n,)),
        "timesteps": (levels,),
        "recovery": (n, levels),
        "singular": (n, d),
        "training_singular": (POINTS, d),
        **{f"training_{name}": (POINTS,) for name in columns},
        "delta_m": (),
        "delta_s": (),
    }
    classes = classes_of(samples, thresholds)
    assert found["class"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (classes[found["index"]] == found["class"]).all()
    for index in range(3):
        assert found["index"][found["class"] == index].tolist() == np.flatnonzero(classes == index)[:POINTS].tolist()
    assert (float(found["delta_m"]), float(found["delta_s"])) == (thresholds.delta_m, thresholds.delta_s)

    # Numbers fit each other: a trace is no more than the singular values allow, a volume is that of a ball.
    assert (found["trace"] <= found["singular"].mean(1) + 1e-9).all()
    assert (np.diff(found["singular"], axis=1) <= 0).all()
    np.testing.assert_allclose(found["log_volume"], ball_log_volume(found["radius"], d))
    assert set(found["critical_time"]) <= {0, *found["timesteps"]}
    assert (np.diff(found["timesteps"]) > 0).all()
    first = found["recovery"][:, 0]
    assert (found["critical_time"][first < 0.5] == 0).all()
    assert (first[found["critical_time"] > 0] >= 0.5).all()

    # Energies are those of the network, at the samples, from the mean of all images.
    denoiser = load_network(run.path, network, SWEEP)
    t = int((denoiser.schedule.sigmas - SWEEP.noise_level).abs().argmin())
    points = torch.from_numpy(samples["latents"][found["index"]]).float()
    center = open_space(run.path, series.space, "digits", None).latents.mean(0)
    for name, path in (("energy", "arc"), ("energy_line", "line")):
        energy = relative_energy(denoiser, points, center, t, {}, path=path, nodes=ENERGY_NODES)
        np.testing.assert_allclose(found[name], energy.numpy(), rtol=1e-3, atol=1e-3)


def test_recovery_is_taken_between_decoded_images(run: RunFolder) -> None:
    """By δ_s, however far latents move: by hand at the lowest level, and at thresholds that allow all and nothing."""
    network, count, trials = network_of(LATENT), 6, 4
    sweep = SWEEP.model_copy(update={"points": count, "basin": BasinSettings(trials, 0.5, stride=3)})
    points = torch.from_numpy(read_arrays(run.samples(network))["latents"][:count]).float()
    first = measure_sweep.BASIN_SEEDS + network.seed
    ends = sampling.sample_from(
        load_network(run.path, network, sweep), build_scheduler("", sweep.scheduler_config), sampler_of(sweep), {}, {},
        points.repeat_interleave(trials, 0), sweep.sampler_steps - 1, range(first, first + count * trials),
    )  # fmt: skip
    decode = open_space(run.path, "latent", "digits", None).decode
    moved = (decode(ends) - decode(points).repeat_interleave(trials, 0)).flatten(1).norm(dim=1)
    middle = (float(moved.sort().values[11]) + float(moved.sort().values[12])) / 2
    by_hand = (moved <= middle).reshape(count, trials).double().mean(1).numpy()
    assert 0 < by_hand.min() + by_hand.std() < 1
    for delta_s, expected in ((middle, by_hand), (1e9, np.ones(count)), (0.0, np.zeros(count))):
        # All samples are memorized: the first ones are measured.
        measure(run.path, sweep, network, Thresholds(1e9, delta_s, "given", "given"), None, quiet, "cpu")
        found = read_arrays(run.evidence(network))
        assert found["index"].tolist() == list(range(count))
        assert found["recovery"][:, 0].tolist() == expected.tolist()
        if delta_s != middle:
            assert (found["critical_time"] == (found["timesteps"][-1] if delta_s else 0)).all()


@pytest.mark.parametrize("series", [PIXEL, LATENT])
def test_a_class_without_samples_has_no_evidence(run: RunFolder, series: Series) -> None:
    """All samples are memorized where any distance is near enough."""
    network = network_of(series, 2)
    measure(run.path, SWEEP, network, Thresholds(1e9, 1.0, "given", "given"), None, quiet, "cpu")
    found = read_arrays(run.evidence(network))
    assert found["class"].tolist() == [0] * POINTS
    assert found["index"].tolist() == list(range(POINTS))
    assert found["singular"].shape == (POINTS, 64)


def test_noise_of_basins_is_none_that_a_sample_was_drawn_from(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lead back to the sample: no seed is used for both, not even where seeds are small."""
    seen: list[int] = []
    real = sampling.draw_noise

    def listen(seeds: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
        seen.extend(seeds)
        return real(seeds, shape)

    monkeypatch.setattr(sampling, "draw_noise", listen)
    network = network_of(PIXEL).model_copy(update={"seed": 0})
    copy = RunFolder(tmp_path)
    copy.weights(network).parent.mkdir(parents=True)
    copy.weights(network).write_bytes(run.weights(network_of(PIXEL)).read_bytes())
    draw(tmp_path, SWEEP, network, None, quiet, "cpu")
    drawn, seen[:] = set(seen), []
    assert drawn == set(range(N))
    samples = read_arrays(copy.samples(network))
    measure(tmp_path, SWEEP, network, thresholds_of(samples), None, quiet, "cpu")
    assert seen
    assert not drawn & set(seen)


def test_evidence_is_measured_again_when_thresholds_change_and_only_then(tmp_path: Path) -> None:
    """Those of a network's own space count; a file that holds the same ones is left alone."""
    run = RunFolder(tmp_path)
    thresholds = {"pixel": Thresholds(1.5, 0.5, "valley", "given"), "latent": Thresholds(0.1, 0.2, "valley", "valley")}
    names = [network.name for network in SWEEP.networks]
    assert [job.name for job in evidence_jobs(run, SWEEP, thresholds, None)] == names
    for network in SWEEP.networks:
        deltas = thresholds[SWEEP.series_named(network.series).space]
        write_arrays(
            run.evidence(network), {"delta_m": np.asarray(deltas.delta_m), "delta_s": np.asarray(deltas.delta_s)}
        )
    assert evidence_jobs(run, SWEEP, thresholds, None) == []
    # Where a number comes from does not change what is measured with it.
    told = {kind: replace(found, source_m="given") for kind, found in thresholds.items()}
    assert evidence_jobs(run, SWEEP, told, None) == []
    for change in ({"delta_m": 1.6}, {"delta_s": np.nextafter(0.5, 1)}):
        other = {**thresholds, "pixel": replace(thresholds["pixel"], **change)}
        left = evidence_jobs(run, SWEEP, other, None)
        assert [job.name for job in left] == names[:3]
        assert {job.weight for job in left} == {16}
    run.evidence(SWEEP.networks[4]).unlink()
    assert [job.name for job in evidence_jobs(run, SWEEP, thresholds, None)] == [names[4]]


def test_evidence_that_was_measured_is_recognized(run: RunFolder) -> None:
    """What `measure` writes down of its thresholds is what `evidence_jobs` looks for."""
    network = network_of(PIXEL, 8)
    deltas = thresholds_of(read_arrays(run.samples(network)))
    jobs = evidence_jobs(run, SWEEP, {"pixel": deltas, "latent": deltas}, None)
    (job,) = [job for job in jobs if job.name == network.name]
    job.function(quiet, "cpu")
    left = evidence_jobs(run, SWEEP, {"pixel": deltas, "latent": deltas}, None)
    assert network.name not in [job.name for job in left]
    assert len(left) == len(jobs) - 1
