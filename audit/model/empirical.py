r"""The exact denoiser of a finite set: the ruler for every numerical piece.

For points y_i with prior weights π_i, noised to x = αy + σε, the density p_t is a Gaussian mixture and all that
evidence measures is known in closed form (the paper, section 2; Biroli et al. 2024):

    w_i(x) ∝ π_i exp(−‖x − αy_i‖² / 2σ²)          responsibilities, Σ w_i = 1
    x̂₀ = Σ w_i y_i,   ε̂ = (x − αx̂₀)/σ
    E  = −log Σ π_i exp(−‖x − αy_i‖² / 2σ²) + (d/2) log 2πσ²
    H  = ∇²E = (I − (α²/σ²) Cov_w(y)) / σ²        and ∂ε̂/∂x = σH

This is the energy of a dense associative memory whose stored patterns are the points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser, Schedule


class EmpiricalDenoiser(Denoiser):
    """ε̂, energy and curvature of finite sets of points, one set per prompt.

    Args:
        points: the union of all sets, shape (m, *latent shape).
        priors: shape (prompts, m), non-negative: π of each prompt; rows are normalised here.
        schedule: α and σ per timestep.
    """

    prediction_type = "epsilon"

    def __init__(self, points: Tensor, priors: Tensor, schedule: Schedule) -> None:
        self.points = points
        priors = priors.cpu().double()
        self.log_priors = (priors / priors.sum(1, keepdim=True)).log().to(points)
        self.schedule = schedule

    def condition(self, prompt: int) -> Condition:
        """The one-row condition that selects a prompt's set."""
        return {"prompt": torch.tensor([prompt], device=self.points.device)}

    def _logits(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.schedule.at(t, x)
        flat, points = x.flatten(1), self.points.flatten(1).to(x)
        squared = ((flat[:, None] - alpha.flatten()[:, None, None] * points[None]) ** 2).sum(-1)
        logits = self.log_priors.to(x)[condition["prompt"]] - squared / (2 * sigma.reshape(-1, 1) ** 2)
        return logits, alpha, sigma

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε̂ in closed form."""
        logits, alpha, sigma = self._logits(x, t, condition)
        clean = (logits.softmax(1) @ self.points.flatten(1).to(x)).reshape(x.shape)
        return (x - alpha * clean) / sigma

    def energy(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E = −log p_t(x), shape (n,)."""
        logits, _, sigma = self._logits(x, t, condition)
        dimension = x[0].numel()
        return -logits.logsumexp(1) + dimension / 2 * (2 * math.pi * sigma.flatten() ** 2).log()

    def curvature(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """H = ∇²E, shape (n, d, d)."""
        logits, alpha, sigma = self._logits(x, t, condition)
        weights, points = logits.softmax(1), self.points.flatten(1).to(x)
        mean = weights @ points
        second = torch.einsum("nm,mi,mj->nij", weights, points, points)
        covariance = second - mean[:, :, None] * mean[:, None, :]
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        return (torch.eye(points.shape[1]).to(x) - (alpha / sigma) ** 2 * covariance) / sigma**2
