"""Reconstructions of reference images, remembered from one run to the next.

What an autoencoder makes of a reference image never changes, and to make it costs more than a denoiser evaluation. A
file for each pair of autoencoder and reference set, in the user's cache folder, holds as many as fit into its bound.
Each slot says which image it holds and carries a checksum: what another process has half written, a crash cut short or
a disk had no room for is made again instead of believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import threading
import weakref
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

#: Bound of one pair's file, and of what is held in memory where no file can be written.
FILE_BYTES, MEMORY_BYTES = 2**30, 256 * 2**20
#: Pairs whose files are kept; those that were not used for the longest time go first.
FILES = 4
#: Of a slot: number of its image plus one (zero is nobody's), and the checksum of that and the values.
_HEADER = struct.Struct("<qI")


class Reconstructions:
    """Pixel vectors of a reference set's reconstructions, by number. Safe to use from several threads and processes.

    Args:
        key: whatever decides how the images are reconstructed, and which images they are.
        count: images in the set.
        width: values of a vector.
        folder: of the files; the user's cache folder when None. Where it cannot be written, memory has to do.
    """

    def __init__(self, key: str, count: int, width: int, folder: Path | None = None) -> None:
        self._width = width
        self._slot_bytes = _HEADER.size + 4 * width
        self._lock = threading.Lock()
        name = hashlib.sha256(f"1 {key} {count} {width}".encode()).hexdigest()[:32]
        self._file: BinaryIO
        try:
            self._file, bound = _open(folder or user_cache_path("basin") / "reconstructions", name), FILE_BYTES
        except OSError:
            self._file, bound = io.BytesIO(), MEMORY_BYTES
        weakref.finalize(self, self._file.close)
        self._slots = max(1, min(count, bound // self._slot_bytes))

    def get(self, index: int) -> NDArray[np.float32] | None:
        """The vector of an image, (width,), if it is remembered."""
        with self._lock, contextlib.suppress(OSError):
            self._file.seek(index % self._slots * self._slot_bytes)
            slot = self._file.read(self._slot_bytes)
            if len(slot) == self._slot_bytes and slot[: _HEADER.size] == _header(index, slot[_HEADER.size :]):
                return np.frombuffer(slot, "<f4", offset=_HEADER.size)
        return None

    def put(self, index: int, vector: NDArray[np.float32]) -> None:
        """Remember the vector of an image, (width,), in the place of another where there are more than fit."""
        assert vector.shape == (self._width,)
        values = np.ascontiguousarray(vector, "<f4").tobytes()
        # A full disk costs the memory of it, not the audit.
        with self._lock, contextlib.suppress(OSError):
            self._file.seek(index % self._slots * self._slot_bytes)
            self._file.write(_header(index, values) + values)


def _header(index: int, values: bytes) -> bytes:
    return _HEADER.pack(index + 1, zlib.crc32(values, index + 1))


def _open(folder: Path, name: str) -> BinaryIO:
    """The file of a pair; those of the pairs that were not used for the longest time go."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / name
    path.touch(mode=0o600)
    file = path.open("r+b", buffering=0)
    for old in sorted(folder.iterdir(), key=_last_used, reverse=True)[FILES:]:
        old.unlink(missing_ok=True)
    return file


def _last_used(path: Path) -> float:
    with contextlib.suppress(OSError):  # another process may have removed it
        return path.stat().st_mtime
    return 0.0
