"""Explanations of whole audits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import BrokenCheckpoint, InvalidInput, Stopped
from audit.evidence.curvature import CurvatureSettings
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser
from audit.work import Progress

PROMPT = demo.prompts()[0]
SMALL = Budget(seeds=3, minimum_seeds=3, curvature=CurvatureSettings("off"))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_explained_audit_costs_what_is_planned(auditor: Auditor, guidance: float) -> None:
    """Words, a map of the latent's size, a stage of its own, and nothing else is changed."""
    sampler = auditor.resolve_sampler(steps=3, guidance=guidance)
    told: list[Progress] = []
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, explain=True, on_progress=told.append)
    plain = auditor.audit(PROMPT, sampler=sampler, budget=SMALL)
    found = report.explanation
    assert found is not None
    assert plain.explanation is None
    assert found.attribution.words == tuple(PROMPT.split())
    assert found.attribution.weights.shape == (8,)
    assert found.localization.values.shape == (8, 8)
    assert found.localization.samples == 3
    assert found.evaluations == report.cost.explaining_evaluations == 4 * (2 + 8) + 8 * 3
    assert report.cost.evaluations == plain.cost.evaluations + found.evaluations
    assert plain.cost.explaining_evaluations == 0
    assert "explaining" not in plain.cost.stage_seconds
    assert report.cost.stage_seconds["explaining"] > 0
    assert auditor.planned_evaluations(sampler, SMALL, PROMPT) == report.cost.evaluations
    assert auditor.planned_evaluations(sampler, SMALL) == plain.cost.evaluations
    assert {step.planned for step in told} == {report.cost.evaluations}
    assert [step.stage for step in told if step.stage in ("explaining", "concluding")][-2:] == [
        "explaining",
        "concluding",
    ]
    assert report.decision.probabilities == pytest.approx(plain.decision.probabilities, abs=1e-3)


def test_samples_can_be_explained_without_an_audit(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """The same twice; through the denoiser that was handed over, which the check can stop."""
    sampler = auditor.resolve_sampler(steps=3)
    condition = auditor.encode(PROMPT)
    latents = checkpoint.sample(sampler, condition, auditor.encode(""), range(2)).latents
    meter = MeteredDenoiser(checkpoint.denoiser)
    first, again = auditor.explain(PROMPT, latents, denoiser=meter), auditor.explain(PROMPT, latents)
    assert meter.evaluations == first.evaluations
    np.testing.assert_allclose(first.attribution.weights, again.attribution.weights, atol=1e-4)
    np.testing.assert_allclose(first.localization.values, again.localization.values, atol=1e-3)

    def check() -> None:
        raise Stopped("nobody waits", reason="TEST")

    with pytest.raises(Stopped):
        auditor.explain(PROMPT, latents, denoiser=meter, check=check)
    assert meter.evaluations == first.evaluations
    with pytest.raises(InvalidInput):
        auditor.explain(" ", latents)


class _Broken(Denoiser):
    """Says that nothing is a number."""

    def __init__(self, inner: Denoiser) -> None:
        self.schedule, self.prediction_type = inner.schedule, inner.prediction_type

    def native(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return torch.full_like(x, torch.nan)


def test_an_explanation_that_is_no_number_is_an_error(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """It is the checkpoint's fault, and said to be."""
    with pytest.raises(BrokenCheckpoint) as caught:
        auditor.explain(PROMPT, torch.zeros(1, 4, 8, 8), denoiser=_Broken(checkpoint.denoiser))
    assert caught.value.reason == "SAMPLES_NOT_FINITE"
