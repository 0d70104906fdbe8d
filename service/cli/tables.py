"""Reports as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audit.v1 import audit_pb2, report_pb2
from service.cli.console import MARKS
from service.reports import compared, confidence

#: Reasons are printed below the table for so many prompts at most.
MAX_EXPLAINED = 5
#: Words of an explanation that are listed, and cells along the longer side of its map.
MOST_WORDS, MOST_CELLS = 12, 24
#: From nothing to half of the error, or to the most where that is more.
SHADES, HALF = " ░▒▓█", math.log(2)


def print_reports(
    console: Console, reports: Sequence[report_pb2.Report], *, truths: Sequence[Text] = (), explain: bool = True
) -> None:
    """Print a row per report, and below the reasons of a few.

    Args:
        console: to print to.
        reports: in this order.
        truths: what is known to be true, one per report; empty leaves the column out.
        explain: whether to print reasons.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False)
    table.add_column("prompt", ratio=1, min_width=12)
    if truths:
        table.add_column("truth")
    table.add_column("verdict")
    for name in MARKS:
        table.add_column(name, justify="right")
    for name in ("copies", "NFE", "seconds"):
        table.add_column(name, justify="right")
    for row, report in enumerate(reports):
        fractions = [_interval(getattr(report.fractions, name)) for name in MARKS]
        table.add_row(
            Text(report.prompt),
            *truths[row : row + 1],
            _verdict(report),
            *fractions,
            f"{report.copies.found}/{len(report.samples)}" if compared(report) else "–",
            f"{report.cost.evaluations:,}",
            f"{report.cost.compute_seconds:.1f}",
        )
    console.print(table)
    if explain and len(reports) <= MAX_EXPLAINED:
        for report in reports:
            console.print(Text(report.prompt, style="bold"))
            print_reasons(console, report)
            if report.HasField("explanation"):
                print_explanation(console, report.explanation)


def print_screened(console: Console, found: Sequence[audit_pb2.ScreenResponse]) -> None:
    """Print a row per screened prompt, and below what the flag means."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False)
    table.add_column("prompt", ratio=1, min_width=12)
    for name in ("flagged", "recurring", *MARKS):
        table.add_column(name, justify="right")
    for response in found:
        for result in response.results:
            values = (result.recurring_probability, *(getattr(result.probabilities, name) for name in MARKS))
            flagged = Text("yes", style="bold") if result.flagged else Text("no")
            table.add_row(Text(result.prompt), flagged, *(f"{value:.2f}" for value in values))
    console.print(table)
    first = found[0]
    console.print(
        f"Flagged: recurring with a probability over {first.threshold:.2f}, which at most "
        f"{first.false_positive_rate:.0%} of ordinary prompts are."
        + ("" if first.calibration.fits else " No calibration of this checkpoint with this sampler: rough.")
    )


def print_inspection(console: Console, name: str, found: audit_pb2.InspectImageResponse) -> None:
    """Print what was found about an image, and why.

    Args:
        console: to print to.
        name: of the image.
        found: about it.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False)
    table.add_column("image", ratio=1, min_width=12)
    table.add_column("verdict")
    for column in (*MARKS, "nearest", "basin up to", "NFE", "seconds"):
        table.add_column(column, justify="right")
    chances = [
        f"{getattr(found.probabilities, column):.2f}" if found.HasField("probabilities") else "–" for column in MARKS
    ]
    nearest = found.nearest_reference
    table.add_row(
        Text(name),
        _verdict(found) if found.verdict else Text("none"),
        *chances,
        f"{nearest.index}, at {nearest.distance:.2f}" if found.HasField("nearest_reference") else "–",
        str(found.basin.critical_time) if found.basin.found else "no basin",
        f"{found.cost.evaluations:,}",
        f"{found.cost.compute_seconds:.1f}",
    )
    console.print(table)
    print_reasons(console, found)


def print_reasons(console: Console, report: report_pb2.Report | audit_pb2.InspectImageResponse) -> None:
    """Print why, a sentence a line."""
    lines = Table.grid(padding=(0, 1, 0, 1))
    for reason in report.reasons:
        lines.add_row("·", Text(reason))
    console.print(lines)


def print_explanation(console: Console, found: report_pb2.Explanation) -> None:
    """Print the words that carry the recall, those that carry most first, and a map of where it shows."""
    words = sorted(found.words, key=lambda one: -one.weight)
    listed = ", ".join(f"{one.word} {one.weight:.0%}" for one in words[:MOST_WORDS])
    lines = Table.grid(padding=(0, 1, 0, 1))
    lines.add_row("·", Text(f"Of what the prompt changes, this is lost without a word: {listed}."))
    less = 1 - math.exp(-max(0.0, *found.map.values))
    lines.add_row("·", Text(f"Where the prompt foretells the image, with {less:.0%} less error at best:"))
    lines.add_row("", Text("\n".join(_shades(found.map))))
    console.print(lines)


def _shades(cells: report_pb2.RecallMap) -> list[str]:
    """The map in `SHADES`, two characters a cell; large maps by the means of blocks."""
    step = -(-max(cells.height, cells.width) // MOST_CELLS)
    top = max(HALF, *cells.values)
    lines = []
    for row in range(0, cells.height, step):
        line = ""
        for column in range(0, cells.width, step):
            block = [
                cells.values[y * cells.width + x]
                for y in range(row, min(row + step, cells.height))
                for x in range(column, min(column + step, cells.width))
            ]
            share = sum(block) / len(block) / top
            line += 2 * SHADES[min(len(SHADES) - 1, max(0, int(share * len(SHADES))))]
        lines.append(line)
    return lines


def mark(name: str) -> Text:
    """A class in its shape and colour."""
    shape, colour = MARKS[name]
    return Text(f"{shape} {name}", style=colour)


def _verdict(report: report_pb2.Report | audit_pb2.InspectImageResponse) -> Text:
    style = "default" if report.decided else "dim"
    return mark(report_pb2.Verdict.Name(report.verdict)).append(f"\n{confidence(report)}", style=style)


def _interval(interval: report_pb2.Interval) -> Text:
    ends = f"\n{100 * interval.lower:.0f}–{interval.upper:.0%}"
    return Text(f"{interval.estimate:.0%}").append(ends, style="dim")
