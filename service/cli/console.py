"""Where the command line speaks: results to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from audit.errors import InvalidInput, NotFound

#: Exit code of anything that the user can set right.
FAILED = 2
#: Exit code when a condition of --fail-on holds.
TRIPPED = 3
#: Columns of a table that goes to a file or a pipe.
PIPE_WIDTH = 120

#: A shape and a colour per class, as in the contact sheet.
MARKS = {"memorized": ("■", "dark_orange3"), "spurious": ("▲", "medium_purple3"), "generalized": ("●", "green4")}


def results() -> Console:
    """The console for results."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=width, highlight=False, emoji=False)


def messages() -> Console:
    """The console for progress and messages."""
    return Console(stderr=True, highlight=False, emoji=False)


def print_error(message: object) -> None:
    """One line on stderr, whatever the message holds."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)


def fail(message: object, code: int = FAILED) -> NoReturn:
    """One line on stderr, and out."""
    print_error(message)
    raise typer.Exit(code)


def leave_if_tripped(conditions: Iterable[str], values: Mapping[str, Mapping[str, float]]) -> None:
    """Say which conditions hold, and exit with 3 where any does; with 2 where nothing was audited, whatever they say.

    Args:
        conditions: of --fail-on.
        values: of the names in them, by what they are of.
    """
    from service.gate import tripped

    conditions = list(conditions)
    for name, own in values.items():
        if conditions and own["failed"] == own["prompts"]:
            fail(f"no condition is judged: none of the prompts could be audited ({name})")
    held = [(condition, name) for name, own in values.items() for condition in conditions if tripped(condition, own)]
    for condition, name in held:
        messages().print(f"tripped: {condition} ({name})", markup=False, soft_wrap=True)
    if held:
        raise typer.Exit(TRIPPED)


@contextmanager
def reading(file: Path, kind: str, *, field: str) -> Iterator[None]:
    """Say in one line why a file of a user's cannot be read, or holds nothing of its kind.

    Args:
        file: that is read here, and validated by pydantic.
        kind: what it should hold, in a word.
        field: the flag that named it.

    Raises:
        NotFound: the file cannot be read.
        InvalidInput: it holds something else.
    """
    from pydantic import ValidationError

    try:
        yield
    except OSError as error:
        raise NotFound(
            f"cannot read {file}: {error.strerror}", reason=f"{kind.upper()}_NOT_FOUND", field=field
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"{file.name} is no {kind}: {place + ': ' if place else ''}{first['msg']}",
            reason=f"{kind.upper()}_INVALID",
            field=field,
        ) from error


def quiet_libraries() -> None:
    """Keep the bars, notices and warnings of libraries from people who audit; set variables stay as they are."""
    for variable, value in (
        ("DIFFUSERS_VERBOSITY", "error"),
        ("GRPC_VERBOSITY", "NONE"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("RAY_DEDUP_LOGS_SKIP_REGEX", "."),  # what its machines have to say about lost workers goes to stdout
        ("RAY_IGNORE_UNHANDLED_ERRORS", "1"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("TRANSFORMERS_VERBOSITY", "error"),
    ):
        os.environ.setdefault(variable, value)
    for name in ("diffusers", "transformers"):
        if library := sys.modules.get(name):  # imported before, it has read its variables already
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())  # open_clip speaks to the root logger
