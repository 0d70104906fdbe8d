"""A comparison as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from audit.batch.comparison import Change
from service.pages.comparison_summary import number
from service.pages.page import MARKS
from service.pages.text import spoken


def print_comparison(console: Console, summary: dict[str, Any]) -> None:
    """Print what changed, and how far all prompts moved.

    Args:
        console: to print to.
        summary: of `service.pages.comparison_summary.summarize`.
    """
    console.print(_changes(summary))
    console.print()
    console.print(_shifts(summary))


def _changes(summary: dict[str, Any]) -> Table:
    """A row for everything that became of a prompt, and for what always matters."""
    values = summary["values"]
    table = Table("change", box=None)
    for name in ("prompts", "share"):
        table.add_column(name, justify="right")
    for name in Change:
        if values[name] or name in (Change.NEW_MEMORIZED, Change.CHANGED, Change.UNDECIDED, Change.UNCHANGED):
            table.add_row(_mark(name), f"{values[name]:,}", f"{values[f'{name}_rate']:.1%}")
    for name in ("failed", "only_before", "only_after"):
        if values[name]:
            table.add_row(f"  {spoken(name)}", f"{values[name]:,}")
    return table


def _shifts(summary: dict[str, Any]) -> Table:
    """A row for every class: how many prompts are of it on both sides."""
    table = Table("expected", "before", "after", "difference", box=None)
    for name, shift in summary["shifts"].items():
        noise = "" if shift["beyond_noise"] else ", may be noise"
        table.add_row(
            _mark(name),
            number(shift["before"]),
            number(shift["after"]),
            number(shift["difference"], signed=True) + noise,
        )
    return table


def _mark(name: str) -> Text:
    shape, colour = MARKS[name]
    return Text(f"{shape:>2}", style=colour).append(f" {spoken(name)}", style="default")
