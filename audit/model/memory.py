"""Doing with less memory what did not fit."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable

import torch
from torch import Tensor

#: What RuntimeErrors say on a CPU: torch, the C library, C++, and oneDNN, which has no other words for it.
_SHORTAGE = re.compile(
    "can't allocate memory|Cannot allocate memory|^std::bad_alloc$|^could not (create|execute) a primitive$"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None
    )


def in_halves(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function(rows)`, or of one half after the other where memory does not suffice, down to single rows.

    Args:
        function: of every row on its own.
        rows: (n, ...).

    Raises:
        Exception: what the function raises; that memory does not suffice only of a single row.
    """
    try:
        return function(rows)
    except (RuntimeError, MemoryError) as error:
        if len(rows) < 2 or not is_out_of_memory(error):
            raise
    # Outside of the handler, since the error holds on to the frames that hold the memory.
    free_memory()
    return torch.cat([in_halves(function, part) for part in rows.chunk(2)])


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
