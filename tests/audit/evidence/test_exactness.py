"""What all evidence shares on a finite set: exact scores, and the symmetries of the set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.evidence.attractors import descend, find_attractors
from audit.evidence.basin import BasinSettings, measure_basins, within
from audit.evidence.curvature import VOLUME_RIDGE, dense_spectra
from audit.evidence.energy import absolute_energy, relative_energy
from audit.model.denoiser import repeat
from audit.model.sampling import SamplerSettings, build_scheduler, sample_from
from tests.audit.makers import SCHEDULER_CONFIG, clusters, exact_denoiser, timestep_of

#: Relative to the size of what is measured; curvature by differences keeps a third of single precision's digits.
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 0.02)]
#: No share is too small: all levels are tried, and radii do not hang on a trial that only just fails.
BASINS = BasinSettings(trials=6, share=0.0, stride=2)


@dataclass(frozen=True)
class Scene:
    """A finite set, and where it is looked at; float64.

    Attributes:
        points: (m, d).
        priors: (1, m).
        places: clean latents off the points, (4, d).
        sigma: the noise level.
    """

    points: Tensor
    priors: Tensor
    places: Tensor
    sigma: float

    @property
    def dimension(self) -> int:
        """Of a place."""
        return self.points.shape[1]

    def measure(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """All that evidence says about it, by name."""
        denoiser = exact_denoiser(self.points.to(dtype), self.priors)
        condition, places = denoiser.condition(0), self.places.to(dtype)
        t = timestep_of(denoiser.schedule, self.sigma)
        noisy = float(denoiser.schedule.alphas[t]) * places
        spectra = dense_spectra(denoiser, places, t, condition)
        attractors = find_attractors(denoiser, noisy, t, condition, distance=0.01)
        of_start = torch.as_tensor(attractors.of_start)
        sampler = SamplerSettings("ddim", 6, 1.0)
        basins = measure_basins(
            denoiser, lambda: build_scheduler("ddim", SCHEDULER_CONFIG), sampler, places, condition, condition,
            within(places, 1.0), BASINS,
        )  # fmt: skip
        ends = sample_from(
            denoiser, build_scheduler("ddim", SCHEDULER_CONFIG), sampler, condition, condition, places, 2, [0, 1, 2, 3]
        )
        found = {
            "score": denoiser(noisy, torch.full((4,), t), repeat(condition, 4)),
            "attractors": attractors.centers[of_start],
            "ends": ends,
            "energies": denoiser.energy(noisy, torch.full((4,), t), repeat(condition, 4)),
            "traces": [spectrum.trace for spectrum in spectra],
            "flat shares": [spectrum.flat_share for spectrum in spectra],
            "log-volumes": [spectrum.log_volume for spectrum in spectra],
            "singular values": np.stack([spectrum.singular for spectrum in spectra]),
            "visits": attractors.visits[attractors.of_start],
            "along the arc": relative_energy(denoiser, places[1:], places[0], t, condition, nodes=24),
            "along the line": relative_energy(denoiser, places[1:], places[0], t, condition, path="line", nodes=24),
            "absolute energies": absolute_energy(denoiser, noisy[:2], t, condition, steps=6),
            "recovery": basins.recovery,
            "radii": basins.radius,
            "balls": basins.log_volume,
        }
        return {name: torch.as_tensor(value).double() for name, value in found.items()}


#: Vectors, that turn with the set.
VECTORS = ("score", "attractors", "ends")
#: What depends on where noise happens to fall, which does not turn with the set.
DRAWN = ("ends", "recovery")
#: What jumps where places lie on an edge, and steepens rounding near one: compared in double precision alone.
EDGED = ("attractors", "visits", "ends", "recovery", "flat shares", "along the arc", "along the line")


def make_scene(dimension: int, count: int, sigma: float, generator: torch.Generator) -> Scene:
    """Random weighted points, two places near one of them each, and two anywhere."""
    points = 1.5 * torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    priors = 0.2 + torch.rand(1, count, generator=generator, dtype=torch.float64)
    places = 1.5 * torch.randn(4, dimension, generator=generator, dtype=torch.float64)
    places[:2] = points[:2] + 0.1 * places[:2]
    return Scene(points, priors, places, sigma)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Sets of up to seven weighted points in a few dimensions, seen at any noise level but the least."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dimension, count = draw(st.sampled_from((2, 3, 8))), draw(st.integers(2, 7))
    return make_scene(dimension, count, draw(st.floats(0.2, 0.99)), generator)


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, skip: tuple[str, ...] = ()
) -> None:
    """Two measurements agree, by name, relative to the size of what was measured."""
    assert found.keys() == expected.keys()
    for name in expected.keys() - set(skip):
        scale = 1 + float(expected[name].abs().max())
        error = float((found[name] - expected[name]).abs().max())
        assert error <= tolerance * scale, f"{name}: off by {error:.2g} of {scale:.2g}"


def edges(dtype: torch.dtype) -> tuple[str, ...]:
    """What is not compared in a precision."""
    return () if dtype == torch.float64 else EDGED


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("dimension", [2, 16, 64, 1024])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
def test_the_score_is_the_gradient_of_the_energy(
    sigma: float, dimension: int, dtype: torch.dtype, tolerance: float
) -> None:
    """ε̂ = σ∇E by automatic differentiation in the same precision, where one point weighs in and where many do."""
    scale = 4 / dimension**0.5
    points = clusters(3, 5, 0.1 * scale, dimension=dimension, spread=scale).to(dtype)
    denoiser = exact_denoiser(points, 0.1 + torch.rand(1, 15))
    t = torch.full((4,), timestep_of(denoiser.schedule, sigma))
    alpha, level = denoiser.schedule.at(t, points[:4])
    middles = points.reshape(3, 5, -1).mean(1)
    x = alpha * torch.cat([middles[:2], points[6:8]]) + level * torch.randn(4, dimension).to(dtype) * 0.3
    x.requires_grad_(True)
    condition = repeat(denoiser.condition(0), 4)
    (gradient,) = torch.autograd.grad(denoiser.energy(x, t, condition).sum(), x)
    found = denoiser(x, t, condition)
    assert found.dtype == dtype
    torch.testing.assert_close(found, level * gradient, rtol=tolerance, atol=tolerance * float(found.detach().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=15)
@given(scene=scenes(), seed=st.integers(0, 2**31))
def test_the_order_of_points_does_not_matter(dtype: torch.dtype, tolerance: float, scene: Scene, seed: int) -> None:
    """A permutation of the set changes nothing."""
    order = torch.randperm(len(scene.points), generator=torch.Generator().manual_seed(seed))
    other = Scene(scene.points[order], scene.priors[:, order], scene.places, scene.sigma)
    assert_same(other.measure(dtype), scene.measure(dtype), tolerance, edges(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=15)
@given(scene=scenes(), seed=st.integers(0, 2**31))
def test_evidence_turns_with_the_set(dtype: torch.dtype, tolerance: float, scene: Scene, seed: int) -> None:
    """A rotation of points and places turns scores and attractors, and changes no spectrum, energy or radius."""
    matrix = torch.randn(
        scene.dimension, scene.dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    turn, _ = torch.linalg.qr(matrix)
    other = Scene(scene.points @ turn.T, scene.priors, scene.places @ turn.T, scene.sigma)
    expected = scene.measure(dtype)
    for name in VECTORS:
        expected[name] = expected[name] @ turn.T
    assert_same(other.measure(dtype), expected, tolerance, DRAWN + edges(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=15)
@given(scene=scenes(), copies=st.integers(2, 4))
def test_the_whole_set_twice_is_the_set(dtype: torch.dtype, tolerance: float, scene: Scene, copies: int) -> None:
    """Duplicating every point changes nothing."""
    other = Scene(scene.points.repeat(copies, 1), scene.priors.repeat(1, copies), scene.places, scene.sigma)
    assert_same(other.measure(dtype), scene.measure(dtype), tolerance, edges(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=15)
@given(scene=scenes())
def test_a_point_twice_is_a_point_of_twice_the_weight(dtype: torch.dtype, tolerance: float, scene: Scene) -> None:
    """Duplicating one point is doubling its prior, in every measurement."""
    doubled = scene.priors.clone()
    doubled[0, 0] *= 2
    twice = Scene(
        torch.cat([scene.points, scene.points[:1]]), torch.cat([scene.priors, scene.priors[:, :1]], 1),
        scene.places, scene.sigma,
    )  # fmt: skip
    heavy = Scene(scene.points, doubled, scene.places, scene.sigma)
    assert_same(twice.measure(dtype), heavy.measure(dtype), tolerance, edges(dtype))


def test_measurements_tell_sets_apart() -> None:
    """Without which symmetries would say nothing: other weights or points show in all that is smooth in them."""
    scene = make_scene(3, 5, 0.8, torch.Generator().manual_seed(5))
    priors = scene.priors.clone()
    priors[0, 0] *= 2
    points = scene.points.clone()
    points[0] += 0.5
    own = scene.measure()
    for other in (Scene(scene.points, priors, scene.places, 0.8), Scene(points, scene.priors, scene.places, 0.8)):
        found = other.measure()
        same = {name for name in own if torch.allclose(found[name], own[name], rtol=1e-5, atol=1e-5)}
        assert same <= {"flat shares", "visits", "recovery", "radii", "balls"}
    assert 0 < float(own["recovery"].mean()) < 1
    again = scene.measure()
    assert all(torch.equal(again[name], own[name]) for name in own)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("dimension", [2, 16, 64])
@settings(max_examples=8)
@given(sigma=st.floats(0.05, 0.99), seed=st.integers(0, 2**31))
def test_a_lone_point_is_known_in_full(
    dimension: int, dtype: torch.dtype, tolerance: float, sigma: float, seed: int
) -> None:
    """K = 1: H = I/σ², trace 1, no flat share, one attractor in one step, a parabola, and recovery from all noise."""
    generator = torch.Generator().manual_seed(seed)
    point, *places = torch.randn(4, 1, dimension, generator=generator, dtype=torch.float64) / dimension**0.5
    at = torch.cat(places).to(dtype)
    denoiser = exact_denoiser(point.to(dtype))
    condition, t = denoiser.condition(0), timestep_of(denoiser.schedule, sigma)
    alpha, level = float(denoiser.schedule.alphas[t]), float(denoiser.schedule.sigmas[t])

    bowl = denoiser.curvature(alpha * at[:1], torch.tensor([t]), condition)[0].double()
    rounding = 20 * torch.finfo(dtype).eps / level**2
    torch.testing.assert_close(level**2 * bowl, torch.eye(dimension, dtype=torch.float64), rtol=0, atol=rounding)
    for spectrum in dense_spectra(denoiser, at, t, condition):
        assert spectrum.singular == pytest.approx(np.ones(dimension), abs=tolerance)
        assert spectrum.trace == pytest.approx(1, abs=tolerance)
        assert spectrum.flat_share == 0
        assert spectrum.log_volume == pytest.approx(math.log(1 + VOLUME_RIDGE), abs=tolerance)

    ends, residual = descend(denoiser, at, t, condition, steps=1)
    torch.testing.assert_close(ends.double(), alpha * point.expand(3, -1), rtol=0, atol=tolerance)
    assert residual < 1e-5
    found = find_attractors(denoiser, at, t, condition, distance=0.01)
    assert found.visits.tolist() == [3]

    lengths = (at.double() - point).square().sum(1)
    parabola = alpha**2 * lengths / (2 * level**2)
    for path in ("arc", "line"):
        energies = relative_energy(denoiser, at[1:], at[0], t, condition, path=path, nodes=24)
        scale = 1 + float(parabola.max())
        torch.testing.assert_close(energies, parabola[1:] - parabola[0], rtol=0, atol=tolerance * scale)

    stored = point.to(dtype)
    basins = measure_basins(
        denoiser, lambda: build_scheduler("ddim", SCHEDULER_CONFIG), SamplerSettings("ddim", 6, 1.0), stored,
        condition, condition, within(stored, 0.1 * dimension**0.5), BasinSettings(trials=3, share=1.0), seed=seed,
    )  # fmt: skip
    assert (basins.recovery == 1).all()
    assert basins.critical_time.tolist() == [basins.timesteps[-1]]
