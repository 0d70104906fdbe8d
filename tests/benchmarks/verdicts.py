"""Verdicts at the default budget against the truth table, on prompts that were not used for tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from audit import demo
from audit.auditor import Auditor
from audit.bench.scores import bootstrap_auc
from audit.bench.text_control import text_only_auc
from audit.bench.truth import TruthRow
from audit.budget import Budget
from audit.progress import progress_bar
from audit.report import Report
from audit.verdict.calibration import Calibration, recurrence_features
from audit.verdict.decision import Decision, decide
from audit.verdict.rule import CLASSES
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, markdown, reference, truth

REPEATS = 3

Audits = list[tuple[TruthRow, Report]]


def run() -> str:
    """The tables, as Markdown."""
    budget, calibration = Budget(), demo.calibration()
    with_reference = _audit(Auditor(checkpoint(), reference(), calibration), budget)
    # The same samples and measurements, concluded as if nothing had been searched.
    without = [
        (row, replace(report, decision=_without_reference(report, calibration))) for row, report in with_reference
    ]
    held_out = [pair for pair in with_reference if pair[0].split == "held-out"]
    dominated = [pair for pair in held_out if pair[0].dominant]
    evaluations = np.mean([report.cost.evaluations for _, report in with_reference])
    rows = truth()
    control = text_only_auc([r.prompt for r in rows], [r.dominant != "generalized" for r in rows])
    return f"""# Verdicts on the demo checkpoint

`python -m tests.benchmarks verdicts`: {budget.seeds} seeds a prompt, {evaluations:.0f} denoiser evaluations (NFE);
truth by 512 samples a prompt ({512 * 20:,} NFE). Held-out prompts with a dominant class
({len(dominated) // REPEATS} of {len(held_out) // REPEATS}), each audited {REPEATS} times with fresh seeds; ± is the
spread over the {REPEATS} repeats.

With the complete reference set:

{_class_table(dominated)}

Without a reference set, recurring (memorized or spurious) against generalized:

{_recurring_table([pair for pair in without if pair[0].split == "held-out" and pair[0].dominant])}

Estimated fractions against the true ones, all held-out prompts: mean absolute error
{_fraction_error(held_out):.3f}; {_coverage(held_out):.0%} of the 90% intervals hold the true fraction.

Single measurements, recurring against generalized, AUC with 95% bootstrap interval over prompts (first repeat; no
fitted part, so prompts of both splits count, those with a dominant class):

{_single_table([pair for pair in with_reference if pair[0].dominant and pair[1].seeds[0] == BENCHMARK_SEED])}

Text-only control (naive Bayes on the words, cross-validated), recurring against the rest: {control.value:.2f}
({control.lower:.2f} to {control.upper:.2f}).
"""


def _audit(auditor: Auditor, budget: Budget) -> Audits:
    found: Audits = []
    with progress_bar() as bar:
        wanted = [(row, REPEATS if row.split == "held-out" else 1) for row in truth()]
        task = bar.add_task("audits", total=sum(repeats for _, repeats in wanted), note="")
        for row, repeats in wanted:
            for repeat in range(repeats):
                fresh = replace(budget, first_seed=BENCHMARK_SEED + repeat * budget.seeds)
                found.append((row, auditor.audit(row.prompt, budget=fresh)))
                bar.advance(task)
    return found


def _without_reference(report: Report, calibration: Calibration) -> Decision:
    return decide(
        report.stability,
        None,
        report.curvature,
        calibration,
        reference_complete=False,
        dimension=math.prod(checkpoint().decode(torch.zeros(1, *checkpoint().latent_shape(report.sampler))).shape),
        definition_samples=report.budget_definition_samples,
        fits=report.calibration_fits,
    )


def _by_repeat(audits: Audits) -> list[Audits]:
    return [audits[repeat::REPEATS] for repeat in range(REPEATS)]


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _class_table(audits: Audits) -> str:
    rows = []
    for name in CLASSES:
        own = [pair for pair in audits if pair[0].dominant == name]
        recall = [np.mean([r.decision.verdict == name for t, r in part]) for part in _by_repeat(own)]
        called = [sum(r.decision.verdict == other for _, r in own) for other in CLASSES]
        rows.append([str(name), str(len(own) // REPEATS), *map(str, called), _spread(recall)])
    agreement = [np.mean([r.decision.verdict == t.dominant for t, r in part]) for part in _by_repeat(audits)]
    decided = [pair for pair in audits if pair[1].decision.decided]
    sure = np.mean([r.decision.verdict == t.dominant for t, r in decided])
    table = markdown(["truth", "prompts", *(f"called {c}" for c in CLASSES), "recall"], rows)
    return (
        f"{table}\n\nAgreement {_spread(agreement)}. {len(decided) / len(audits):.0%} of the audits are decided "
        f"(confidence at least 0.9); of those {sure:.1%} agree."
    )


def _recurring_table(audits: Audits) -> str:
    rows = []
    for label, positive in (("recurring", True), ("generalized", False)):
        own = [pair for pair in audits if (pair[0].dominant != "generalized") == positive]
        recall = [
            np.mean([(r.decision.recurring_probability > 0.5) == positive for _, r in p]) for p in _by_repeat(own)
        ]
        rows.append([label, str(len(own) // REPEATS), _spread(recall)])
    area = bootstrap_auc(
        [t.dominant != "generalized" for t, _ in audits], [r.decision.recurring_probability for _, r in audits]
    )
    agreement = [
        np.mean([(r.decision.recurring_probability > 0.5) == (t.dominant != "generalized") for t, r in part])
        for part in _by_repeat(audits)
    ]
    return (
        f"{markdown(['truth', 'prompts', 'recall'], rows)}\n\nAgreement {_spread(agreement)}; "
        f"AUC {area.value:.3f} ({area.lower:.3f} to {area.upper:.3f})."
    )


def _true_fractions(row: TruthRow) -> list[float]:
    return [row.memorized, row.spurious, row.generalized]


def _fraction_error(audits: Audits) -> float:
    return float(
        np.mean(
            [
                abs(interval.estimate - true)
                for row, report in audits
                for interval, true in zip(report.decision.fractions, _true_fractions(row), strict=True)
            ]
        )
    )


def _coverage(audits: Audits) -> float:
    # Truth is a count among 512: half a sample of slack at either end.
    slack = 0.5 / 512
    return float(
        np.mean(
            [
                interval.lower - slack <= true <= interval.upper + slack
                for row, report in audits
                for interval, true in zip(report.decision.fractions, _true_fractions(row), strict=True)
            ]
        )
    )


def _single_table(audits: Audits) -> str:
    positive = [row.dominant != "generalized" for row, _ in audits]
    rows = []
    features = [recurrence_features(r.stability, r.curvature, r.decision.delta_s) for _, r in audits]
    signs = {"flat_share": -1.0}
    for name in features[0]:
        area = bootstrap_auc(positive, [signs.get(name, 1.0) * f[name] for f in features])
        rows.append([name, f"{area.value:.3f}", f"{area.lower:.3f} to {area.upper:.3f}"])
    for index, level in enumerate(audits[0][1].curvature):
        area = bootstrap_auc(positive, [r.curvature[index].prompt.trace for _, r in audits])
        rows.append([f"trace at σ = {level.sigma:.2f}", f"{area.value:.3f}", f"{area.lower:.3f} to {area.upper:.3f}"])
        differences = [
            level.prompt.trace - level.unconditional.trace
            for _, r in audits
            if (level := r.curvature[index]).unconditional is not None
        ]
        area = bootstrap_auc(positive, differences)
        rows.append(
            [
                f"trace minus unconditional at σ = {level.sigma:.2f}",
                f"{area.value:.3f}",
                f"{area.lower:.3f} to {area.upper:.3f}",
            ]
        )
    return markdown(["measurement", "AUC", "95% interval"], rows)
