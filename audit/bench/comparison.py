"""Basin beside the published detectors on one ladder: what each costs, and what it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from audit.auditor import Auditor
from audit.bench.baselines import Baselines, Detection
from audit.bench.ladders import TrainedLadder
from audit.bench.truth import TruthRow
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.evidence.screening import EVALUATIONS, NOISE_LEVELS, SEEDS, Screen
from audit.evidence.stability import pairwise_distances
from audit.model.denoiser import concatenate
from audit.model.sampling import SamplerSettings
from audit.verdict.decision import screen
from audit.verdict.rule import DEFINITION_SAMPLES, class_fractions, classify_samples

#: Seeds of the detectors' noise: apart from those of the truth, of calibrations and of the fit.
FIRST_SEED = 4_000_000
#: Noises that prompts are screened with; 4 are Basin's own.
NOISES = (1, 2, 8)
#: The most that detectors are compared at on equal terms, in NFE a prompt.
MOST_EQUAL = 64
#: The exhaustive protocol: samples, and guided steps of each.
SAMPLES, STEPS = 64, 50
NO_SPECTRUM = CurvatureSettings("off")


@dataclass(frozen=True)
class Verdicts:
    """What one way to verdicts gives on the prompts of a ladder.

    Attributes:
        name: of the way.
        evaluations: NFE of every prompt, (prompts,).
        seconds: of a prompt, on average.
        fractions: expected at N, (prompts, 3).
        probabilities: that each class dominates, (prompts, 3).
    """

    name: str
    evaluations: NDArray[np.int64]
    seconds: float
    fractions: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """All of it, on one ladder.

    Attributes:
        ladder: its name.
        rows: the truth of the prompts, in the order of everything else.
        baselines: the published detectors.
        ours: Basin at several depths, and the exhaustive protocol, which is nobody's.
        families: of the prompts, whose members are hardly evidence twice; None where each is its own.
    """

    ladder: str
    rows: tuple[TruthRow, ...]
    baselines: tuple[Detection, ...]
    ours: tuple[Verdicts, ...]
    families: NDArray[np.int64] | None = None


def compare(
    ladder: TrainedLadder,
    rows: Sequence[TruthRow],
    on_prompt: Callable[[str], None] = lambda stage: None,
    *,
    samples: int = SAMPLES,
    steps: int = STEPS,
) -> Comparison:
    """Run everything on some prompts of a ladder.

    Args:
        ladder: with its calibration.
        rows: the truth of the prompts; nothing looks at it.
        on_prompt: called after every prompt with the name of what is being run.
        samples: of the exhaustive protocol.
        steps: of each of them.
    """
    prompts = [row.prompt for row in rows]
    baselines, ours = run_detectors(
        ladder.auditor(),
        ladder.auditor(reference=False),
        ladder.sampler,
        prompts,
        ladder.ordinary() or prompts,
        on_prompt,
    )
    ours.append(_exhaustive(ladder, prompts, samples, steps, on_prompt))
    return Comparison(ladder.name, tuple(rows), tuple(baselines), tuple(ours))


def run_detectors(
    auditor: Auditor,
    blind: Auditor,
    sampler: SamplerSettings,
    prompts: Sequence[str],
    ordinary: Sequence[str],
    on_prompt: Callable[[str], None] = lambda stage: None,
) -> tuple[list[Detection], list[Verdicts]]:
    """Every published detector, and Basin at every depth.

    Args:
        auditor: of the checkpoint, with its calibration and its reference set, if there is one.
        blind: the same without a reference set.
        sampler: the settings under audit, the calibration's.
        prompts: to be told apart.
        ordinary: those that detectors are normalised with.
        on_prompt: called after every prompt with the name of what is being run.
    """
    baselines = Baselines(auditor, sampler, FIRST_SEED).run(prompts, ordinary, lambda: on_prompt("baselines"))

    def audits(name: str, by: Auditor, **budget: int) -> Verdicts:
        return _audits(name, by, prompts, Budget(first_seed=FIRST_SEED, curvature=NO_SPECTRUM, **budget), on_prompt)

    found = [
        *(
            _screened(f"screen, {noises} noise{'s' if noises > 1 else ''}", blind, prompts, SEEDS[0], noises)
            for noises in NOISES
        ),
        _screened("screen", blind, prompts, SEEDS[0], len(SEEDS)),
        audits("1 seed", auditor, seeds=1),
        audits("1 seed, no reference set", blind, seeds=1),
        audits("audit", auditor),
        audits("audit, no reference set", blind),
    ]
    # As many seeds as fit, to a power of two, which is when audits look; else more noises.
    seed = sampler.steps * (2 if sampler.guided else 1) + 2 * len(NOISE_LEVELS)
    fitting = (MOST_EQUAL - EVALUATIONS) // seed
    found.append(
        audits(f"{MOST_EQUAL} NFE", auditor, seeds=2 ** (fitting.bit_length() - 1))
        if fitting
        else _screened(f"{MOST_EQUAL} NFE", blind, prompts, SEEDS[0], MOST_EQUAL // 2)
    )
    return baselines, found


def _screened(name: str, auditor: Auditor, prompts: Sequence[str], first: int, noises: int) -> Verdicts:
    checkpoint, sampler = auditor.checkpoint, auditor.resolve_sampler()
    at = Screen(
        checkpoint.denoiser,
        checkpoint.latent_shape(sampler),
        auditor.encode(""),
        seeds=range(first, first + noises),
        device=checkpoint.device,
        dtype=checkpoint.dtype,
    )
    start = time.perf_counter()
    measured = at.measure(checkpoint.denoiser, concatenate([auditor.encode(prompt) for prompt in prompts]))
    found = [screen(one, auditor.calibration, definition_samples=DEFINITION_SAMPLES, fits=True) for one in measured]
    seconds = (time.perf_counter() - start) / len(prompts)
    return Verdicts(
        name,
        np.full(len(prompts), at.evaluations),
        seconds,
        np.asarray([one.fractions for one in found]),
        np.asarray([one.probabilities for one in found]),
    )


def _audits(
    name: str, auditor: Auditor, prompts: Sequence[str], budget: Budget, on_prompt: Callable[[str], None]
) -> Verdicts:
    found = []
    for prompt in prompts:
        found.append(auditor.audit(prompt, budget=budget))
        on_prompt(name)
    return Verdicts(
        name,
        np.asarray([report.cost.evaluations for report in found]),
        float(np.mean([report.cost.compute_seconds for report in found])),
        np.asarray([[fraction.estimate for fraction in report.decision.fractions] for report in found]),
        np.asarray([report.decision.probabilities for report in found]),
    )


def _exhaustive(
    ladder: TrainedLadder, prompts: Sequence[str], count: int, steps: int, on_prompt: Callable[[str], None]
) -> Verdicts:
    """Many samples of many steps, classified by the rule and by nothing else.

    Both branches count, as the protocol has it; where the guidance is 1 the other one is not evaluated.
    """
    auditor, checkpoint = ladder.auditor(), ladder.checkpoint
    sampler = replace(ladder.sampler, steps=steps)
    assert auditor.finder is not None
    fractions, start = [], time.perf_counter()
    for prompt in prompts:
        samples = checkpoint.sample(
            sampler, auditor.encode(prompt), auditor.encode(""), range(FIRST_SEED, FIRST_SEED + count)
        )
        with torch.inference_mode():
            images = checkpoint.decode(samples.latents).cpu()
        vectors = auditor.vectors(images)
        delta_m, delta_s = ladder.calibration.thresholds(vectors.shape[1])
        between = pairwise_distances(vectors)
        np.fill_diagonal(between, np.inf)
        fractions.append(
            class_fractions(classify_samples(auditor.finder.find(images).distance, between.min(1), delta_m, delta_s))
        )
        on_prompt("exhaustive")
    shares = np.asarray(fractions)
    return Verdicts(
        "exhaustive",
        np.full(len(prompts), 2 * count * steps),
        (time.perf_counter() - start) / len(prompts),
        shares,
        shares,
    )
