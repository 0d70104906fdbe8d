"""Energies along paths and through the probability flow against those of the exact denoiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.evidence.energy import Path, absolute_energy, relative_energy
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser, Schedule, repeat
from audit.model.empirical import EmpiricalDenoiser
from tests.audit.makers import clusters, exact_denoiser, stable_diffusion_schedule, timestep_of

DIMENSIONS = (2, 16, 64, 1024)
PATHS: tuple[Path, ...] = ("arc", "line")
#: Against differences of energy of up to 50.
PRECISIONS = [(torch.float64, 1e-8), (torch.float32, 1e-4)]


def scene(dimension: int, spread: float = 0.7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stored points, their weights, places off them, and a reference, at distances alike in all dimensions."""
    scale = 4 / dimension**0.5
    points = clusters(3, 3, 0.3 * scale, dimension=dimension, spread=spread * scale, seed=2)
    priors = 0.1 + torch.rand(1, 9, dtype=torch.float64)
    places = points[::2] + 0.5 * scale * torch.randn(5, dimension, dtype=torch.float64)
    return points, priors, places, points[1] - 0.2 * scale


def exact(points: Tensor, priors: Tensor, schedule: Schedule, x: Tensor, t: int) -> Tensor:
    """E of noisy places in closed form, in double precision."""
    ruler = EmpiricalDenoiser(points.double(), priors, schedule)
    return ruler.energy(x.double(), torch.full((len(x),), t), repeat(ruler.condition(0), len(x)))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sigma", [0.7, 0.95])
def test_relative_energy_is_the_difference_of_exact_energies(
    sigma: float, path: Path, dimension: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Both paths give E(αa) − E(αb), within 10⁻⁸ in double precision and 10⁻⁴ in single."""
    points, priors, places, reference = scene(dimension)
    denoiser = exact_denoiser(points.to(dtype), priors)
    t = timestep_of(denoiser.schedule, sigma)
    found = relative_energy(
        denoiser, places.to(dtype), reference.to(dtype), t, denoiser.condition(0), path=path, nodes=160
    )
    alpha = denoiser.schedule.alphas[t]
    true = exact(points, priors, denoiser.schedule, alpha * torch.cat([places, reference[None]]), t)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, true[:-1] - true[-1], rtol=0, atol=tolerance)
    assert float((true[:-1] - true[-1]).abs().max()) > 0.05


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dimension", [2, 16, 64])
def test_more_nodes_resolve_sharper_energies(dimension: int, path: Path) -> None:
    """At small noise the path runs along steep walls: the error falls from many nats to 10⁻³ as nodes are added."""
    points, priors, places, reference = scene(dimension)
    denoiser = exact_denoiser(points, priors)
    t = timestep_of(denoiser.schedule, 0.3)
    alpha = denoiser.schedule.alphas[t]
    true = exact(points, priors, denoiser.schedule, alpha * torch.cat([places, reference[None]]), t)
    errors = [
        float((found - true[:-1] + true[-1]).abs().max())
        for found in (
            relative_energy(denoiser, places, reference, t, denoiser.condition(0), path=path, nodes=nodes)
            for nodes in (4, 32, 256, 1024)
        )
    ]
    assert errors[0] > 1
    assert errors[0] > 2 * errors[1] > 8 * errors[2]
    assert errors[3] < 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nodes", [7, 64])
def test_swapping_point_and_reference_changes_the_sign(
    nodes: int, path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """E(a) − E(b) = −(E(b) − E(a)), also where the nodes are too few, and nothing lies between a point and itself."""
    points, priors, places, reference = scene(16)
    denoiser = exact_denoiser(points.to(dtype), priors)
    t = timestep_of(denoiser.schedule, 0.4)
    one, other = places[:1].to(dtype), reference[None].to(dtype)
    forth, back, none = (
        float(relative_energy(denoiser, a, b[0], t, denoiser.condition(0), path=path, nodes=nodes))
        for a, b in ((one, other), (other, one), (one, one))
    )
    assert forth == pytest.approx(-back, abs=tolerance)
    assert abs(forth) > 0.1
    assert abs(none) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (4, 16, 16)])
@pytest.mark.parametrize(("path", "nodes"), [("arc", 16), ("line", 1)])
def test_a_lone_points_energy_is_a_parabola(
    path: Path, nodes: int, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """E(a) − E(b) = α²(‖a − y‖² − ‖b − y‖²)/2σ², to which one node of a straight line is enough."""
    stored, reference = torch.randn(2, *shape, dtype=torch.float64)
    places = torch.randn(3, *shape, dtype=torch.float64)
    denoiser = exact_denoiser(stored[None].to(dtype))
    t = timestep_of(denoiser.schedule, 0.2)
    alpha, sigma = denoiser.schedule.alphas[t], denoiser.schedule.sigmas[t]
    found = relative_energy(
        denoiser, places.to(dtype), reference.to(dtype), t, denoiser.condition(0), path=path, nodes=nodes
    )
    lengths = (torch.cat([places, reference[None]]) - stored).flatten(1).square().sum(1)
    true = alpha**2 * (lengths[:-1] - lengths[-1]) / (2 * sigma**2)
    scale = float(alpha**2 * lengths.max() / sigma**2)
    torch.testing.assert_close(found, true, rtol=0, atol=tolerance * scale)


class Whirl(Denoiser):
    """ε̂ = Ax/σ with A antisymmetric: no gradient of any energy."""

    prediction_type = "epsilon"

    def __init__(self, matrix: Tensor, schedule: Schedule) -> None:
        self.matrix = matrix - matrix.T
        self.schedule = schedule

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the class says."""
        _, sigma = self.schedule.at(t, x)
        return x @ self.matrix.T.to(x) / sigma


def test_paths_are_those_they_are_called() -> None:
    """In a whirl the work is α²aᵀAb/σ² along the straight line, and π/2 of it along the great arc."""
    denoiser = Whirl(torch.randn(6, 6, dtype=torch.float64), stable_diffusion_schedule())
    a, b = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    t = timestep_of(denoiser.schedule, 0.5)
    work = (denoiser.schedule.alphas[t] / denoiser.schedule.sigmas[t]) ** 2 * a @ denoiser.matrix @ b
    line, arc = (relative_energy(denoiser, a, b, t, {}, path=path) for path in ("line", "arc"))
    torch.testing.assert_close(line, work, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(arc, math.pi / 2 * work, rtol=1e-10, atol=1e-10)


class Widest(MeteredDenoiser):
    """Knows its widest call too."""

    widest = 0

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the inner one's."""
        self.widest = max(self.widest, len(x))
        return super().native(x, t, condition)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_relative_energy_costs_its_nodes_however_rows_are_cut(dtype: torch.dtype) -> None:
    """`nodes` evaluations a point, in calls of any size, for images as for vectors."""
    points, priors, places, reference = (tensor.to(dtype) for tensor in scene(64))
    flat, shaped = exact_denoiser(points, priors), exact_denoiser(points.reshape(-1, 1, 8, 8), priors)
    t = timestep_of(flat.schedule, 0.6)
    expected = relative_energy(flat, places, reference, t, flat.condition(0), nodes=12)
    for rows, widest in ((1, 12), (25, 24), (4096, 60)):
        meter = Widest(shaped)
        found = relative_energy(
            meter, places.reshape(-1, 1, 8, 8), reference.reshape(1, 8, 8), t, shaped.condition(0), nodes=12, rows=rows
        )
        assert meter.evaluations == 5 * 12
        assert meter.widest == widest
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def exploding() -> Schedule:
    """Variance exploding, α = 1, σ from 0.05 to 50."""
    return Schedule(torch.ones(400), torch.as_tensor(np.geomspace(0.05, 50, 400)))


def preserving() -> Schedule:
    """Variance preserving, DDPM's: β from 10⁻⁴ to 0.02, so that σ/α = 157 at the end."""
    return Schedule.from_alphas_cumprod((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))


SCHEDULES = {"exploding": exploding, "preserving": preserving}


def centred(dimension: int) -> tuple[Tensor, Tensor]:
    """Points of weighted mean zero, as close to the Gaussian as can be at the last level, and their weights."""
    points = clusters(3, 3, 0.3, dimension=dimension, spread=1.0)
    priors = 0.3 + torch.rand(1, 9, dtype=torch.float64)
    return points - priors[0] @ points / priors.sum(), priors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_absolute_energy_is_the_exact_one(schedule: str, dimension: int, sigma: float, dtype: torch.dtype) -> None:
    """E = −log p_t within 0.015 nats with 200 steps, at places as they are under p_t, in both precisions."""
    made = SCHEDULES[schedule]()
    points, priors = centred(dimension)
    denoiser = EmpiricalDenoiser(points.to(dtype), priors, made)
    t = timestep_of(made, sigma)
    places = made.alphas[t] * points[::2] + made.sigmas[t] * torch.randn(5, dimension, dtype=torch.float64)
    found = absolute_energy(denoiser, places.to(dtype), t, denoiser.condition(0), steps=200)
    true = exact(points, priors, made, places, t)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, true, rtol=0, atol=0.015)
    assert float(true.max() - true.min()) > 0.1


def test_absolute_energy_of_a_flow_is_the_exact_one() -> None:
    """Within 0.03 nats with 100 steps: neither the end without signal nor the one without noise is in the way."""
    made = Schedule.rectified_flow()
    points, priors = centred(2)
    denoiser = EmpiricalDenoiser(points, priors, made)
    t = timestep_of(made, 0.3)
    places = made.alphas[t] * points[::2] + made.sigmas[t] * torch.randn(5, 2, dtype=torch.float64)
    found = absolute_energy(denoiser, places, t, denoiser.condition(0), steps=100)
    torch.testing.assert_close(found, exact(points, priors, made, places, t), rtol=0, atol=0.03)


def test_absolute_energy_converges_with_the_square_of_its_steps() -> None:
    """Twice the steps leave about a quarter of the error, as Heun's method should."""
    made = preserving()
    points, priors = centred(2)
    denoiser = EmpiricalDenoiser(points, priors, made)
    t = timestep_of(made, 0.1)
    places = made.alphas[t] * points + made.sigmas[t] * torch.randn(9, 2, dtype=torch.float64)
    true = exact(points, priors, made, places, t)
    errors = [
        float((absolute_energy(denoiser, places, t, denoiser.condition(0), steps=steps) - true).abs().max())
        for steps in (50, 100, 200)
    ]
    assert 0.2 < errors[1] / errors[0] < 0.3
    assert 0.2 < errors[2] / errors[1] < 0.3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(2,), (4, 2, 2)])
def test_a_lone_points_absolute_energy_is_its_gaussians(
    shape: tuple[int, ...], schedule: str, dtype: torch.dtype
) -> None:
    """E = ‖x − αy‖²/2σ² + (d/2) log 2πσ²: for y = 0 the path is exact and each step adds its trapezoid of d/ς."""
    made = SCHEDULES[schedule]()
    denoiser = EmpiricalDenoiser(torch.zeros(1, *shape, dtype=dtype), torch.ones(1, 1), made)
    t, steps = timestep_of(made, 0.2), 100
    sigma, d = float(made.sigmas[t]), math.prod(shape)
    places = sigma * torch.randn(3, *shape, dtype=torch.float64)
    found = absolute_energy(denoiser, places.to(dtype), t, denoiser.condition(0), steps=steps)
    true = places.flatten(1).square().sum(1) / (2 * sigma**2) + d / 2 * math.log(2 * math.pi * sigma**2)
    # A step over which ς grows by e^h adds d sinh h instead of dh.
    h = math.log(float(made.sigmas[-1] / made.alphas[-1]) * float(made.alphas[t]) / sigma) / steps
    torch.testing.assert_close(found, true - d * steps * (math.sinh(h) - h), rtol=0, atol=0.005 * d**0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_at_the_last_timestep_absolute_energy_is_the_gaussians_own(schedule: str) -> None:
    """No way is left to go: E = ‖x‖²/2σ² + (d/2) log 2πσ²."""
    made = SCHEDULES[schedule]()
    points, priors = centred(3)
    denoiser = EmpiricalDenoiser(points, priors, made)
    sigma = float(made.sigmas[-1])
    places = sigma * torch.randn(4, 3, dtype=torch.float64)
    found = absolute_energy(denoiser, places, len(made) - 1, denoiser.condition(0), steps=3)
    true = places.square().sum(1) / (2 * sigma**2) + 1.5 * math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-9)


def test_absolute_energies_make_a_density() -> None:
    """exp(−E) of the flow sums to 1 over a grid of the plane, within 1%."""
    made = exploding()
    points, priors = centred(2)
    denoiser = EmpiricalDenoiser(points, priors, made)
    axis = torch.linspace(-4.5, 4.5, 31, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    t = timestep_of(made, 0.6)
    density = (-absolute_energy(denoiser, grid, t, denoiser.condition(0), steps=60)).exp()
    assert float(density.sum()) * 0.3**2 == pytest.approx(1.0, abs=0.01)


def test_differences_of_absolute_energy_are_relative_ones() -> None:
    """The flow and the path agree on how much higher one place lies than another."""
    made = preserving()
    points, priors = centred(2)
    denoiser = EmpiricalDenoiser(points, priors, made)
    condition, t = denoiser.condition(0), timestep_of(made, 0.7)
    clean = torch.randn(4, 2, dtype=torch.float64)
    absolute = absolute_energy(denoiser, made.alphas[t] * clean, t, condition, steps=200)
    relative = relative_energy(denoiser, clean[1:], clean[0], t, condition, nodes=256)
    torch.testing.assert_close(absolute[1:] - absolute[0], relative, rtol=0, atol=0.01)
