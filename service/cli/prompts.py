"""`basin prompts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.errors import AuditError
from service.cli.console import messages, results

if TYPE_CHECKING:
    from service.prompts import PromptEntry

app = typer.Typer(no_args_is_help=True, help="List, import and check sets of prompts.")

_Given = Annotated[
    str, typer.Argument(metavar="FILE|NAME", help="A file that is there, else a set.", show_default=False)
]
_Groups = Annotated[int, typer.Option("--groups", min=0, help="Groups of near-duplicates that are listed.")]


@app.callback()
def group() -> None:
    """List, import and check sets of prompts.

    A set is a file with a name: text with a prompt a line, JSON lines, CSV, TSV or Parquet with a column prompt.
    """


@app.command("list")
def list_sets() -> None:
    """List the sets that come with Basin and those that were imported."""
    from service.imported_prompts import known_sets
    from service.prompt_sets import SHIPPED

    table, sets = Table(box=None), known_sets()
    table.add_column("name", no_wrap=True)
    table.add_column("prompts", justify="right")
    table.add_column("origin")
    table.add_column("description", overflow="fold")
    for name in sets.names:
        try:
            size = f"{sum(1 for _ in sets.entries(name)):,}"
        except AuditError as error:  # the others are still to be seen
            size = "–"
            messages().print(str(error), style="yellow", markup=False)
        shipped = SHIPPED.get(name)
        about = shipped.description if shipped else str(sets.path(name))
        table.add_row(name, size, "shipped" if shipped else "imported", Text(about))
    results().print(table)


@app.command("import")
def import_set(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text, JSON lines, CSV, TSV or Parquet.")],
    name: Annotated[str, typer.Option(help="What to call the set.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an imported set of that name.")] = False,
    groups: _Groups = 5,
) -> None:
    """Keep a copy of a file as a set, byte for byte, and say what repeats in it.

    The copy is in the user's data folder, or in the folder that BASIN_PROMPTS_FOLDER names.
    """
    from service.imported_prompts import import_prompts

    with messages().status("reading"):
        entries = import_prompts(file, name, replace=replace)
    print_findings(name, entries, groups)


@app.command()
def show(
    given: _Given,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts printed at most.", show_default="all")] = None,
) -> None:
    """Print the prompts of a set or a file, one a line; characters that cannot be seen are spelled out."""
    from service.imported_prompts import find_prompts
    from service.pages.text import visible
    from service.prompts import read_prompts

    for entry in islice(read_prompts(find_prompts(given)), limit):
        print(visible(entry.prompt))


@app.command()
def check(given: _Given, groups: _Groups = 20) -> None:
    """Read a set or a file to its end, and say what is in it and what repeats."""
    from service.imported_prompts import find_prompts
    from service.prompts import read_prompts

    print_findings(given, read_prompts(find_prompts(given)), groups)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of an imported set.", show_default=False)],
) -> None:
    """Remove an imported set."""
    from service.imported_prompts import remove_prompts

    remove_prompts(name)


def print_findings(name: str, entries: Iterable[PromptEntry], most: int) -> None:
    """Print what is in a set.

    Args:
        name: that the user knows it by.
        entries: all of them.
        most: groups of near-duplicates that are listed.
    """
    with messages().status("loading"):
        from service.pages.text import shorten, visible
        from service.repeats import Repeats
    prompts: dict[int, str] = {}
    columns: dict[str, None] = {}
    with messages().status("reading"):
        for number, entry in enumerate(entries, 1):
            prompts[number] = entry.prompt
            columns.update(dict.fromkeys(entry.extra))
    with messages().status("comparing prompts"):
        repeats = Repeats.of(prompts)
    longest = max(prompts, key=lambda number: len(prompts[number]))
    repeated = sum(times > 1 for times in Counter(prompts.values()).values())
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in (
        ("prompts", f"{len(prompts):,}"),
        ("exact copies", f"{repeats.copies:,} of {repeated:,} prompts" if repeated else "none"),
        ("near-duplicates", f"{repeats.alike:,} in {len(repeats.groups):,} groups" if repeats.groups else "none"),
        ("longest", f"{len(prompts[longest]):,} characters, prompt {longest:,}"),
        ("other columns", Text(", ".join(map(visible, columns)) or "none", overflow="fold")),
    ):
        facts.add_row(label, value)
    out = results()
    out.print(Text(name, style="bold"))
    out.print(facts)
    if not repeats.groups or not most:
        return
    table = Table("group", "prompt", "text", box=None)
    for index, group in enumerate(repeats.groups[:most], 1):
        for row, (number, prompt) in enumerate(group.items()):
            table.add_row("" if row else f"{index:,}", f"{number:,}", Text(shorten(visible(prompt), 200)))
    out.print()
    out.print(table)
    if most < len(repeats.groups):
        messages().print(f"{most:,} of {len(repeats.groups):,} groups are listed: --groups lists more")
