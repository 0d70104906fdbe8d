"""Training the networks of a sweep: what they learn, and that nothing but the sweep decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from audit.model.denoiser import PredictionType
from audit.model.empirical import EmpiricalDenoiser
from audit.phase import training
from audit.phase.architectures import Architecture, Fleet, ResidualMLP, build_network, forward_flops
from audit.phase.folder import RunFolder
from audit.phase.space import open_space
from audit.phase.sweep import PRESETS, Network, Series, Sweep
from audit.phase.train_sweep import (
    FLEET,
    NetworkDenoiser,
    fleet_name,
    fleets,
    load_network,
    schedule_of,
    train_fleet,
    train_on,
    training_jobs,
    training_rows,
)
from audit.phase.training import fit
from audit.phase.workers import run_jobs

SWEEP = Sweep(
    data="digits",
    sizes=(2, 4, 8),
    series=(
        Series(architecture="mlp", width=16, learning_rate=3e-3),
        Series(architecture="unet", width=8, learning_rate=1e-3),
    ),
    seeds=(0, 1),
    steps=6,
    batch_size=8,
    ema_decay=0.9,
)
ALPHA_BARS = schedule_of(SWEEP)


class Killed(Exception):
    """Stands for a kill."""


def quiet(share: float) -> None:
    """A report that nobody reads."""


def settings(**changes: Any) -> dict[str, Any]:
    """Arguments of `train_on`."""
    return {
        "prediction_type": "sample",
        "steps": 12,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "weight_decay": 0.01,
        "seed": 3,
        "name": "fleet",
        "report": quiet,
        **changes,
    }  # fmt: skip


def fleet_of(count: int, architecture: Architecture = "mlp", width: int = 16) -> Fleet:
    """Fresh networks on rows of 1×8×8, in training mode."""
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        networks.append(build_network(architecture, width, (1, 8, 8)))
    return Fleet(networks)


def sets_of(count: int) -> list[Tensor]:
    """Training sets that differ in size."""
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(index + 1, 1, 8, 8, generator=generator).clamp(-1, 1) for index in range(count)]


def assert_equal_weights(one: Fleet, other: Fleet) -> None:
    """Up to rounding."""
    for before, after in zip(one.stacked, other.stacked, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


# Which images.


@given(total=st.integers(1, 300), seed=st.integers(0, 2**31 - 1), data=st.data())
def test_training_sets_nest_and_depend_on_the_seed_alone(total: int, seed: int, data: st.DataObject) -> None:
    """The first K of one permutation, whatever was drawn before."""
    small, large = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    rows = training_rows(large, seed, total)
    torch.rand(3)
    assert torch.equal(training_rows(small, seed, total), rows[:small])
    assert len(rows.unique()) == len(rows) == large
    assert sorted(training_rows(total, seed, total).tolist()) == list(range(total))


def test_seeds_train_on_other_images() -> None:
    """Of 1,797 images, two sets of 100 share a few at most."""
    assert len(set(training_rows(100, 0, 1797).tolist()) & set(training_rows(100, 1, 1797).tolist())) < 20


# What is trained together.


@pytest.mark.parametrize("name", PRESETS)
def test_every_network_is_trained_once_with_others_of_its_series(name: str) -> None:
    """In fleets of at most `FLEET`, under names of their own."""
    sweep = PRESETS[name]
    found = fleets(sweep)
    assert tuple(network for fleet in found for network in fleet) == sweep.networks
    for fleet in found:
        (series,) = {network.series for network in fleet}
        assert 1 <= len(fleet) <= FLEET[sweep.series_named(series).architecture]
    assert len({fleet_name(fleet) for fleet in found}) == len(found)
    assert not any("/" in fleet_name(fleet) for fleet in found)


# What is learnt.


def relative_error(network: NetworkDenoiser, points: Tensor, sigma: float) -> float:
    """‖ε̂ − exact ε̂‖/‖exact ε̂‖ where the noise of σ takes the points."""
    exact = EmpiricalDenoiser(points, torch.ones(1, len(points)), network.schedule)
    level = int((network.schedule.sigmas - sigma).abs().argmin())
    generator = torch.Generator().manual_seed(1)
    t = torch.full((1000,), level)
    clean = points[torch.randint(len(points), (1000,), generator=generator)]
    alpha, noise_level = network.schedule.at(t, clean)
    x = alpha * clean + noise_level * torch.randn(clean.shape, generator=generator)
    with torch.inference_mode():
        own, right = network(x, t, {}), exact(x, t, {"prompt": 0 * t})
    return float((own - right).norm() / right.norm())


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_networks_learn_the_exact_denoisers_of_their_own_points(
    tmp_path: Path, prediction_type: PredictionType
) -> None:
    """Of one point and of two, side by side, whatever is predicted: ε̂ within a tenth at high and middle noise."""
    sets = [torch.tensor([[0.8, -0.4]]), torch.tensor([[-0.9, 0.3], [0.7, 0.6]])]
    torch.manual_seed(0)
    trained = train_on(
        Fleet([ResidualMLP(64, (2,)) for _ in sets]), sets, ALPHA_BARS, folder=tmp_path,
        **settings(prediction_type=prediction_type, steps=600, batch_size=128, ema_decay=0.98, weight_decay=0.0),
    )  # fmt: skip
    for index, points in enumerate(sets):
        network = ResidualMLP(64, (2,)).eval().requires_grad_(False)
        network.load_state_dict(trained.weights(index))
        denoiser = NetworkDenoiser(network, ALPHA_BARS, prediction_type)
        for sigma in (0.9, 0.7, 0.5):
            assert relative_error(denoiser, points, sigma) < 0.1, (index, sigma)
        # What it learnt is not what the other one did.
        assert relative_error(denoiser, sets[1 - index], 0.5) > 0.4
    last = json.loads((tmp_path / "fleet.jsonl").read_text().splitlines()[-1])["loss"]
    if prediction_type == "sample":  # one point is all there is to know, two are not told apart in noise
        assert last[0] < 0.01 < last[1]


# Losses, kills, composition.


def test_the_loss_curve_has_an_entry_for_every_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, each the mean over the steps since the last; a fleet of one has a list of one."""
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    for count in (1, 3):
        folder = tmp_path / str(count)
        train_on(fleet_of(count), sets_of(count), ALPHA_BARS, folder=folder, **settings())
        lines = [json.loads(line) for line in (folder / "fleet.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [5, 10, 12]
        assert [len(line["loss"]) for line in lines] == [count] * 3


@pytest.mark.parametrize(
    ("architecture", "width", "count", "kills"), [("mlp", 16, 3, [5]), ("mlp", 16, 3, [7, 4]), ("ddpm", 8, 1, [7])]
)
def test_a_fleet_that_was_killed_ends_like_one_that_was_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: Architecture,
    width: int,
    count: int,
    kills: list[int],
) -> None:
    """The same weights and the same curve, with dropout too; the share that is done starts where the kill was."""
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    monkeypatch.setitem(fit.__kwdefaults__, "checkpoint_seconds", 0.0)
    whole = train_on(fleet_of(count, architecture, width), sets_of(count), ALPHA_BARS, folder=tmp_path, **settings())
    shares: list[float] = []
    for kill_at in [*kills, None]:
        start = len(shares)

        def report(share: float, start: int = start, kill_at: int | None = kill_at) -> None:
            shares.append(share)
            if len(shares) - start == kill_at:
                raise Killed

        arguments = settings(name="killed", report=report)
        try:
            resumed = train_on(
                fleet_of(count, architecture, width), sets_of(count), ALPHA_BARS, folder=tmp_path, **arguments
            )
        except Killed:
            assert kill_at is not None
        torch.rand(17)  # whatever else the process draws
        assert shares[start] == (0 if start == 0 else pytest.approx(shares[start - 1] - shares[start - 1] % (2 / 12)))
    assert shares[-1] == 1
    assert_equal_weights(whole, resumed)
    curves = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("fleet", "killed")
    ]
    for one, other in zip(*curves, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_what_comes_back_is_the_average_in_evaluation_mode(tmp_path: Path) -> None:
    """Without gradients and, where there is dropout, without chance."""
    trained = train_on(fleet_of(1, "ddpm", 8), sets_of(1), ALPHA_BARS, folder=tmp_path, **settings(steps=2))
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    x, t = torch.randn(1, 2, 1, 8, 8), torch.tensor([[5, 900]])
    assert torch.equal(trained(x, t), trained(x, t))


def test_networks_of_a_fleet_see_nothing_of_each_other(tmp_path: Path) -> None:
    """With other images for the second, the first is trained to the same weights and the second to others."""
    found = []
    for shift in (0.0, 0.5):
        sets = sets_of(2)
        sets[1] = sets[1] + shift
        found.append(train_on(fleet_of(2), sets, ALPHA_BARS, folder=tmp_path / str(shift), **settings()))
    for name, value in found[0].weights(0).items():
        assert torch.equal(value, found[1].weights(0)[name])
    assert not torch.equal(found[0].stacked[0][1], found[1].stacked[0][1])


def test_every_image_of_a_set_is_seen_and_none_of_another(tmp_path: Path) -> None:
    """Images that tell whose they are: each network meets its own alone, and all of them about equally often."""
    sets = [torch.full((2, 1, 8, 8), 1.0), torch.full((5, 1, 8, 8), 2.0)]
    for own in sets:
        own[:, 0, 0, 0] = torch.arange(len(own)) * 10.0
    seen: list[Tensor] = []

    class Look(Fleet):
        """A fleet that keeps what it is shown."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x, t)

    torch.manual_seed(0)
    look = Look([build_network("mlp", 8, (1, 8, 8)) for _ in sets])
    # Without noise: α = 1 and σ = 0 at every timestep.
    clear = type(ALPHA_BARS)(torch.ones(10), torch.zeros(10))
    train_on(look, sets, clear, folder=tmp_path, **settings(steps=30, batch_size=50))
    shown = torch.stack(seen)  # (steps, networks, batch, 1, 8, 8)
    assert shown.shape == (30, 2, 50, 1, 8, 8)
    for index, own in enumerate(sets):
        assert (shown[:, index, :, 0, 1, 1] == index + 1).all()
        counts = torch.bincount((shown[:, index, :, 0, 0, 0] / 10).long().flatten(), minlength=len(own))
        expected = 1500 / len(own)
        assert len(counts) == len(own)
        assert (counts - expected).abs().max() < 5 * expected**0.5


# Files of a run.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """All networks of `SWEEP`, trained in this process, one job after the other, in one thread like a worker's."""
    run, threads = RunFolder(tmp_path_factory.mktemp("sweep")), torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads are rounded otherwise, which Adam makes much of
    for job in training_jobs(run, SWEEP, None):
        job.function(quiet, "cpu")
    torch.set_num_threads(threads)
    return run


def test_jobs_are_what_is_left_to_train(trained: RunFolder, tmp_path: Path) -> None:
    """All fleets at first, none at the end, and the one whose file is gone; weights are operations of the training."""
    jobs = training_jobs(RunFolder(tmp_path), SWEEP, None)
    assert [job.name for job in jobs] == [fleet_name(fleet) for fleet in fleets(SWEEP)]
    assert [len(fleet) for fleet in fleets(SWEEP)] == [6, *[1] * 6]
    flops = [forward_flops(build_network(one.architecture, one.width, (1, 8, 8)), (1, 8, 8)) for one in SWEEP.series]
    assert jobs[0].weight / jobs[1].weight == pytest.approx(6 * flops[0] / flops[1])
    assert training_jobs(trained, SWEEP, None) == []
    network = SWEEP.networks[4]
    file = trained.weights(network)
    content = file.read_bytes()
    file.unlink()
    (job,) = training_jobs(trained, SWEEP, None)
    assert job.name == "mlp-16-K00002-seed0"
    job.function(quiet, "cpu")
    again = load_file(file)
    file.write_bytes(content)
    for name, value in load_file(file).items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)


def test_a_trained_sweep_has_weights_and_curves_and_no_states(trained: RunFolder) -> None:
    """One file a network, one curve a fleet."""
    assert set(trained.path.rglob("*.safetensors")) == set(map(trained.weights, SWEEP.networks))
    names = sorted(file.name for file in trained.training.iterdir())
    assert names == sorted(f"{fleet_name(fleet)}.jsonl" for fleet in fleets(SWEEP))


def test_results_do_not_depend_on_the_number_of_workers(trained: RunFolder, tmp_path: Path) -> None:
    """Two worker processes train what one process of one thread did."""
    run_jobs("training", training_jobs(RunFolder(tmp_path), SWEEP, None), ["cpu", "cpu"])
    for network in SWEEP.networks:
        one, other = load_file(trained.weights(network)), load_file(RunFolder(tmp_path).weights(network))
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_networks_are_loaded_with_their_averaged_weights(tmp_path: Path) -> None:
    """The average, not the last step; frozen, in evaluation mode, with the schedule and prediction of the sweep."""
    networks = SWEEP.networks[:2]
    states: list[dict[str, Any]] = []

    def report(share: float) -> None:
        if share == 1:
            file = tmp_path / "training" / f"{fleet_name(networks)}.state.pt"
            states.append(torch.load(file, weights_only=True))

    train_fleet(tmp_path, SWEEP, networks, None, report, "cpu")
    torch.manual_seed(0)
    names = Fleet([build_network("mlp", 16, (1, 8, 8)) for _ in networks]).names
    for index, network in enumerate(networks):
        loaded = load_network(tmp_path, network, SWEEP)
        found = loaded.network.state_dict()
        for position, name in enumerate(names):
            average = states[-1]["average"][f"module.fleet.stacked.{position}"][index]
            assert torch.equal(found[name], average)
        last = states[-1]["modules"]["fleet.stacked.0"][index]
        assert not torch.equal(found[names[0]], last)
        assert not loaded.network.training
        assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
        assert loaded.prediction_type == "sample"
        assert torch.equal(loaded.schedule.alphas, ALPHA_BARS.alphas)


def test_seeds_decide_the_initial_weights_and_sizes_do_not(tmp_path: Path) -> None:
    """With nothing learnt, networks of one seed are one network, and another seed's is another."""
    still = SWEEP.model_copy(
        update={"steps": 1, "series": (SWEEP.series[0].model_copy(update={"learning_rate": 1e-12}),)}
    )
    train_fleet(tmp_path, still, still.networks, None, quiet, "cpu")
    x, t = open_space(tmp_path, "pixel", "digits", None).latents[:2], torch.tensor([10, 500])

    def prediction(size: int, seed: int) -> Tensor:
        return load_network(tmp_path, Network(series="mlp-16", size=size, seed=seed), still)(x, t, {})

    torch.testing.assert_close(prediction(2, 0), prediction(8, 0))
    assert not torch.allclose(prediction(2, 0), prediction(2, 1))
