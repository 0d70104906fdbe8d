"""What a comparison says, as Markdown tables and figures. Prompts without a dominant class do not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from audit import palette
from audit.bench.comparison import MOST_EQUAL, Comparison, Verdicts
from audit.bench.markdown import markdown
from audit.bench.scores import (
    DRAWS,
    Estimate,
    area_under_curve,
    brier_score,
    calibration_error,
    estimate,
    resamples,
    true_positive_rate,
)
from audit.bench.text_control import text_only_auc
from audit.evidence.curvature import CurvatureSettings
from audit.verdict.rule import CLASSES, PhaseClass

#: Denoiser evaluations at which detectors are compared on equal terms, and what of Basin is meant for so many.
EQUAL = {2: "screen, 1 noise", 4: "screen, 2 noises", 16: "screen, 8 noises", MOST_EQUAL: f"{MOST_EQUAL} NFE"}
Measure = Callable[[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64] | None], NDArray[np.float64]]
MEASURES: dict[str, Measure] = {"AUC": area_under_curve, "TPR at 1% FPR": true_positive_rate}


@dataclass(frozen=True)
class Entry:
    """A detector on one question.

    Attributes:
        name: of the detector, with its seeds.
        ours: whether it is Basin's.
        published: seeds of a published detector; 0 of Basin's, and of the exhaustive protocol, which is neither.
        evaluations: NFE of a prompt, on average.
        seconds: of a prompt, on average.
        scores: of the prompts with a dominant class.
    """

    name: str
    ours: bool
    published: int
    evaluations: float
    seconds: float
    scores: NDArray[np.float64]


class Scored:
    """A comparison with the prompts that count.

    Args:
        comparison: of one ladder.
        draws: resamples of an interval.
    """

    def __init__(self, comparison: Comparison, draws: int = DRAWS) -> None:
        self.ladder = comparison.ladder
        self.kept = np.asarray([bool(row.dominant) for row in comparison.rows])
        self.rows = [row for row in comparison.rows if row.dominant]
        self.classes = np.asarray([CLASSES.index(PhaseClass(row.dominant)) for row in self.rows])
        self.families = None if comparison.families is None else comparison.families[self.kept]
        self.resamples = resamples(self.classes, draws, families=self.families)
        self._comparison = comparison

    def entries(self, question: str) -> list[Entry]:
        """All detectors on "memorized" against the rest, or "recurring" against generalized."""
        found = [
            Entry(f"{one.name}, n = {one.seeds}", False, one.seeds, one.evaluations, one.seconds, one.scores[self.kept])
            for one in self._comparison.baselines
        ]
        for one in self._comparison.ours:
            share = one.fractions[:, 0] if question == "memorized" else 1 - one.fractions[:, 2]
            ours = one.name != "exhaustive"
            found.append(Entry(one.name, ours, 0, float(one.evaluations.mean()), one.seconds, share[self.kept]))
        return found

    def positive(self, question: str) -> NDArray[np.bool_]:
        """Which prompts are to be found."""
        return self.classes == 0 if question == "memorized" else self.classes != 2

    def estimate(self, question: str, measure: Measure, scores: NDArray[np.float64]) -> Estimate:
        """A measure of a detector's scores."""
        positive = self.positive(question)
        return estimate(lambda counts: measure(positive, scores, counts), self.resamples)

    def difference(
        self, question: str, measure: Measure, ours: NDArray[np.float64], theirs: NDArray[np.float64]
    ) -> Estimate:
        """How much better ours is, on the same resamples."""
        positive = self.positive(question)
        return estimate(
            lambda counts: measure(positive, ours, counts) - measure(positive, theirs, counts), self.resamples
        )

    def verdicts(self) -> list[Verdicts]:
        """Ways to verdicts, all prompts."""
        return list(self._comparison.ours)


def page(scored: Scored) -> str:
    """All tables of a ladder."""
    counts = ", ".join(
        f"{int((scored.classes == index).sum())} {name}"
        for index, name in enumerate(("memorized", "spurious", "generalized"))
    )
    parts = [
        f"# {scored.ladder}",
        f"{int(scored.kept.sum())} of {len(scored.kept)} captions have a dominant class: {counts}.",
    ]
    for question, against in (("memorized", "the rest"), ("recurring", "generalized")):
        parts += [
            f"## {question.capitalize()} against {against}",
            detection_table(scored, question),
            "At equal cost:",
            equal_cost_table(scored, question),
        ]
    parts += [
        "Basin's noises are always the same, so that it evaluates the empty prompt once a checkpoint. Published "
        "detectors cost what was published: both branches, for every prompt.",
        "## Verdicts",
        verdict_table(scored),
        f"Without the spectrum of the curvature, which decides nothing and takes {_spectrum()} NFE by default.",
        "At a tenth of the cost, and without a reference set:",
        far_cheaper_table(scored),
        "By the number of images behind a caption, and how often it was shown:",
        size_table(scored),
        f"A classifier of the words alone: {text_control(scored)}.",
    ]
    return "\n\n".join(parts)


def public_page(scored: Scored) -> str:
    """The tables of a comparison on public lists."""
    control = _control(scored, "memorized")
    families = len(set((scored.families if scored.families is not None else np.arange(len(scored.rows))).tolist()))
    counts = f"{int((scored.classes == 0).sum())} said to be memorized, {int((scored.classes == 2).sum())} not"
    return "\n\n".join(
        [
            f"# {scored.ladder}",
            f"{len(scored.rows)} prompts in {families} families: {counts}. Nobody measured whether they are.",
            detection_table(scored, "memorized"),
            "At equal cost:",
            equal_cost_table(scored, "memorized"),
            f"A classifier of the words alone: {control}.",
        ]
    )


def detection_table(scored: Scored, question: str) -> str:
    """Every detector: what it costs, and what it gets."""
    rows = []
    for one in scored.entries(question):
        found = [str(scored.estimate(question, measure, one.scores)) for measure in MEASURES.values()]
        name = f"**{one.name}**" if one.ours else one.name
        rows.append([name, f"{one.evaluations:,.0f}", f"{1000 * one.seconds:,.0f}", *found])
    return markdown(["detector", "NFE a prompt", "ms", *MEASURES], rows)


def equal_cost_table(scored: Scored, question: str) -> str:
    """The best published detector within the same evaluations, beside the one of ours that is meant for them."""
    entries = {one.name: one for one in scored.entries(question)}
    positive = scored.positive(question)
    rows = []
    for most, ours in EQUAL.items():
        within = [one for one in entries.values() if one.published and one.evaluations <= most]
        for name, measure in MEASURES.items():
            values = {one.name: float(measure(positive, one.scores, None)) for one in (*within, entries[ours])}
            best = max(within, key=lambda one, values=values: values[one.name])  # type: ignore[misc]
            gain = scored.difference(question, measure, entries[ours].scores, best.scores)
            told = [f"{entry}: {values[entry]:.3f}" for entry in (best.name, ours)]
            rows.append([str(most), name, *told, _signed(gain)])
    return markdown(["NFE at most", "measure", "best published", "Basin", "difference"], rows)


def far_cheaper_table(scored: Scored) -> str:
    """The best published detector at its most seeds beside ours of a tenth of the cost; audits without references."""
    entries = scored.entries("memorized")
    most = max(one.published for one in entries)
    positive = scored.positive("memorized")
    rows = []
    for name, measure in MEASURES.items():
        values = {one.name: float(measure(positive, one.scores, None)) for one in entries}
        best = max((one for one in entries if one.published == most), key=lambda one: values[one.name])
        fitting = [one for one in entries if one.ours and one.evaluations <= best.evaluations / 10]
        row = [f"memorized, {name}", f"{best.name}: {values[best.name]:.3f} at {best.evaluations:,.0f} NFE"]
        if not fitting:
            rows.append([*row, "nothing is that cheap", ""])
            continue
        ours = max(fitting, key=lambda one: one.evaluations)
        gain = _signed(scored.difference("memorized", measure, ours.scores, best.scores))
        rows.append([*row, f"{ours.name}: {values[ours.name]:.3f} at {ours.evaluations:,.0f} NFE", gain])
    alone = "audit, no reference set"
    recurring = next(one for one in scored.entries("recurring") if one.name == alone)
    rows.append(
        ["recurring, AUC", "", f"{alone}: {scored.estimate('recurring', area_under_curve, recurring.scores)}", ""]
    )
    copied = next(one for one in entries if one.name == alone)
    found = estimate(partial(_among_recurring, scored.classes, copied.scores), scored.resamples)
    rows.append(["memorized against spurious, AUC", "", f"{alone}: {found}", ""])
    return markdown(["", "best published", "Basin", "difference"], rows)


def verdict_table(scored: Scored) -> str:
    """Three classes: how often right, how well calibrated, at what cost, beside the exhaustive protocol."""
    rows = []
    everyone = scored.verdicts()
    exhaustive = next(one for one in everyone if one.name == "exhaustive")
    for one in everyone:
        probabilities = one.probabilities[scored.kept]
        called = probabilities.argmax(1)
        right = (called == scored.classes).astype(float)
        reference = (exhaustive.probabilities[scored.kept].argmax(1) == scored.classes).astype(float)
        accuracy = estimate(partial(_mean, right), scored.resamples)
        gain = estimate(partial(_mean, right - reference), scored.resamples)
        error = estimate(partial(_calibration_errors, right, probabilities.max(1)), scored.resamples)
        recall = [f"{right[scored.classes == index].mean():.2f}" for index in range(3)]
        nfe = one.evaluations[scored.kept]
        rows.append(
            [
                one.name,
                f"{nfe.mean():,.0f}",
                f"{np.quantile(nfe, 0.9):,.0f}",
                str(accuracy),
                _signed(gain),
                f"{_macro_f1(scored.classes, called):.3f}",
                *recall,
                f"{brier_score(scored.classes, probabilities):.3f}",
                "" if one.name == "exhaustive" else str(error),
            ]
        )
    header = ["", "NFE, mean", "90% within", "accuracy", "beside exhaustive", "macro-F1"]
    return markdown([*header, *(f"recall {name}" for name in CLASSES), "Brier", "calibration error"], rows)


def size_table(scored: Scored, name: str = "audit") -> str:
    """Who is right about captions of so many images, shown so often."""
    one = next(verdicts for verdicts in scored.verdicts() if verdicts.name == name)
    called = one.probabilities[scored.kept].argmax(1)
    kinds = sorted({(row.images, row.weight) for row in scored.rows})
    rows = []
    for images, weight in kinds:
        own = np.asarray([(row.images, row.weight) == (images, weight) for row in scored.rows])
        truths = [str(int((scored.classes[own] == index).sum())) for index in range(3)]
        right = float((called[own] == scored.classes[own]).mean())
        nfe = float(one.evaluations[scored.kept][own].mean())
        rows.append([str(images), str(weight), *truths, f"{right:.2f}", f"{nfe:.0f}"])
    return markdown(["images", "weight", *CLASSES, "right", "NFE"], rows)


def text_control(scored: Scored) -> str:
    """What the words alone tell, on both questions."""
    found = [_control(scored, question) for question in ("memorized", "recurring")]
    return f"memorized against the rest {found[0]}, recurring against generalized {found[1]}"


def _control(scored: Scored, question: str) -> str:
    positive = scored.positive(question)
    if min(positive.sum(), (~positive).sum()) < 2:
        return "not to be had from so few prompts"
    return str(text_only_auc([row.prompt for row in scored.rows], list(positive)))


def draw(scored: Sequence[Scored]) -> Figure:
    """ROC curves and cost against AUC, a row per ladder."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.6 * len(scored)), layout="constrained")
        grid: Any = figure.subplots(len(scored), 2, squeeze=False)
        for one, (roc, cost) in zip(scored, grid, strict=True):
            entries = one.entries("memorized")
            positive = one.positive("memorized")
            areas = {entry.name: area_under_curve(positive, entry.scores) for entry in entries}
            best = sorted((e for e in entries if e.published), key=lambda e: -areas[e.name])[:3]
            own = [e for e in entries if e.ours and e.name in ("screen", f"{MOST_EQUAL} NFE", "audit")]
            for entry, colour in zip((*own, *best), (*_OURS, *_THEIRS), strict=True):
                ups, downs = _roc(positive, entry.scores)
                label = f"{'Basin, ' if entry.ours else ''}{entry.name}"
                roc.plot(downs, ups, color=colour, label=label, linewidth=2 if entry.ours else 1)
            roc.set(xlabel="false positives", ylabel="true positives", xlim=(0, 1), ylim=(0, 1.02))
            roc.set_xscale("symlog", linthresh=0.01)
            roc.set_title(f"{one.ladder}: memorized against the rest")
            roc.legend(loc="lower right")
            kinds = (
                ("published", palette.INK, "o", [e for e in entries if e.published]),
                ("Basin", _OURS[0], "D", [e for e in entries if e.ours]),
                ("exhaustive", _THEIRS[0], "s", [e for e in entries if not (e.ours or e.published)]),
            )
            for label, colour, marker, some in kinds:
                if not some:
                    continue  # public lists have no exhaustive protocol
                cost.scatter(
                    [e.evaluations for e in some], [1 - areas[e.name] for e in some], color=colour, marker=marker,
                    s=22, label=label, alpha=0.8,
                )  # fmt: skip
            for entry in (*own, *best):
                name = entry.name.replace(", n = ", ", ")
                cost.annotate(
                    name, (entry.evaluations, 1 - areas[entry.name]), (4, 5), textcoords="offset points", fontsize=7
                )
            cost.set(xscale="log", xlabel="denoiser evaluations a prompt", ylabel="1 − AUC")
            cost.set_yscale("symlog", linthresh=0.001)
            cost.set_ylim(max(0.5, *(1 - area for area in areas.values())), -0.0003)
            cost.set_title("what it costs, what it gets (higher is better)")
            cost.legend(loc="upper left")
    return figure


_OURS, _THEIRS = ("#0b6e4f", "#2ca58d", "#84c7b8"), ("#c44536", "#e09f3e", "#8d99ae")
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def _roc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false positive rates at every threshold."""
    thresholds = np.concatenate([[np.inf], np.unique(scores)[::-1]])
    ups = [(scores[positive] >= t).mean() for t in thresholds]
    downs = [(scores[~positive] >= t).mean() for t in thresholds]
    return np.asarray(ups), np.asarray(downs)


def _spectrum() -> int:
    """What the spectrum takes in an audit of the default budget."""
    settings = CurvatureSettings()
    return settings.evaluations(settings.samples, settings.steps, contrasts=True)  # of no fewer seeds and dimensions


def _among_recurring(
    classes: NDArray[np.int64], scores: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    recurring = classes != 2
    return area_under_curve(classes[recurring] == 0, scores[recurring], counts[:, recurring])


def _mean(values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the prompts of every resample."""
    return np.asarray(counts @ values / counts.sum(1))


def _calibration_errors(
    right: NDArray[np.float64], confidence: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.asarray([calibration_error(right.repeat(own), confidence.repeat(own)) for own in counts])


def _macro_f1(truth: NDArray[np.int64], called: NDArray[np.int64]) -> float:
    found = []
    for index in range(3):
        hits = float(((truth == index) & (called == index)).sum())
        found.append(2 * hits / max(1.0, float((truth == index).sum() + (called == index).sum())))
    return float(np.mean(found))


def _signed(gain: Estimate) -> str:
    return f"{gain.value:+.3f} ({gain.lower:+.3f} to {gain.upper:+.3f})"
