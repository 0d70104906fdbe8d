"""`basin compare`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from service.cli import options
from service.cli.console import fail, leave_if_tripped, messages, results


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a batch's run.", show_default=False)],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN_B", help="Of another; without it, two checkpoints of RUN_A are compared.", show_default=False
        ),
    ] = None,
    before: Annotated[
        str, typer.Option(metavar="NAME", help="Checkpoint of RUN_A; the only one, or the first of two, unless said.")
    ] = "",
    after: Annotated[
        str, typer.Option(metavar="NAME", help="Checkpoint of RUN_B; the only one, or the second of two, unless said.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; the last run's folder unless said.")
    ] = None,
    false_discoveries: options.FalseDiscoveries = 0.05,
    fail_on: options.FailOn = None,
    store: options.Store = "",
) -> None:
    """Write which prompts changed class between two checkpoints: compare.html, compare.json and compare.md.

    Exits with 3 when a condition of --fail-on holds, such as 'new_memorized > 0', with 2 when none can be judged yet.
    """
    with messages().status("loading"):
        from service.cli.comparison_tables import print_comparison
        from service.comparison import Comparison, choose_sides
        from service.gate import COMPARED_NAMES, check_condition
        from service.pages.comparison import write_comparison
        from service.pages.comparison_summary import open_prompts, side_names
        from service.pages.text import count, visible
        from service.results import open_run
    conditions = fail_on or []
    for condition in conditions:
        check_condition(condition, COMPARED_NAMES)
    folder = out or other or run
    with messages().status("reading and writing"), ExitStack() as opened:
        one = opened.enter_context(open_run(run, store))
        same = other is None or other.resolve() == run.resolve()
        two = one if other is None or same else opened.enter_context(open_run(other, store))
        comparison = Comparison(*choose_sides(one, two, before, after), false_discoveries)
        summary = write_comparison(comparison, folder)
    for found in summary["differences"]:
        told = f"warning: not only the checkpoints differ: {found['what']}: {found['before']} → {found['after']}"
        messages().print(visible(told), markup=False, soft_wrap=True)
    print_comparison(results(), summary)
    messages().print(f"The page is {folder / 'compare.html'}.", markup=False, soft_wrap=True)
    if to_do := open_prompts(summary):
        unfinished = f"{count(to_do, 'prompt')} still to be audited"
        if conditions:
            fail(f"no condition is judged: {unfinished}")
        messages().print(f"warning: {unfinished}: what the comparison says may change", soft_wrap=True)
    leave_if_tripped(conditions, {visible(" → ".join(side_names(summary))): summary["values"]})
