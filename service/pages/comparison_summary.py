"""A comparison in figures: what compare.json says, and the page and compare.md with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audit.batch.comparison import Change, Shift
from audit.batch.discovery import Answer
from audit.verdict.decision import INTERVAL_LEVEL
from audit.verdict.rule import CLASSES
from service.comparison import Comparison, Pair, Side
from service.pages.facts import Facts, describe_batch, differences
from service.pages.report_summary import Line
from service.pages.text import code_span, count, percent, shorten, spoken
from service.results import OPEN

FORMAT = 1
#: What prompts that cannot be compared are called.
FAILED = "failed"
#: Prompts of each list that compare.md names, and characters of each.
MOST_NAMED = 10
MOST_SHOWN = 300


@dataclass(frozen=True)
class PairLine:
    """A prompt in the table, with what its reports say on both sides."""

    pair: Pair
    before: Line
    after: Line

    @property
    def said(self) -> str:
        """What became of it, in one word."""
        return str(self.pair.said or (OPEN if self.pair.is_open else FAILED))

    @property
    def told(self) -> list[str]:
        """All that may be said of it, that word first."""
        return [str(claim) for claim in self.pair.claims] or [self.said]

    def summary(self) -> dict[str, Any]:
        """The prompt's part of compare.json."""
        answers = self.pair.answers or (None, None)
        items = self.pair.before, self.pair.after
        before, after = (
            {
                "position": line.position,
                "outcome": line.outcome,
                "probabilities": _probabilities(answer),
                "audit": None if answer is None else "second" if item.row.second else "first",
                "copies": line.copies,
                "samples": line.samples,
                "nearest": line.nearest,
                "key": item.row.entry.key,
            }
            for line, answer, item in zip((self.before, self.after), answers, items, strict=True)
        )
        return {
            "prompt": self.pair.prompt,
            "said": self.said,
            "claims": list(self.pair.claims),
            "probabilities": self.pair.probabilities or None,
            "same_audit": self.pair.same,
            "before": before,
            "after": after,
        }


def summarize(comparison: Comparison, facts: tuple[Facts, Facts], lines: Sequence[PairLine]) -> dict[str, Any]:
    """What compare.json says.

    Args:
        comparison: that it is of.
        facts: of the audits of both sides.
        lines: of every prompt of both, by rank.
    """
    before, after = (_side(side, own) for side, own in zip((comparison.before, comparison.after), facts, strict=True))
    return {
        "format": FORMAT,
        "before": before,
        "after": after,
        "differences": differences(before, after),
        "false_discovery_rate": comparison.rate,
        "interval_level": INTERVAL_LEVEL,
        "values": comparison.values,
        "kept": comparison.kept,
        "same_audits": sum(line.pair.same for line in lines),
        "shifts": {name: _shift(shift) for name, shift in comparison.shifts.items()},
        "prompts": [line.summary() for line in lines],
        "only_before": comparison.only_before,
        "only_after": comparison.only_after,
    }


def side_names(summary: dict[str, Any]) -> tuple[str, str]:
    """What both sides are called: by their checkpoints, and by their runs too where the checkpoints' names are one."""
    before, after = summary["before"], summary["after"]
    if before["checkpoint"] != after["checkpoint"]:
        return before["checkpoint"], after["checkpoint"]
    return f"{before['run']}/{before['checkpoint']}", f"{after['run']}/{after['checkpoint']}"


def open_prompts(summary: dict[str, Any]) -> int:
    """Prompts that cannot be compared yet."""
    return sum(one["said"] == OPEN for one in summary["prompts"])


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary for a pull request.

    Args:
        summary: of `summarize`.
    """
    before, after = map(code_span, side_names(summary))
    values, waiting = summary["values"], open_prompts(summary)
    lines = [f"## Basin comparison: {before} → {after}", ""]
    if summary["differences"]:
        lines += ["**More than the checkpoint differs, and a change may come from that:**", ""]
        lines += [
            f"- {one['what']}: {code_span(one['before'])} → {code_span(one['after'])}" for one in summary["differences"]
        ]
        lines.append("")
    if waiting:
        lines += [f"Unfinished: {count(waiting, 'prompt')} still to be audited; what follows may change.", ""]
    lines += [
        f"{count(values['prompts'], 'prompt')} of both sides, {values['only_before']:,} of the first alone, "
        f"{values['only_after']:,} of the second alone.", "",
        "| what became of them | prompts | share of those compared |", "|---|--:|--:|",
        *(
            f"| {spoken(name)} | {values[name]:,} | {values[f'{name}_rate']:.1%} |"
            for name in Change if values[name] or name in (Change.NEW_MEMORIZED, Change.CHANGED)
        ),
        *([f"| failed or open | {values['failed']:,} | |"] if values["failed"] else []), "",
        f"| prompts expected ({summary['interval_level']:.0%} interval) | before | after | difference |",
        "|---|--:|--:|--:|",
        *(
            f"| {name} | {number(one['before'])} | {number(one['after'])} | {number(one['difference'], signed=True)}"
            f"{'' if one['beyond_noise'] else ', may be noise'} |"
            for name, one in summary["shifts"].items()
        ), "",
    ]  # fmt: skip
    claimed = [one for one in summary["prompts"] if one["claims"]]
    for title, grave in (("New memorization", True), ("Other changes", False)):
        lines += _listed(title, [one for one in claimed if (one["said"] == Change.NEW_MEMORIZED) is grave])
    return "\n".join(lines)


def number(interval: dict[str, float], *, signed: bool = False) -> str:
    """An expected number of prompts with its interval."""
    sign = "+" if signed else ""
    text = f"{interval['estimate']:{sign},.1f} ({interval['lower']:{sign},.0f} to {interval['upper']:{sign},.0f})"
    return text.replace("-", "−")


def _listed(title: str, prompts: Sequence[dict[str, Any]]) -> list[str]:
    if not prompts:
        return []
    lines = [f"### {title}", ""]
    for rank, one in enumerate(prompts[:MOST_NAMED], 1):
        name = one["claims"][0]
        lines.append(
            f"{rank}. **{spoken(name)}** ({percent(one['probabilities'][name])}): "
            f"{one['before']['outcome']} → {one['after']['outcome']}: "
            f"{code_span(shorten(one['prompt'], MOST_SHOWN))}"
        )
    if len(prompts) > MOST_NAMED:
        lines += ["", f"And {len(prompts) - MOST_NAMED:,} more."]
    return [*lines, ""]


def _side(side: Side, facts: Facts) -> dict[str, Any]:
    return {
        "run": side.run.path.resolve().name,
        "checkpoint": side.checkpoint,
        "digest": side.run.digests[side.checkpoint],
        "batch": describe_batch(side.run),
        "prompts": len(side.prompts),
        **facts.summary(),
    }


def _shift(shift: Shift) -> dict[str, Any]:
    return asdict(shift) | {"beyond_noise": shift.beyond_noise}


def _probabilities(answer: Answer | None) -> dict[str, float] | None:
    return None if answer is None else dict(zip(map(str, CLASSES), answer.probabilities, strict=True))
