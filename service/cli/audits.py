"""`basin audit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Protocol

import typer

from audit.errors import AuditError, InvalidInput, NotFound
from audit.progress import progress_bar
from audit.v1 import audit_pb2, report_pb2
from service.chunks import chunks
from service.cli import options
from service.cli.console import FAILED, messages, print_error, results

#: Threads that keep audits in flight, whatever a server allows.
MAX_IN_FLIGHT = 32
#: Prompts in one call that screens.
SCREENED_AT_ONCE = 64


class Source(Protocol):
    """Who audits: `service.client.BasinClient` or `service.local.LocalAudits`."""

    def audit(
        self, request: audit_pb2.AuditRequest, on_progress: Callable[[audit_pb2.Progress], None] | None = None
    ) -> report_pb2.Report:
        """Audit one prompt."""
        ...

    def screen(self, request: audit_pb2.ScreenRequest) -> audit_pb2.ScreenResponse:
        """Screen prompts."""
        ...

    def inspect(self, request: audit_pb2.InspectImageRequest) -> audit_pb2.InspectImageResponse:
        """Inspect an image."""
        ...

    def close(self) -> None:
        """Stop what is in flight."""
        ...


def audit(
    context: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts to audit.", show_default=False)] = None,
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="A file with one prompt a line; - for standard input.")
    ] = "",
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="BASIN_SERVER", help=f"Who audits; {options.DEFAULT_SERVER} unless said."
        ),
    ] = "",
    local: Annotated[bool, typer.Option("--local", help="Audit in this process, without a server.")] = False,
    checkpoint: Annotated[
        str,
        typer.Option(metavar="ID|SOURCE", help=f"A server's checkpoint by id; with --local {options.SOURCE}."),
    ] = "",
    reference: Annotated[
        str,
        typer.Option(metavar="NAME|FOLDER", help="A server's reference set by name; with --local a folder, or demo."),
    ] = "",
    depth: Annotated[
        options.Depth, typer.Option(help="full; or screen: a few evaluations a prompt on pure noise, and no image.")
    ] = options.Depth.FULL,
    output: Annotated[
        options.Format, typer.Option("--format", help="A table, or JSON: one report, or screened prompt, a line.")
    ] = options.Format.TABLE,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also draw what the seeds gave beside the nearest references."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also say which words carry the recall, and where in the image it shows."),
    ] = False,
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
    device: Annotated[str, typer.Option(help="With --local: where the weights go, such as cuda.")] = "",
    dtype: Annotated[str, typer.Option(help="With --local: float32, float16 or bfloat16.")] = "",
    offload: options.Offload = False,
    timeout: Annotated[
        float | None, typer.Option(callback=options.finite, help="Seconds that one audit may take on the server.")
    ] = None,
) -> None:
    """Tell whether prompts recall training images, images of the model's own making, or neither.

    Sampler settings and budget that are not given are the checkpoint's and the server's own.
    """
    flags = locals()
    if depth is options.Depth.SCREEN and (reference or image is not None or explain):
        raise InvalidInput(
            "a screen compares nothing, draws nothing and explains nothing", reason="FLAGS_CONFLICT", field="depth"
        )
    subject = {
        "checkpoint": checkpoint,
        "reference": reference,
        "include_images": image is not None,
        "explain": explain,
    }
    requests = [options.requested(flags, prompt=text, **subject) for text in collect_prompts(prompt or [], prompts)]
    if image is not None:
        from service.contact_sheet import check_contact_sheet

        check_contact_sheet(len(requests), image)
    options.check_where(context, local=local, timeout=timeout, device=device, dtype=dtype, offload=offload)
    if local:
        with messages().status("loading the checkpoint"):
            source, in_flight = open_local(checkpoint, reference, device, dtype, offload), 1
    else:
        source, in_flight = open_server(server or options.DEFAULT_SERVER, timeout, len(requests))
    if depth is options.Depth.SCREEN:
        with closing(source):
            screen(source, requests, output)
        return
    reports, complete = [], True
    try:
        with closing(run(source, requests, in_flight)) as finished:
            for number, result in enumerate(finished, 1):
                if isinstance(result, AuditError):
                    complete = False
                    if result.field not in ("prompt", "audit.prompt"):  # the next prompt would fail likewise
                        raise result
                    print_error(result if len(requests) == 1 else f"prompt {number}: {result}")
                    continue
                reports.append(result)
                if output is options.Format.JSON:
                    from service.reports import report_to_json, without_images

                    print(report_to_json(without_images(result)), flush=True)
    finally:
        if reports and output is options.Format.TABLE:
            from service.cli.tables import print_reports

            print_reports(results(), reports)
    if image is not None and reports:
        from service.contact_sheet import write_contact_sheet

        write_contact_sheet(reports, image)
    if not complete:
        raise typer.Exit(FAILED)


def screen(source: Source, requests: Sequence[audit_pb2.AuditRequest], output: options.Format) -> None:
    """Screen the prompts of requests that are otherwise the same, and print what was found."""
    from google.protobuf.json_format import MessageToJson

    from service.cli.tables import print_screened

    first, found = requests[0], []
    samples = first.budget.definition_samples if first.budget.HasField("definition_samples") else None
    for some in chunks(requests, SCREENED_AT_ONCE):
        found.append(
            source.screen(
                audit_pb2.ScreenRequest(
                    prompts=[request.prompt for request in some],
                    checkpoint=first.checkpoint,
                    sampler=first.sampler,
                    definition_samples=samples,
                )
            )
        )
        if output is options.Format.JSON:
            for result in found[-1].results:
                print(MessageToJson(result, preserving_proto_field_name=True, indent=None), flush=True)
    if output is options.Format.TABLE:
        print_screened(results(), found)


def collect_prompts(given: Sequence[str], file: str) -> list[str]:
    """Prompts of the command line, then those of a file, where empty lines count for nothing.

    Raises:
        NotFound: the file cannot be read.
        InvalidInput: it is no text, or there are no prompts at all.
    """
    found = list(given)
    if file:
        try:
            text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
            found += [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise NotFound(
                f"cannot read {file}: {error.strerror}", reason="PROMPTS_NOT_FOUND", field="prompts"
            ) from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{file} is no UTF-8 text", reason="PROMPTS_UNREADABLE", field="prompts") from error
    if not found:
        message = f"{file} holds no prompts" if file else "name a prompt, or a file of them with --prompts"
        raise InvalidInput(message, reason="PROMPTS_EMPTY", field="prompts")
    return found


def open_local(checkpoint: str, reference: str, device: str, dtype: str, offload: bool) -> Source:
    """The source of `--local`."""
    from service.local import DEMO, LocalAudits

    return LocalAudits(checkpoint or DEMO, reference, device=device or "cpu", dtype=dtype or "float32", offload=offload)


def open_server(target: str, timeout: float | None, audits: int) -> tuple[Source, int]:
    """The source of `--server`, and how many audits to keep in flight there."""
    client = options.client(target, timeout=timeout)
    return client, 1 if audits == 1 else min(audits, MAX_IN_FLIGHT, max(1, client.info().limits.concurrent_audits))


def run(
    source: Source, requests: Sequence[audit_pb2.AuditRequest], in_flight: int
) -> Generator[report_pb2.Report | AuditError]:
    """Audit several at a time, with progress bars, and yield in the order of the requests.

    Leaving the iterator stops what is in flight.
    """
    bars = progress_bar()
    bars.live.transient = True
    bars.disable = not bars.console.is_terminal

    def work(request: audit_pb2.AuditRequest) -> report_pb2.Report:
        prompt = request.prompt if len(request.prompt) <= 40 else request.prompt[:39] + "…"
        task = bars.add_task(prompt, total=None, note="")

        def tell(progress: audit_pb2.Progress) -> None:
            stage = f"{progress.stage}, {progress.queue_position} ahead" if progress.queue_position else progress.stage
            bars.update(task, completed=progress.evaluations, total=progress.planned_evaluations or None, note=stage)

        try:
            return source.audit(request, tell)
        finally:
            bars.remove_task(task)
            bars.advance(overall)

    with bars, ThreadPoolExecutor(in_flight, thread_name_prefix="basin-audit") as pool:
        overall = bars.add_task("prompts", total=len(requests), note="", visible=len(requests) > 1)
        futures = [pool.submit(work, request) for request in requests]
        try:
            for future in futures:
                try:
                    result: report_pb2.Report | AuditError = future.result()
                except AuditError as error:
                    result = error
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            source.close()
