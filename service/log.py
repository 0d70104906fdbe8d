"""The server's log: one JSON object a line, or lines for people. Never a prompt in it, only its fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog

Logger = structlog.typing.FilteringBoundLogger


def make_logger(
    level: str = "info", style: Literal["auto", "json", "console"] = "auto", file: TextIO | None = None
) -> Logger:
    """A logger of its own, so that several servers in one process can differ.

    Args:
        level: least level that is written.
        style: "auto" writes for people on a terminal and JSON otherwise.
        file: where to; standard error when None.
    """
    file = file or sys.stderr
    if style == "auto":
        style = "console" if file.isatty() else "json"
    # Tracebacks are written without local variables, which may hold prompts.
    ends: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if style == "console":
        ends = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, colors=file.isatty())]
    logger: Logger = structlog.wrap_logger(
        structlog.PrintLogger(cast(TextIO, _Unfailing(file))),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ends,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
    return logger


class _Unfailing:
    """A file whose disk may be full, or whose reader may be gone: then lines are lost, and no call with them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def fingerprint(prompt: str) -> str:
    """What the log says instead of a prompt: enough to find it again, too little to read it."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
