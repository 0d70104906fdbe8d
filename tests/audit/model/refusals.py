"""How headers of weight files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit.errors import BrokenCheckpoint


def reason(read: Callable[[Path], object], path: Path) -> str:
    """Why reading a header is refused: in a short line of ASCII, which names no folder."""
    with pytest.raises(BrokenCheckpoint) as caught:
        read(path)
    assert str(path.parent) not in str(caught.value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300
    return caught.value.reason
