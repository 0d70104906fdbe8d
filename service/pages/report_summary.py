"""A run in figures: what report.json says, and the page and report.md with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from audit.batch.discovery import Outcome
from audit.v1 import report_pb2
from audit.verdict.decision import INTERVAL_LEVEL
from service.gate import gate_values
from service.pages.facts import Facts, describe_batch
from service.pages.text import code_span, count, percent, shorten
from service.repeats import Repeats
from service.reports import compared
from service.results import OPEN, Concluded, OpenedRun

FORMAT = 1
#: In place of a prompt that was kept as long as it should be.
REMOVED = "(removed)"
#: Outcomes that are a share of the prompts that could be audited.
RATED = ("recurring", "memorized", "spurious", "generalized", "undecided")
#: Prompts that the summaries name.
RISKIEST = 10
#: Characters of a prompt in report.md, and in lists of the page.
MOST_SHOWN = 300


@dataclass(frozen=True)
class Line:
    """A prompt in the table.

    Attributes:
        checkpoint: by the name that the batch uses.
        position: in the list of prompts, from 0.
        prompt: as it was given, or `REMOVED`.
        outcome: of the batch, or `OPEN`.
        memorized: probability that memorized samples dominate, of the last audit; None where none succeeded.
        recurring: that memorized and spurious ones together do.
        copies: of reference images among the samples; None where none were searched.
        samples: drawn.
        nearest: least distance of a sample to a reference image.
    """

    checkpoint: str
    position: int
    prompt: str
    outcome: str
    memorized: float | None = None
    recurring: float | None = None
    copies: int | None = None
    samples: int | None = None
    nearest: float | None = None

    @classmethod
    def of(cls, item: Concluded, *, is_open: bool, last: report_pb2.Report | None) -> Line:
        """The line of an item, with the last audit that it has."""
        entry = item.row.entry
        own = (entry.checkpoint, entry.position, entry.prompt or REMOVED, OPEN if is_open else str(item.outcome))
        if last is None:
            return cls(*own)
        searched = compared(last)
        return cls(
            *own,
            memorized=last.probabilities.memorized,
            recurring=last.recurring_probability,
            copies=last.copies.found if searched else None,
            samples=len(last.samples),
            nearest=min(one.nearest_reference.distance for one in last.samples) if searched else None,
        )

    @property
    def share(self) -> tuple[int, int] | None:
        """Copies among the samples; None where none were searched."""
        return None if self.copies is None or self.samples is None else (self.copies, self.samples)

    @property
    def risk(self) -> tuple[float, float]:
        """What the table is sorted by, the largest first. Less than a percent is no difference of risk."""
        return (
            (-1, -1) if self.memorized is None or self.recurring is None else (round(self.memorized, 2), self.recurring)
        )


class Tally:
    """What the summary says of a checkpoint, gathered audit by audit.

    Args:
        name: that the batch uses.
        digest: of the checkpoint.
    """

    def __init__(self, name: str, digest: str) -> None:
        self._said = {"name": name, "digest": digest}
        self._outcomes: list[Outcome] = []
        self._open = 0
        self._facts = Facts()

    def add(self, item: Concluded, reports: Iterable[report_pb2.Report | None], *, is_open: bool) -> None:
        """Count an item in, with its first and its second audit."""
        if is_open:
            self._open += 1
        else:
            self._outcomes.append(item.outcome)
        self._facts.add(item.row.entry.key, reports)

    def summary(self) -> dict[str, Any]:
        """The checkpoint's part of report.json."""
        values = gate_values(self._outcomes)
        audited = int(values["prompts"] - values["failed"])
        return {
            **self._said,
            "prompts": len(self._outcomes) + self._open,
            "audited": audited,
            "failed": int(values["failed"]),
            "open": self._open,
            "outcomes": {name: _rate(int(values[name]), audited) for name in RATED},
            **self._facts.summary(),
        }


def summarize(run: OpenedRun, tallies: Iterable[Tally], lines: Iterable[Line]) -> dict[str, Any]:
    """What report.json says.

    Args:
        run: that it is of.
        tallies: of every checkpoint.
        lines: of every prompt.
    """
    lines = list(lines)
    entries = [item.row.entry for own in run.concluded.values() for item in own]
    riskiest = sorted((line for line in lines if line.memorized is not None), key=lambda one: one.risk, reverse=True)
    return {
        "format": FORMAT,
        "run": run.path.resolve().name,
        "batch": describe_batch(run),
        "interval_level": INTERVAL_LEVEL,
        "checkpoints": [tally.summary() for tally in tallies],
        "riskiest": [asdict(line) for line in riskiest[:RISKIEST]],
        "repeats": Repeats.of({entry.position: entry.prompt for entry in entries if entry.prompt}).plain(),
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary for a pull request.

    Args:
        summary: of `summarize`.
    """
    open_ = sum(found["open"] for found in summary["checkpoints"])
    lines = [f"## Basin report of {code_span(summary['run'])}", ""]
    if open_:
        lines += [f"Unfinished: {count(open_, 'prompt')} still to be audited; what follows may change.", ""]
    if summary["repeats"]["line"]:
        lines += [summary["repeats"]["line"], ""]
    for found in summary["checkpoints"]:
        lines += [
            f"### {code_span(found['name'])}, {count(found['prompts'], 'prompt')}", "",
            f"| outcome | prompts | share of those audited ({summary['interval_level']:.0%} interval) |",
            "|---|--:|--:|",
            *(
                f"| {name} | {one['count']:,} | {one['rate']:.1%} ({one['lower']:.1%} to {one['upper']:.1%}) |"
                for name, one in found["outcomes"].items() if name in RATED
            ),
            *(f"| {name} | {found[name]:,} | |" for name in ("failed", "open") if found[name]), "",
        ]  # fmt: skip
    if summary["riskiest"]:
        lines += ["### The riskiest prompts", ""]
        several = len(summary["checkpoints"]) > 1
        for rank, one in enumerate(summary["riskiest"], 1):
            where = f", {code_span(one['checkpoint'])}" if several else ""
            lines.append(
                f"{rank}. **{one['outcome']}**{where} (memorized {percent(one['memorized'])}, recurring "
                f"{percent(one['recurring'])}): {code_span(shorten(one['prompt'], MOST_SHOWN))}"
            )
        lines.append("")
    return "\n".join(lines)


def _rate(found: int, of: int) -> dict[str, float]:
    """A share with its exact interval (Clopper and Pearson's); nothing is known of nothing."""
    if not of:
        return {"count": 0, "rate": 0.0, "lower": 0.0, "upper": 1.0}
    ends = binomtest(found, of).proportion_ci(INTERVAL_LEVEL, method="exact")
    return {"count": found, "rate": found / of, "lower": float(ends.low), "upper": float(ends.high)}
