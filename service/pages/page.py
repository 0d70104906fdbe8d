"""What the pages share: shapes and colours, and a table of prompts with a card for each."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.palette import COLOURS, INK
from audit.phase.folder import write_whole
from service.chunks import chunks
from service.pages.text import count, percent, shorten, spoken, visible
from service.results import OPEN

#: Rows up to which all cards are in the page itself, and cards of each file beside it where there are more.
MOST_INSIDE = 1000
CHUNK = 20
GREY = "#7c8791"
#: A shape and a colour for all that is said of a prompt.
MARKS = {
    "memorized": ("■", COLOURS["memorized"]), "spurious": ("▲", COLOURS["spurious"]),
    "generalized": ("●", COLOURS["generalized"]), "undecided": ("◇", GREY), "failed": ("✕", INK), OPEN: ("…", INK),
    "recurring": ("◆", INK), "changed": ("≠", INK), "unchanged": ("=", GREY),
    "new_memorized": ("+■", COLOURS["memorized"]), "gone_memorized": ("−■", COLOURS["memorized"]),
    "new_spurious": ("+▲", COLOURS["spurious"]), "gone_spurious": ("−▲", COLOURS["spurious"]),
    "new_recurring": ("+◆", INK), "gone_recurring": ("−◆", INK),
}  # fmt: skip
#: What pages call the two conditions of a spectrum.
WORDS = {"prompt": "prompt", "unconditional": "empty prompt"}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: the field of a row that it shows.
        label: its header.
        kind: how a value is shown and sorted: as text, by the name that it is the number of, such a name with its
            mark, or as one of four kinds of numbers. `share` is a pair, of how many and among how many.
        minor: whether it gives way where the page is narrow.
        falling: whether sorting begins with the largest.
    """

    name: str
    label: str
    kind: Literal["text", "name", "mark", "percent", "share", "distance", "count"]
    minor: bool = False
    falling: bool = False

    @property
    def classes(self) -> str:
        """Of its cells in the page."""
        number = self.kind in ("percent", "share", "distance", "count")
        return " ".join(name for name, own in (("number", number), ("minor", self.minor)) if own)


@dataclass(frozen=True)
class Filter:
    """A list to choose rows by.

    Attributes:
        name: the field of a row, a number or several.
        label: of the list.
        options: numbers and what stands for them.
    """

    name: str
    label: str
    options: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Table:
    """The prompts of a page.

    Attributes:
        fields: names of a row's values; `card` is the number of its card, `prompt` what is searched.
        rows: in the order in which they are first shown.
        columns: of the table.
        filters: above it.
        names: what numbers stand for, by field.
        elsewhere: the file that holds the same rows, for those without JavaScript.
    """

    fields: Sequence[str]
    rows: Sequence[Sequence[Any]]
    columns: Sequence[Column]
    filters: Sequence[Filter]
    names: dict[str, list[str]] = field(default_factory=dict)
    elsewhere: str = ""


@dataclass(frozen=True)
class Cards:
    """Where a page finds its cards.

    Attributes:
        folder: beside the page, for those that are too many to be in it.
        inside: those that are to be in the page.
        files: names of the files in the folder that hold the others, in order.
    """

    folder: Path
    inside: Sequence[str]
    files: Sequence[str]


def place_cards(cards: Iterable[str], total: int, folder: Path) -> Cards:
    """Put cards where the page will find them. Those of the page that is there now stay until `write_page`.

    Args:
        cards: in the order of their numbers.
        total: of them.
        folder: beside the page.
    """
    if total <= MOST_INSIDE:
        return Cards(folder, list(cards), [])
    files = []
    for part, chunk in enumerate(chunks(cards, CHUNK)):
        content = f"window.basinCards = {_script_json(chunk)};\n"
        # Named by what is in it: no page ever opens a card of another, though it was opened long ago or never replaced.
        files.append(f"{part:03}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.js")
        write_whole(folder / files[-1], content)
    return Cards(folder, [], files)


def write_page(
    file: Path, environment: Environment, template: str, table: Table, cards: Cards, contents: dict[str, Any]
) -> None:
    """Write a page, and then delete the cards that were beside an earlier one.

    Args:
        file: the page.
        environment: of `page_environment`.
        template: one that extends `page.html.j2`.
        table: of its prompts.
        cards: of `place_cards`.
        contents: what else the template shows.
    """
    write_whole(file, _render(environment, template, table, cards, contents))
    for other in cards.folder.glob("[0-9][0-9][0-9]*.js"):
        if other.name not in cards.files:
            other.unlink()


def _render(environment: Environment, template: str, table: Table, cards: Cards, contents: dict[str, Any]) -> str:
    script = (Path(__file__).parent / "table.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {
        "fields": table.fields,
        "rows": table.rows,
        "columns": {column.name: asdict(column) for column in table.columns},
        "names": {name: [visible(one) for one in names] for name, names in table.names.items()},
        "shapes": {
            name: MARKS[name][0]
            for column in table.columns
            if column.kind == "mark"
            for name in table.names[column.name]
        },
        "chunk": CHUNK if cards.files else 0,
        "folder": cards.folder.name,
        "files": cards.files,
    }
    return environment.get_template(template).render(
        **contents,
        table=table,
        data=data,
        cards=[Markup(card) for card in cards.inside],
        cards_beside=bool(cards.files),
        script=Markup(script),
        # No other script runs in the page, whatever a prompt holds.
        script_hash=Markup(f"sha256-{digest}"),
    )


def page_environment() -> Environment:
    """Where templates come from, and what all of them know."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"visible": visible, "percent": percent, "shorten": shorten}
    environment.globals |= {
        "marks": MARKS, "words": WORDS, "ink": INK, "grey": GREY, "count": count, "mark": mark,
    }  # fmt: skip
    return environment


def mark(name: str) -> Markup:
    """A key of `MARKS` in its shape and colour."""
    shown = Markup('<span class="mark of-{}"><i aria-hidden="true">{}</i> {}</span>')
    return shown.format(name, MARKS[name][0], spoken(name))


def _script_json(content: object) -> str:
    """JSON that no HTML parser mistakes for markup."""
    return json.dumps(content).replace("<", "\\u003c")
