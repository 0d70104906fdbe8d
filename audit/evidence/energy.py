r"""Energies E = −log p_t: between two points along a path, and absolute ones through the probability flow.

*Relative energy* (the paper, appendix E, after Raya & Ambrogioni 2023): with ∇E = ε̂/σ, the energy of a point a relative
to a reference b is the path integral from b to a along the great arc x(θ) = b cos θ + a sin θ, θ from 0 to π/2:

    E(a) − E(b) = ∫ (ε̂(x(θ))/σ) · x′(θ) dθ.

ε̂ of a trained network is not exactly a gradient, so the integral depends on the path; the straight one is there to tell
how much.

*Absolute energy* (Song et al. 2021, section 4.3): along the probability flow of noise x(σ), in coordinates where the
signal keeps its scale (y = x/α, ς = σ/α), dy/dς = ε̂ and d log p/dς = −tr ∂ε̂/∂y, up to the largest noise level, where p
is a Gaussian. The trace is exact, from 2d evaluations a step: for small dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audit.evidence.curvature import jacobian_product
from audit.model.denoiser import Condition, Denoiser, repeat

Path = Literal["arc", "line"]


@torch.inference_mode()
def relative_energy(
    denoiser: Denoiser,
    points: Tensor,
    reference: Tensor,
    t: int,
    condition: Condition,
    *,
    path: Path = "arc",
    nodes: int = 64,
    rows: int = 4096,
) -> Tensor:
    """E(point) − E(reference) at one noise level.

    Args:
        denoiser: ε̂.
        points: clean latents, (n, *latent shape); energies are taken at αx₀.
        reference: a clean latent, (*latent shape).
        t: timestep.
        condition: of the prompt, one row.
        path: the great arc, or the straight line.
        nodes: of the Gauss–Legendre quadrature; `nodes` evaluations a point.
        rows: most rows in one call.

    Returns:
        float64, (n,), on the CPU.
    """
    alpha, sigma = denoiser.schedule.at(torch.tensor([t]), points)
    a, b = alpha * points, alpha[0] * reference
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    fraction = torch.as_tensor((positions + 1) / 2)
    if path == "arc":
        theta = fraction * math.pi / 2
        ways = (theta.sin(), theta.cos(), theta.cos() * math.pi / 2, -theta.sin() * math.pi / 2)
    else:
        one = torch.ones_like(fraction)
        ways = (fraction, 1 - fraction, one, -one)
    of_a, of_b, speed_a, speed_b = (way.to(points).reshape(-1, *[1] * (points.dim() - 1)) for way in ways)
    step = torch.as_tensor(weights / 2)
    energies = []
    for chunk in a.split(max(1, rows // nodes)):
        x = (of_a[None] * chunk[:, None] + of_b[None] * b).flatten(0, 1)
        speed = (speed_a[None] * chunk[:, None] + speed_b[None] * b).flatten(0, 1)
        noise = denoiser(x, torch.full((len(x),), t, device=x.device), repeat(condition, len(x)))
        slope = (noise.cpu().double() * speed.cpu().double()).flatten(1).sum(1) / float(sigma)
        energies.append(slope.reshape(len(chunk), nodes) @ step)
    return torch.cat(energies)


@torch.inference_mode()
def absolute_energy(denoiser: Denoiser, points: Tensor, t: int, condition: Condition, *, steps: int = 100) -> Tensor:
    """E = −log p_t, in nats, by the probability flow from timestep t to the last one.

    Args:
        denoiser: ε̂; at its last timestep with a signal p must be close to the Gaussian of standard deviation σ.
        points: x_t, (n, *latent shape).
        t: timestep.
        condition: of the prompt, one row.
        steps: Heun steps (Karras et al. 2022, algorithm 1), on timesteps in geometric progression of σ/α.

    Returns:
        float64, (n,), on the CPU.
    """
    schedule, d = denoiser.schedule, points[0].numel()
    # Not where there is no noise, or no signal: at the ends of a flow.
    usable = ((schedule.alphas > 0) & (schedule.sigmas > 0)).nonzero().flatten()
    ratio = (schedule.sigmas / schedule.alphas).log()[usable]
    levels = torch.linspace(float(np.interp(t, usable, ratio)), float(ratio[-1]), steps + 1, dtype=torch.float64)
    times = torch.as_tensor(np.interp(levels.numpy(), ratio.numpy(), usable.numpy().astype(np.float64)))
    alphas, sigmas = (table.double() for table in schedule.at(times, torch.zeros(steps + 1, 1, dtype=torch.float64)))
    noise_to_signal = (sigmas / alphas).flatten()
    # Half precision has too few digits for them, and mps no float64.
    clock = torch.promote_types(points.dtype, torch.float32)

    def slopes(y: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """dy/dς and d log p/dς."""
        x, time = (y * float(alphas[index])).to(points), times[index].to(clock).to(points.device).expand(len(y))
        many = repeat(condition, len(y))
        trace = torch.zeros(len(y), dtype=torch.float64)
        for axis in range(d):
            direction = torch.zeros(len(y), d, dtype=torch.float64)
            direction[:, axis] = 1
            trace += jacobian_product(denoiser, x, time, many, direction, rows=2 * len(y))[:, axis]
        return denoiser.precise(x, time, many), -float(alphas[index]) * trace

    y = points.cpu().double() / float(alphas[0])
    change = torch.zeros(len(points), dtype=torch.float64)
    for index in range(steps):
        drift, growth = slopes(y, index)
        step = float(noise_to_signal[index + 1] - noise_to_signal[index])
        ahead, growth_ahead = slopes(y + step * drift, index + 1)
        y = y + step * (drift + ahead) / 2
        change += step * (growth + growth_ahead) / 2
    largest = float(noise_to_signal[-1])
    at_end = -y.flatten(1).square().sum(1) / (2 * largest**2) - d / 2 * math.log(2 * math.pi * largest**2)
    # log p(x) = log p(y) − d log α; at the end log p(y) is at_end, and going back undoes the change.
    return -(at_end - change - d * math.log(float(alphas[0])))
