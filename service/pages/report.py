"""The report of a run: a page, its summary for machines, and one for a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from audit.batch.discovery import Outcome
from audit.phase.folder import write_whole
from service.pages.card import audits_shown, columns_shown, why
from service.pages.facts import provenance
from service.pages.page import MARKS, Column, Filter, Table, page_environment, place_cards, write_page
from service.pages.report_summary import MOST_SHOWN, RATED, Line, Tally, as_markdown, summarize
from service.pages.text import moment, visible
from service.results import OPEN, OpenedRun

#: Groups of near-duplicates that the page lists, and prompts of each.
MOST_GROUPS = 100
MOST_ALIKE = 20


def write_report(run: OpenedRun) -> Path:
    """Write report.html, report.json and report.md, and the cards beside the page where there are many.

    Returns:
        The page.
    """
    environment = page_environment()
    tallies = {name: Tally(name, digest) for name, digest in run.digests.items()}
    lines: list[Line] = []
    total = sum(map(len, run.concluded.values()))
    cards = place_cards(_cards(run, environment, tallies, lines), total, run.path / "report")
    summary = summarize(run, tallies.values(), lines)
    table = _table(list(run.concluded), lines)
    write_whole(run.path / "report.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(run.path / "report.md", as_markdown(summary))
    page = run.path / "report.html"
    write_page(page, environment, "report.html.j2", table, cards, _contents(run, summary))
    return page


def _cards(run: OpenedRun, environment: Environment, tallies: Mapping[str, Tally], lines: list[Line]) -> Iterator[str]:
    """All cards in the order of the prompt file, one report in memory at a time; their lines are gathered."""
    template = environment.get_template("report_card.html.j2")
    for name, concluded in run.concluded.items():
        for item in concluded:
            reports = run.reports(item.row)
            is_open = item.row.open
            tallies[name].add(item, reports, is_open=is_open)
            lines.append(Line.of(item, is_open=is_open, last=reports[1] or reports[0]))
            yield template.render(
                line=lines[-1],
                why=why(item, is_open=is_open, rate=run.rate),
                found=audits_shown(item, reports),
                extra=columns_shown(item),
            )


def _contents(run: OpenedRun, summary: dict[str, Any]) -> dict[str, Any]:
    finished = run.batch.finished
    return {
        "summary": summary,
        "to_do": sum(found["open"] for found in summary["checkpoints"]),
        "begun": moment(run.batch.created),
        "finished": moment(finished) if finished else "",
        "provenance": {found["name"]: provenance(found) for found in summary["checkpoints"]},
        "rated": RATED,
        "most_groups": MOST_GROUPS,
        "most_alike": MOST_ALIKE,
        "most_shown": MOST_SHOWN,
    }


def _table(checkpoints: list[str], lines: list[Line]) -> Table:
    """Rows by risk, numbers rather than names."""
    outcomes = [*map(str, Outcome), OPEN]
    by_risk = sorted(enumerate(lines), key=lambda one: one[1].risk, reverse=True)
    several = len(checkpoints) > 1
    columns = [
        Column("prompt", "prompt", "text"),
        Column("checkpoint", "checkpoint", "name", minor=True),
        Column("outcome", "outcome", "mark"),
        Column("memorized", "memorized", "percent", falling=True),
        Column("recurring", "recurring", "percent", falling=True),
        Column("copies", "copies", "share", minor=True, falling=True),
        Column("nearest", "nearest", "distance", minor=True),
        Column("position", "row", "count", minor=True),
    ]
    filters = [
        Filter("outcome", "outcome", [(index, f"{MARKS[name][0]} {name}") for index, name in enumerate(outcomes)]),
        Filter("checkpoint", "checkpoint", [(index, visible(name)) for index, name in enumerate(checkpoints)]),
    ]
    return Table(
        fields=(
            "card", "checkpoint", "position", "prompt", "outcome", "memorized", "recurring", "copies", "nearest",
        ),
        rows=[
            (
                card, checkpoints.index(line.checkpoint), line.position + 1, visible(line.prompt),
                outcomes.index(line.outcome), line.memorized, line.recurring, line.share, line.nearest,
            )
            for card, line in by_risk
        ],
        columns=[column for column in columns if several or column.name != "checkpoint"],
        filters=filters if several else filters[:1],
        names={"checkpoint": checkpoints, "outcome": outcomes},
        elsewhere="results.jsonl",
    )  # fmt: skip
