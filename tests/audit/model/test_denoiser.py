"""Conversions between predictions, the noise schedule, metering and conditions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.errors import Stopped
from audit.model.denoiser import (
    LEAST_SIGNAL,
    Condition,
    Denoiser,
    MeteredDenoiser,
    PredictionType,
    Schedule,
    concatenate,
    repeat,
)
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, exact_denoiser, stable_diffusion_schedule

DTYPES = (torch.float32, torch.float64)


class Prediction(Denoiser):
    """A denoiser of one prediction type whose output is what it is asked to convert."""

    def __init__(self, prediction_type: PredictionType, schedule: Schedule, output: Tensor | None = None) -> None:
        self.prediction_type = prediction_type
        self.schedule = schedule
        self.output = output

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the class says."""
        assert self.output is not None
        return self.output


def native_output(kind: str, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network of a kind predicts."""
    made = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean, "flow": noise - clean}
    return made[kind]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@given(angle=st.floats(0.02, 1.55), seed=st.integers(0, 2**31))
def test_every_prediction_type_gives_back_noise_and_clean_latent(
    kind: PredictionType, dtype: torch.dtype, angle: float, seed: int
) -> None:
    """The same (x₀, ε) seen through any prediction type gives the same ε̂ and x̂₀, at any α² + σ² = 1."""
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
    angles = torch.tensor([angle], dtype=torch.float64)
    denoiser = Prediction(kind, Schedule(angles.cos(), angles.sin()))
    t = torch.zeros(3, dtype=torch.long)
    alpha, sigma = denoiser.schedule.at(t, clean)
    x = alpha * clean + sigma * noise
    native = native_output(kind, clean, noise, alpha, sigma)
    # Dividing by a small α or σ costs digits.
    tolerance = 30 * torch.finfo(dtype).eps / min(float(alpha.min()), float(sigma.min()))
    torch.testing.assert_close(denoiser.noise(x, t, native), noise, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(denoiser.clean(x, t, native), clean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@given(t=st.floats(1, 999), seed=st.integers(0, 2**31))
def test_a_flow_gives_back_noise_and_clean_latent(dtype: torch.dtype, t: float, seed: int) -> None:
    """From v = ε − x₀ at any timestep, also between two whole ones, which are interpolated exactly."""
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
    denoiser, times = Prediction("flow", Schedule.rectified_flow()), torch.full((3,), t, dtype=torch.float64)
    alpha, sigma = denoiser.schedule.at(times, clean.double())
    torch.testing.assert_close(sigma, torch.full_like(sigma, t / 1000), rtol=0, atol=1e-15)
    torch.testing.assert_close(alpha, 1 - sigma, rtol=0, atol=1e-15)
    x = (alpha * clean + sigma * noise).to(dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(denoiser.noise(x, times, noise - clean), noise, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(denoiser.clean(x, times, noise - clean), clean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_contrasts_are_differences_of_noise_predictions(kind: PredictionType) -> None:
    """At a point with signal; where there is none, they are those of x̂₀ and do not vanish."""
    schedule = Schedule.rectified_flow() if kind == "flow" else stable_diffusion_schedule()
    denoiser, t = Prediction(kind, schedule), torch.tensor([100, 500, 930])
    x, wanted, other = torch.randn(3, 3, 4, dtype=torch.float64)
    expected = denoiser.noise(x, t, wanted) - denoiser.noise(x, t, other)
    torch.testing.assert_close(denoiser.contrast(t, wanted, other), expected, rtol=1e-9, atol=1e-9)
    if kind != "epsilon":
        none = Prediction(kind, Schedule(torch.zeros(1), torch.ones(1)))
        start = torch.zeros(3, dtype=torch.long)
        clean = none.clean(x, start, wanted) - none.clean(x, start, other)
        found = none.contrast(start, wanted, other)
        torch.testing.assert_close(found, -LEAST_SIGNAL * clean, rtol=1e-9, atol=1e-9)
        assert float(found.abs().min()) > 0
        vanished = none.noise(x, start, wanted) - none.noise(x, start, other)
        assert float(vanished.abs().max()) < 1e-12


@pytest.mark.parametrize("level", [0.15, 0.35, 0.5, 0.7, 0.92])
def test_a_noise_level_means_the_same_in_every_process(level: float) -> None:
    """The exact denoisers of a diffusion and of a flow find the same noise at one level, but for the scale of x."""
    points = clusters(3, 4, 0.6)
    noises = []
    for schedule in (stable_diffusion_schedule(), Schedule.rectified_flow(100_000)):
        denoiser = EmpiricalDenoiser(points, torch.ones(1, len(points)), schedule)
        t = torch.tensor(schedule.timestep_at_level(level))
        noise = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = schedule.pure_noise(noise, t)
        alpha, sigma = schedule.at(t, x)
        assert float(sigma / (alpha**2 + sigma**2).sqrt()) == pytest.approx(level, abs=2e-3)
        noises.append(denoiser(x, t.expand(5), repeat(denoiser.condition(0), 5)))
    torch.testing.assert_close(noises[0], noises[1], rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_calling_converts_row_by_row(kind: PredictionType) -> None:
    """Rows at different timesteps are converted with their own α and σ when a denoiser is called."""
    schedule = stable_diffusion_schedule()
    clean, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.tensor([0, 21, 250, 500, 999])
    alpha, sigma = schedule.at(t, clean)
    denoiser = Prediction(kind, schedule, native_output(kind, clean, noise, alpha, sigma))
    torch.testing.assert_close(denoiser(alpha * clean + sigma * noise, t, {}), noise, rtol=1e-9, atol=1e-9)


def test_v_prediction_of_a_clean_image_is_no_noise_prediction() -> None:
    """V is converted and never passed off as ε, also near the end of sampling where σ is small."""
    schedule = stable_diffusion_schedule()
    clean, noise = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    t = torch.tensor([10])
    alpha, sigma = schedule.at(t, clean)
    native = native_output("v_prediction", clean, noise, alpha, sigma)
    found = Prediction("v_prediction", schedule).noise(alpha * clean, t, native)
    torch.testing.assert_close(found, noise, rtol=0, atol=1e-12)
    assert native.abs().min() > 0.05


def test_schedule_of_ddpm_preserves_variance() -> None:
    """α² + σ² = 1 at every timestep, σ grows and α falls."""
    schedule = stable_diffusion_schedule()
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000, dtype=torch.float64))
    assert (schedule.sigmas.diff() > 0).all()
    assert (schedule.alphas.diff() < 0).all()
    assert len(schedule) == 1000


@given(t=st.floats(-5, 1005))
def test_schedule_interpolates_between_neighbours_and_clamps_at_the_ends(t: float) -> None:
    """A fractional timestep has α and σ between those of its neighbours, linearly; outside, those of the ends."""
    schedule = stable_diffusion_schedule()
    alpha, sigma = schedule.at(torch.tensor([t], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    inside = min(max(t, 0.0), 999.0)
    low, high = int(inside), min(int(inside) + 1, 999)
    for found, table in ((alpha, schedule.alphas), (sigma, schedule.sigmas)):
        expected = table[low] + (inside - low) * (table[high] - table[low])
        assert float(found) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [torch.tensor(7), torch.tensor([7, 8, 9]), torch.tensor([7.0, 8.5, 9.0])])
def test_schedule_takes_shape_and_dtype_of_what_it_multiplies(t: Tensor, dtype: torch.dtype) -> None:
    """α and σ broadcast over the rows they belong to, for one timestep or one per row."""
    like = torch.zeros(3, 4, 2, 2, dtype=dtype)
    for value in stable_diffusion_schedule().at(t, like):
        assert value.dtype == dtype
        assert value.shape == (t.numel(), 1, 1, 1)
        assert (value * like).shape == like.shape


def test_metering_counts_rows_and_asks_before_each_call() -> None:
    """Evaluations are rows, and the check is heard before the work, not after it."""
    inner = exact_denoiser(clusters(2, 3, 0.5))
    asked: list[int] = []
    meter = MeteredDenoiser(inner, lambda: asked.append(meter.evaluations))
    x, condition = torch.zeros(4, 16, dtype=torch.float64), repeat(inner.condition(0), 4)
    t = torch.full((4,), 100)
    torch.testing.assert_close(meter(x, t, condition), inner(x, t, condition))
    meter.native(x[:1], t[:1], repeat(inner.condition(0), 1))
    assert meter.evaluations == 5
    assert asked == [0, 4]
    assert (meter.schedule, meter.prediction_type) == (inner.schedule, inner.prediction_type)


def test_metering_stops_before_the_call_that_is_refused() -> None:
    """A check that raises leaves nothing evaluated and nothing counted."""
    inner = exact_denoiser(clusters(1, 1, 0.0))

    def refuse() -> None:
        raise Stopped("enough", reason="TEST")

    meter = MeteredDenoiser(inner, refuse)
    with pytest.raises(Stopped):
        meter(torch.zeros(1, 16), torch.tensor([3]), inner.condition(0))
    assert meter.evaluations == 0


def test_conditions_repeat_and_concatenate_by_row() -> None:
    """Every named tensor keeps its rows in order."""
    one = {"text": torch.arange(6.0).reshape(1, 2, 3), "pooled": torch.ones(1, 4)}
    two = {"text": -one["text"], "pooled": 2 * one["pooled"]}
    both = concatenate([repeat(one, 2), two])
    assert both["text"].shape == (3, 2, 3)
    assert both["pooled"].shape == (3, 4)
    assert torch.equal(both["text"][1], one["text"][0])
    assert torch.equal(both["text"][2], two["text"][0])
