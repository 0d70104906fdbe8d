"""Curvature in 256, 4,096 and 16,384 dimensions: error, cost and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from scipy.linalg import hadamard
from torch import Tensor

from audit import demo
from audit.bench.markdown import markdown
from audit.evidence.curvature import (
    FLAT_THRESHOLD,
    VOLUME_RIDGE,
    CurvatureSettings,
    Spectrum,
    jacobian_product,
    measure_curvature,
    rademacher,
)
from audit.model.denoiser import Condition, MeteredDenoiser, repeat
from audit.model.empirical import EmpiricalDenoiser
from audit.model.families.unet import UNetDenoiser
from audit.model.sampling import SamplerSettings, build_scheduler, sample
from tests.audit.makers import SCHEDULER_CONFIG, SignPatterns, power_law, stable_diffusion_schedule
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, child, truth

#: Sides of a latent of four channels: the demo's, that of 256-pixel images, Stable Diffusion's.
SIDES = (8, 32, 64)
NOISE_LEVELS = (0.15, 0.35, 0.7)
#: (exponent, share) of `power_law`.
LAWS = tuple((exponent, share) for exponent in (0.5, 1.0, 2.0) for share in (0.02, 0.2, 0.7))
#: Probes × steps, of at most 81 products.
SPLITS = ((1, 81), (4, 20), (8, 10), (10, 8), (20, 4))
CHOSEN = (8, 10)
PRODUCTS = 81
TRACES = 6

#: Clusters of random points, and at which σ they are measured.
CLUSTER_SIZE = 2500
CLUSTER_EXPONENTS = (0.25, 0.5, 1.0)
CLUSTER_LEVELS = (0.35, 0.5)

#: Ends of the spectrum count as found within this.
FOUND = 0.01
WARM_PROMPTS = (1, 16, 1000)

#: Stable Diffusion 1.5's UNet; all else is the class's default.
STABLE_DIFFUSION: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_SETTINGS = CurvatureSettings(samples=1, noise_levels=(0.35,), probes=1, steps=4)


def run() -> str:
    """The tables, as Markdown."""
    probes, steps = CHOSEN
    return f"""# Curvature at scale

`python -m tests.benchmarks scale`

## Error against the exact H

Exact denoisers of d points in d dimensions (float32) whose σ²H has the spectrum of power-law data, 1/(1 + v) with
v ∝ rank^−a: a = 0.5, 1 and 2, v = 9 (eigenvalue 0.1) at 2%, 20% and 70% of the ranks, at σ = 0.15, 0.35 and 0.7;
shares of flat directions from 0.02 to 0.7, traces from 0.07 to 0.9. Median / largest error at a point over these
{len(LAWS) * len(NOISE_LEVELS)}; top and bottom are the errors of the largest and the smallest value, in the same unit
(1 is an isolated stored point). Dense is 2d evaluations.

{_split_table()}

In 4,096 and 16,384 dimensions 8 × 10 and 10 × 8 keep the trace within 2%, the flat share within 0.02 and the log-volume
within 0.05; 256 dimensions are too few for one point's sampling error in the trace, and dense is cheap there.

{probes} × {steps} in {4 * SIDES[1] ** 2:,} dimensions on random points: {len(CLUSTER_EXPONENTS)} clusters of
{CLUSTER_SIZE:,} points each, drawn with power-law covariances on spheres around their centres, at these centres
(float32). The energy has maxima there in some directions, which are negative eigenvalues; with exponent 1 these are far
outliers, and cost accuracy:

{_cluster_table()}

## The trace, by estimators of equal cost

At most {PRODUCTS} products Jv each, {4 * SIDES[1] ** 2:,} dimensions, σ = 0.35; root mean square of the relative error
over {TRACES} seeds. Hutchinson 1990; Hutch++ (Meyer, Musco, Musco & Woodruff 2021); XTrace and XNysTrace (Epperly,
Tropp & Webber 2024). The last column is what stochastic Lanczos quadrature has at no product of its own, and the one
that `audit` keeps: on power laws deflation gains next to nothing over as many plain probes. It pays where a few stiff
directions stand out of a flat rest, which makes the trace itself small.

{_trace_table()}

## Warm starts

Lanczos steps until both ends of the spectrum are within {FOUND} of the symmetric part of the dense J, from a random
vector, and from the sum of the four leading Ritz vectors at either end that 20 steps found at another sample of the
prompt. Demo checkpoint, σ = 0.15, 4 samples, all ordered pairs; mean (range). A warm start saves a few
steps; but it has to wait for the other sample, where both could share batches, and it is not random, so that trace,
share and volume would need products of their own. `audit` has none.

{_warm_table()}

## Stable Diffusion's size

{_unet_table()}
"""


class LargeSet(EmpiricalDenoiser):
    """As its parent, with distances from products of matrices in double precision; energies lack a constant of x."""

    def _logits(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.schedule.at(t, x.double())
        products = alpha * (x.double() @ self.points.T) - alpha**2 / 2 * self.points.square().sum(1)
        logits = self.log_priors[condition["prompt"]] + products / sigma**2
        return (logits - logits.amax(1, keepdim=True)).to(x), alpha.to(x), sigma.to(x)


def exact_point(denoiser: SignPatterns, probes: int, steps: int, seed: int) -> Spectrum:
    """What is measured at the place whose spectrum is known."""
    sigma = float(denoiser.schedule.sigmas[denoiser.timestep])
    settings = CurvatureSettings(samples=1, noise_levels=(sigma,), probes=probes, steps=steps)
    (level,) = measure_curvature(denoiser, denoiser.origin.float(), {}, {}, settings, seed=seed)
    return level.prompt


def errors(found: Spectrum, values: Tensor) -> list[float]:
    """Relative of the trace, absolute of all else: flat share, log-volume, top, bottom."""
    return [
        abs(found.trace / float(values.mean()) - 1),
        abs(found.flat_share - float((values < FLAT_THRESHOLD).double().mean())),
        abs(found.log_volume - float((values.clamp_min(0) + VOLUME_RIDGE).log().mean())),
        abs(found.top[0] - float(values.abs().max())),
        abs(found.bottom[0] - float(values.abs().min())),
    ]


def _split_table() -> str:
    rows = []
    for side in SIDES:
        dimension, cases = 4 * side**2, []
        for exponent, share in LAWS:
            for sigma in NOISE_LEVELS:
                denoiser = SignPatterns(power_law(dimension, exponent, share), sigma, (4, side, side))
                cases.append(denoiser)
        for probes, steps in SPLITS:
            found = np.array(
                [
                    errors(exact_point(denoiser, probes, steps, BENCHMARK_SEED + seed), denoiser.spectrum)
                    for seed, denoiser in enumerate(cases)
                ]
            )
            cost = 2 * probes * steps
            middle, largest = np.median(found, 0), found.max(0)
            shown = [f"{middle[0]:.2%} / {largest[0]:.2%}"]
            shown += [f"{a:.3f} / {b:.3f}" for a, b in zip(middle[1:], largest[1:], strict=True)]
            rows.append([f"{dimension:,}", f"{probes} × {steps}", f"{cost}", f"1/{2 * dimension / cost:.1f}", *shown])
    return markdown(
        [
            "d", "probes × steps", "NFE", "of dense",
            "trace", "flat share", "log-volume a dimension", "top", "bottom",
        ],
        rows,
    )  # fmt: skip


def _cluster_table() -> str:
    side = SIDES[1]
    dimension = 4 * side**2
    generator = torch.Generator().manual_seed(BENCHMARK_SEED)
    schedule = stable_diffusion_schedule()
    t = schedule.timestep(CLUSTER_LEVELS[0])
    # So that the mean of the eigenvalues of (α²/σ²) Cov over a cluster's points is 0.4 at the first level.
    radius = (0.4 * CLUSTER_SIZE) ** 0.5 * float(schedule.sigmas[t] / schedule.alphas[t])
    turn = torch.from_numpy(hadamard(dimension)).double() / dimension**0.5
    ranks = torch.arange(1, dimension + 1, dtype=torch.float64)
    centers = torch.randn(len(CLUSTER_EXPONENTS), dimension, generator=generator).double()
    centers = 2 * radius * torch.nn.functional.normalize(centers)
    points = []
    for center, exponent in zip(centers, CLUSTER_EXPONENTS, strict=True):
        drawn = torch.randn(CLUSTER_SIZE, dimension, generator=generator).double() * ranks ** (-exponent / 2)
        points.append(center + radius * torch.nn.functional.normalize(drawn) @ turn)
    denoiser = LargeSet(torch.cat(points), torch.ones(1, len(CLUSTER_EXPONENTS) * CLUSTER_SIZE), schedule)
    condition, rows = denoiser.condition(0), []
    for exponent, center, cluster in zip(CLUSTER_EXPONENTS, centers, points, strict=True):
        # The others are far, so that a cluster's own points weigh alike at its centre.
        spread = cluster - cluster.mean(0)
        covariance = torch.linalg.eigvalsh(spread @ spread.T / CLUSTER_SIZE)
        for level in CLUSTER_LEVELS:
            settings = CurvatureSettings(samples=1, noise_levels=(level,), probes=CHOSEN[0], steps=CHOSEN[1])
            latents = center.float().reshape(1, -1)
            (found,) = measure_curvature(denoiser, latents, condition, condition, settings)
            alpha, sigma = schedule.alphas[found.timestep], schedule.sigmas[found.timestep]
            values = torch.cat([torch.ones(dimension - CLUSTER_SIZE), 1 - (alpha / sigma) ** 2 * covariance])
            trace, flat, volume, *_ = errors(found.prompt, values)
            share = float((values < FLAT_THRESHOLD).double().mean())
            exact = [f"{values.min():.1f}", f"{values.mean():.3f}", f"{share:.3f}"]
            rows.append([f"{exponent:g}", f"{level}", *exact, f"{trace:.2%}", f"{flat:.3f}", f"{volume:.3f}"])
    exact_header = ["exact: smallest", "trace", "flat share"]
    return markdown(["exponent", "σ", *exact_header, "error: trace", "flat share", "log-volume a dimension"], rows)


Product = Callable[[Tensor], Tensor]


def hutchinson(product: Product, dimension: int, seed: int) -> float:
    """Mean of vᵀAv over random sign vectors."""
    probes = rademacher(PRODUCTS, dimension, seed).T
    return float((probes * product(probes)).sum() / PRODUCTS)


def hutch_plus_plus(product: Product, dimension: int, seed: int) -> float:
    """The trace on the range of AS exactly, and Hutchinson's estimate on what is orthogonal to it."""
    sketch, probes = rademacher(2 * (PRODUCTS // 3), dimension, seed).chunk(2)
    basis, _ = torch.linalg.qr(product(sketch.T))
    rest = probes.T - basis @ (basis.T @ probes.T)
    return float((basis * product(basis)).sum() + (rest * product(rest)).sum() / len(probes))


def x_trace(product: Product, dimension: int, seed: int) -> float:
    """Hutch++ with every vector as the probe of what the others leave, all averaged."""
    probes = rademacher(PRODUCTS // 2, dimension, seed).T
    images = product(probes)
    basis, triangle = torch.linalg.qr(images)
    mapped = product(basis)
    # Without vector i the basis spans what is orthogonal to Q sᵢ, sᵢ the normalised columns of R⁻ᵀ.
    left_out = torch.nn.functional.normalize(torch.linalg.inv(triangle).T, dim=0)
    small, seen = basis.T @ mapped, basis.T @ probes
    seen = seen - left_out * (left_out * seen).sum(0)
    rest, image = probes - basis @ seen, images - mapped @ seen
    return float((small.trace() - (left_out * (small @ left_out)).sum(0) + (rest * image).sum(0)).mean())


def x_nys_trace(product: Product, dimension: int, seed: int) -> float:
    """As `x_trace`, with the Nyström approximation from the other vectors, for which A has to be non-negative."""
    probes = rademacher(PRODUCTS, dimension, seed).T
    images = product(probes)
    cross, gram, found = probes.T @ images, images.T @ images, []
    cross = (cross + cross.T) / 2
    for index in range(PRODUCTS):
        others = torch.arange(PRODUCTS) != index
        inverse = torch.linalg.inv(cross[others][:, others])
        own = cross[others, index]
        found.append(float((inverse * gram[others][:, others]).sum() + cross[index, index] - own @ inverse @ own))
    return float(np.mean(found))


def _trace_table() -> str:
    side, sigma = SIDES[1], NOISE_LEVELS[1]
    dimension = 4 * side**2
    few = torch.arange(dimension) >= dimension - 40
    spectra = {f"power law a = {a:g}, 10% flat": power_law(dimension, a, 0.1) for a in (0.5, 1.0, 2.0)}
    spectra |= {f"power law a = {a:g}, 70% flat": power_law(dimension, a, 0.7) for a in (0.5, 1.0, 2.0)}
    spectra["40 directions of 0, else 1"] = torch.where(few, 0.0, 1.0).double()
    spectra["40 directions of 1, else 0.01"] = torch.where(few, 1.0, 0.01).double()
    methods = {"Hutchinson": hutchinson, "Hutch++": hutch_plus_plus, "XTrace": x_trace, "XNysTrace": x_nys_trace}
    rows = []
    for name, spectrum in spectra.items():
        denoiser = SignPatterns(spectrum, sigma, (4, side, side))
        scale = float(denoiser.schedule.sigmas[denoiser.timestep])
        true = float(denoiser.spectrum.sum())

        def product(directions: Tensor, denoiser: SignPatterns = denoiser, scale: float = scale) -> Tensor:
            count, lengths = directions.shape[1], directions.norm(dim=0)
            x = denoiser.origin.float().expand(count, *denoiser.origin.shape[1:])
            t = torch.full((count,), denoiser.timestep)
            return (scale * jacobian_product(denoiser, x, t, {}, (directions / lengths).T)).T * lengths

        found = [
            [estimate(product, dimension, BENCHMARK_SEED + seed) / true - 1 for seed in range(TRACES)]
            for estimate in methods.values()
        ]
        own = [exact_point(denoiser, *CHOSEN, BENCHMARK_SEED + seed).trace for seed in range(TRACES)]
        found.append([trace * dimension / true - 1 for trace in own])
        rows.append([name, f"{true / dimension:.3f}", *(f"{np.sqrt(np.mean(np.square(e))):.2%}" for e in found)])
    return markdown(["spectrum of σ²H", "trace", *methods, f"quadrature {CHOSEN[0]} × {CHOSEN[1]}"], rows)


def _warm_table() -> str:
    model, sampler = checkpoint(), demo.calibration().sampler
    assert sampler is not None
    t = model.denoiser.schedule.timestep(NOISE_LEVELS[0])
    alpha, sigma = (float(table[t]) for table in (model.denoiser.schedule.alphas, model.denoiser.schedule.sigmas))
    empty, rows = model.encode_prompts([""]), []
    for images in WARM_PROMPTS:
        prompt = next(row.prompt for row in truth() if row.images == images)
        condition = model.encode_prompts([prompt])
        latents = model.sample(sampler, condition, empty, range(BENCHMARK_SEED, BENCHMARK_SEED + 4)).latents
        dimension = latents[0].numel()
        matrices = []
        for latent in latents:
            x, times = (alpha * latent).expand(dimension, *latent.shape), torch.full((dimension,), t)
            with torch.inference_mode():
                columns = jacobian_product(
                    model.denoiser, x, times, repeat(condition, dimension), torch.eye(dimension).double()
                )
            matrices.append(sigma * (columns + columns.T) / 2)
        starts = torch.randn(len(matrices), dimension, generator=torch.Generator().manual_seed(0)).double()
        cold, warm = [], []
        for index, matrix in enumerate(matrices):
            cold.append(_steps(matrix, starts[index]))
            basis = _krylov(matrix, starts[index], 20)
            _, vectors = torch.linalg.eigh(basis @ matrix @ basis.T)
            leading = (torch.cat([vectors[:, :4], vectors[:, -4:]], 1).T @ basis).sum(0)
            warm += [_steps(other, leading) for other in matrices if other is not matrix]
        rows.append([f"{images:,}", *(f"{np.mean(n):.1f} ({min(n)} to {max(n)})" for n in (cold, warm))])
    return markdown(["K", "random", "warm"], rows)


def _krylov(matrix: Tensor, start: Tensor, steps: int) -> Tensor:
    """An orthonormal basis of the Krylov space, (steps, d)."""
    basis = torch.nn.functional.normalize(start[None])
    for _ in range(steps - 1):
        rest = matrix @ basis[-1]
        for _ in range(2):
            rest = rest - (basis @ rest) @ basis
        basis = torch.cat([basis, torch.nn.functional.normalize(rest[None])])
    return basis


def _steps(matrix: Tensor, start: Tensor) -> int:
    """How many Lanczos steps see both ends of the spectrum."""
    true = torch.linalg.eigvalsh(matrix)[[0, -1]]
    basis = _krylov(matrix, start, len(matrix))
    projected = basis @ matrix @ basis.T
    for steps in range(2, len(matrix)):
        if float((torch.linalg.eigvalsh(projected[:steps, :steps])[[0, -1]] - true).abs().max()) < FOUND:
            return steps
    return len(matrix)


def _unet_table() -> str:
    with child(_unet) as work:
        found = work.recv()
    per_evaluation = found["curvature seconds"] / found["curvature NFE"]
    probes, steps = CHOSEN
    return (
        f"A UNet of Stable Diffusion 1.5's configuration with random weights ({found['parameters'] / 1e6:,.0f} million "
        f"parameters), bfloat16, in a process of its own with {found['threads']} thread(s): 2 seeds × 2 steps of DDIM "
        f"without guidance, 4 × 64 × 64 latents, then curvature at one of them ({UNET_SETTINGS.probes} probe × "
        f"{UNET_SETTINGS.steps} steps, one noise level). Random weights have no curvature to speak of: only cost and "
        f"memory are measured. At this rate {probes} × {steps} would take "
        f"{2 * probes * steps * per_evaluation / 60:,.0f} minutes, the dense Jacobian's "
        f"{2 * 16384:,} evaluations {2 * 16384 * per_evaluation / 3600:,.0f} hours.\n\n"
    ) + markdown(
        ["", "NFE", "wall time", "largest resident memory so far"],
        [
            [name, f"{found[f'{name} NFE']}", f"{found[f'{name} seconds']:,.0f} s", f"{found[f'{name} memory']:.1f} GB"]
            for name in ("load", "sampling", "curvature")
        ],
    )


def _unet(pipe: Connection) -> None:
    """Cost and memory, part by part."""
    found: dict[str, float] = {"threads": torch.get_num_threads()}
    start = time.perf_counter()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**STABLE_DIFFUSION).eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_default_dtype(torch.float32)
    denoiser = MeteredDenoiser(UNetDenoiser(unet, stable_diffusion_schedule(), "epsilon"))
    condition = {"text": torch.randn(1, 77, 768, dtype=torch.bfloat16)}
    found["parameters"] = unet.num_parameters()

    def mark(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        found[f"{name} seconds"], start = now - start, now
        found[f"{name} memory"], found[f"{name} NFE"] = _largest_resident(), denoiser.evaluations
        denoiser.evaluations = 0

    mark("load")
    drawn = sample(
        denoiser, build_scheduler("ddim", SCHEDULER_CONFIG), SamplerSettings("ddim", 2, 1.0), condition, condition,
        [BENCHMARK_SEED, BENCHMARK_SEED + 1], (4, 64, 64), dtype=torch.bfloat16,
    )  # fmt: skip
    mark("sampling")
    measure_curvature(denoiser, drawn.latents, condition, condition, UNET_SETTINGS, rows=2)
    mark("curvature")
    pipe.send(found)


def _largest_resident() -> float:
    """This process's peak resident memory in GB (2³⁰ bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
