"""The audit log: who asked what, and what the answer was. One JSON object a line, apart from the server's own log."""

from __future__ import annotations

import hashlib
import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.config import ConfigError
from service.log import Logger

STDOUT = "stdout"
#: What the call that is being answered has told so far.
_told: ContextVar[dict[str, Any] | None] = ContextVar("told", default=None)


@contextmanager
def told() -> Iterator[dict[str, Any]]:
    """What is told in here by `tell`."""
    found: dict[str, Any] = {}
    token = _told.set(found)
    try:
        yield found
    finally:
        _told.reset(token)


def tell(**facts: Any) -> None:
    """Add facts to the line of the call that is being answered. A prompt is written as the operator wants."""
    if (found := _told.get()) is not None:
        found.update(facts)


class AuditLog:
    """Writes lines to standard output, or to a file, which others may rotate.

    Args:
        target: "stdout", a file, or "" for no audit log.
        prompts: whether prompts are written, and not only their digests.
        logger: of the server, which hears of what could not be written.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, target: str, prompts: bool, logger: Logger) -> None:
        self._prompts = prompts
        self._handler: logging.Handler | None = None
        if target == STDOUT:
            self._handler = logging.StreamHandler(sys.stdout)
        elif target:
            try:
                self._handler = logging.handlers.WatchedFileHandler(target, encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"audit_log: {target} cannot be written: {error.strerror}") from error
        if self._handler is not None:
            self._handler.handleError = lambda record: logger.error(  # type: ignore[method-assign]
                "audit log not written", error=str(sys.exc_info()[1])
            )

    def write(self, **facts: Any) -> None:
        """Write a line. What goes wrong is for the server's log, and never for the caller."""
        if self._handler is None:
            return
        if (prompt := facts.pop("prompt", None)) is not None:
            facts["prompt_sha256"] = hashlib.sha256(prompt.encode()).hexdigest()
            if self._prompts:
                facts["prompt"] = prompt
        if (prompts := facts.pop("prompts", None)) is not None:
            facts["prompts_sha256"] = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
            if self._prompts:
                facts["prompts"] = prompts
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}, ensure_ascii=False)
        record = logging.LogRecord("audit", logging.INFO, "", 0, line, None, None)
        try:
            self._handler.handle(record)
        except OSError:  # of a file that is gone and cannot be made anew: handlers raise that, all else they handle
            self._handler.handleError(record)

    def close(self) -> None:
        """Let go of the file."""
        if self._handler is not None:
            self._handler.close()
