"""Long streams in parts that fit into memory, a statement or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items each, the last one of what is left; none of nothing."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
