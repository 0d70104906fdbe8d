"""One audit, whole."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch import Tensor

from audit import demo
from audit.auditor import Auditor
from audit.bench.truth import load_truth
from audit.budget import Budget
from audit.errors import BrokenCheckpoint, InvalidInput, Stopped
from audit.evidence.curvature import CurvatureSettings
from audit.evidence.gathered import Evidence
from audit.evidence.screening import EVALUATIONS
from audit.inputs import MAX_DENSE_DIMENSION
from audit.limits import MAX_SEED
from audit.model.batching import BatchingDenoiser
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, MeteredDenoiser
from audit.report import Report
from audit.verdict.decision import SETTLED
from audit.verdict.features import TRACED
from audit.verdict.rule import CLASSES, PhaseClass
from audit.work import Progress
from tests.audit.makers import DIFFUSION

PROMPT = demo.prompts()[0]
SMALL = Budget(seeds=4, minimum_seeds=4, curvature=CurvatureSettings(samples=2, probes=1, steps=2))
OFF = CurvatureSettings("off")


def prompt_of(dominant: str) -> str:
    """The caption whose samples are of a class most clearly; "" for one that is as spurious as it is generalized."""
    rows = load_truth(demo.TRUTH)
    if not dominant:
        return min(rows, key=lambda row: abs(row.spurious - row.generalized) + row.memorized).prompt
    return max(rows, key=lambda row: getattr(row, dominant)).prompt


def same(a: Report, b: Report) -> None:
    """Two reports of one request: the same verdict, numbers within float tolerance."""
    assert a.decision.verdict == b.decision.verdict
    assert a.decision.sample_classes == b.decision.sample_classes
    assert a.decision.probabilities == pytest.approx(b.decision.probabilities, abs=0.02)
    assert a.seeds == b.seeds
    alike(a.evidence, b.evidence)
    for one, other in zip(a.evidence.curvature, b.evidence.curvature, strict=True):
        assert one.prompt.trace == pytest.approx(other.prompt.trace, abs=0.02)


def alike(a: Evidence, b: Evidence) -> None:
    """What decides, within float tolerance."""
    assert a.screening.timesteps == b.screening.timesteps
    np.testing.assert_allclose(a.screening.contrast, b.screening.contrast, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(a.screening.alignment, b.screening.alignment, atol=1e-3)
    assert a.smoothed.timesteps == b.smoothed.timesteps
    np.testing.assert_allclose(a.smoothed.values, b.smoothed.values, atol=1e-3)
    np.testing.assert_allclose(
        a.stability.nearest_sample_distance, b.stability.nearest_sample_distance, rtol=1e-3, atol=1e-2
    )
    assert a.stability.modes == b.stability.modes
    assert a.stability.final_step == pytest.approx(b.stability.final_step, rel=1e-3)
    assert (a.neighbors is None) == (b.neighbors is None)
    if a.neighbors is not None and b.neighbors is not None:
        np.testing.assert_allclose(a.neighbors.distance, b.neighbors.distance, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(a.neighbors.original_distance, b.neighbors.original_distance, rtol=1e-3, atol=1e-2)


def test_the_same_request_gives_the_same_report(auditor: Auditor) -> None:
    """Verdict, classes and numbers are the same twice, and differ with the seeds."""
    sampler = auditor.resolve_sampler(steps=6)
    first, again = (auditor.audit(PROMPT, sampler=sampler, budget=SMALL) for _ in range(2))
    same(first, again)
    other = auditor.audit(PROMPT, sampler=sampler, budget=replace(SMALL, first_seed=100))
    assert other.seeds == (100, 101, 102, 103)
    assert not np.allclose(
        other.evidence.stability.nearest_sample_distance, first.evidence.stability.nearest_sample_distance
    )
    # The noise of the screen is the same for all.
    np.testing.assert_allclose(other.evidence.screening.contrast, first.evidence.screening.contrast, rtol=1e-3)
    assert not np.allclose(other.evidence.smoothed.values, first.evidence.smoothed.values)


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
    """What is announced is what is spent when the seeds are fixed, with and without guidance.

    Also where a scheduler visits more timesteps.
    """
    sampler = auditor.resolve_sampler(scheduler=scheduler, steps=5, guidance=guidance)
    told: list[Progress] = []
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, on_progress=told.append)
    assert auditor.planned_evaluations(sampler, SMALL) == report.cost.evaluations
    assert {step.planned for step in told} == {report.cost.evaluations}
    counts = [step.evaluations for step in told]
    assert counts == sorted(counts)
    assert counts[-1] == report.cost.evaluations
    assert [stage for i, stage in enumerate(step.stage for step in told) if i == 0 or told[i - 1].stage != stage] == [
        "screening", "sampling", "decoding", "searching", "curvature", "concluding", "curvature", "concluding",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "curvature",
    [
        CurvatureSettings("off"),
        CurvatureSettings("dense", samples=1, noise_levels=(0.2,), baseline=True),
        CurvatureSettings("lanczos", samples=9, probes=3, steps=2, noise_levels=(0.1, 0.3, 0.6)),
        CurvatureSettings("lanczos", samples=1, probes=1, steps=1, baseline=False),
    ],
)
def test_every_curvature_method_costs_what_is_planned(auditor: Auditor, curvature: CurvatureSettings) -> None:
    """Points are at most the seeds, every method reports its levels, and none of them decides."""
    sampler, budget = auditor.resolve_sampler(steps=2), Budget(seeds=3, minimum_seeds=3, curvature=curvature)
    report = auditor.audit(PROMPT, sampler=sampler, budget=budget)
    assert report.cost.evaluations == auditor.planned_evaluations(sampler, budget)
    assert report.cost.screening_evaluations == EVALUATIONS == 8
    assert report.cost.sampling_evaluations == 6
    levels = report.evidence.curvature
    assert len(levels) == (0 if curvature.method == "off" else len(curvature.noise_levels))
    assert all((level.unconditional is not None) == curvature.baseline for level in levels)
    assert report.budget.curvature == curvature
    # Two levels of the smoothed trace at three samples, two evaluations each.
    assert (report.cost.curvature_evaluations == 12) == (curvature.method == "off")
    plain = auditor.audit(PROMPT, sampler=sampler, budget=replace(budget, curvature=OFF))
    assert plain.decision.probabilities == pytest.approx(report.decision.probabilities, abs=1e-3)


def test_a_denoiser_that_stands_in_does_the_work(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Every evaluation goes through the denoiser that was handed over, but for what screens of a size share."""
    sampler = auditor.resolve_sampler(steps=2)
    auditor.screen([PROMPT], sampler=sampler)
    meter = MeteredDenoiser(checkpoint.denoiser)
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, denoiser=meter)
    assert meter.evaluations == report.cost.evaluations


@pytest.mark.parametrize("call", [0, 3, 7])
def test_a_check_stops_the_audit_between_two_calls(auditor: Auditor, checkpoint: Checkpoint, call: int) -> None:
    """The check is asked before every call; when it raises, no further evaluation is made."""
    sampler = auditor.resolve_sampler(steps=5)
    auditor.screen([PROMPT], sampler=sampler)
    meter, asked = MeteredDenoiser(checkpoint.denoiser), 0

    def check() -> None:
        nonlocal asked
        if asked == call:
            raise Stopped("the deadline has passed", reason="TEST")
        asked += 1

    with pytest.raises(Stopped):
        auditor.audit(PROMPT, sampler=sampler, budget=SMALL, denoiser=meter, check=check)
    # The first call is the screen, five are the steps of four seeds, and one check is between sampling and searching.
    assert meter.evaluations == {0: 0, 3: EVALUATIONS + 2 * 4, 7: EVALUATIONS + 5 * 4}[call]


def test_reports_are_complete(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Every field says what was done, with what, and what was found."""
    sampler = auditor.resolve_sampler(steps=4)
    report = auditor.audit(PROMPT, sampler=sampler, budget=SMALL, include_images=True)
    assert report.prompt == PROMPT
    assert report.decision.verdict in CLASSES
    assert report.seeds == (0, 1, 2, 3)
    seen = report.evidence
    assert len(seen.stability.mode_of) == len(report.decision.sample_classes) == 4
    assert seen.neighbors is not None
    assert len(seen.neighbors.distance) == 4
    assert seen.screening.contrast.shape == (4, 2)
    assert seen.smoothed.values.shape == (4, 2)
    assert seen.smoothed.sigmas == pytest.approx([0.35, 0.7], abs=0.01)
    assert [level.sigma for level in seen.curvature] == pytest.approx([0.15, 0.35], abs=0.01)
    assert all(level.unconditional is None for level in seen.curvature)
    assert report.calibration == auditor.calibration
    assert report.sampler == sampler
    assert report.scheduler_class == checkpoint.scheduler_config["_class_name"]
    assert report.budget.definition_samples == 512
    assert (report.checkpoint_name, report.checkpoint_digest) == ("demo", checkpoint.digest)
    assert report.reference is not None
    assert report.reference.complete
    assert report.reference.size == len(auditor.reference or ())
    assert report.reference.embedder_digest.startswith("sha256:")
    assert seen.neighbors.clip_index is not None
    near = {*seen.neighbors.index.tolist(), *seen.neighbors.clip_index.tolist()}
    assert report.reference.entries.keys() == report.reference.images.keys() == near
    assert report.images is not None
    assert report.images.shape == (4, 32, 32, 1)
    assert report.images.dtype == np.uint8
    cost = report.cost
    assert cost.evaluations == cost.screening_evaluations + cost.sampling_evaluations + cost.curvature_evaluations
    assert report.cost.compute_seconds == pytest.approx(sum(report.cost.stage_seconds.values()))
    assert set(report.cost.stage_seconds) == {
        "screening", "sampling", "decoding", "searching", "curvature", "concluding",
    }  # fmt: skip
    assert report.libraries.keys() >= {"torch", "diffusers", "transformers"}
    assert abs((datetime.now(UTC) - report.finished).total_seconds()) < 3600
    assert report.device == "cpu float32"
    plain = auditor.audit(PROMPT, sampler=sampler, budget=SMALL)
    assert plain.images is None
    assert plain.reference is not None
    assert plain.reference.images == {}
    assert plain.reference.entries == report.reference.entries


def test_without_a_reference_set_nothing_is_compared(checkpoint: Checkpoint) -> None:
    """Neighbours are left out, nothing is called memorized, and the copy rate is unknown."""
    report = Auditor(checkpoint, None, demo.calibration()).audit(PROMPT, budget=SMALL)
    assert report.evidence.neighbors is None
    assert report.reference is None
    assert report.decision.copy_rate_bound == 1
    assert 0 not in report.decision.sample_classes


def test_a_calibration_serves_its_own_settings(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """The checkpoint's calibration brings its sampler along and fits that; other settings are said not to fit."""
    own = auditor.resolve_sampler()
    assert own == demo.calibration().sampler
    report = auditor.audit(PROMPT, budget=SMALL)
    assert report.calibration_fits
    assert report.calibration == demo.calibration()
    assert not auditor.audit(PROMPT, sampler=replace(own, steps=own.steps + 1), budget=SMALL).calibration_fits
    bare = Auditor(checkpoint)
    assert bare.resolve_sampler() == checkpoint.defaults
    other = bare.audit(PROMPT, sampler=replace(checkpoint.defaults, steps=3), budget=SMALL)
    assert not other.calibration_fits
    assert other.calibration == demo.default_calibration()
    assert other.decision.delta_m == pytest.approx(0.15 * 32)


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


@pytest.mark.parametrize("scheduler", ["", *DIFFUSION])
def test_accepted_steps_are_made(auditor: Auditor, scheduler: str) -> None:
    """Any number of steps is either refused when it is resolved, or visits only timesteps of the schedule."""
    for steps in (1, 2, 3, 4, 999, 1000):
        try:
            sampler = auditor.resolve_sampler(scheduler=scheduler, steps=steps)
        except InvalidInput:
            continue
        assert 0 <= min(auditor.timesteps(sampler)) <= max(auditor.timesteps(sampler)) < 1000
        if steps <= 4:
            auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=2, curvature=OFF))


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
    """Seeds beyond one group are the same as in a group of their own, and all that were asked for are drawn."""
    sampler = auditor.resolve_sampler(steps=1)
    many = auditor.audit(PROMPT, sampler=sampler, budget=Budget(seeds=70, minimum_seeds=70, curvature=OFF))
    last = auditor.audit(PROMPT, sampler=sampler, budget=Budget(6, 6, first_seed=64, curvature=OFF))
    assert many.seeds == tuple(range(70))
    assert many.evidence.neighbors is not None
    assert last.evidence.neighbors is not None
    np.testing.assert_allclose(
        many.evidence.neighbors.distance[64:], last.evidence.neighbors.distance, rtol=1e-3, atol=1e-2
    )
    assert many.cost.evaluations == auditor.planned_evaluations(sampler, Budget(70, 70, curvature=OFF))


def test_the_last_seeds_there_are_can_be_drawn(auditor: Auditor) -> None:
    """The noise of their traces has seeds of its own, which there have to be, too."""
    report = auditor.audit(
        PROMPT, sampler=auditor.resolve_sampler(steps=1), budget=Budget(3, 3, first_seed=MAX_SEED, curvature=OFF)
    )
    assert report.seeds == (MAX_SEED, MAX_SEED + 1, MAX_SEED + 2)
    assert len({tuple(values) for values in report.evidence.smoothed.values.tolist()}) == 3


# --- as many seeds as it takes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dominant", ["memorized", "spurious", "generalized", ""])
def test_seeds_are_drawn_until_the_answer_is_settled(auditor: Auditor, dominant: str) -> None:
    """After every group it is asked whether the answer is sure enough; when it is, or seeds run out, that is all.

    What was drawn is what a fixed budget of as many seeds draws, and every fixed budget of fewer is not sure enough.
    """
    prompt, sampler = prompt_of(dominant), auditor.resolve_sampler(steps=8)
    budget = Budget(seeds=24, minimum_seeds=2, first_seed=500, curvature=OFF)
    report = auditor.audit(prompt, sampler=sampler, budget=budget)
    drawn = len(report.seeds)
    assert report.seeds == tuple(range(500, 500 + drawn))
    assert drawn in (2, 4, 8, 16, 24)
    assert drawn == 24 or report.decision.confidence >= SETTLED
    for n in (2, 4, 8, 16, 24):
        fixed = auditor.audit(prompt, sampler=sampler, budget=replace(budget, seeds=n, minimum_seeds=n))
        assert len(fixed.seeds) == n
        if n < drawn:
            assert fixed.decision.confidence < SETTLED
        elif n == drawn:
            same(report, fixed)
            assert report.cost.evaluations == fixed.cost.evaluations
            break


def test_clear_answers_take_few_seeds_and_mixed_ones_all(auditor: Auditor) -> None:
    """A prompt that only copies is settled by the least number of seeds; most that are half and half take more."""
    budget = Budget(seeds=16, first_seed=100, curvature=OFF)
    clear = auditor.audit(prompt_of("memorized"), budget=budget)
    assert len(clear.seeds) == budget.minimum_seeds
    assert clear.decision.confidence >= SETTLED
    rows = sorted(load_truth(demo.TRUTH), key=lambda row: abs(row.spurious - row.generalized) + row.memorized)
    audits = [auditor.audit(row.prompt, budget=budget) for row in rows[:3]]
    mixed = sorted(audits, key=lambda report: len(report.seeds))[1]
    assert len(mixed.seeds) > len(clear.seeds)
    sampler = auditor.resolve_sampler()
    assert clear.cost.evaluations < mixed.cost.evaluations <= auditor.planned_evaluations(sampler, budget)


@pytest.mark.parametrize("minimum", [1, 3, 12])
def test_no_fewer_seeds_are_drawn_than_asked_for(auditor: Auditor, minimum: int) -> None:
    """However clear the answer is."""
    budget = Budget(seeds=16, minimum_seeds=minimum, curvature=OFF)
    report = auditor.audit(prompt_of("memorized"), sampler=auditor.resolve_sampler(steps=4), budget=budget)
    assert minimum <= len(report.seeds) <= 16


@pytest.mark.parametrize("n", [1, 5, TRACED])
def test_a_fixed_budget_measures_what_measuring_does(auditor: Auditor, n: int) -> None:
    """The evidence of an audit of n seeds is that of `measure` at the same seeds."""
    sampler = auditor.resolve_sampler(steps=4, guidance=2.0)
    report = auditor.audit(PROMPT, sampler=sampler, budget=Budget(n, n, first_seed=30, curvature=OFF))
    screening, draws = auditor.measure(PROMPT, range(30, 30 + n), sampler=sampler)
    assert draws.samples.seeds == report.seeds
    alike(draws.evidence(screening, report.decision.delta_s), report.evidence)


def test_only_the_first_samples_are_traced(auditor: Auditor) -> None:
    """An audit traces `TRACED` of its samples, measuring traces all; those that both trace are the same."""
    sampler = auditor.resolve_sampler(steps=1)
    report = auditor.audit(PROMPT, sampler=sampler, budget=Budget(11, 11, curvature=OFF))
    _, draws = auditor.measure(PROMPT, range(11), sampler=sampler)
    assert report.evidence.smoothed.values.shape == (TRACED, 2)
    assert draws.smoothed.values.shape == (11, 2)
    np.testing.assert_allclose(draws.smoothed.values[:TRACED], report.evidence.smoothed.values, atol=1e-3)
    assert report.cost.curvature_evaluations == 2 * 2 * TRACED


def test_measuring_more_than_a_group_is_measuring_groups(auditor: Auditor) -> None:
    """All seeds, in order, all of them traced."""
    sampler = auditor.resolve_sampler(steps=1)
    screening, draws = auditor.measure(PROMPT, range(100, 170), sampler=sampler)
    assert draws.samples.seeds == tuple(range(100, 170))
    assert draws.smoothed.values.shape == (70, 2)
    assert screening.contrast.shape == (4, 2)
    _, last = auditor.measure(PROMPT, range(164, 170), sampler=sampler)
    np.testing.assert_allclose(draws.smoothed.values[64:], last.smoothed.values, atol=1e-3)
    torch.testing.assert_close(draws.vectors[64:], last.vectors, rtol=1e-3, atol=1e-3)


# --- screening -------------------------------------------------------------------------------------------------------


def test_screens_of_many_prompts_are_those_one_by_one(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """Together they find what each finds alone, at 8 evaluations a prompt and not one more; so does an audit's own."""
    prompts = demo.prompts()[:40]
    auditor.screen(prompts[:1])
    meter = MeteredDenoiser(checkpoint.denoiser)
    together = auditor.screen(prompts, denoiser=meter)
    assert meter.evaluations == 8 * len(prompts)
    for prompt, found in zip(prompts[::8], together[::8], strict=True):
        (alone,) = auditor.screen([prompt], denoiser=meter)
        assert alone.recurring_probability == pytest.approx(found.recurring_probability, abs=0.01)
        assert alone.probabilities == pytest.approx(found.probabilities, abs=0.01)
        assert [one.name for one in alone.measurements] == [one.name for one in found.measurements]
        for one, other in zip(alone.measurements, found.measurements, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-3)
            assert one.ordinary == other.ordinary
        assert alone.flagged == (alone.recurring_probability > auditor.calibration.screen_threshold)
    assert meter.evaluations == 8 * (len(prompts) + 5)
    report = auditor.audit(prompts[8], sampler=auditor.resolve_sampler(steps=1), budget=SMALL)
    values = [one.value for one in report.decision.measurements[:2]]
    assert values == pytest.approx([one.value for one in together[8].measurements], rel=1e-3)
    assert report.cost.screening_evaluations == 8


def test_screens_tell_copies_from_new_images(auditor: Auditor) -> None:
    """A prompt that copies is likelier to recur than one that generalizes; among fewer samples less does."""
    copied, new = auditor.screen([prompt_of("memorized"), prompt_of("generalized")])
    assert copied.recurring_probability > 0.9 > 0.5 > new.recurring_probability
    assert auditor.screen([prompt_of("spurious")], definition_samples=2)[0].recurring_probability < (
        auditor.screen([prompt_of("spurious")])[0].recurring_probability
    )


def test_a_screen_that_does_not_fit_is_trusted_less(auditor: Auditor) -> None:
    """Under other sampler settings than those of the calibration, the same contrast says less."""
    prompt = prompt_of("memorized")
    own = auditor.resolve_sampler()
    (fits,), (other,) = (
        auditor.screen([prompt], sampler=sampler) for sampler in (own, replace(own, steps=own.steps + 1))
    )
    assert [one.value for one in other.measurements] == pytest.approx([one.value for one in fits.measurements])
    assert other.recurring_probability < fits.recurring_probability


def test_screens_stop_and_refuse_as_audits_do(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """An impossible prompt is named before any call; a check that raises ends it there; NaN is no answer."""
    auditor.screen([PROMPT])
    meter = MeteredDenoiser(checkpoint.denoiser)
    for prompt, reason in ((" ", "PROMPT_EMPTY"), ("coat " * 100, "PROMPT_TOO_LONG")):
        with pytest.raises(InvalidInput) as refused:
            auditor.screen([PROMPT, prompt], denoiser=meter)
        assert refused.value.reason == reason

    def check() -> None:
        raise Stopped("the deadline has passed", reason="TEST")

    with pytest.raises(Stopped):
        auditor.screen([PROMPT], denoiser=meter, check=check)
    assert meter.evaluations == 0

    class Overflowing(MeteredDenoiser):
        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return super().native(x, t, condition) * torch.nan

    with pytest.raises(BrokenCheckpoint):
        auditor.screen([PROMPT], denoiser=Overflowing(checkpoint.denoiser))


def test_verdicts_are_words() -> None:
    """Classes print as people read them."""
    assert [str(name) for name in CLASSES] == ["memorized", "spurious", "generalized"]
    assert PhaseClass("spurious") is PhaseClass.SPURIOUS
