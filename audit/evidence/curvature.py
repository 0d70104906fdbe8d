r"""Curvature of the conditional energy at a prompt's samples.

With J = ∂ε̂/∂x at x = αẑ₀, the energy curvature is H = ∇²E = J/σ (Pham et al. 2025, section on curvature). All
quantities are normalised by σ and the dimension d; with λ the eigenvalues of the symmetric part of J,

    trace        σ·tr J / d                                 1 at an isolated stored point, 0 on a flat manifold
    flat share   #{σλ < 0.1} / d                            directions along which noise is not removed
    log-volume   (1/d) Σ log(max(σλ, 0) + ρ),  ρ = 0.1      of the basin, up to sign and constants
    top, bottom  largest and smallest singular values σ·s(J)

J of a trained network is only nearly symmetric; the asymmetry ‖J − Jᵀ‖/‖J + Jᵀ‖ is reported beside them.

Two ways to the same numbers. *Dense*: J column by column, 2d evaluations. *Lanczos*: for a random sign vector v,
vᵀf(J)v/d has mean tr f(J)/d (Hutchinson 1990), and m steps of the Arnoldi process turn it into an m-point Gauss
quadrature (stochastic Lanczos quadrature; Ubaru, Chen & Saad 2017, section 3), 2m evaluations a probe. Few nodes count
poorly on either side of a threshold. The mass below a node lies between the weights before it and these with its own
(Chebyshev, Markov & Stieltjes; Szegő 1939, section 3.41), so for the flat share half of a node's weight is spread to
either side, half the way to the next node, but no further than its residual, within which there is an eigenvalue
(Parlett 1998, theorem 4.5.1): an exact node stays a point.
Products Jv are central differences: two plain forward passes, no autograd, any attention kernel, half precision.

A budget of probes × steps: the sampling error falls as 1/√(d · probes), that of the quadrature with the steps. In
thousands of dimensions 8 × 10 estimates all three; one probe and all the steps see the ends of the spectrum best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, concatenate, repeat

FLAT_THRESHOLD = 0.1
VOLUME_RIDGE = 0.1
#: Length of a finite-difference step in units of σ·∛(machine epsilon), where the truncation error (∝ step²) and the
#: rounding error (∝ 1/step) of a central difference balance.
DIFFERENCE_STEP = 5.0
#: Values shown at either end of the spectrum.
SHOWN = 8

Method = Literal["lanczos", "dense", "off"]


@dataclass(frozen=True)
class CurvatureSettings:
    """How much is spent on curvature.

    Attributes:
        method: "lanczos", "dense" (2d evaluations a point) or "off".
        samples: independent samples it is taken at.
        noise_levels: σ/√(α² + σ²) of each level; the nearest training timestep is used.
        probes: random vectors per point.
        steps: Arnoldi steps per probe.
        baseline: whether the unconditional branch is measured at the same points, which doubles the cost.
    """

    method: Method = "lanczos"
    samples: int = 4
    noise_levels: tuple[float, ...] = (0.15, 0.35)
    probes: int = 1
    steps: int = 4
    baseline: bool = False

    def evaluations(self, seeds: int, dimension: int, *, contrasts: bool) -> int:
        """Denoiser evaluations that it takes.

        Args:
            seeds: samples that there are.
            dimension: of latents.
            contrasts: whether there is an unconditional branch to measure.
        """
        points = min(self.samples, seeds) * len(self.noise_levels) * (2 if self.baseline and contrasts else 1)
        products = {"off": 0, "dense": dimension, "lanczos": self.probes * min(self.steps, dimension)}[self.method]
        return 2 * points * products


@dataclass(frozen=True)
class Spectrum:
    """Curvature at one noise level under one condition, averaged over points.

    Attributes:
        trace: σ·tr J/d.
        trace_error: its standard error over points.
        flat_share: in [0, 1].
        log_volume: per dimension.
        top: largest singular values σ·s, descending.
        bottom: smallest singular values σ·s, ascending; with Lanczos an upper bound on each.
        asymmetry: ‖J − Jᵀ‖/‖J + Jᵀ‖, in the space that was explored.
    """

    trace: float
    trace_error: float
    flat_share: float
    log_volume: float
    top: tuple[float, ...]
    bottom: tuple[float, ...]
    asymmetry: float


@dataclass(frozen=True)
class PointSpectrum:
    """Curvature at one point; quantities as in `Spectrum`.

    Attributes:
        trace: σ·tr J/d.
        flat_share: in [0, 1].
        log_volume: per dimension.
        singular: singular values σ·s, descending: all d of them, or with Lanczos the sizes of the Ritz values in the
            space that all probes span together, where none is counted twice.
        asymmetry: ‖J − Jᵀ‖/‖J + Jᵀ‖.
    """

    trace: float
    flat_share: float
    log_volume: float
    singular: NDArray[np.float64]
    asymmetry: float


@dataclass(frozen=True)
class CurvatureLevel:
    """Curvature at one noise level.

    Attributes:
        timestep: training timestep.
        sigma: its σ.
        prompt: under the prompt.
        unconditional: at the same points under the empty prompt; None when the baseline was left out.
    """

    timestep: int
    sigma: float
    prompt: Spectrum
    unconditional: Spectrum | None


def measure_curvature(
    denoiser: Denoiser,
    latents: Tensor,
    condition: Condition,
    unconditional: Condition,
    settings: CurvatureSettings,
    *,
    seed: int = 0,
    rows: int = 256,
) -> tuple[CurvatureLevel, ...]:
    """Curvature at the first `settings.samples` latents, at every noise level, in shared batches.

    Args:
        denoiser: ε̂.
        latents: samples ẑ₀, (n, *latent shape).
        condition: of the prompt, one row.
        unconditional: of the empty prompt, one row.
        settings: what to spend.
        seed: of the probes.
        rows: most rows in one call of the denoiser.
    """
    if settings.method == "off":
        return ()
    points = latents[: settings.samples]
    n = len(points)
    timesteps = [denoiser.schedule.timestep_at_level(level) for level in settings.noise_levels]
    branches = [condition, unconditional] if settings.baseline else [condition]
    # One problem per (level, branch, point), all of them in the same batches.
    alphas, sigmas = denoiser.schedule.at(torch.tensor(timesteps), points.new_empty(len(timesteps), 1))
    x = torch.cat([alpha * points for alpha in alphas for _ in branches])
    t = torch.tensor(timesteps).repeat_interleave(len(branches) * n)
    rows_of = concatenate([repeat(branch, n) for _ in timesteps for branch in branches])
    scale = sigmas.flatten().repeat_interleave(len(branches) * n).cpu().double()
    if settings.method == "dense":
        points_found = _dense(denoiser, x, t, rows_of, scale, rows)
    else:
        points_found = _lanczos(denoiser, x, t, rows_of, scale, settings.probes, settings.steps, seed, rows)
    spectra = [_average(points_found[start : start + n]) for start in range(0, len(x), n)]
    levels = []
    for index, timestep in enumerate(timesteps):
        own = spectra[index * len(branches) : (index + 1) * len(branches)]
        levels.append(CurvatureLevel(timestep, float(sigmas[index]), own[0], own[1] if settings.baseline else None))
    return tuple(levels)


def dense_spectra(
    denoiser: Denoiser, points: Tensor, t: int, condition: Condition, rows: int = 256
) -> list[PointSpectrum]:
    """Curvature at every point, from the whole Jacobian: 2d evaluations each.

    Args:
        denoiser: ε̂.
        points: clean latents, (n, *latent shape); the Jacobian is taken at αx₀.
        t: timestep.
        condition: of the prompt, one row.
        rows: most rows in one call of the denoiser.
    """
    times = torch.full((len(points),), t)
    alphas, sigmas = denoiser.schedule.at(times, points)
    return _dense(
        denoiser, alphas * points, times, repeat(condition, len(points)), sigmas.flatten().cpu().double(), rows
    )


def jacobian_product(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Condition, directions: Tensor, rows: int = 256
) -> Tensor:
    """Jv by central differences, 2 evaluations a row.

    Args:
        denoiser: ε̂.
        x: points, (n, *latent shape).
        t: timesteps, (n,).
        condition: one entry per row.
        directions: v, (n, d) unit vectors.
        rows: most rows in one call.

    Returns:
        float64, (n, d), on the CPU.
    """
    _, sigmas = denoiser.schedule.at(t, x.new_empty(len(x), 1, dtype=torch.float64, device="cpu"))
    # A power of two: adding and subtracting it rounds alike, and dividing by it is exact.
    steps = torch.exp2((sigmas * DIFFERENCE_STEP * torch.finfo(x.dtype).eps ** (1 / 3)).log2().round())
    products = []
    for start in range(0, len(x), max(1, rows // 2)):
        part = slice(start, start + max(1, rows // 2))
        shift = (steps[part] * directions[part]).reshape(x[part].shape).to(x)
        pair = torch.cat([x[part] + shift, x[part] - shift])
        chunk = {name: torch.cat([tensor[part], tensor[part]]) for name, tensor in condition.items()}
        plus, minus = denoiser.precise(pair, t[part].repeat(2), chunk).flatten(1).chunk(2)
        products.append((plus - minus) / (2 * steps[part]))
    return torch.cat(products)


def rademacher(count: int, dimension: int, seed: int) -> Tensor:
    """Random sign vectors, float64, (count, dimension)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, dimension), generator=generator).double() * 2 - 1


@torch.inference_mode()
def _dense(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Condition, scale: Tensor, rows: int
) -> list[PointSpectrum]:
    d = x[0].numel()
    identity = torch.eye(d, dtype=torch.float64)
    found = []
    for index in range(len(x)):
        one = {name: tensor[index : index + 1] for name, tensor in condition.items()}
        columns = jacobian_product(
            denoiser, x[index].expand(d, *x.shape[1:]), t[index].expand(d), repeat(one, d), identity, rows
        )
        jacobian = scale[index] * columns.T
        values = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)
        found.append(
            PointSpectrum(
                trace=float(jacobian.trace() / d),
                flat_share=float((values < FLAT_THRESHOLD).double().mean()),
                log_volume=float(_log_volume(values).mean()),
                singular=torch.linalg.svdvals(jacobian).numpy(),
                asymmetry=_asymmetry(jacobian),
            )
        )
    return found


@torch.inference_mode()
def _lanczos(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    condition: Condition,
    scale: Tensor,
    probes: int,
    steps: int,
    seed: int,
    rows: int,
) -> list[PointSpectrum]:
    n, d = len(x), x[0].numel()
    steps = min(steps, d)
    xs, ts = x.repeat_interleave(probes, 0), t.repeat_interleave(probes)
    conditions = {name: tensor.repeat_interleave(probes, 0) for name, tensor in condition.items()}
    scales = scale.repeat_interleave(probes)[:, None]

    basis = torch.zeros(n * probes, steps, d, dtype=torch.float64)
    images = torch.zeros_like(basis)
    projected = torch.zeros(n * probes, steps, steps, dtype=torch.float64)
    basis[:, 0] = rademacher(n * probes, d, seed) / d**0.5
    for k in range(steps):
        product = scales * jacobian_product(denoiser, xs, ts, conditions, basis[:, k], rows)
        images[:, k] = product
        # The whole column of QᵀJQ, also above the diagonal: J is not exactly symmetric.
        projected[:, : k + 1, k] = torch.einsum("rjd,rd->rj", basis[:, : k + 1], product)
        rest = product
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            rest = rest - torch.einsum(
                "rj,rjd->rd", torch.einsum("rjd,rd->rj", basis[:, : k + 1], rest), basis[:, : k + 1]
            )
        norm = rest.norm(dim=1)
        if k + 1 < steps:
            projected[:, k + 1, k] = norm
            # An invariant subspace leaves nothing: the zero vector adds nodes of weight 0.
            basis[:, k + 1] = torch.where(norm[:, None] > 1e-9, rest / norm[:, None].clamp_min(1e-300), 0.0)
    symmetric = (projected + projected.transpose(1, 2)) / 2
    nodes, vectors = torch.linalg.eigh(symmetric)
    weights = vectors[:, 0].square()
    residuals = norm[:, None] * vectors[:, -1].abs()
    halves = nodes.diff(dim=1) / 2
    offsets, edge = FLAT_THRESHOLD - nodes, torch.full_like(nodes[:, :1], torch.inf)
    reach = torch.where(offsets < 0, torch.cat([edge, halves], 1), torch.cat([halves, edge], 1)).minimum(residuals)
    flat_shares = (weights * ((offsets / reach.clamp_min(1e-12)).clamp(-1, 1) / 2 + 0.5)).sum(1)
    log_volumes = (weights * _log_volume(nodes)).sum(1)
    found = []
    for index in range(n):
        own = slice(index * probes, (index + 1) * probes)
        found.append(
            PointSpectrum(
                trace=float(projected[own, 0, 0].mean()),
                flat_share=float(flat_shares[own].mean()),
                log_volume=float(log_volumes[own].mean()),
                singular=_ritz_sizes(basis[own].flatten(0, 1), images[own].flatten(0, 1)),
                asymmetry=float(np.mean([_asymmetry(block) for block in projected[own]])),
            )
        )
    return found


def _ritz_sizes(basis: Tensor, images: Tensor) -> NDArray[np.float64]:
    """|λ| of the symmetric part of VᵀJV, descending; V spans the rows of `basis`, and `images` are these under J."""
    left, scales, span = torch.linalg.svd(basis, full_matrices=False)
    # Directions that the rows hardly differ in would carry little but the rounding of differences.
    kept = scales > 0.01 * scales[0]
    projected = span[kept] @ ((left[:, kept] / scales[kept]).T @ images).T
    return np.sort(torch.linalg.eigvalsh((projected + projected.T) / 2).abs().numpy())[::-1]


def _log_volume(values: Tensor) -> Tensor:
    return (values.clamp_min(0) + VOLUME_RIDGE).log()


def _asymmetry(matrix: Tensor) -> float:
    return float((matrix - matrix.T).norm() / (matrix + matrix.T).norm().clamp_min(1e-300))


def _average(points: Sequence[PointSpectrum]) -> Spectrum:
    traces = np.asarray([point.trace for point in points])
    shown = min(SHOWN, *(len(point.singular) for point in points))
    return Spectrum(
        trace=float(traces.mean()),
        trace_error=float(traces.std(ddof=1) / len(traces) ** 0.5) if len(traces) > 1 else float("nan"),
        flat_share=float(np.mean([point.flat_share for point in points])),
        log_volume=float(np.mean([point.log_volume for point in points])),
        top=tuple(float(v) for v in np.mean([point.singular[:shown] for point in points], axis=0)),
        bottom=tuple(float(v) for v in np.mean([point.singular[::-1][:shown] for point in points], axis=0)),
        asymmetry=float(np.mean([point.asymmetry for point in points])),
    )
