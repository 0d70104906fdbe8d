"""`basin demo`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from audit.errors import AuditError
from audit.v1 import audit_pb2, report_pb2
from service.cli.audits import run
from service.cli.console import MARKS, fail, messages, results
from service.cli.tables import mark, print_reasons, print_reports

#: Prompts of each class.
EACH = 2


def demo(
    image: Annotated[Path, typer.Option(metavar="FILE.png", help="Where to draw what the seeds gave.")] = Path(
        "basin-demo.png"
    ),
) -> None:
    """Serve the checkpoint that ships with Basin, and audit prompts whose truth is known.

    The prompts were not used to tune anything. What is shown as truth comes from 512 samples of each.
    """
    from audit.demo import truth
    from service.contact_sheet import check_contact_sheet, write_contact_sheet

    rows = choose(truth())
    check_contact_sheet(len(MARKS), image)
    out, begin = results(), time.monotonic()
    with messages().status("starting a server"):
        from service.client import BasinClient
        from service.config import ConfigError, load_settings
        from service.server import start_server

        try:
            server = start_server(load_settings(listen="127.0.0.1:0", metrics="off", demo=True))
        except ConfigError as error:
            fail(error)
    with server:
        with messages().status("loading the checkpoint"):
            server.wait_ready()
        requests = [
            audit_pb2.AuditRequest(prompt=row["prompt"], checkpoint="demo", reference="demo", include_images=True)
            for row in rows
        ]
        out.print(f"{len(rows)} prompts, audited at the same time over gRPC at {server.address}:")
        reports: list[report_pb2.Report] = []
        with closing(run(BasinClient(server.address), requests, len(requests))) as finished:
            for result in finished:
                if isinstance(result, AuditError):
                    raise result
                reports.append(result)
    print_reports(out, reports, truths=[_truth(row) for row in rows], explain=False)
    agrees = [
        report_pb2.Verdict.Name(report.verdict) == row["dominant"] for report, row in zip(reports, rows, strict=True)
    ]
    # Of each class the surest right verdict: the sheet shows what the class looks like, the table how good guesses are.
    surest = sorted(zip(agrees, rows, reports, strict=True), key=lambda one: (one[0], one[2].confidence))
    by_class = {row["dominant"]: report for _, row, report in surest}
    shown = [by_class[name] for name in MARKS if name in by_class]
    for report in shown:
        out.print(Text(f"Why “{report.prompt}” is ").append(mark(report_pb2.Verdict.Name(report.verdict))).append(":"))
        print_reasons(out, report)
    write_contact_sheet(shown, image)
    out.print()
    out.print(
        f"{sum(agrees)} of {len(rows)} verdicts agree with the truth; {time.monotonic() - begin:.0f} seconds in all."
    )
    out.print(Text(f"What the seeds gave, beside the nearest training images: {image}"), soft_wrap=True)


def choose(truth: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few prompts of each class, of those that were not used for tuning: the middles of equal parts, by size."""
    chosen: list[Mapping[str, Any]] = []
    for name in MARKS:
        rows = sorted(
            (row for row in truth if row["split"] != "tuning" and row["dominant"] == name),
            key=lambda row: row["images"],
        )
        count = min(EACH, len(rows))
        chosen += [rows[(2 * part + 1) * len(rows) // (2 * count)] for part in range(count)]
    return chosen


def _truth(row: Mapping[str, Any]) -> Text:
    share, size = row[row["dominant"]], row["images"]
    return mark(row["dominant"]).append(f"\n{share:.0%}, K = {size:,}", style="dim")
