"""What checkpoints, reference sets and prompt sets may be called."""

from __future__ import annotations

import re


def check_name(value: str) -> str:
    """A name, unaltered.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError(f"{value!r} must be up to 63 letters, digits, '.', '_' and '-', the first a letter or digit")
    return value
