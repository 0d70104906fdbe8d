"""Verdicts at the default budget against the truth table, on prompts that were not used for tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.bench.scores import bootstrap_auc
from audit.bench.text_control import text_only_auc
from audit.bench.truth import TruthRow
from audit.budget import Budget
from audit.progress import progress_bar
from audit.report import Report
from audit.verdict.rule import CLASSES
from tests.benchmarks.common import BENCHMARK_SEED, checkpoint, reference, truth

REPEATS = 3

Audits = list[tuple[TruthRow, Report]]


def run() -> str:
    """The tables, as Markdown."""
    budget, calibration = Budget(), demo.calibration()
    rows = truth()
    wanted = [row for row in rows if row.split == "held-out"]
    held_out = _audit(Auditor(checkpoint(), reference(), calibration), wanted, budget)
    without = _audit(Auditor(checkpoint(), None, calibration), wanted, budget)
    dominated, alone = ([pair for pair in audits if pair[0].dominant] for audits in (held_out, without))
    control = text_only_auc([r.prompt for r in rows], [r.dominant != "generalized" for r in rows])
    return f"""# Verdicts on the demo checkpoint

`python -m tests.benchmarks verdicts`: {budget.minimum_seeds} to {budget.seeds} seeds a prompt, as many as it takes;
truth by 512 samples a prompt ({512 * 20:,} denoiser evaluations, NFE). Held-out prompts with a dominant class
({len(dominated) // REPEATS} of {len(held_out) // REPEATS}), each audited {REPEATS} times with fresh seeds; ± is the
spread over the {REPEATS} repeats.

With the complete reference set:

{_class_table(dominated)}

Without a reference set, recurring (memorized or spurious) against generalized:

{_recurring_table(alone)}

and all three classes:

{_class_table(alone)}

Estimated fractions against the true ones, all held-out prompts, with the reference set: mean absolute error
{_fraction_error(held_out):.3f}; {_coverage(held_out):.0%} of the 90% intervals hold the true fraction.

What an audit takes, curvature's spectrum left out, which decides nothing:

{_cost_table(held_out, without)}

Single measurements, AUC with 95% bootstrap interval over held-out prompts with a dominant class (first repeat):

{_single_table([pair for pair in dominated if pair[1].seeds[0] == BENCHMARK_SEED])}

Text-only control (naive Bayes on the words, cross-validated), recurring against the rest: {control.value:.2f}
({control.lower:.2f} to {control.upper:.2f}).
"""


def _audit(auditor: Auditor, rows: Sequence[TruthRow], budget: Budget) -> Audits:
    found: Audits = []
    with progress_bar() as bar:
        task = bar.add_task("audits", total=len(rows) * REPEATS, note="")
        for row in rows:
            for repeat in range(REPEATS):
                fresh = replace(budget, first_seed=BENCHMARK_SEED + repeat * budget.seeds)
                found.append((row, auditor.audit(row.prompt, budget=fresh)))
                bar.advance(task)
    return found


def _cost_table(held_out: Audits, without: Audits) -> str:
    rows = []
    for label, audits in (("with the reference set", held_out), ("without one", without)):
        seeds = np.asarray([len(report.seeds) for _, report in audits])
        made = np.asarray([_deciding(report) for _, report in audits])
        shares = [f"{np.mean(seeds == count):.0%}" for count in (4, 8, 16, 32)]
        rows.append([label, *shares, f"{made.mean():.0f}", f"{np.quantile(made, 0.9):.0f}", f"{made.max()}"])
    return markdown(["", "4 seeds", "8", "16", "32", "NFE, mean", "90% within", "at most"], rows)


def _deciding(report: Report) -> int:
    """Evaluations without those of the spectrum."""
    settings = report.budget.curvature
    return report.cost.evaluations - settings.evaluations(len(report.seeds), settings.steps, contrasts=True)


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
    rows = []
    for name in (one.name for one in audits[0][1].decision.measurements):
        values = [next(one.value for one in r.decision.measurements if one.name == name) for _, r in audits]
        areas = (
            bootstrap_auc([row.dominant == "memorized" for row, _ in audits], values),
            bootstrap_auc([row.dominant != "generalized" for row, _ in audits], values),
        )
        rows.append([name, *map(str, areas)])
    return markdown(["measurement", "memorized against the rest", "recurring against generalized"], rows)
