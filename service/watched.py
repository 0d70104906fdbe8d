"""Files of the operator that may change while the server runs: tokens, keys, certificates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from service.log import Logger

#: Seconds between two looks.
GLANCE = 1.0

_T = TypeVar("_T")
_Stamp = tuple[tuple[int, int, int], ...]


class Watched(Generic[_T]):
    """What files hold, read again when they change. Where that fails, what they held before stays. Of any thread.

    Args:
        files: that are read together.
        read: reads them; raises ValueError or OSError where they hold nothing of use.
        logger: of the server.

    Raises:
        ValueError, OSError: they hold nothing of use from the start.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], _T], logger: Logger) -> None:
        self._files = files
        self._read = read
        self._logger = logger
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._content = read()
        self._next_look = time.monotonic() + GLANCE

    @property
    def content(self) -> _T:
        """What they hold now, or did a moment ago."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._refresh()
                self._next_look = time.monotonic() + GLANCE
            return self._content

    def _refresh(self) -> None:
        names = [str(file) for file in self._files]
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._content = self._read()
        except (OSError, ValueError) as error:
            self._logger.error("files not read again", files=names, error=str(error).splitlines()[0])
        else:
            self._logger.info("files read again", files=names)

    def _look(self) -> _Stamp:
        """What tells that a file was written or replaced, also through the symbolic links of a mounted secret."""
        stats = [file.stat() for file in self._files]
        return tuple((found.st_mtime_ns, found.st_ino, found.st_size) for found in stats)
