"""Images that come back from noise, or do not, against what is known of exact denoisers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.evidence.basin import within
from audit.evidence.existing import LEVELS, SHARE, TRIALS, Basin, measure_return, stride
from audit.model.denoiser import MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import SamplerSettings, build_scheduler
from tests.audit.makers import SCHEDULER_CONFIG, clusters, exact_denoiser

DTYPES = [torch.float64, torch.float32]
CONDITION = {"prompt": torch.zeros(1, dtype=torch.long)}


def returning(
    denoiser: MeteredDenoiser | EmpiricalDenoiser, point: Tensor, same: Callable[[Tensor], Tensor], steps: int = 20
) -> Basin:
    """The basin of a point, (1, d), by DDIM."""
    return measure_return(
        denoiser,
        lambda: build_scheduler("ddim", SCHEDULER_CONFIG),
        SamplerSettings("ddim", steps, 1.0),
        point,
        CONDITION,
        CONDITION,
        same,
        seed=0,
    )


def near(point: Tensor, distance: float) -> Callable[[Tensor], Tensor]:
    """Rows within a distance of a point."""
    return lambda rows: within(point, distance)(rows, torch.zeros(len(rows), dtype=torch.long))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lone_point_comes_back_from_all_noise(dtype: torch.dtype) -> None:
    """From every level, though noise alone moves it away at the first ones."""
    point = torch.randn(1, 16).to(dtype)
    found = returning(exact_denoiser(point), point, near(point, 0.5))
    assert found.found
    assert not found.led_away
    np.testing.assert_array_equal(found.recovery, 1)
    assert found.critical_time == found.timesteps[-1]
    assert found.noise_time < 200


def test_one_of_many_points_comes_back_from_less_noise() -> None:
    """It has a basin, which ends where the others begin."""
    points = clusters(40, 1, 0.0, spread=1.0)
    found = returning(exact_denoiser(points), points[:1], near(points[:1], 0.5))
    assert found.found
    assert found.noise_time < found.critical_time < found.timesteps[-1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_point_that_is_not_stored_is_led_away_from(dtype: torch.dtype) -> None:
    """Noise that changes nothing by itself is enough to end elsewhere."""
    points = clusters(5, 1, 0.0).to(dtype)
    other = points[:1] + 2.0
    found = returning(exact_denoiser(points), other, near(other, 1.5))
    assert not found.found
    assert found.led_away
    assert found.critical_time == 0 < found.noise_time


def test_where_nothing_is_another_image_there_is_no_basin() -> None:
    """What always comes back by itself shows nothing."""
    point = torch.randn(1, 16)
    found = returning(exact_denoiser(point), point, lambda rows: torch.ones(len(rows), dtype=torch.bool))
    assert found.critical_time == found.noise_time == found.timesteps[-1]
    assert not found.found


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_there_are_so_many_levels_at_most(steps: int) -> None:
    """A point that comes back costs its trials at each, and no level is left out with few steps."""
    point = torch.randn(1, 4)
    meter = MeteredDenoiser(exact_denoiser(point))
    found = returning(meter, point, near(point, 1e3), steps)
    assert len(found.timesteps) == min(steps, len(range(0, steps, stride(steps)))) <= LEVELS
    assert meter.evaluations == TRIALS * sum(range(1, steps + 1, stride(steps)))


def test_the_share_that_must_come_back_holds_for_noise_alone_too() -> None:
    """The same share of the trials decides about both."""
    point = torch.randn(1, 4)

    def some(rows: Tensor) -> Tensor:
        return torch.arange(len(rows)) < round(SHARE * TRIALS)

    def fewer(rows: Tensor) -> Tensor:
        return torch.arange(len(rows)) < round(SHARE * TRIALS) - 1

    enough, few = (returning(exact_denoiser(point), point, same) for same in (some, fewer))
    assert enough.noise_time == enough.critical_time == enough.timesteps[-1]
    assert few.noise_time == few.critical_time == 0
