"""Audits of checkpoints of every kind: guided, told their guidance, of classes, and without prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.auditor import Auditor
from audit.budget import Budget
from audit.calibrate import calibrate
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser, Schedule
from audit.model.loading import load_checkpoint
from audit.reference.images import to_bytes
from audit.reference.reference_set import ReferenceSet
from audit.report import Report
from audit.verdict.features import CONTRASTS, TRACES
from service.wire import report_to_proto
from tests.audit.model import tiny

SIZE = tiny.CELLS * tiny.FACTOR
PROMPT, OTHER = "a cream linen coat", "a black leather boot"
BUDGET = Budget(seeds=4, minimum_seeds=4, curvature=CurvatureSettings(samples=2, baseline=True))


@pytest.fixture(scope="module")
def open_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Opens the tiny pipeline of a name, once."""
    folder, known = tmp_path_factory.mktemp("families"), dict[str, Checkpoint]()

    def open_once(name: str) -> Checkpoint:
        if name not in known:
            tiny.save(name, folder / name)
            known[name] = load_checkpoint(folder / name)
        return known[name]

    return open_once


def audit(checkpoint: Checkpoint, prompt: str, **given: Any) -> tuple[Report, int]:
    """A short audit of few steps, and the evaluations that it really made."""
    auditor, meter = Auditor(checkpoint), MeteredDenoiser(checkpoint.denoiser)
    size = {} if checkpoint.fixed_size else {"height": SIZE, "width": SIZE}
    sampler = auditor.resolve_sampler(**{"steps": 3, **size, **given})
    if checkpoint.contrasts(sampler):
        auditor.screen_at(sampler, checkpoint.denoiser)
    report = auditor.audit(prompt, sampler=sampler, budget=BUDGET, denoiser=meter)
    assert report.cost.evaluations == meter.evaluations == auditor.planned_evaluations(sampler, BUDGET)
    return report, meter.evaluations


def test_a_guided_flow_gives_all_evidence(open_tiny: Callable[[str], Checkpoint]) -> None:
    """Stable Diffusion 3: contrasts, traces and curvature, and nothing is said to be missing."""
    report, _ = audit(open_tiny("sd3"), PROMPT)
    assert not report.gaps
    assert {*CONTRASTS, *TRACES} <= {one.name for one in report.decision.measurements}
    assert all(level.unconditional is not None for level in report.evidence.curvature)
    assert not report_to_proto(report).gaps


@pytest.mark.parametrize("name", ["flux-dev", "lcm"])
def test_embedded_guidance_leaves_no_contrast(open_tiny: Callable[[str], Checkpoint], name: str) -> None:
    """The report says what is missing and why; the rest is measured at the guidance of the request."""
    checkpoint = open_tiny(name)
    report, _ = audit(checkpoint, PROMPT)
    assert [gap.evidence for gap in report.gaps] == ["contrast", "explanation", "energy"]
    assert report.evidence.screening is None
    assert not {*CONTRASTS} & {one.name for one in report.decision.measurements}
    assert all(level.unconditional is None for level in report.evidence.curvature)
    message = report_to_proto(report)
    assert [gap.reason for gap in message.gaps] == [gap.reason for gap in report.gaps]
    assert message.subject.sampler.embedded
    assert any("no branch without a prompt" in reason for reason in message.reasons)
    other, _ = audit(checkpoint, PROMPT, guidance=report.sampler.guidance + 3)
    assert not np.allclose(other.evidence.smoothed.values, report.evidence.smoothed.values)
    for refused in (lambda auditor: auditor.screen([PROMPT]), lambda auditor: auditor.audit(PROMPT, explain=True)):
        with pytest.raises(InvalidInput) as caught:
            refused(Auditor(checkpoint))
        assert caught.value.reason in ("SCREENING_UNSUPPORTED", "EXPLANATION_UNSUPPORTED")


def test_true_guidance_brings_the_contrast_back(open_tiny: Callable[[str], Checkpoint]) -> None:
    """With two branches asked for, what the prompt changes is measured, and every row costs two evaluations."""
    report, evaluations = audit(open_tiny("flux-dev"), PROMPT, true_guidance=3.0)
    assert report.evidence.screening is not None
    assert [gap.evidence for gap in report.gaps] == ["energy"]
    assert evaluations > audit(open_tiny("flux-dev"), PROMPT)[1]


def test_classes_are_prompts(open_tiny: Callable[[str], Checkpoint]) -> None:
    """A class by its name or its number is the same prompt; what is no class is refused, and so is an explanation."""
    checkpoint = open_tiny("dit")
    named, _ = audit(checkpoint, "Golden Retriever")
    numbered, _ = audit(checkpoint, "207")
    assert named.evidence.screening is not None
    np.testing.assert_array_equal(named.evidence.screening.contrast, numbered.evidence.screening.contrast)
    assert [gap.evidence for gap in named.gaps] == ["explanation"]
    for prompt in ("a cat", "1000", "-1"):
        with pytest.raises(InvalidInput) as caught:
            audit(checkpoint, prompt)
        assert caught.value.reason == "PROMPT_NO_CLASS"
    with pytest.raises(InvalidInput) as caught:
        Auditor(checkpoint).resolve_sampler(height=2 * SIZE)
    assert caught.value.reason == "SIZE_OUT_OF_RANGE"


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_models_without_prompts_are_audited_as_a_whole(open_tiny: Callable[[str], Checkpoint], name: str) -> None:
    """The prompt is empty; there is nothing to contrast, to guide, to screen or to calibrate with."""
    checkpoint = open_tiny(name)
    report, _ = audit(checkpoint, "")
    assert [gap.evidence for gap in report.gaps] == ["contrast", "explanation"]
    assert report.evidence.screening is None
    assert any("takes no prompt" in reason for reason in report.decision.reasons)
    auditor = Auditor(checkpoint)
    for reason, refused in {
        "PROMPT_UNSUPPORTED": lambda: auditor.audit("a coat"),
        "GUIDANCE_UNSUPPORTED": lambda: auditor.resolve_sampler(guidance=3.0),
        "SCREENING_UNSUPPORTED": lambda: auditor.screen([""]),
        "CALIBRATION_UNSUPPORTED": lambda: calibrate(auditor, ["", "a"]),
    }.items():
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.reason == reason
    side = checkpoint.defaults.height
    found = auditor.inspect(np.zeros((side, side, 3), np.uint8), sampler=auditor.resolve_sampler(steps=3))
    assert found.verdict is None
    assert any("takes no prompt" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("sd3", {"scheduler": "ddim"}, "SCHEDULER_UNSUITABLE"),
        ("dit", {"scheduler": "flow-euler"}, "SCHEDULER_UNSUITABLE"),
        ("sd3", {"true_guidance": 2.0}, "GUIDANCE_UNSUPPORTED"),
        ("flux-schnell", {"guidance": 3.5}, "GUIDANCE_UNSUPPORTED"),
        ("sd3", {"height": SIZE + tiny.FACTOR, "width": SIZE}, "SIZE_OUT_OF_RANGE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    open_tiny: Callable[[str], Checkpoint], name: str, given: dict[str, Any], reason: str
) -> None:
    """Before anything is drawn, in one sentence."""
    with pytest.raises(InvalidInput) as caught:
        Auditor(open_tiny(name)).resolve_sampler(**given)
    assert caught.value.reason == reason


def test_calibrations_without_contrasts(open_tiny: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    """What is ordinary of a checkpoint without contrasts is its traces; it fits, and keeps through a file."""
    checkpoint = open_tiny("flux-dev")
    bare = Auditor(checkpoint)
    sampler = bare.resolve_sampler(steps=2, height=SIZE, width=SIZE)
    made = calibrate(bare, [PROMPT, OTHER], sampler=sampler, samples=4)
    assert made.ordinary.keys() == {*TRACES}
    made.save(tmp_path / "calibration.json")
    kept = type(made).load(tmp_path / "calibration.json")
    report = Auditor(checkpoint, None, kept).audit(PROMPT, budget=BUDGET)
    assert report.calibration_fits
    assert report.sampler == sampler
    ordinary = {one.name for one in report.decision.measurements if one.ordinary is not None}
    assert ordinary == {*TRACES}


class ClosedForm(Denoiser):
    """A flow whose first prompt leads to one latent, and every other one to standard normal latents."""

    prediction_type = "flow"

    def __init__(self, stored: Tensor) -> None:
        self.stored = stored
        self.schedule = Schedule.rectified_flow()

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """V = ε̂ − x̂₀ with x̂₀ the mean of what the prompt leads to."""
        alpha, sigma = self.schedule.at(t, x)
        normal = alpha * x / (alpha**2 + sigma**2)
        clean = torch.where(condition["stored"][:, None, None, None], self.stored, normal)
        return (x - clean) / sigma


def test_flows_are_told_apart(open_tiny: Callable[[str], Checkpoint]) -> None:
    """A prompt that always gives the training image is memorized, one that gives another one each time generalized."""
    stored = torch.rand(3, tiny.CELLS, tiny.CELLS, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def encode(prompts: Sequence[str]) -> Condition:
        return {"stored": torch.tensor([prompt == PROMPT for prompt in prompts])}

    checkpoint = replace(
        open_tiny("ddpm"),
        denoiser=ClosedForm(stored),
        scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        encode_prompts=encode,
        guidance="free",
        prompts="text",
    )
    auditor = Auditor(checkpoint, ReferenceSet("one", to_bytes(stored[None]), [PROMPT], complete=True))
    sampler = auditor.resolve_sampler(steps=8, guidance=1.0)
    recalled, new = (auditor.audit(prompt, sampler=sampler, budget=BUDGET) for prompt in (PROMPT, OTHER))
    assert (recalled.decision.verdict, recalled.decision.copies, recalled.decision.decided) == ("memorized", 4, True)
    assert (new.decision.verdict, new.decision.copies, new.decision.decided) == ("generalized", 0, True)
    np.testing.assert_allclose(recalled.evidence.smoothed.values, 1, atol=1e-4)
    # Of standard normal data σ·tr J/d is the square of the noise level.
    np.testing.assert_allclose(new.evidence.smoothed.values.mean(0), [0.35**2, 0.7**2], atol=2e-3)
