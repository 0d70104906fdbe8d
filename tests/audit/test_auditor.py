"""One audit, whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch import Tensor

from audit import demo
from audit.auditor import MAX_DENSE_DIMENSION, Auditor
from audit.budget import Budget
from audit.errors import BrokenCheckpoint, InvalidInput, Stopped
from audit.evidence.curvature import CurvatureSettings
from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, MeteredDenoiser
from audit.model.sampling import SCHEDULERS
from audit.report import Report
from audit.verdict.rule import CLASSES, PhaseClass
from audit.work import Progress

PROMPT = demo.prompts()[0]
SMALL = Budget(seeds=4, curvature=CurvatureSettings(samples=2, probes=1, steps=2))


def same(a: Report, b: Report) -> None:
    """Two reports of one request: the same verdict, numbers within float tolerance."""
    assert a.decision.verdict == b.decision.verdict
    assert a.decision.sample_classes == b.decision.sample_classes
    assert a.decision.probabilities == pytest.approx(b.decision.probabilities, abs=0.02)
    assert a.seeds == b.seeds
    np.testing.assert_allclose(
        a.stability.nearest_sample_distance, b.stability.nearest_sample_distance, rtol=1e-3, atol=1e-2
    )
    if a.neighbors is not None and b.neighbors is not None:
        np.testing.assert_allclose(a.neighbors.distance, b.neighbors.distance, rtol=1e-3, atol=1e-2)
    for one, other in zip(a.curvature, b.curvature, strict=True):
        assert one.prompt.trace == pytest.approx(other.prompt.trace, abs=0.02)


def test_the_same_request_gives_the_same_report(auditor: Auditor) -> None:
    """Verdict, classes and numbers are the same twice, and differ with the seeds."""
    sampler = auditor.resolve_sampler(steps=6)
    first, again = (auditor.audit(PROMPT, sampler=sampler, budget=SMALL) for _ in range(2))
    same(first, again)
    other = auditor.audit(PROMPT, sampler=sampler, budget=replace(SMALL, first_seed=100))
    assert other.seeds == (100, 101, 102, 103)
    assert not np.allclose(other.stability.nearest_sample_distance, first.stability.nearest_sample_distance)


def test_audits_side_by_side_are_those_one_by_one(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Threads that share an auditor, the batching denoiser between them, find what each finds alone."""
    sampler = auditor.resolve_sampler(steps=4)
    prompts = demo.prompts()[:4]
    alone = [auditor.audit(prompt, sampler=sampler, budget=SMALL) for prompt in prompts]
    batching = BatchingDenoiser(checkpoint.denoiser, max_wait=0.05)

    def run(prompt: str) -> Report:
        with batching.lane() as lane:
            return auditor.audit(prompt, sampler=sampler, budget=SMALL, denoiser=lane)

    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(run, prompts))
    finally:
        batching.close()
    for a, b in zip(alone, together, strict=True):
        same(a, b)
        assert a.cost.evaluations == b.cost.evaluations


@pytest.mark.parametrize("scheduler", ["", "ddim", "euler-ancestral", "dpm++2m", "pndm"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_planned_evaluations_are_those_made(auditor: Auditor, scheduler: str, guidance: float) -> None:
    """What is announced is what is spent, with and without guidance, also where a scheduler visits more timesteps."""
    sampler = auditor.resolve_sampler(scheduler=scheduler, steps=5, guidance=guidance)
    told: list[Progress] = []
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, on_progress=told.append)
    assert auditor.planned_evaluations(sampler, SMALL) == report.cost.evaluations
    assert {step.planned for step in told} == {report.cost.evaluations}
    counts = [step.evaluations for step in told]
    assert counts == sorted(counts)
    assert counts[-1] == report.cost.evaluations
    assert [stage for i, stage in enumerate(step.stage for step in told) if i == 0 or told[i - 1].stage != stage] == [
        "sampling", "comparing", "curvature", "concluding",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "curvature",
    [
        CurvatureSettings("off"),
        CurvatureSettings("dense", samples=1, noise_levels=(0.2,), baseline=False),
        CurvatureSettings("lanczos", samples=9, probes=3, steps=2, noise_levels=(0.1, 0.3, 0.6)),
        CurvatureSettings("lanczos", samples=1, probes=1, steps=1, baseline=False),
    ],
)
def test_every_curvature_method_costs_what_is_planned(auditor: Auditor, curvature: CurvatureSettings) -> None:
    """Points are at most the seeds, and every method reports its levels."""
    sampler, budget = auditor.resolve_sampler(steps=2), Budget(seeds=3, curvature=curvature)
    report = auditor.audit(PROMPT, sampler=sampler, budget=budget)
    assert report.cost.evaluations == auditor.planned_evaluations(sampler, budget)
    assert report.cost.sampling_evaluations == 6
    assert len(report.curvature) == (0 if curvature.method == "off" else len(curvature.noise_levels))
    assert report.curvature_settings == curvature
    assert any("curvature" in reason for reason in report.decision.reasons) == (curvature.method != "off")


def test_a_denoiser_that_stands_in_does_the_work(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Every evaluation goes through the denoiser that was handed over."""
    meter = MeteredDenoiser(checkpoint.denoiser)
    report = auditor.audit(PROMPT, sampler=auditor.resolve_sampler(steps=2), budget=SMALL, denoiser=meter)
    assert meter.evaluations == report.cost.evaluations


@pytest.mark.parametrize("call", [0, 3, 7])
def test_a_check_stops_the_audit_between_two_calls(auditor: Auditor, checkpoint: Checkpoint, call: int) -> None:
    """The check is asked before every call; when it raises, no further evaluation is made."""
    meter, asked = MeteredDenoiser(checkpoint.denoiser), 0

    def check() -> None:
        nonlocal asked
        if asked == call:
            raise Stopped("the deadline has passed", reason="TEST")
        asked += 1

    with pytest.raises(Stopped):
        auditor.audit(PROMPT, sampler=auditor.resolve_sampler(steps=5), budget=SMALL, denoiser=meter, check=check)
    # One of the checks is between sampling and comparing.
    assert meter.evaluations <= 4 * call + 64
    assert call > 0 or meter.evaluations == 0


def test_reports_are_complete(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Every field says what was done, with what, and what was found."""
    sampler = auditor.resolve_sampler(steps=4)
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, include_images=True)
    assert report.prompt == PROMPT
    assert report.decision.verdict in CLASSES
    assert report.seeds == (0, 1, 2, 3)
    assert len(report.stability.mode_of) == len(report.decision.sample_classes) == 4
    assert report.neighbors is not None
    assert len(report.neighbors.distance) == 4
    assert [level.sigma for level in report.curvature] == pytest.approx([0.15, 0.35], abs=0.01)
    assert all(level.unconditional is not None for level in report.curvature)
    assert report.sampler == sampler
    assert report.scheduler_class == checkpoint.scheduler_config["_class_name"]
    assert report.budget_definition_samples == 512
    assert (report.checkpoint_name, report.checkpoint_digest) == ("demo", checkpoint.digest)
    assert report.reference is not None
    assert report.reference.complete
    assert report.reference.size == len(auditor.reference or ())
    assert report.reference.embedder_digest.startswith("sha256:")
    assert report.neighbors.clip_index is not None
    near = {*report.neighbors.index.tolist(), *report.neighbors.clip_index.tolist()}
    assert report.reference.captions.keys() == report.reference.images.keys() == near
    assert report.images is not None
    assert report.images.shape == (4, 32, 32, 1)
    assert report.images.dtype == np.uint8
    assert report.cost.evaluations == report.cost.sampling_evaluations + report.cost.curvature_evaluations
    assert report.cost.compute_seconds == pytest.approx(sum(report.cost.stage_seconds.values()))
    assert set(report.cost.stage_seconds) == {"sampling", "decoding", "searching", "curvature", "concluding"}
    assert report.libraries.keys() >= {"torch", "diffusers", "transformers"}
    assert abs((datetime.now(UTC) - report.finished).total_seconds()) < 3600
    assert report.device == "cpu float32"
    plain = auditor.audit(PROMPT, sampler=sampler, budget=SMALL)
    assert plain.images is None
    assert plain.reference is not None
    assert plain.reference.images == {}
    assert plain.reference.captions == report.reference.captions


def test_without_a_reference_set_nothing_is_compared(checkpoint: Checkpoint) -> None:
    """Neighbours are left out, nothing is called memorized, and the copy rate is unknown."""
    report = Auditor(checkpoint, None, demo.calibration()).audit(PROMPT, budget=SMALL)
    assert report.neighbors is None
    assert report.reference is None
    assert report.decision.copy_rate_bound == 1
    assert 0 not in report.decision.sample_classes


def test_a_calibration_serves_its_own_settings(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """The checkpoint's calibration brings its sampler along and fits that; other settings are said not to fit."""
    own = auditor.resolve_sampler()
    assert own == demo.calibration().sampler
    report = auditor.audit(PROMPT, budget=SMALL)
    assert report.calibration_fits
    assert report.calibration_digest == demo.calibration().digest
    assert not auditor.audit(PROMPT, sampler=replace(own, steps=own.steps + 1), budget=SMALL).calibration_fits
    bare = Auditor(checkpoint)
    assert bare.resolve_sampler() == checkpoint.defaults
    other = bare.audit(PROMPT, sampler=replace(checkpoint.defaults, steps=3), budget=SMALL)
    assert not other.calibration_fits
    assert other.calibration_digest == ""
    assert other.decision.delta_m == pytest.approx(0.15 * 32)


@pytest.mark.parametrize(
    ("make", "reason", "field"),
    [
        (lambda: Budget(seeds=1), "SEEDS_OUT_OF_RANGE", "budget.seeds"),
        (lambda: Budget(seeds=1025), "SEEDS_OUT_OF_RANGE", "budget.seeds"),
        (lambda: Budget(first_seed=-1), "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
        (lambda: Budget(first_seed=2**63), "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
        (lambda: Budget(definition_samples=1), "DEFINITION_SAMPLES_OUT_OF_RANGE", "budget.definition_samples"),
        (lambda: Budget(curvature=CurvatureSettings("exact")), "CURVATURE_UNKNOWN", "budget.curvature"),  # type: ignore
        (lambda: Budget(curvature=CurvatureSettings(samples=0)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(probes=0)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(steps=-1)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(noise_levels=())), "NOISE_LEVELS_OUT_OF_RANGE", "budget.curvature"),
        (
            lambda: Budget(curvature=CurvatureSettings(noise_levels=(math.nan,))),
            "NOISE_LEVELS_OUT_OF_RANGE",
            "budget.curvature",
        ),
    ],
)
def test_impossible_budgets_are_named(make: Callable[[], Budget], reason: str, field: str) -> None:
    """A value out of range is refused with its field and a stable reason."""
    with pytest.raises(InvalidInput) as caught:
        make()
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("overrides", "reason", "field"),
    [
        ({"height": 33}, "SIZE_OUT_OF_RANGE", "sampler.height"),
        ({"width": 0}, "SIZE_OUT_OF_RANGE", "sampler.width"),
        ({"width": -32}, "SIZE_OUT_OF_RANGE", "sampler.width"),
        ({"height": 4096}, "SIZE_OUT_OF_RANGE", "sampler.height"),
        ({"steps": 0}, "STEPS_OUT_OF_RANGE", "sampler.steps"),
        ({"steps": 1001}, "STEPS_OUT_OF_RANGE", "sampler.steps"),
        ({"steps": 1, "scheduler": "pndm"}, "STEPS_OUT_OF_RANGE", "sampler.steps"),
        ({"guidance": math.nan}, "GUIDANCE_OUT_OF_RANGE", "sampler.guidance"),
        ({"scheduler": "magic"}, "SCHEDULER_UNKNOWN", "sampler.scheduler"),
    ],
)
def test_impossible_samplers_are_named(auditor: Auditor, overrides: dict[str, object], reason: str, field: str) -> None:
    """Sizes, steps and schedulers that the checkpoint cannot do are refused before anything is drawn."""
    with pytest.raises(InvalidInput) as caught:
        auditor.resolve_sampler(**overrides)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("scheduler", ["", *sorted(SCHEDULERS)])
def test_accepted_steps_are_made(auditor: Auditor, scheduler: str) -> None:
    """Any number of steps is either refused when it is resolved, or visits only timesteps of the schedule."""
    for steps in (1, 2, 3, 4, 999, 1000):
        try:
            sampler = auditor.resolve_sampler(scheduler=scheduler, steps=steps)
        except InvalidInput:
            continue
        assert 0 <= min(auditor.timesteps(sampler)) <= max(auditor.timesteps(sampler)) < 1000
        if steps <= 4:
            auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=2, curvature=CurvatureSettings("off")))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (36, 20), (64, 32)])
def test_other_sizes_are_audited(auditor: Auditor, height: int, width: int) -> None:
    """Any multiple of a latent cell can be drawn, measured and compared with the reference set."""
    sampler = auditor.resolve_sampler(height=height, width=width, steps=2)
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, include_images=True)
    assert report.images is not None
    assert report.images.shape == (4, height, width, 1)
    assert not report.calibration_fits


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "PROMPT_EMPTY"),
        (" \n\t", "PROMPT_EMPTY"),
        ("coat " * 100, "PROMPT_TOO_LONG"),
        ("a" * 5000, "PROMPT_TOO_LONG"),
        ("a \ud800 coat", "PROMPT_NOT_TEXT"),
    ],
)
def test_impossible_prompts_are_named(auditor: Auditor, prompt: str, reason: str) -> None:
    """Empty, over-long and undecodable prompts name their field, the negative one its own."""
    with pytest.raises(InvalidInput) as caught:
        auditor.audit(prompt, budget=SMALL)
    assert (caught.value.reason, caught.value.field) == (reason, "prompt")
    if reason != "PROMPT_EMPTY":
        sampler = auditor.resolve_sampler(negative_prompt=prompt, guidance=2.0)
        with pytest.raises(InvalidInput) as caught:
            auditor.audit(PROMPT, sampler=sampler, budget=SMALL)
        assert (caught.value.reason, caught.value.field) == (reason, "sampler.negative_prompt")


def test_large_latents_have_no_dense_curvature(auditor: Auditor) -> None:
    """A Jacobian that would not fit is refused before anything is drawn."""
    sampler = auditor.resolve_sampler(height=256, width=256)
    assert math.prod(auditor.checkpoint.latent_shape(sampler)) > MAX_DENSE_DIMENSION
    with pytest.raises(InvalidInput) as caught:
        auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=2, curvature=CurvatureSettings("dense")))
    assert (caught.value.reason, caught.value.field) == ("CURVATURE_TOO_LARGE", "budget.curvature")


def test_what_is_not_finite_is_no_verdict(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """NaN is far from everything and must not pass for something new."""

    class Overflowing(MeteredDenoiser):
        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return super().native(x, t, condition) * torch.nan

    with pytest.raises(BrokenCheckpoint) as caught:
        auditor.audit(
            PROMPT,
            sampler=auditor.resolve_sampler(steps=2),
            budget=SMALL,
            denoiser=Overflowing(checkpoint.denoiser),
        )
    assert caught.value.reason == "SAMPLES_NOT_FINITE"


def test_more_seeds_than_a_group_are_drawn_in_groups(auditor: Auditor) -> None:
    """Seeds beyond one group are the same as in a group of their own."""
    sampler, off = auditor.resolve_sampler(steps=1), CurvatureSettings("off")
    many = auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=70, curvature=off))
    last = auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=6, first_seed=64, curvature=off))
    assert many.seeds == tuple(range(70))
    assert many.neighbors is not None
    assert last.neighbors is not None
    np.testing.assert_allclose(many.neighbors.distance[64:], last.neighbors.distance, rtol=1e-3, atol=1e-2)


def test_verdicts_are_words() -> None:
    """Classes print as people read them."""
    assert [str(name) for name in CLASSES] == ["memorized", "spurious", "generalized"]
    assert PhaseClass("spurious") is PhaseClass.SPURIOUS
