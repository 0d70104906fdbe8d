r"""The circle (the paper, figure 2): in two dimensions everything can be drawn and compared with what is exact.

K points on the unit circle, noised to x = y + σε (variance exploding). The exact energy of the finite set is
`EmpiricalDenoiser`'s; for K → ∞ the density depends on R = ‖x‖ alone,

    p(x) ∝ exp(−(R² + 1)/2σ²) I₀(R/σ²),      x̂₀ = (I₁(R/σ²)/I₀(R/σ²)) x/R,

with Bessel functions I: the paper's E = R² + 1 − (1/β) log I₀(2βR) is 2σ² times this one, β = 1/2σ².
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ScoreSdeVeScheduler
from numpy.typing import NDArray
from scipy.special import ive
from torch import Tensor

from audit.evidence.attractors import Attractors, find_attractors
from audit.evidence.energy import absolute_energy
from audit.model.denoiser import Condition, Denoiser, Schedule
from audit.model.empirical import EmpiricalDenoiser
from audit.phase.architectures import Fleet, ResidualMLP
from audit.phase.folder import read_arrays, write_arrays
from audit.phase.train_sweep import NetworkDenoiser, train_on
from audit.phase.workers import Job, Report

SIZES = (2, 9, 1000)
WIDTH = 64
STEPS = 6000
BATCH = 256
SIGMA_MIN, SIGMA_MAX, LEVELS = 0.01, 10.0, 1000
#: Noise level of landscapes and attractors: neighbours nearer than twice this blend.
SIGMA_SHOWN = 0.2
#: Noise levels at which the trained score is compared with the exact one.
SIGMAS_COMPARED = (0.1, 0.2, 0.5, 1.0)
SAMPLES = 512
#: Of the job: as long as so many floating-point operations in larger networks.
WEIGHT = 2e12
#: Side of the grid of a landscape, and its half-width.
GRID, EXTENT = 51, 1.6
#: Points around the ring at which energies are compared.
RING = 180


def exploding_schedule() -> Schedule:
    """α = 1 and σ in geometric progression (Song et al. 2021, variance exploding)."""
    sigmas = torch.as_tensor(np.geomspace(SIGMA_MIN, SIGMA_MAX, LEVELS))
    return Schedule(torch.ones(LEVELS), sigmas)


def preserving_schedule() -> Schedule:
    """The same noise levels with variance preserved: α = 1/√(1 + σ²), so that a network sees inputs of one scale."""
    sigmas = exploding_schedule().sigmas
    alphas = 1 / (1 + sigmas**2).sqrt()
    return Schedule(alphas, sigmas * alphas)


class VarianceExploding(Denoiser):
    """A variance-preserving denoiser in the coordinates x/α, where the signal keeps its scale.

    Args:
        inner: with α > 0 everywhere.
    """

    prediction_type = "epsilon"

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule = Schedule(torch.ones(len(inner.schedule)), inner.schedule.sigmas / inner.schedule.alphas)

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε̂ at x: noise is the same in both coordinates."""
        alpha, _ = self.inner.schedule.at(t, x)
        return self.inner(alpha * x, t, condition)


class CircleDenoiser(Denoiser):
    """The exact denoiser of the whole circle, K → ∞."""

    prediction_type = "epsilon"

    def __init__(self) -> None:
        self.schedule = exploding_schedule()

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε̂ in closed form."""
        _, sigma = self.schedule.at(t, x)
        radius = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        argument = (radius / sigma**2).double().numpy()
        pull = torch.as_tensor(ive(1, argument) / ive(0, argument)).to(x)
        return (x - pull * x / radius) / sigma

    def energy(self, x: Tensor, t: Tensor) -> Tensor:
        """E = −log p, shape (n,)."""
        _, sigma = self.schedule.at(t, x)
        radius, variance = x.norm(dim=1).double(), sigma.flatten().double() ** 2
        scaled = torch.as_tensor(ive(0, (radius / variance).numpy()))  # I₀(z) exp(−z)
        return (radius - 1) ** 2 / (2 * variance) - scaled.log() + (2 * np.pi * variance).log()


@dataclass(frozen=True)
class Circle:
    """What was found for one K; see `run_toy` for the arrays."""

    size: int
    arrays: dict[str, NDArray[np.float64]]

    @property
    def stored(self) -> int:
        """Attractors of the trained energy that are training points."""
        return int((self.arrays["attractor_distance"] <= SIGMA_SHOWN / 2).sum())

    @property
    def stored_exact(self) -> int:
        """Attractors of the exact energy that are training points."""
        return int((self.arrays["attractor_exact_distance"] <= SIGMA_SHOWN / 2).sum())

    @property
    def spurious_exact(self) -> int:
        """Attractors of the exact energy that are not: blends."""
        return len(self.arrays["attractor_exact_distance"]) - self.stored_exact

    @property
    def flat(self) -> bool:
        """Whether training points lie so densely that neighbours always blend: descents stop anywhere on a ring."""
        return self.size * SIGMA_SHOWN > 4 * np.pi

    @property
    def spurious(self) -> int:
        """Attractors that are not."""
        return len(self.arrays["attractor_distance"]) - self.stored


def circle_points(size: int, seed: int = 0) -> Tensor:
    """Uniform on the unit circle, float64, (size, 2)."""
    angles = np.random.default_rng([seed, size]).uniform(0, 2 * np.pi, size)
    return torch.as_tensor(np.stack([np.cos(angles), np.sin(angles)], 1))


def exact_denoiser(points: Tensor) -> EmpiricalDenoiser:
    """Of a finite set on the toy's noise levels."""
    return EmpiricalDenoiser(points, torch.ones(1, len(points)), exploding_schedule())


def toy_jobs(folder: Path, seed: int) -> list[Job]:
    """The whole toy as one job, unless it is done."""
    if all((folder / f"K{size:04d}.npz").is_file() for size in SIZES):
        return []
    return [Job("circle", WEIGHT, partial(run_toy, folder, seed))]


def load_toy(folder: Path) -> list[Circle]:
    """What `run_toy` wrote, in the order of `SIZES`."""
    return [Circle(size, read_arrays(folder / f"K{size:04d}.npz")) for size in SIZES]


def run_toy(folder: Path, seed: int, report: Report, device: str) -> None:
    """Train one network per K, and set what it learnt beside what is exact.

    Written per K: the training `points`; `samples` of the reverse process; `energy`, `energy_exact` and `energy_limit`
    on a square grid, and `score` there; `ring_energy`, `ring_energy_exact` and `ring_energy_limit` around the unit
    circle; `attractors` of the trained energy with `attractor_visits`, `attractor_energy` and `attractor_distance` to
    the nearest training point; `attractors_exact` of the exact energy with `attractor_exact_distance`; `score_error`,
    relative, at `SIGMAS_COMPARED`, against the finite set and `score_error_limit` against the whole circle. Energies
    are in nats, minimum zero.

    Args:
        folder: where to.
        seed: of points, weights and draws.
        report: told the share that is done.
        device: unused; two dimensions fit any processor.
    """
    torch.manual_seed(seed)
    sets = [circle_points(size, seed).float() for size in SIZES]
    fleet = train_on(
        Fleet([ResidualMLP(WIDTH, (2,)) for _ in SIZES]),
        sets,
        preserving_schedule(),
        prediction_type="sample",
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=3e-3,
        ema_decay=0.999,
        weight_decay=0.0,
        seed=seed,
        name="circle",
        folder=folder,
        report=lambda share: report(0.6 * share),
    )
    for position, (size, points) in enumerate(zip(SIZES, sets, strict=True)):
        network = ResidualMLP(WIDTH, (2,)).eval().requires_grad_(False)
        network.load_state_dict(fleet.weights(position))
        trained = VarianceExploding(NetworkDenoiser(network, preserving_schedule(), "sample"))
        write_arrays(folder / f"K{size:04d}.npz", _examine(trained, points, seed))
        report(0.6 + 0.4 * (position + 1) / len(SIZES))
    (folder / "circle.state.pt").unlink(missing_ok=True)


def sample_circle(denoiser: Denoiser, count: int, seed: int) -> Tensor:
    """Samples of the reverse variance-exploding process, (count, 2), by diffusers' scheduler."""
    scheduler = ScoreSdeVeScheduler(
        num_train_timesteps=LEVELS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sampling_eps=1e-5
    )
    scheduler.set_timesteps(LEVELS)
    scheduler.set_sigmas(LEVELS, SIGMA_MIN, SIGMA_MAX)
    generator = torch.Generator().manual_seed(seed)
    x = SIGMA_MAX * torch.randn(count, 2, generator=generator)
    with torch.inference_mode():
        for step, time in enumerate(scheduler.timesteps):
            t = torch.full((count,), LEVELS - 1 - step)
            score = -denoiser(x, t, {}) / denoiser.schedule.sigmas[LEVELS - 1 - step].float()
            moved = scheduler.step_pred(score, time, x, generator=generator)
            x = moved.prev_sample
    return moved.prev_sample_mean


def _examine(trained: Denoiser, points: Tensor, seed: int) -> dict[str, NDArray[np.float64]]:
    exact, limit = exact_denoiser(points), CircleDenoiser()
    condition = exact.condition(0)
    t = trained.schedule.timestep(SIGMA_SHOWN)
    axis = torch.linspace(-EXTENT, EXTENT, GRID)
    grid = torch.cartesian_prod(axis, axis)
    angles = torch.arange(RING) * (2 * torch.pi / RING)
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    samples = sample_circle(trained, SAMPLES, seed)
    settle = partial(find_attractors, starts=samples, t=t, distance=SIGMA_SHOWN, steps=300, tolerance=1e-4)
    found: Attractors = settle(trained, condition={})
    blends = settle(exact, condition=condition)
    everywhere = torch.cat([grid, ring, found.centers])
    split = [len(grid), len(ring), len(found.centers)]
    times = torch.full((len(everywhere),), t)
    energies = {
        "": absolute_energy(trained, everywhere, t, {}, steps=40),
        "_exact": exact.energy(everywhere.double(), times, {"prompt": times * 0}),
        "_limit": limit.energy(everywhere, times),
    }
    arrays: dict[str, Tensor] = {}
    for kind, values in energies.items():
        landscape, around, at_attractors = (values - values[: len(grid)].min()).split(split)
        arrays |= {f"energy{kind}": landscape.reshape(GRID, GRID), f"ring_energy{kind}": around}
        if not kind:
            arrays["attractor_energy"] = at_attractors
    errors, errors_limit = [], []
    generator = torch.Generator().manual_seed(seed)
    for sigma in SIGMAS_COMPARED:
        level = trained.schedule.timestep(sigma)
        rows = torch.randint(len(points), (4096,), generator=generator)
        x = points[rows] + float(trained.schedule.sigmas[level]) * torch.randn(4096, 2, generator=generator)
        at = torch.full((len(x),), level)
        with torch.inference_mode():
            own, right = trained(x, at, {}), exact(x, at, {"prompt": at * 0})
            whole = limit(x, at, {})
        errors.append((own - right).norm() / right.norm())
        errors_limit.append((own - whole).norm() / whole.norm())
    with torch.inference_mode():
        score = -trained(grid, times[: len(grid)], {}) / SIGMA_SHOWN
    arrays |= {
        "points": points,
        "samples": samples,
        "score": score,
        "attractors": found.centers,
        "attractor_visits": torch.as_tensor(found.visits),
        "attractor_distance": torch.cdist(found.centers.double(), points.double()).min(1).values,
        "attractors_exact": blends.centers,
        "attractor_exact_distance": torch.cdist(blends.centers.double(), points.double()).min(1).values,
        "score_error": torch.stack(errors),
        "score_error_limit": torch.stack(errors_limit),
    }
    return {name: value.double().numpy() for name, value in arrays.items()}
