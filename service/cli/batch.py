"""`basin batch`."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.progress import progress_bar
from service.cli import options
from service.cli.console import MARKS, leave_if_tripped, messages, results
from service.cli.store import Rewrite, Yes, confirm, tell_left
from service.pictures import Pictures

app = typer.Typer(no_args_is_help=True, help="Audit many prompts.")


@app.callback()
def batch() -> None:
    """Audit many prompts."""


@app.command()
def run(
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="Text, JSON lines, CSV, TSV or Parquet; where no such file is there, the set of that name (basin "
            "prompts list).",
        ),
    ],
    checkpoint: Annotated[
        list[str], typer.Option(metavar="SOURCE", help=f"A checkpoint, {options.SOURCE}; repeat it.")
    ],
    reference: Annotated[str, typer.Option(metavar="FOLDER", help="A reference set's folder, or demo.")] = "",
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")] = Path("runs/batch"),
    store: Annotated[str, typer.Option(metavar="URL", help="Database of results.  [default: a file in RUN]")] = "",
    fail_on: options.FailOn = None,
    pictures: options.PicturesKept = Pictures.FLAGGED,
    false_discoveries: options.FalseDiscoveries = 0.05,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what was set aside.")] = False,
    scheduler: options.Scheduler = "",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    true_guidance: options.TrueGuidance = None,
    negative_prompt: options.NegativePrompt = "",
    size: options.Size = "",
    eta: options.Eta = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    minimum_seeds: options.MinimumSeeds = None,
    definition_samples: options.DefinitionSamples = None,
    curvature: options.Curvature = "",
    device: Annotated[str, typer.Option(help="Where the weights go, such as cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    offload: options.Offload = False,
    runner: options.Runner = "local",
    ray_address: options.RayAddress = "auto",
    ray_workers: options.RayWorkers = 0,
    ray_cpus: options.RayCpus = 1.0,
    ray_gpus: options.RayGpus = 0.0,
) -> None:
    """Audit the prompts of a file or a set.

    The same command goes on where it was stopped or killed. Exits with 3 when a condition of --fail-on holds, with 2
    when none can be judged since nothing could be audited; the report is written in any case.
    """
    asked = options.requested(locals())
    with messages().status("loading"):
        from service.gate import check_condition, gate_values
        from service.imported_prompts import find_prompts
        from service.local_batch import LocalBatch, Wanted
        from service.pages.report import write_report
        from service.results import open_run, write_results
        from service.runners import RayOptions, find_runner
        from service.store.engine import StoreFailed

        conditions = fail_on or []
        for condition in conditions:
            check_condition(condition)
        file = find_prompts(prompts)
        wanted = Wanted(
            checkpoints=tuple(checkpoint),
            prompts=file,
            reference=reference,
            sampler=asked.sampler,
            budget=asked.budget,
            pictures=pictures,
            false_discoveries=false_discoveries,
            device=device,
            dtype=dtype,
            offload=offload,
            retry_failed=retry_failed,
        )
        ray = RayOptions(ray_address, ray_workers, ray_cpus, ray_gpus)
        work = LocalBatch(wanted, out, store, find_runner(runner, device, ray))
    try:
        given = work.batch.prompts // len(work.names)
        if work.distinct < given:
            messages().print(f"{given:,} prompts, {work.distinct:,} of them distinct: exact copies share their audits")
        with progress_bar() as bar:
            task = bar.add_task("audits", total=None, note="")

            def tell() -> None:
                if work.note:
                    bar.update(task, note=f"paused: {work.note}")
                    return
                try:
                    counts = work.store.counts(work.batch.id)
                except StoreFailed:  # the work waits for the store, and says so
                    return
                failed = f"{counts.failed} failed" if counts.failed else ""
                bar.update(task, completed=counts.done + counts.failed, total=counts.total, note=failed)

            def stop(number: int, frame: object) -> None:
                work.stopping.set()
                signal.signal(number, handlers[number])  # a second one ends it at once

            tell()
            handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                for number, handler in handlers.items():
                    if handler is not signal.SIG_IGN:
                        signal.signal(number, stop)
                work.run(tell)
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if work.stopping.is_set():
            messages().print("stopped; the same command goes on")
            raise typer.Exit(130)
        with messages().status("writing the report"), open_run(out, store) as opened:
            write_results(opened.concluded, out)
            page = write_report(opened)
            outcomes = {name: [one.outcome for one in own] for name, own in opened.concluded.items()}
    finally:
        work.close()
    print_outcomes({name: Counter(map(str, own)) for name, own in outcomes.items()})
    messages().print(f"The page is {page}.", markup=False, soft_wrap=True)
    leave_if_tripped(conditions, {name: gate_values(own) for name, own in outcomes.items()})


@app.command()
def delete(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a batch's run.", show_default=False)],
    store: Annotated[
        str, typer.Option(metavar="URL", help="Database of results, when it takes a password or was moved.")
    ] = "",
    yes: Yes = False,
    rewrite: Rewrite = True,
) -> None:
    """Delete a run: its batch, with all results that no other batch of the store has, and every file of its own.

    The folder goes, too, unless something else is in it. The file of prompts is left alone.
    """
    from service.run_folder import read_run

    read_run(run)
    confirm(f"the run {run}, with its results", yes)
    with messages().status("deleting"):
        from service.run_upkeep import delete_run

        left = delete_run(run, store, rewrite=rewrite)
    tell_left(left)
    kept = f"; what else is in {run} was left alone" if run.exists() else ""
    messages().print(f"deleted{kept}", markup=False, soft_wrap=True)


def print_outcomes(counts: dict[str, Counter[str]]) -> None:
    """A row per checkpoint, for terminals of 80 columns."""
    table = Table("checkpoint", box=None, padding=(0, 1, 0, 0))
    table.add_column("◆ recurring", justify="right")
    for name, (shape, colour) in MARKS.items():
        table.add_column(f"[{colour}]{shape}[/] {name}", justify="right")
    table.add_column("undecided", justify="right")
    table.add_column("failed", justify="right")
    for name, own in counts.items():
        recurring = own["recurring"] + own["memorized"] + own["spurious"]
        table.add_row(Text(name), str(recurring), *(str(own[kind]) for kind in (*MARKS, "undecided", "failed")))
    results().print(table)
