"""How headers of weight files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from audit.errors import BrokenCheckpoint
from audit.model.headers import Entry
from tests.mutations import mutated, run


def reason(read: Callable[[Path], object], path: Path) -> str:
    """Why reading a header is refused: in a short line of ASCII, which names no folder."""
    with pytest.raises(BrokenCheckpoint) as caught:
        read(path)
    assert str(path.parent) not in str(caught.value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300
    return caught.value.reason


def check_what_passes(
    good: bytes,
    path: Path,
    read: Callable[[Path], dict[str, Entry]],
    check: Callable[[dict[str, Entry]], None],
    examples: int,
) -> None:
    """Change the bytes of a file at will and check what is read of it, unless it is refused; both must happen.

    Args:
        good: bytes that pass.
        path: where changed ones are put.
        read: reads a header, or refuses it.
        check: fails where what was read is not what the file holds.
        examples: how many changes.
    """
    passed = []

    @run(examples)
    @given(mutated(good))
    def try_out(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = read(path)
        except BrokenCheckpoint:
            passed.append(False)
            return
        passed.append(True)
        check(found)

    try_out()
    assert 0 < sum(passed) < len(passed)
