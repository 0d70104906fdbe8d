"""Curvature against the exact Hessian, matrix-free against dense, and its edges."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.evidence.curvature import (
    FLAT_THRESHOLD,
    SHOWN,
    VOLUME_RIDGE,
    CurvatureSettings,
    Spectrum,
    dense_spectra,
    jacobian_product,
    measure_curvature,
)
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser, Schedule, repeat
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import draw_noise
from tests.audit.makers import (
    SignPatterns,
    clusters,
    exact_denoiser,
    power_law,
    stable_diffusion_schedule,
    timestep_of,
)

LEVELS = (0.05, 0.15, 0.35, 0.7)
#: Four clusters of twelve points, from a tight one to one wider than most noise levels: mixed spectra, with flat
#: directions inside the clusters and softmax weights that change sharply between points.
WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def exact_spectrum(denoiser: EmpiricalDenoiser, latents: Tensor, timestep: int, condition: Condition) -> Spectrum:
    """The quantities of `measure_curvature` from H in closed form, in double precision."""
    points = latents.double()
    t = torch.full((len(points),), timestep)
    alpha, sigma = denoiser.schedule.at(t, points)
    ruler = EmpiricalDenoiser(denoiser.points.double(), denoiser.log_priors.exp(), denoiser.schedule)
    level = float(sigma.flatten()[0])
    scaled = level**2 * ruler.curvature(alpha * points, t, repeat(condition, len(points)))
    values, singular = torch.linalg.eigvalsh(scaled).numpy(), torch.linalg.svdvals(scaled).numpy()
    traces = values.mean(1)
    return Spectrum(
        trace=float(traces.mean()),
        trace_error=float(traces.std(ddof=1) / len(traces) ** 0.5),
        flat_share=float((values < FLAT_THRESHOLD).mean()),
        log_volume=float(np.log(np.maximum(values, 0) + VOLUME_RIDGE).mean()),
        top=tuple(singular.mean(0)[:SHOWN]),
        bottom=tuple(singular.mean(0)[::-1][:SHOWN]),
        asymmetry=0.0,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 0.01)])
@pytest.mark.parametrize("width", WIDTHS)
def test_dense_curvature_is_the_exact_hessian(width: float, dtype: torch.dtype, tolerance: float) -> None:
    """Trace, log-volume, flat share and singular values are within 1% of the exact H (10⁻⁵ in double precision).

    At the cluster centres, where many points weigh in, and at the points themselves; at four noise levels.
    """
    points = clusters(4, 12, width)
    denoiser = exact_denoiser(points.to(dtype))
    condition = denoiser.condition(0)
    middles = points.reshape(4, 12, -1).mean(1)
    for latents in (middles, points[::13][:4]):
        found = measure_curvature(
            denoiser,
            latents.to(dtype),
            condition,
            condition,
            CurvatureSettings("dense", samples=4, noise_levels=LEVELS, baseline=False),
        )
        for level in found:
            true = exact_spectrum(denoiser, latents.to(dtype), level.timestep, condition)
            assert level.prompt.trace == pytest.approx(true.trace, rel=tolerance)
            assert level.prompt.trace_error == pytest.approx(true.trace_error, rel=0.05, abs=tolerance)
            assert level.prompt.log_volume == pytest.approx(true.log_volume, rel=tolerance, abs=tolerance)
            assert level.prompt.flat_share == pytest.approx(true.flat_share, abs=0.25 / 16)
            assert level.prompt.top == pytest.approx(true.top, rel=tolerance)
            assert level.prompt.bottom == pytest.approx(true.bottom, rel=tolerance, abs=tolerance * true.top[0])
            assert level.prompt.asymmetry < tolerance


def test_spectra_of_the_test_sets_are_mixed() -> None:
    """The sets above have flat directions, whole ones and overshooting ones: the test is no test of the identity."""
    flats, tops = [], []
    for width in WIDTHS:
        points = clusters(4, 12, width)
        denoiser = exact_denoiser(points)
        for sigma in LEVELS:
            spectrum = exact_spectrum(
                denoiser, points.reshape(4, 12, -1).mean(1), timestep_of(denoiser.schedule, sigma),
                denoiser.condition(0),
            )  # fmt: skip
            flats.append(spectrum.flat_share)
            tops.append(spectrum.top[0])
    assert sum(0 < flat < 1 for flat in flats) >= 10
    assert sum(top > 2 for top in tops) >= 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 0.01)])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("dimension", [2, 16, 64, 256])
def test_dense_spectra_are_those_of_the_exact_hessian(
    dimension: int, sigma: float, dtype: torch.dtype, tolerance: float
) -> None:
    """At every point, all d singular values are those of σJ = σ²H within 1% of the largest (10⁻⁶ in double precision).

    So are trace and log-volume, and the flat share counts the eigenvalues under the threshold.
    """
    scale = 4 / dimension**0.5
    points = clusters(3, 6, 0.3 * scale, dimension=dimension, spread=3 * scale)
    priors = 0.1 + torch.rand(1, len(points), dtype=torch.float64)
    denoiser, ruler = exact_denoiser(points.to(dtype), priors), exact_denoiser(points, priors)
    t = timestep_of(denoiser.schedule, sigma)
    alpha, level = denoiser.schedule.alphas[t], denoiser.schedule.sigmas[t]
    places = torch.cat([points.reshape(3, 6, -1).mean(1), points[::9], torch.full((1, dimension), 0.1)])
    n = len(places)
    scaled = level**2 * ruler.curvature(alpha * places, torch.full((n,), t), repeat(ruler.condition(0), n))
    found = dense_spectra(denoiser, places.to(dtype), t, denoiser.condition(0))
    assert len(found) == n
    for spectrum, matrix in zip(found, scaled, strict=True):
        values, singular = torch.linalg.eigvalsh(matrix).numpy(), torch.linalg.svdvals(matrix).numpy()
        assert spectrum.singular.shape == (dimension,)
        assert spectrum.singular == pytest.approx(singular, rel=0, abs=tolerance * singular[0])
        assert spectrum.trace == pytest.approx(values.mean(), abs=tolerance)
        assert spectrum.log_volume == pytest.approx(np.log(np.maximum(values, 0) + VOLUME_RIDGE).mean(), abs=tolerance)
        unsure = (np.abs(values - FLAT_THRESHOLD) < tolerance * singular[0]).mean()
        assert spectrum.flat_share == pytest.approx((values < FLAT_THRESHOLD).mean(), abs=unsure + 1e-12)
        assert spectrum.asymmetry < tolerance


def test_dense_spectra_average_to_a_measurement() -> None:
    """Image-shaped points, in calls of any size: their means are what `measure_curvature` says at that timestep."""
    points = clusters(2, 8, 0.4).reshape(-1, 1, 4, 4)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    (level,) = measure_curvature(
        denoiser, points, condition, condition,
        CurvatureSettings("dense", samples=5, noise_levels=(0.35,), baseline=False),
    )  # fmt: skip
    for rows in (1, 6, 256):
        found = dense_spectra(denoiser, points[:5], level.timestep, condition, rows=rows)
        assert level.prompt.trace == pytest.approx(np.mean([spectrum.trace for spectrum in found]), rel=1e-9)
        assert level.prompt.flat_share == pytest.approx(np.mean([spectrum.flat_share for spectrum in found]))
        tops = np.mean([spectrum.singular for spectrum in found], axis=0)
        assert level.prompt.top == pytest.approx(tops[:SHOWN], rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 5e-3)])
@pytest.mark.parametrize("sigma", LEVELS)
def test_jacobian_products_are_those_of_the_hessian(dtype: torch.dtype, tolerance: float, sigma: float) -> None:
    """Jv = σHv by differences, in both precisions, rows in chunks of any size."""
    denoiser = exact_denoiser(clusters(3, 8, 0.2).to(dtype))
    x = clusters(3, 8, 0.2)[::5].to(dtype)
    n = len(x)
    t = torch.full((n,), timestep_of(denoiser.schedule, sigma))
    _, level = denoiser.schedule.at(t, x.double())
    directions = torch.nn.functional.normalize(torch.randn(n, 16, dtype=torch.float64))
    condition = repeat(denoiser.condition(0), n)
    ruler = exact_denoiser(denoiser.points.double())
    true = level * torch.einsum("nij,nj->ni", ruler.curvature(x.double(), t, condition), directions)
    for rows in (1, 4, 256):
        found = jacobian_product(denoiser, x, t, condition, directions, rows)
        assert found.dtype == torch.float64
        assert float((found - true).norm() / true.norm()) < tolerance


def test_an_isolated_point_is_stiff_in_every_direction() -> None:
    """At a single stored point the trace is 1, nothing is flat, and the volume is log(1 + ρ)."""
    points = clusters(1, 1, 0.0)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    for method in ("dense", "lanczos"):
        for level in measure_curvature(
            denoiser, points, condition, condition, CurvatureSettings(method, noise_levels=LEVELS)
        ):
            assert level.prompt.trace == pytest.approx(1.0, abs=1e-6)
            assert level.prompt.flat_share == 0
            assert level.prompt.log_volume == pytest.approx(math.log(1 + VOLUME_RIDGE), abs=1e-6)
            assert level.prompt.asymmetry < 1e-6
            assert math.isnan(level.prompt.trace_error)


def test_curvature_orders_the_phases() -> None:
    """A lone point is more curved than a few blended ones, and these more than a manifold of many (figure 5)."""
    alone, few = clusters(1, 1, 0.0), clusters(1, 4, 0.15)
    many = 0.3 * torch.randn(400, 16, dtype=torch.float64)
    traces, flats = [], []
    for points in (alone, few, many):
        denoiser = exact_denoiser(points)
        condition = denoiser.condition(0)
        (level,) = measure_curvature(
            denoiser, points.mean(0, keepdim=True), condition, condition,
            CurvatureSettings("dense", noise_levels=(0.15,), baseline=False),
        )  # fmt: skip
        traces.append(level.prompt.trace)
        flats.append(level.prompt.flat_share)
    assert traces[0] > traces[1] > traces[2]
    assert flats[0] <= flats[1] <= flats[2]


@pytest.mark.parametrize("width", [0.1, 0.5])
def test_lanczos_of_full_length_is_dense(width: float) -> None:
    """With as many steps as dimensions the quadrature is exact in the starting vector; many probes give all of it."""
    points = clusters(2, 10, width, dimension=8)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    latents = points.reshape(2, 10, -1).mean(1)
    levels = (0.15, 0.5)
    dense = measure_curvature(
        denoiser, latents, condition, condition, CurvatureSettings("dense", noise_levels=levels, baseline=False)
    )
    # All 2⁸ sign vectors average vvᵀ to the identity; a few thousand random ones nearly do.
    whole = measure_curvature(
        denoiser, latents, condition, condition,
        CurvatureSettings("lanczos", noise_levels=levels, probes=2000, steps=8, baseline=False),
    )  # fmt: skip
    for a, b in zip(dense, whole, strict=True):
        assert b.prompt.trace == pytest.approx(a.prompt.trace, abs=0.05)
        assert b.prompt.log_volume == pytest.approx(a.prompt.log_volume, abs=0.05)
        assert b.prompt.flat_share == pytest.approx(a.prompt.flat_share, abs=0.02)
        # Every Krylov space is the whole space, so Ritz values are eigenvalues.
        assert b.prompt.top[0] == pytest.approx(a.prompt.top[0], rel=1e-4)
        assert b.prompt.bottom[0] == pytest.approx(a.prompt.bottom[0], rel=1e-3, abs=1e-4)


def test_lanczos_steps_beyond_the_dimension_change_nothing() -> None:
    """More steps than dimensions are as many as dimensions."""
    points = clusters(2, 6, 0.4, dimension=4)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    four, forty = (
        measure_curvature(denoiser, points[:2], condition, condition, CurvatureSettings(probes=3, steps=steps))
        for steps in (4, 40)
    )
    assert four == forty


def test_trace_estimate_is_unbiased() -> None:
    """Over many probes the stochastic trace averages to the exact one, within four of its own standard errors."""
    points = clusters(3, 8, 0.3)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    latents = points[:1]
    (exact,) = measure_curvature(
        denoiser, latents, condition, condition, CurvatureSettings("dense", noise_levels=(0.35,), baseline=False)
    )
    estimates = np.asarray(
        [
            measure_curvature(
                denoiser, latents, condition, condition,
                CurvatureSettings(noise_levels=(0.35,), probes=1, steps=1, baseline=False), seed=seed,
            )[0].prompt.trace
            for seed in range(600)
        ]
    )  # fmt: skip
    error = estimates.std(ddof=1) / len(estimates) ** 0.5
    assert error > 0
    assert abs(estimates.mean() - exact.prompt.trace) < 4 * error


def test_baseline_is_the_unconditional_branch_at_the_same_points() -> None:
    """The second spectrum is what a measurement under the empty prompt finds, and costs as much again."""
    points = clusters(2, 8, 0.3)
    priors = torch.ones(2, len(points))
    priors[0, 8:] = 0
    denoiser = EmpiricalDenoiser(points, priors, stable_diffusion_schedule())
    meter = MeteredDenoiser(denoiser)
    latents = points[:3] + 0.05
    both = measure_curvature(
        meter, latents, denoiser.condition(0), denoiser.condition(1), CurvatureSettings("dense", baseline=True)
    )
    cost = meter.evaluations
    alone = measure_curvature(
        denoiser, latents, denoiser.condition(0), denoiser.condition(0), CurvatureSettings("dense", baseline=False)
    )
    other = measure_curvature(
        denoiser, latents, denoiser.condition(1), denoiser.condition(1), CurvatureSettings("dense", baseline=False)
    )
    assert cost == 2 * 2 * 3 * 2 * 16
    for level, own, empty in zip(both, alone, other, strict=True):
        assert level.unconditional is not None
        assert own.unconditional is None
        assert level.prompt.trace == pytest.approx(own.prompt.trace, rel=1e-9)
        assert level.unconditional.trace == pytest.approx(empty.prompt.trace, rel=1e-9)
        assert level.unconditional.top == pytest.approx(empty.prompt.top, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "latents"),
    [
        (CurvatureSettings(samples=1), 5),
        (CurvatureSettings(samples=4), 1),
        (CurvatureSettings(probes=1), 2),
        (CurvatureSettings(steps=1), 2),
        (CurvatureSettings(samples=1, probes=1, steps=1, noise_levels=(0.2,)), 1),
        (CurvatureSettings("dense", samples=1), 1),
        (CurvatureSettings("dense", samples=100), 3),
    ],
)
def test_small_budgets_measure_what_they_can(settings: CurvatureSettings, latents: int) -> None:
    """One sample, probe or step, or fewer samples than asked for: all numbers but a one-sample error are finite."""
    points = clusters(2, 4, 0.4)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    levels = measure_curvature(denoiser, points[:latents], condition, condition, replace(settings, baseline=True))
    assert len(levels) == len(settings.noise_levels)
    for level in levels:
        for spectrum in (level.prompt, level.unconditional):
            assert spectrum is not None
            numbers = [spectrum.trace, spectrum.flat_share, spectrum.log_volume, *spectrum.top, *spectrum.bottom]
            assert np.isfinite(numbers).all()
            assert 0 <= spectrum.flat_share <= 1
            assert math.isnan(spectrum.trace_error) == (min(settings.samples, latents) == 1)
            assert list(spectrum.top) == sorted(spectrum.top, reverse=True)
            assert list(spectrum.bottom) == sorted(spectrum.bottom)


class Linear(Denoiser):
    """ε̂ = Ax/σ for a matrix A, so that σJ = A everywhere."""

    prediction_type = "epsilon"

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.schedule = Schedule(torch.ones(1), torch.full((1,), 0.5))

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the class says."""
        return (x.flatten(1) @ self.matrix.T.to(x) / 0.5).reshape(x.shape)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_an_invariant_subspace_ends_early(method: str) -> None:
    """A has two eigenvalues, so two Lanczos steps see all of it and the others add nothing."""
    values = torch.tensor([0.0] * 6 + [2.0] * 6, dtype=torch.float64)
    denoiser, latents = Linear(torch.diag(values)), torch.zeros(2, 12, dtype=torch.float64)
    (level,) = measure_curvature(
        denoiser, latents, {}, {}, CurvatureSettings(method, probes=2, steps=9, noise_levels=(0.5,), baseline=False)
    )  # type: ignore[arg-type]
    assert level.prompt.trace == pytest.approx(1.0, abs=1e-9)
    assert level.prompt.flat_share == pytest.approx(0.5, abs=1e-9)
    assert level.prompt.log_volume == pytest.approx((math.log(0.1) + math.log(2.1)) / 2, abs=1e-6)
    assert level.prompt.top[0] == pytest.approx(2.0)
    assert level.prompt.bottom[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.15, 0.7])
def test_sign_patterns_are_a_finite_set(sigma: float) -> None:
    """The fast denoiser is the exact one of its points, and its curvature has the spectrum that it was made for."""
    fast = SignPatterns(power_law(64, 1.0, 0.3), sigma, (4, 4, 4))
    exact = exact_denoiser(fast.points)
    t = torch.full((3,), fast.timestep)
    condition = repeat(exact.condition(0), 3)
    x = sigma * torch.randn(3, 4, 4, 4, dtype=torch.float64)
    x[0] = 0
    torch.testing.assert_close(fast(x, t, {}), exact(x, t, condition), rtol=1e-9, atol=1e-9)
    values = torch.linalg.eigvalsh(fast.schedule.sigmas[fast.timestep] ** 2 * exact.curvature(x, t, condition)[0])
    torch.testing.assert_close(values, fast.spectrum.sort().values, rtol=1e-9, atol=1e-9)
    assert 0 < float((values < FLAT_THRESHOLD).double().mean()) < 1


@pytest.mark.parametrize(("exponent", "share"), [(0.5, 0.1), (1.0, 0.3), (2.0, 0.02), (1.0, 0.7)])
@pytest.mark.parametrize(
    ("dimension", "sigma", "dtype"),
    [(4096, 0.15, torch.float32), (4096, 0.7, torch.float64), (16384, 0.35, torch.float32)],
)
def test_many_dimensions_take_few_evaluations(
    dimension: int, sigma: float, exponent: float, share: float, dtype: torch.dtype
) -> None:
    """160 evaluations at a point find the trace within 2%, the flat share within 0.02, the log-volume within 0.05.

    And the ends of the spectrum within 0.05, from inside it. The dense Jacobian takes 50 times as many.
    """
    denoiser = SignPatterns(power_law(dimension, exponent, share), sigma, (dimension,))
    meter = MeteredDenoiser(denoiser)
    (level,) = measure_curvature(
        meter, denoiser.origin.to(dtype), {}, {},
        CurvatureSettings(samples=1, noise_levels=(sigma,), probes=8, steps=10, baseline=False),
    )  # fmt: skip
    values = denoiser.spectrum
    assert meter.evaluations == 160 <= 2 * dimension / 50
    assert level.prompt.trace == pytest.approx(float(values.mean()), rel=0.02)
    assert level.prompt.flat_share == pytest.approx(float((values < FLAT_THRESHOLD).double().mean()), abs=0.02)
    assert level.prompt.log_volume == pytest.approx(float((values + VOLUME_RIDGE).log().mean()), abs=0.05)
    rounding = 1e-3 if dtype == torch.float32 else 1e-6
    assert float(values.max()) - 0.05 < level.prompt.top[0] < float(values.max()) + rounding
    assert float(values.min()) - rounding < level.prompt.bottom[0] < float(values.min()) + 0.05


def test_ends_of_the_spectrum_are_counted_once() -> None:
    """Eight probes see each of the eight largest and smallest values once, not the first of them eight times."""
    outer = torch.cat([torch.linspace(2, 3, SHOWN, dtype=torch.float64), torch.linspace(0, 0.3, SHOWN).double()])
    values = torch.cat([outer, torch.linspace(0.9, 1.1, 500, dtype=torch.float64)])
    (level,) = measure_curvature(
        Linear(torch.diag(values)), torch.zeros(1, len(values), dtype=torch.float64), {}, {},
        CurvatureSettings(probes=8, steps=10, noise_levels=(0.5,), baseline=False),
    )  # fmt: skip
    assert level.prompt.top == pytest.approx(outer[:SHOWN].flip(0).tolist(), abs=1e-3)
    assert level.prompt.bottom == pytest.approx(outer[SHOWN:].tolist(), abs=1e-3)


@pytest.mark.parametrize("highest", [0.15, 0.3, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("power", [1, 3])
def test_few_lanczos_steps_count_flat_directions(highest: float, power: int) -> None:
    """Four steps find the share of a smooth spectrum under the threshold within 0.06, wherever the threshold falls."""
    values = highest * torch.linspace(0, 1, 200, dtype=torch.float64) ** power
    (level,) = measure_curvature(
        Linear(torch.diag(values)), torch.zeros(4, 200, dtype=torch.float64), {}, {},
        CurvatureSettings(probes=8, steps=4, noise_levels=(0.5,), baseline=False),
    )  # fmt: skip
    assert level.prompt.flat_share == pytest.approx(float((values < FLAT_THRESHOLD).double().mean()), abs=0.06)


def test_a_null_jacobian_is_flat() -> None:
    """Where the denoiser ignores its input every direction is flat."""
    denoiser, latents = Linear(torch.zeros(6, 6)), torch.zeros(2, 6)
    for method in ("dense", "lanczos"):
        (level,) = measure_curvature(
            denoiser, latents, {}, {}, CurvatureSettings(method, noise_levels=(0.5,), baseline=False)
        )
        assert level.prompt.trace == 0
        assert level.prompt.flat_share == pytest.approx(1)
        assert level.prompt.log_volume == pytest.approx(math.log(VOLUME_RIDGE))


def test_asymmetry_is_measured() -> None:
    """‖J − Jᵀ‖/‖J + Jᵀ‖ of a known matrix: exactly when dense, and by Lanczos of full length."""
    matrix = torch.randn(6, 6, dtype=torch.float64) + 3 * torch.eye(6, dtype=torch.float64)
    expected = float((matrix - matrix.T).norm() / (matrix + matrix.T).norm())
    for method in ("dense", "lanczos"):
        (level,) = measure_curvature(
            Linear(matrix), torch.zeros(1, 6, dtype=torch.float64), {}, {},
            CurvatureSettings(method, probes=1, steps=6, noise_levels=(0.5,), baseline=False),
        )  # fmt: skip
        assert level.prompt.asymmetry == pytest.approx(expected, rel=1e-6)
        if method == "dense":
            assert level.prompt.top == pytest.approx(torch.linalg.svdvals(matrix).tolist(), rel=1e-6)


def test_nothing_is_measured_when_curvature_is_off() -> None:
    """The method "off" makes no call and gives no level."""
    meter = MeteredDenoiser(exact_denoiser(clusters(1, 2, 0.1)))
    condition = meter.inner.condition(0)  # type: ignore[attr-defined]
    assert measure_curvature(meter, torch.zeros(2, 16), condition, condition, CurvatureSettings("off")) == ()
    assert meter.evaluations == 0


def test_noise_levels_take_the_nearest_timestep() -> None:
    """Each level reports the timestep it was measured at and that timestep's σ."""
    points = clusters(1, 3, 0.3)
    denoiser = exact_denoiser(points)
    condition = denoiser.condition(0)
    levels = measure_curvature(
        denoiser, points[:1], condition, condition, CurvatureSettings(noise_levels=(0.0, 0.143, 1.0), probes=1, steps=1)
    )
    assert [level.timestep for level in levels] == [0, timestep_of(denoiser.schedule, 0.143), 999]
    for level in levels:
        assert level.sigma == pytest.approx(float(denoiser.schedule.sigmas[level.timestep]))


def test_rows_per_call_do_not_matter(checkpoint: Checkpoint) -> None:
    """A trained network gives the same curvature however its evaluations are cut into calls."""
    latents, _ = draw_noise([0, 1], (4, 8, 8))
    condition, empty = checkpoint.encode_prompts(["a red wool coat"]), checkpoint.encode_prompts([""])
    settings = CurvatureSettings(samples=2, probes=2, steps=3)
    wide, narrow = (
        measure_curvature(checkpoint.denoiser, latents, condition, empty, settings, rows=rows) for rows in (256, 10)
    )
    for a, b in zip(wide, narrow, strict=True):
        assert a.prompt.trace == pytest.approx(b.prompt.trace, abs=2e-3)
        assert a.prompt.log_volume == pytest.approx(b.prompt.log_volume, abs=2e-2)


def test_differences_of_the_network_are_its_derivative(checkpoint: Checkpoint) -> None:
    """On the demo's UNet a central difference is within 1% of reverse-mode differentiation, level by level."""
    x, _ = draw_noise([0, 1], (4, 8, 8))
    condition = repeat(checkpoint.encode_prompts(["a red wool coat"]), 2)
    condition = {name: tensor.clone() for name, tensor in condition.items()}
    directions = torch.nn.functional.normalize(torch.randn(2, 256, dtype=torch.float64))
    others = torch.nn.functional.normalize(torch.randn(2, 256, dtype=torch.float64))
    for sigma in (0.15, 0.35, 0.8):
        t = torch.full((2,), timestep_of(checkpoint.denoiser.schedule, sigma))
        with torch.inference_mode():
            product = jacobian_product(checkpoint.denoiser, x, t, condition, directions)
        leaf = x.clone().requires_grad_(True)
        output = checkpoint.denoiser(leaf, t, condition).flatten(1)
        # uᵀJv by the transposed product: uᵀJ is a gradient.
        (gradient,) = torch.autograd.grad((output * others.float()).sum(), leaf)
        expected = (gradient.flatten(1).double() * directions).sum(1)
        found = (product * others).sum(1)
        scale = float(product.norm(dim=1).mean())
        assert float((found - expected).abs().max()) < 0.01 * scale
