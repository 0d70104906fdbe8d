"""Curvature against the exact H, and matrix-free against dense."""

from __future__ import annotations

import numpy as np
import torch

from audit import demo
from audit.bench.markdown import markdown
from audit.evidence.curvature import (
    FLAT_THRESHOLD,
    VOLUME_RIDGE,
    CurvatureSettings,
    Spectrum,
    measure_curvature,
)
from audit.model.denoiser import Schedule
from audit.model.empirical import EmpiricalDenoiser
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, truth

#: The matrix-free setting that is compared with the dense one.
MATRIX_FREE = CurvatureSettings(probes=8, steps=4, baseline=False)
PROMPTS_PER_SIZE = 1


def run() -> str:
    """The tables, as Markdown."""
    default = CurvatureSettings()
    return f"""# Curvature

`python -m tests.benchmarks curvature`

Dense path on the exact denoiser of finite sets (float64, 64 dimensions, clustered points, three noise levels, 4
samples each) against the closed form H = (I − (α²/σ²) Cov_w(y))/σ²; largest error over all settings:

{_exact_table()}

Matrix-free ({MATRIX_FREE.probes} probes × {MATRIX_FREE.steps} Arnoldi steps,
{2 * MATRIX_FREE.probes * MATRIX_FREE.steps} NFE a point) against dense (512 NFE a point) on the demo
checkpoint: 4 samples, both noise levels, {PROMPTS_PER_SIZE} prompt of every K; and the audit's default
({default.probes} × {default.steps}, {2 * default.probes * default.steps} NFE):

{_demo_table()}
"""


def _exact_table() -> str:
    generator = torch.Generator().manual_seed(0)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = Schedule.from_alphas_cumprod((1 - betas).cumprod(0))
    errors: dict[str, float] = {}
    for clusters, members, width in ((1, 1, 0.0), (3, 4, 0.3), (2, 20, 0.15), (8, 8, 0.4)):
        centers = 2 * torch.randn(clusters, 1, 64, generator=generator, dtype=torch.float64)
        points = centers + width * torch.randn(clusters, members, 64, generator=generator, dtype=torch.float64)
        points = points.reshape(-1, 1, 8, 8)
        exact = EmpiricalDenoiser(points, torch.ones(1, len(points)), schedule)
        condition = exact.condition(0)
        latents = points[torch.randint(len(points), (4,), generator=generator)]
        settings = CurvatureSettings(method="dense", noise_levels=(0.15, 0.35, 0.7), baseline=False)
        for level in measure_curvature(exact, latents, condition, condition, settings):
            true = _closed_form(exact, latents, level.timestep)
            found = level.prompt
            for name in ("trace", "flat_share", "log_volume"):
                a, b = getattr(found, name), getattr(true, name)
                errors[name] = max(errors.get(name, 0.0), abs(a - b) / max(abs(b), 1e-2))
            for name in ("top", "bottom"):
                a, b = np.asarray(getattr(found, name)), np.asarray(getattr(true, name))
                errors[name] = max(errors.get(name, 0.0), float((np.abs(a - b) / np.maximum(np.abs(b), 1e-2)).max()))
    return markdown(["quantity", "relative error"], [[n.replace("_", " "), f"{e:.2%}"] for n, e in errors.items()])


def _closed_form(exact: EmpiricalDenoiser, latents: torch.Tensor, timestep: int) -> Spectrum:
    t = torch.full((len(latents),), timestep)
    alpha, sigma = exact.schedule.at(t, latents)
    rows = {"prompt": torch.zeros(len(latents), dtype=torch.long)}
    values = torch.linalg.eigvalsh(sigma.reshape(-1, 1, 1) ** 2 * exact.curvature(alpha * latents, t, rows)).numpy()
    singular = np.sort(np.abs(values), axis=1)
    return Spectrum(
        trace=float(values.mean()),
        trace_error=0.0,
        flat_share=float((values < FLAT_THRESHOLD).mean()),
        log_volume=float(np.log(np.maximum(values, 0) + VOLUME_RIDGE).mean()),
        top=tuple(singular[:, ::-1][:, :8].mean(0)),
        bottom=tuple(singular[:, :8].mean(0)),
        asymmetry=0.0,
    )


def _demo_table() -> str:
    model, sampler = checkpoint(), demo.calibration().sampler
    assert sampler is not None
    empty = model.encode_prompts([""])
    differences: dict[str, list[list[float]]] = {"matrix-free": [], "default": []}
    seen: dict[int, int] = {}
    for row in truth():
        seen[row.images] = seen.get(row.images, 0) + 1
        if seen[row.images] > PROMPTS_PER_SIZE:
            continue
        condition = model.encode_prompts([row.prompt])
        latents = model.sample(sampler, condition, empty, range(BENCHMARK_SEED, BENCHMARK_SEED + 4)).latents
        dense = measure_curvature(
            model.denoiser, latents, condition, empty, CurvatureSettings(method="dense", baseline=False)
        )
        for name, settings in (("matrix-free", MATRIX_FREE), ("default", CurvatureSettings(baseline=False))):
            for free, full in zip(
                measure_curvature(model.denoiser, latents, condition, empty, settings), dense, strict=True
            ):
                differences[name].append(
                    [
                        abs(free.prompt.trace / full.prompt.trace - 1),
                        abs(free.prompt.flat_share - full.prompt.flat_share),
                        abs(free.prompt.log_volume - full.prompt.log_volume),
                        full.prompt.asymmetry,
                    ]
                )
    rows = []
    for name, found in differences.items():
        errors = np.asarray(found)
        rows.append(
            [
                name,
                f"{np.median(errors[:, 0]):.2%} / {errors[:, 0].max():.2%}",
                f"{np.median(errors[:, 1]):.3f} / {errors[:, 1].max():.3f}",
                f"{np.median(errors[:, 2]):.3f} / {errors[:, 2].max():.3f}",
            ]
        )
    asymmetry = np.asarray(differences["default"])[:, 3]
    return (
        markdown(["median / largest error", "trace", "share of flat directions", "log-volume per dimension"], rows)
        + f"\n\nAsymmetry ‖J − Jᵀ‖/‖J + Jᵀ‖ of the dense Jacobian: {asymmetry.min():.1%} to {asymmetry.max():.1%}."
    )
