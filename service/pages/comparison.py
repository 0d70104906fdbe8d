"""The comparison of two checkpoints: a page, its summary for machines, and one for a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment

from audit.batch.comparison import CLAIMS, Change
from audit.batch.discovery import Outcome
from audit.phase.folder import write_whole
from service.comparison import Comparison, Pair
from service.pages.card import audits_shown, columns_shown, why
from service.pages.comparison_summary import FAILED, PairLine, as_markdown, number, open_prompts, side_names, summarize
from service.pages.facts import Facts, provenance
from service.pages.page import MARKS, Column, Filter, Table, page_environment, place_cards, write_page
from service.pages.report_summary import Line
from service.pages.text import percent, shorten, spoken, visible
from service.results import OPEN

#: What may become of a prompt, in the page's order.
TOLD = (*map(str, Change), FAILED, OPEN)
#: Prompts of one side alone that the page lists, and characters of each.
MOST_LISTED = 1000
MOST_SHOWN = 300


def write_comparison(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Write compare.html, compare.json and compare.md, and the cards beside the page where there are many.

    Args:
        comparison: that they are of.
        out: the folder; made when missing.

    Returns:
        What compare.json says.
    """
    environment = page_environment()
    facts = Facts(), Facts()
    lines: list[PairLine] = []
    cards = place_cards(_cards(comparison, environment, facts, lines), len(comparison.pairs), out / "compare")
    summary = summarize(comparison, facts, lines)
    write_whole(out / "compare.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(out / "compare.md", as_markdown(summary))
    write_page(out / "compare.html", environment, "comparison.html.j2", _table(lines), cards, _contents(summary))
    return summary


def _cards(
    comparison: Comparison, environment: Environment, facts: tuple[Facts, Facts], lines: list[PairLine]
) -> Iterator[str]:
    """All cards by rank, the reports of one prompt in memory at a time; their lines are gathered."""
    template = environment.get_template("comparison_card.html.j2")
    for pair in comparison.pairs:
        sides, own = [], []
        for side, item, found in zip(
            (comparison.before, comparison.after), (pair.before, pair.after), facts, strict=True
        ):
            reports, is_open = side.run.reports(item.row), item.row.open
            found.add(item.row.entry.key, reports)
            own.append(Line.of(item, is_open=is_open, last=reports[1] or reports[0]))
            sides.append(
                {
                    "checkpoint": side.checkpoint,
                    "outcome": own[-1].outcome,
                    "why": why(item, is_open=is_open, rate=side.run.rate),
                    "found": audits_shown(item, reports),
                    "extra": columns_shown(item),
                }
            )
        lines.append(PairLine(pair, *own))
        yield template.render(
            line=lines[-1],
            why=_why(pair),
            claims=[(str(claim), value) for claim, value in pair.probabilities.items() if value >= 0.005],
            before=sides[0],
            after=sides[1],
        )


def _why(pair: Pair) -> str:
    """How the audits led to what is said of the pair."""
    if pair.answers is None:
        return f"An audit of it {'is still to be done' if pair.is_open else 'failed'}, so that it cannot be compared."
    if pair.same:
        return "Both sides are one audit, of the same weights under the same settings."
    before, after = (
        f"{answer.verdict} ({percent(answer.probabilities[index])})"
        for answer in pair.answers
        for index in [answer.probabilities.index(max(answer.probabilities))]
    )
    leanings = f"Most probably {before} before and {after} after"
    if pair.said is Change.UNDECIDED:
        return f"{leanings}: not sure enough to say that it changed, nor that it did not."
    return f"{leanings}."


def _contents(summary: dict[str, Any]) -> dict[str, Any]:
    sides = [
        {"label": label, "name": name, "provenance": provenance(summary[label]), **summary[label]}
        for label, name in zip(("before", "after"), side_names(summary), strict=True)
    ]
    alone = [
        {
            "side": side,
            "total": len(prompts),
            "prompts": [visible(shorten(prompt, MOST_SHOWN)) for prompt in prompts[:MOST_LISTED]],
        }
        for side, prompts in zip(sides, (summary["only_before"], summary["only_after"]), strict=True)
    ]
    return {
        "summary": summary,
        "sides": sides,
        "alone": alone,
        "to_do": open_prompts(summary),
        "claims": list(map(str, CLAIMS)),
        "compared": max(1, summary["values"]["prompts"] - summary["values"]["failed"]),
        "number": number,
        "spoken": spoken,
    }


def _table(lines: list[PairLine]) -> Table:
    """Rows by rank, numbers rather than names."""
    outcomes = [*map(str, Outcome), OPEN]
    counted = {name: sum(name in line.told for line in lines) for name in TOLD}
    return Table(
        fields=(
            "card", "prompt", "change", "before", "after", "changed", "new_memorized", "copies_before", "copies_after",
            "position",
        ),
        rows=[
            (
                card, visible(line.pair.prompt), [TOLD.index(name) for name in line.told],
                outcomes.index(line.before.outcome), outcomes.index(line.after.outcome),
                line.pair.probabilities.get(Change.CHANGED), line.pair.probabilities.get(Change.NEW_MEMORIZED),
                line.before.share, line.after.share, line.after.position + 1,
            )
            for card, line in enumerate(lines)
        ],
        columns=[
            Column("prompt", "prompt", "text"),
            Column("change", "change", "mark"),
            Column("before", "before", "mark", minor=True),
            Column("after", "after", "mark", minor=True),
            Column("changed", "changed", "percent", falling=True),
            Column("new_memorized", "new mem.", "percent", falling=True),
            Column("copies_before", "copies", "share", minor=True, falling=True),
            Column("copies_after", "→ after", "share", minor=True, falling=True),
            Column("position", "row", "count", minor=True),
        ],
        filters=[
            Filter(
                "change", "change",
                [(TOLD.index(name), f"{MARKS[name][0]} {spoken(name)} ({counted[name]:,})")
                 for name in TOLD if counted[name] or name in CLAIMS],
            ),
            *(
                Filter(name, name, [(index, f"{MARKS[one][0]} {one}") for index, one in enumerate(outcomes)])
                for name in ("before", "after")
            ),
        ],
        names={"change": list(TOLD), "before": outcomes, "after": outcomes},
        elsewhere="compare.json",
    )  # fmt: skip
