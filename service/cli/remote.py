"""`basin batch submit`, `status`, `results` and `cancel`: batches of a server."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.errors import InvalidInput
from audit.progress import progress_bar
from service.cli import console, options
from service.cli.batch import print_outcomes
from service.cli.console import fail, leave_if_tripped, messages
from service.pictures import Pictures

if TYPE_CHECKING:
    from audit.batch.discovery import Outcome
    from audit.v1 import batch_pb2
    from service.client import BasinClient

#: Seconds between two looks at a batch that somebody watches.
GLANCE = 0.5

Server = Annotated[str, typer.Option(metavar="HOST:PORT", envvar="BASIN_SERVER", help="Who audits.")]
BatchId = Annotated[str, typer.Argument(metavar="ID", help="As submit printed it.", show_default=False)]


def submit(
    prompts: Annotated[
        str, typer.Option(metavar="FILE|SET", help="Text, JSON lines, CSV or Parquet, or a prompt set's name.")
    ] = "",
    prompt_set: Annotated[str, typer.Option(metavar="NAME", help="A prompt set that the server knows.")] = "",
    server: Server = options.DEFAULT_SERVER,
    checkpoint: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A checkpoint of the server; repeat it.")
    ] = None,
    reference: Annotated[str, typer.Option(metavar="NAME", help="A reference set of the server.")] = "",
    pictures: options.PicturesKept = Pictures.FLAGGED,
    false_discoveries: options.FalseDiscoveries = 0.05,
    request_id: Annotated[
        str, typer.Option(metavar="ID", help="Submitted again with the same one, it is the same batch.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
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
) -> None:
    """Have a server audit many prompts, and print the batch's id. It goes on whatever becomes of this command."""
    asked = options.requested(locals())
    if bool(prompts) is bool(prompt_set):
        raise InvalidInput("give either --prompts or --prompt-set", reason="FLAGS_CONFLICT", field="prompts")
    with messages().status("submitting"):
        from audit.v1 import batch_pb2
        from service.batch_wire import pictures_to_proto
        from service.imported_prompts import find_prompts

        spec = batch_pb2.BatchSpec(
            checkpoints=checkpoint or [],
            reference=reference,
            sampler=asked.sampler,
            budget=asked.budget,
            pictures=pictures_to_proto(pictures),
            false_discovery_rate=false_discoveries,
        )
        source: Iterator[batch_pb2.BatchPrompt] | str = prompt_set
        if prompts:
            file = find_prompts(prompts)
            for _ in _messages(file):  # what is wrong with it is told before anything is sent
                pass
            source = _messages(file)
        client = options.client(server)
        id_ = client.submit(spec, source, request_id=request_id)
    print(id_, flush=True)
    with closing(client):
        if wait:
            ended = _watch(client, id_)
            print_outcomes(_outcomes(ended))
            _leave_unless_done(ended)


def status(
    batch: Annotated[str, typer.Argument(metavar="[ID]", help="All of them unless given.", show_default=False)] = "",
    server: Server = options.DEFAULT_SERVER,
    state: Annotated[str, typer.Option(help="Of these only: running, paused, done, cancelled or failed.")] = "",
    checkpoint: Annotated[str, typer.Option(metavar="ID", help="Of those only that audit it.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
    output: Annotated[options.Format, typer.Option("--format", help="A table, or JSON.")] = options.Format.TABLE,
) -> None:
    """Tell how a server's batches stand."""
    from google.protobuf.json_format import MessageToJson

    from service.batch_wire import state_to_proto

    if not batch and wait:
        raise InvalidInput("--wait needs the id of a batch", reason="FLAGS_CONFLICT", field="wait")
    with closing(options.client(server)) as client:
        if batch:
            found = [_watch(client, batch) if wait else client.batch(batch)]
        else:
            found = list(client.batches(state=state_to_proto(state), checkpoint=checkpoint))
    if output is options.Format.JSON:
        for one in found:
            print(MessageToJson(one, preserving_proto_field_name=True, indent=None))
    else:
        _print_batches(found)
        if batch and found[0].outcomes:
            print_outcomes(_outcomes(found[0]))
    if wait:
        _leave_unless_done(found[0])


def results(
    batch: BatchId,
    server: Server = options.DEFAULT_SERVER,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A folder to bring all of it into, for `basin report` and `basin compare`."),
    ] = None,
    fail_on: options.FailOn = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
) -> None:
    """Print what a server's batch found, one JSON object a line, or bring it into a run folder.

    Exits with 3 when a condition of --fail-on holds, with 2 when none can be judged: the batch failed, was cancelled,
    or nothing could be audited.
    """
    with messages().status("loading"):
        from service.gate import check_condition, gate_values
        from service.remote_batch import fetch, results_so_far
        from service.results import plain, write_results

        conditions = fail_on or []
        for condition in conditions:
            check_condition(condition)
    with closing(options.client(server)) as client:
        known = _watch(client, batch) if wait else client.batch(batch)
        if conditions and not known.HasField("finish_time"):
            raise InvalidInput("the batch has not ended: add --wait", reason="BATCH_NOT_ENDED", field="fail_on")
        if out is None:
            outcomes: dict[str, list[Outcome]] = {name: [] for name in known.spec.checkpoints}
            for one in results_so_far(client, batch):
                outcomes[one.row.entry.checkpoint].append(one.outcome)
                print(json.dumps(plain(one), ensure_ascii=False), flush=True)
        else:
            with ExitStack() as shown:
                bar = progress_bar()
                task = bar.add_task("results", total=known.progress.prompts, note="")

                def advance() -> None:
                    if not bar.live.is_started:  # not before the folder is known to be the batch's
                        shown.enter_context(bar)
                    bar.advance(task)

                concluded = fetch(client, batch, out, advance)
            write_results(concluded, out)
            outcomes = {name: [one.outcome for one in own] for name, own in concluded.items()}
            print_outcomes({name: Counter(map(str, own)) for name, own in outcomes.items()})
    if conditions or wait:
        _leave_unless_done(known)
    leave_if_tripped(conditions, {name: gate_values(own) for name, own in outcomes.items()})


def cancel(batch: BatchId, server: Server = options.DEFAULT_SERVER) -> None:
    """End a server's batch. What it found is kept."""
    with closing(options.client(server)) as client:
        _print_batches([client.cancel_batch(batch)])


def _messages(file: Path) -> Iterator[batch_pb2.BatchPrompt]:
    from service.batch_wire import about, prompt_to_proto
    from service.prompts import read_prompts

    for position, entry in enumerate(read_prompts(file)):
        with about(f"{file.name}, prompt {position + 1}"):
            message = prompt_to_proto(entry.prompt, entry.extra)
        yield message


def _watch(client: BasinClient, id_: str) -> batch_pb2.Batch:
    """Show how far a batch is until it has ended. A server that goes away meanwhile is waited for."""
    import grpc

    from service.client import ServiceError

    batch, away = client.batch(id_), ""
    with progress_bar() as bar:
        task = bar.add_task("audits", total=None, note="")
        while True:
            progress = batch.progress
            note = away or progress.note or (f"{progress.failed} failed" if progress.failed else "")
            done = progress.done + progress.failed
            bar.update(task, completed=done, total=done + progress.open, note=note)
            if batch.HasField("finish_time"):
                return batch
            time.sleep(GLANCE)
            try:
                batch, away = client.batch(id_), ""
            except ServiceError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                away = str(error)


def _leave_unless_done(batch: batch_pb2.Batch) -> None:
    """Exit with 2 where a batch ended before its work did, whose results say nothing of the rest."""
    from service.batch_wire import state_of
    from service.store.records import DONE

    if (state := state_of(batch.progress.state)) != DONE:
        note = batch.progress.note
        fail(f"the batch has ended, {state}{': ' if note else ''}{note}")


def _outcomes(batch: batch_pb2.Batch) -> dict[str, Counter[str]]:
    return {one.checkpoint: Counter(dict(one.prompts)) for one in batch.outcomes}


def _print_batches(batches: list[batch_pb2.Batch]) -> None:
    from service.batch_wire import state_of

    table = Table("batch", "state", "checkpoints", box=None)
    for name in ("prompts", "open", "done", "failed", "a second", "left"):
        table.add_column(name, justify="right")
    table.add_column("note")
    for batch in batches:
        one = batch.progress
        table.add_row(
            batch.id,
            state_of(one.state),
            Text(", ".join(batch.spec.checkpoints)),
            *(f"{count:,}" for count in (one.prompts, one.open, one.done, one.failed)),
            f"{one.rate:.2f}" if one.rate else "",
            str(one.time_left.ToTimedelta()) if one.HasField("time_left") else "",
            Text(one.note),
        )
    console.results().print(table)
