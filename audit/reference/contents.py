"""Which contents a reference set has already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class KnownContents:
    """Which contents are there already, in 16 bytes a row: sorted arrays of halved digests, merged as they grow."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._recent: dict[bytes, int] = {}

    def find(self, digest: bytes, row: int) -> int | None:
        """The row with this content; None where there is none, and then it is `row`."""
        key = np.frombuffer(digest[:8], np.uint64)[0]
        for keys, rows in self._parts:
            place = int(np.searchsorted(keys, key))
            if place < len(keys) and keys[place] == key:
                return int(rows[place])
        return None if (found := self._recent.setdefault(digest, row)) == row else found

    def add(self, digests: NDArray[np.uint8], chosen: NDArray[np.int64], start: int = 0) -> None:
        """Rows that are written now.

        Args:
            digests: (rows, 32).
            chosen: which of them.
            start: the number of the first.
        """
        self._recent = {}
        keys = np.ascontiguousarray(digests[chosen, :8]).view(np.uint64)[:, 0]
        rows = chosen + start
        while True:
            order = keys.argsort(kind="stable")
            keys, rows = keys[order], rows[order]
            if not self._parts or len(self._parts[-1][0]) > 2 * len(keys):
                break
            keys_before, rows_before = self._parts.pop()
            keys, rows = np.concatenate([keys_before, keys]), np.concatenate([rows_before, rows])
        self._parts.append((keys, rows))
