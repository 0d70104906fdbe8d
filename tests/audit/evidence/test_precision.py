"""Curvature of networks in half precision, against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit import demo
from audit.evidence.curvature import CurvatureSettings, jacobian_product, measure_curvature, rademacher
from audit.evidence.smoothed import measure_smoothed_trace
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, PredictionType, repeat
from audit.model.loading import load_checkpoint

LEVELS = (0.143, 0.35)


@pytest.fixture(scope="module")
def latents(checkpoint: Checkpoint) -> Tensor:
    """Points that are samples, or nearly so."""
    generator = torch.Generator().manual_seed(0)
    return checkpoint.encode(torch.rand(4, 1, 32, 32, generator=generator) * 2 - 1)


def test_a_network_in_half_precision(checkpoint: Checkpoint, latents: Tensor) -> None:
    """Traces, shares and volumes of the demo in bfloat16 are those of float32 within a few percent."""
    half = load_checkpoint(demo.CHECKPOINT, dtype=torch.bfloat16)
    settings = CurvatureSettings(method="dense", samples=1, noise_levels=LEVELS[1:], baseline=False)
    found = []
    for one in (checkpoint, half):
        condition, empty = one.encode_prompts(["a red wool coat"]), one.encode_prompts([""])
        rows = latents.to(one.dtype)
        traces = measure_smoothed_trace(one.denoiser, rows, condition, LEVELS, range(4)).values
        levels = measure_curvature(one.denoiser, rows, condition, empty, settings, seed=0)
        found.append((traces, [level.prompt for level in levels]))
    (traces, exact), (rough, spectra) = found
    assert rough == pytest.approx(traces, abs=0.01)
    for one, other in zip(spectra, exact, strict=True):
        assert one.trace == pytest.approx(other.trace, rel=0.02)
        assert one.flat_share == pytest.approx(other.flat_share, abs=0.02)
        assert one.log_volume == pytest.approx(other.log_volume, abs=0.05)


class Rounded(Denoiser):
    """A network in float32 whose outputs, of any prediction type, are in half precision."""

    def __init__(self, exact: Denoiser, prediction_type: PredictionType) -> None:
        self._exact = exact
        self.schedule = exact.schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What stands for ε̂ of the exact network."""
        wide = x.float()
        noise = self._exact(wide, t, condition)
        alpha, sigma = self.schedule.at(t, wide)
        if self.prediction_type == "v_prediction":
            noise = (noise - sigma * wide) / alpha
        elif self.prediction_type == "sample":
            noise = (wide - sigma * noise) / alpha
        return noise.to(x.dtype)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_conversions_lose_nothing(checkpoint: Checkpoint, latents: Tensor, kind: PredictionType) -> None:
    """What ε̂ is made of is rounded once, by the network: products Jv are nearer than from a conversion that rounds."""

    class Coarse(Rounded):
        def precise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return self(x, t, condition).double()

    x = latents.bfloat16()
    t = torch.full((len(x),), checkpoint.denoiser.schedule.timestep(0.35))
    condition = repeat(checkpoint.encode_prompts(["a red wool coat"]), len(x))
    directions = rademacher(len(x), x[0].numel(), 0) / x[0].numel() ** 0.5
    wanted = jacobian_product(checkpoint.denoiser, x.float(), t, condition, directions)
    errors = [
        float((jacobian_product(kind_of(checkpoint.denoiser, kind), x, t, condition, directions) - wanted).norm())
        for kind_of in (Rounded, Coarse)
    ]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < 0.2 * float(wanted.norm())
