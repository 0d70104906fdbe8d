"""`basin report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import options
from service.cli.console import messages


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a batch's run.", show_default=False)],
    store: options.Store = "",
) -> None:
    """Write a page of what a batch found into its run folder, done or not: report.html, report.json and report.md."""
    with messages().status("loading"):
        from service.pages.report import write_report
        from service.results import open_run
    with messages().status("reading and writing"), open_run(run, store) as opened:
        page = write_report(opened)
    messages().print(f"The page is {page}.", markup=False, soft_wrap=True)
