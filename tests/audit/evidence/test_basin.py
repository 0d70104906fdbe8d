"""Basins against closed forms: the way back from noise never crosses the plane between two equal points."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from audit.evidence.basin import Basins, BasinSettings, Recovered, ball_log_volume, measure_basins, within
from audit.model.denoiser import Denoiser, MeteredDenoiser
from audit.model.sampling import SamplerSettings, build_scheduler
from tests.audit.makers import DIFFUSION, SCHEDULER_CONFIG, clusters, exact_denoiser, stable_diffusion_schedule

#: No level is refused: all of them are tried.
EVERY_LEVEL = 0.0
DTYPES = [torch.float64, torch.float32]


def fresh(name: str = "ddim") -> Callable[[], Any]:
    """A maker of schedulers."""
    return lambda: build_scheduler(name, SCHEDULER_CONFIG)


def basins(
    denoiser: Denoiser,
    points: Tensor,
    recovered: Recovered,
    settings: BasinSettings,
    *,
    scheduler: str = "ddim",
    steps: int = 20,
    seed: int = 0,
    rows: int = 2048,
) -> Basins:
    """Basins of points of the first prompt, without guidance."""
    condition = {"prompt": torch.zeros(1, dtype=torch.long)}
    sampler = SamplerSettings(scheduler, steps, 1.0)
    return measure_basins(
        denoiser, fresh(scheduler), sampler, points, condition, condition, recovered, settings, seed=seed, rows=rows
    )


def pair(dimension: int, distance: float) -> Tensor:
    """Two points at a distance, along a random line that misses the origin, float64."""
    direction = torch.nn.functional.normalize(torch.randn(dimension, dtype=torch.float64), dim=0)
    middle = torch.randn(dimension, dtype=torch.float64) / dimension**0.5
    return torch.stack([middle - distance / 2 * direction, middle + distance / 2 * direction])


def signal_and_noise(timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α and σ of timesteps."""
    schedule = stable_diffusion_schedule()
    return schedule.alphas.numpy()[timesteps], schedule.sigmas.numpy()[timesteps]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dimension", "trials", "scheduler"),
    [(2, 2000, "ddim"), (2, 1000, "euler"), (16, 1000, "ddim"), (64, 1000, "ddim"), (1024, 200, "ddim")],
)
def test_one_of_two_points_recovers_as_often_as_noise_stays_on_its_side(
    dimension: int, trials: int, scheduler: str, dtype: torch.dtype
) -> None:
    """P(recovery) = Φ(αD/2σ) at every level, within five binomial standard errors and one trial."""
    distance = 3.5
    points = pair(dimension, distance).to(dtype)
    found = basins(
        exact_denoiser(points), points, within(points, distance / 2),
        BasinSettings(trials, EVERY_LEVEL, stride=4), scheduler=scheduler, rows=500,
    )  # fmt: skip
    assert found.recovery.shape == (2, 5)
    assert np.isfinite(found.recovery).all()
    alpha, sigma = signal_and_noise(found.timesteps)
    expected = norm.cdf(alpha * distance / (2 * sigma))
    # The levels reach from certain recovery to a toss of the coin.
    assert expected[0] > 0.999
    assert expected[-1] < 0.65
    error = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(found.recovery - expected) < 5 * error + 1 / trials).all()


@pytest.mark.parametrize("share", [0.7, 0.91, 0.985])
def test_the_critical_time_is_the_last_level_at_which_enough_trials_recover(share: float) -> None:
    """It is where Φ(αD/2σ) ≥ p, no level beyond the first failure is tried, and the radius is the one there."""
    distance, dimension, trials = 3.0, 8, 3000
    points = pair(dimension, distance)
    denoiser, recovered = exact_denoiser(points), within(points, distance / 2)
    found = basins(denoiser, points, recovered, BasinSettings(trials, share, stride=3))
    every = basins(denoiser, points, recovered, BasinSettings(trials, EVERY_LEVEL, stride=3))
    alpha, sigma = signal_and_noise(found.timesteps)
    expected = norm.cdf(alpha * distance / (2 * sigma))
    # No level is so near to the share that chance decides.
    assert (np.abs(expected - share) > 5 * np.sqrt(expected * (1 - expected) / trials)).all()
    passed = int((expected >= share).sum())
    assert 1 < passed < len(expected) - 1
    assert found.critical_time.tolist() == [found.timesteps[passed - 1]] * 2
    # The same noise at every level, so that trials do not depend on when the others gave up.
    assert (found.recovery[:, : passed + 1] == every.recovery[:, : passed + 1]).all()
    assert np.isnan(found.recovery[:, passed + 1 :]).all()
    size = points.norm(dim=1).numpy()
    radius = np.sqrt((1 - alpha[passed - 1]) ** 2 * size**2 + sigma[passed - 1] ** 2 * dimension)
    assert found.radius == pytest.approx(radius, rel=1e-12)
    assert every.critical_time.tolist() == [found.timesteps[-1]] * 2
    assert (found.radius < every.radius).all()


def test_points_give_up_one_by_one() -> None:
    """Beside two near points, a far one goes on alone, and its shares stay its own."""
    points = torch.tensor([[0.0, -0.6], [60.0, 0.0], [0.0, 0.6]], dtype=torch.float64)
    found = basins(exact_denoiser(points), points, within(points, 0.6), BasinSettings(trials=200, share=0.9, stride=1))
    assert found.critical_time[1] == found.timesteps[-1]
    assert (found.recovery[1] >= 0.9).all()
    for near in (0, 2):
        tried = int(np.isfinite(found.recovery[near]).sum())
        assert 1 < tried < 15
        assert (found.recovery[near, : tried - 1] >= 0.9).all()
        assert found.recovery[near, tried - 1] < 0.9
        assert found.critical_time[near] == found.timesteps[tried - 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (16,), (1, 8, 8), (1024,)])
def test_a_lone_point_recovers_from_all_noise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The basin of the only stored point is everything: each trial at each level comes back."""
    point = torch.randn(1, *shape, dtype=torch.float64).to(dtype)
    dimension = point[0].numel()
    # The sampler's last step leaves noise of σ = 0.029.
    found = basins(exact_denoiser(point), point, within(point, 0.06 * dimension**0.5), BasinSettings(trials=4))
    assert found.timesteps.tolist() == list(range(1, 1000, 100))
    assert (found.recovery == 1).all()
    assert found.critical_time.tolist() == [901]
    alpha, sigma = signal_and_noise(np.asarray([901]))
    radius = np.sqrt((1 - alpha) ** 2 * float(point.double().square().sum()) + sigma**2 * dimension)
    assert found.radius == pytest.approx(radius, rel=1e-12)
    assert found.log_volume == pytest.approx(ball_log_volume(radius, dimension), rel=1e-12)


def test_a_point_that_is_not_stored_never_recovers() -> None:
    """Noise carries it to a stored one: its critical time is 0, and its radius is the lowest level's, as a bound."""
    stored = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    points = torch.tensor([[3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    found = basins(exact_denoiser(stored), points, within(points, 0.5), BasinSettings(trials=5))
    assert found.recovery[1, 0] == 0
    assert np.isnan(found.recovery[1, 1:]).all()
    assert (found.recovery[0] == 1).all()
    assert found.critical_time.tolist() == [901, 0]
    alpha, sigma = signal_and_noise(np.asarray([1]))
    assert found.radius[1] == pytest.approx(float(np.sqrt((1 - alpha) ** 2 * 9 + sigma**2 * 2)[0]), rel=1e-12)
    assert found.radius[1] < found.radius[0]


@pytest.mark.parametrize("dimension", [2, 16, 64, 1024])
@pytest.mark.parametrize("steps", [4, 10])
def test_the_radius_is_the_root_mean_square_length_of_the_noising(dimension: int, steps: int) -> None:
    """r² is the mean of ‖x_t − x₀‖² over noise, within five standard errors of a Monte-Carlo mean."""
    point = 2 * torch.randn(1, dimension, dtype=torch.float64)
    found = basins(
        exact_denoiser(point), point, within(point, math.inf), BasinSettings(trials=1, stride=2), steps=steps
    )
    alpha, sigma = signal_and_noise(found.critical_time)
    moved = (alpha[0] - 1) * point + sigma[0] * torch.randn(4000, dimension, dtype=torch.float64)
    lengths = moved.square().sum(1)
    error = float(lengths.std() / len(lengths) ** 0.5)
    assert error < 0.02 * float(lengths.mean())
    assert found.radius[0] ** 2 == pytest.approx(float(lengths.mean()), abs=5 * error)


@pytest.mark.parametrize("scheduler", sorted(set(DIFFUSION) - {"pndm"}))
def test_levels_are_those_of_the_sampler(scheduler: str) -> None:
    """From the last step back, every other timestep of the scheduler, and the radius is that of its own noise."""
    ready = fresh(scheduler)()
    ready.set_timesteps(12)
    point = torch.ones(1, 16, dtype=torch.float64)
    settings = BasinSettings(trials=1, share=EVERY_LEVEL, stride=3)
    found = basins(exact_denoiser(point), point, within(point, math.inf), settings, scheduler=scheduler, steps=12)
    assert found.timesteps.tolist() == [round(float(t)) for t in reversed(ready.timesteps)][::3]
    assert found.timesteps[0] == round(float(ready.timesteps[-1]))
    # One level alone, the first: its noise is the scheduler's at the last step.
    lowest = basins(
        exact_denoiser(point), point, within(point, math.inf), BasinSettings(1, stride=100), scheduler=scheduler,
        steps=12,
    )  # fmt: skip
    last = ready.timesteps[-1:]
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    alpha, sigma = float(ready.add_noise(one, zero, last)), float(ready.add_noise(zero, one, last))
    scale = (alpha**2 + sigma**2) ** 0.5  # some schedulers let the variance explode
    assert lowest.radius[0] == pytest.approx(4 * math.hypot(1 - alpha / scale, sigma / scale), rel=1e-3)


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_noise_between_two_timesteps_has_a_radius_of_its_own(passes: int) -> None:
    """Euler's levels are fractional; the radius agrees with the scheduler's σ within 10⁻³."""
    ready = fresh("euler")()
    ready.set_timesteps(40)
    point = torch.zeros(1, 16, dtype=torch.float64)
    judged: list[Tensor] = []

    def so_often(rows: Tensor, index: Tensor) -> Tensor:
        judged.append(rows)
        return torch.full((len(rows),), len(judged) <= passes)

    found = basins(
        exact_denoiser(point), point, so_often, BasinSettings(trials=1, stride=1), scheduler="euler", steps=40
    )
    timestep, sigma = float(ready.timesteps[40 - passes]), float(ready.sigmas[40 - passes])
    assert timestep % 1 > 0.2
    assert found.critical_time.tolist() == [round(timestep)]
    assert found.radius[0] == pytest.approx(4 * sigma / math.hypot(1, sigma), rel=1e-3)


def test_log_volumes_are_those_of_balls() -> None:
    """Schoolbook formulas up to five dimensions, and V_d = V_{d−2}·2πr²/d up to 1024."""
    radius = np.asarray([0.01, 0.7, 1.0, 30.0])
    schoolbook: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda r: 2 * r,
        2: lambda r: math.pi * r**2,
        3: lambda r: 4 / 3 * math.pi * r**3,
        4: lambda r: math.pi**2 / 2 * r**4,
        5: lambda r: 8 * math.pi**2 / 15 * r**5,
    }
    for dimension, volume in schoolbook.items():
        assert ball_log_volume(radius, dimension) == pytest.approx(np.log(volume(radius)), rel=1e-12, abs=1e-12)
    grown = np.log(schoolbook[2](radius))
    for dimension in range(4, 1025, 2):
        grown = grown + np.log(2 * math.pi * radius**2 / dimension)
    assert ball_log_volume(radius, 1024) == pytest.approx(grown, rel=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_is_a_distance_to_the_own_point(dtype: torch.dtype) -> None:
    """Rows are compared with the point they started from, over all axes, the boundary included."""
    points = torch.zeros(2, 1, 2, 2, dtype=dtype)
    points[1] += 3
    rows = torch.stack([points[0] + 1, points[0] + 1, points[1] + 1, points[1] - 1.01, points[1]])
    found = within(points, 2.0)(rows, torch.tensor([0, 1, 1, 1, 0]))
    assert found.tolist() == [True, False, True, False, False]


def test_the_rule_of_recovery_is_told_whose_rows_it_judges() -> None:
    """A rule that accepts one point alone gives that point every level and the others none."""
    points = clusters(3, 1, 0.0, dimension=4)
    found = basins(exact_denoiser(points), points, lambda rows, index: index == 1, BasinSettings(trials=3), rows=4)
    assert found.critical_time.tolist() == [0, 901, 0]
    assert (found.recovery[1] == 1).all()
    assert found.recovery[[0, 2], 0].tolist() == [0, 0]
    assert np.isnan(found.recovery[[0, 2], 1:]).all()


def test_a_share_that_is_just_reached_is_enough() -> None:
    """Nine of ten trials are a share of 0.9, eight are not."""
    point = torch.zeros(1, 2, dtype=torch.float64)
    for failures, critical in ((1, 901), (2, 0)):
        found = basins(
            exact_denoiser(point), point, lambda rows, index, n=failures: torch.arange(len(rows)) >= n, BasinSettings()
        )
        assert found.recovery[0, 0] == pytest.approx(1 - failures / 10)
        assert found.critical_time.tolist() == [critical]


def test_batches_do_not_matter_and_seeds_do() -> None:
    """Rows may be cut into batches of any size; another seed is other noise, and the same one the same."""
    points = clusters(2, 3, 0.4, dimension=4)
    denoiser, recovered = exact_denoiser(points), within(points, 0.3)
    settings = BasinSettings(trials=20, share=EVERY_LEVEL, stride=3)
    whole, again, cut, other = (
        basins(denoiser, points, recovered, settings, seed=seed, rows=rows)
        for seed, rows in ((0, 2048), (0, 2048), (0, 7), (10_000, 2048))
    )
    assert (whole.recovery == again.recovery).all()
    assert (whole.recovery == cut.recovery).all()
    assert (whole.recovery != other.recovery).any()
    assert 0 < whole.recovery.mean() < 1


def test_every_trial_of_every_point_has_noise_of_its_own() -> None:
    """Where rows end is different within a level, and the same at all levels: α₀y + σ₀ε around a lone point."""
    points = torch.zeros(3, 2, dtype=torch.float64)
    ends: list[Tensor] = []

    def judge(rows: Tensor, index: Tensor) -> Tensor:
        ends.append(rows)
        return torch.ones(len(rows), dtype=torch.bool)

    basins(exact_denoiser(points[:1]), points, judge, BasinSettings(trials=4, stride=6))
    assert len(ends) == 4
    for rows in ends:
        assert len(rows) == 12
        torch.testing.assert_close(rows, ends[0], rtol=0, atol=1e-5)
    assert float(torch.pdist(ends[0]).min()) > 1e-3


def test_a_level_costs_the_steps_that_are_left() -> None:
    """The first level takes one step, and each further one `stride` more, for every trial of the points still on."""
    point = torch.zeros(1, 2, dtype=torch.float64)
    meter = MeteredDenoiser(exact_denoiser(point))
    basins(meter, point, within(point, math.inf), BasinSettings(trials=3, stride=4), steps=10)
    assert meter.evaluations == 3 * (1 + 5 + 9)
