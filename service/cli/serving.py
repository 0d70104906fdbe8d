"""`basin serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import InvalidInput
from service.cli import options
from service.cli.console import fail


def serve(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in YAML; BASIN_CONFIG names one too.")
    ] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where gRPC listens.")] = None,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|off", help="Where health checks are answered in plain text, too.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="HOST:PORT|off", help="Where /metrics listens.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=SOURCE", help=f"A checkpoint to serve, {options.SOURCE}; may be repeated."),
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A reference set to serve; may be repeated.")
    ] = None,
    demo: Annotated[
        bool | None,
        typer.Option(
            "--demo/--no-demo",
            help="Serve the shipped checkpoint and reference set as demo. [default: when no checkpoint is named]",
        ),
    ] = None,
    concurrent_audits: Annotated[int | None, typer.Option(help="Audits worked on at once.")] = None,
    queue_evaluations: Annotated[
        int | None, typer.Option(help="Most denoiser evaluations that audits, waiting and at work, may plan.")
    ] = None,
    model_control: Annotated[
        str | None, typer.Option(metavar="explicit|start", help="Whether callers may load and unload checkpoints.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads inside one forward pass.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
) -> None:
    """Answer audits over gRPC until SIGTERM or Ctrl-C.

    Flags win over environment variables (BASIN_LISTEN, BASIN_LIMITS__SEEDS and so on), those over the file.
    """
    from service.config import ConfigError, load_settings

    try:
        settings = load_settings(
            config,
            listen=listen,
            health=health,
            metrics=metrics,
            checkpoints=_by_name("checkpoint", checkpoint),
            references=_by_name("reference", reference),
            demo=demo,
            concurrent_audits=concurrent_audits,
            queue_evaluations=queue_evaluations,
            model_control=model_control,
            threads=threads,
            log_level=log_level,
            log_format=log_format,
        )
        from service import server

        asyncio.run(server.serve(settings))
    except ConfigError as error:
        fail(error)


def _by_name(flag: str, pairs: Sequence[str] | None) -> dict[str, str] | None:
    """NAME=PLACE flags as a dictionary; None of none.

    Raises:
        InvalidInput: a flag is of another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise InvalidInput(
                f"--{flag} takes NAME={'SOURCE' if flag == 'checkpoint' else 'FOLDER'}, not {pair!r}",
                reason="FLAG_INVALID",
                field=flag,
            )
        if name in found:
            raise InvalidInput(f"--{flag} names {name!r} twice", reason="FLAG_INVALID", field=flag)
        found[name] = folder
    return found or None
