"""Reading the files of a checkpoint that nobody vouches for: bounded, and refused in our own words."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from audit.errors import BrokenCheckpoint

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

#: Bytes, values and levels of a JSON file. The longest that are common, indices of shards, have a twentieth of that.
MAX_JSON_BYTES, MAX_JSON_VALUES, MAX_JSON_DEPTH = 2**21, 2**16, 32

#: Files whose digests are remembered, and how long they must have stayed what they are.
MAX_DIGESTS, SETTLED_SECONDS = 4096, 2.0
_digests: dict[tuple[int, ...], str] = {}

Reason = Literal[
    "CHECKPOINT_DAMAGED",
    "CHECKPOINT_FAMILY_UNSUPPORTED",
    "CHECKPOINT_INCOMPLETE",
    "CHECKPOINT_PICKLED",
    "CHECKPOINT_QUANTIZATION_UNSUPPORTED",
    "CHECKPOINT_SCHEDULER_UNSUPPORTED",
    "CHECKPOINT_TOO_LARGE",
    "CHECKPOINT_UNSAFE",
]


def broken(message: str, reason: Reason) -> BrokenCheckpoint:
    """The error that refuses a checkpoint."""
    return BrokenCheckpoint(message, reason=reason, field="checkpoint")


def shown(name: object) -> str:
    """Something out of a file, as it may stand in a message: short, and of printable ASCII alone."""
    text = str(name)
    return ascii(text if len(text) <= 80 else f"{text[:77]}...")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder.

    Raises:
        BrokenCheckpoint: the file is missing, too large, or holds no JSON object.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise broken(f"{path.name} is missing", "CHECKPOINT_INCOMPLETE") from None
    except OSError:
        raise broken(f"{path.name} cannot be read", "CHECKPOINT_INCOMPLETE") from None
    return parse_json(raw, path.name, most_bytes=MAX_JSON_BYTES, most_values=MAX_JSON_VALUES)


def parse_json(raw: bytes, name: str, *, most_bytes: int, most_values: int) -> dict[str, Any]:
    """A JSON object, in memory bounded beforehand.

    Args:
        raw: UTF-8.
        name: what it is called in messages.
        most_bytes: of the text.
        most_values: of its objects, arrays and their entries, together. Commas and brackets in strings count, too.

    Raises:
        BrokenCheckpoint: it has more of them, more than `MAX_JSON_DEPTH` levels, a key twice, which readers understand
            differently, or is no JSON object.
    """
    if len(raw) > most_bytes or sum(raw.count(mark) for mark in (b",", b"[", b"{")) > most_values:
        raise broken(f"{name} has more than {most_bytes} bytes or {most_values} values", "CHECKPOINT_TOO_LARGE")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise broken(f"{name} is nested too deeply", "CHECKPOINT_TOO_LARGE") from None
    except ValueError:  # no UTF-8, no JSON, an integer of thousands of digits
        raise broken(f"{name} is not valid JSON", "CHECKPOINT_INCOMPLETE") from None
    if not isinstance(value, dict):
        raise broken(f"{name} is not a JSON object", "CHECKPOINT_INCOMPLETE")
    if any(depth > MAX_JSON_DEPTH for _, _, depth in walk_json(value)):
        raise broken(f"{name} is nested too deeply", "CHECKPOINT_TOO_LARGE")
    return value


def walk_json(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value in a JSON value, the nearest key above it ("" for none), and how many levels it is below the top."""
    waiting = [("", value, 0)]
    while waiting:
        key, found, depth = waiting.pop()
        yield key, found, depth
        if isinstance(found, dict):
            waiting += [(name, inner, depth + 1) for name, inner in found.items()]
        elif isinstance(found, list):
            waiting += [(key, inner, depth + 1) for inner in found]


def _content_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Read once as long as the file stays what it is.

    As git's index does, that is told by its size and times. A file that changed just now might change again within the
    same tick of its clock, and is read again.
    """
    with path.open("rb") as stream:
        now = os.fstat(stream.fileno())
        state = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        if state not in _digests:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            if time.time() - max(now.st_mtime, now.st_ctime) < SETTLED_SECONDS:
                return found
            while len(_digests) >= MAX_DIGESTS:
                _digests.pop(next(iter(_digests)))
            _digests[state] = found
        return _digests[state]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def digest_files(files: Mapping[str, Path]) -> str:
    """SHA-256, as "sha256:…", over names and contents, in the order of the names."""
    return digest_lines(f"{name} {_content_digest(path)}" for name, path in sorted(files.items()))


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256, as "sha256:…", over lines."""
    text = "".join(f"{line}\n" for line in lines)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
