"""The command `basin`. What is heavy to import is imported inside the commands, so that `basin --help` is quick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from audit.errors import AuditError
from service.cli import (
    audits,
    batch,
    benchmarking,
    calibrating,
    comparing,
    demonstration,
    inspecting,
    operating,
    phase,
    prompts,
    references,
    remote,
    reports,
    serving,
    store,
    training,
)
from service.cli.console import FAILED, print_error, quiet_libraries

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demonstration.demo)
app.command()(serving.serve)
app.command()(operating.health)
app.command()(operating.token)
app.command()(audits.audit)
app.command()(inspecting.inspect)
app.command()(calibrating.calibrate)
app.command()(benchmarking.bench)
for command in (remote.submit, remote.status, remote.results, remote.cancel):
    batch.app.command()(command)
app.add_typer(batch.app, name="batch")
app.command()(reports.report)
app.add_typer(prompts.app, name="prompts")
app.command()(comparing.compare)
app.add_typer(store.app, name="store")
app.add_typer(references.app, name="reference")
app.add_typer(training.app, name="train")
app.add_typer(phase.app, name="phase")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("basin", version("basin-audit"))
        except PackageNotFoundError:
            print("basin, not installed")
        raise typer.Exit


@app.callback()
def basin(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Does a prompt make a latent diffusion model recall a training image, an image of its own making, or neither?"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 2 for what the user can set right, 130 for Ctrl-C.

    Args:
        arguments: those of the process when None.
    """
    quiet_libraries()
    try:
        app(arguments, prog_name="basin")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except AuditError as error:
        print_error(error)
    except OSError as error:
        print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if "BASIN_DEBUG" in os.environ:
            raise
        print_error(f"unexpected {type(error).__name__}: {error} (BASIN_DEBUG=1 shows where)")
        raise SystemExit(1) from None
    raise SystemExit(FAILED)
