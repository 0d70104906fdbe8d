"""Doing with the memory that there is: as many rows at once as fit, and fewer of what did not."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

#: What RuntimeErrors say on a CPU: torch, the C library, C++, and oneDNN, which has no other words for it.
_SHORTAGE = re.compile(
    "can't allocate memory|Cannot allocate memory|^std::bad_alloc$|^could not (create|execute) a primitive$"
)
#: Of the free memory that rows may take. The rest is for what kernels take beside tensors, and for other threads.
SHARE = 0.5
#: Bytes that are not worth asking for.
SMALL = 2**26
#: Where Linux says what a container may have (docs.kernel.org/admin-guide/cgroup-v2.html).
CONTAINER = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None
    )


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> float:
    """Memory that new tensors on a device may take: of the machine, and of the container if that has less."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(psutil.virtual_memory().available, container_bytes())


def container_bytes(folder: Path = CONTAINER) -> float:
    """Memory that a container has left, what it would drop of files counted in; infinite without a bound.

    Args:
        folder: of its control group, version 2.
    """
    try:
        most, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no Linux, no such group, or "max"
        return float("inf")


class Watch(TorchDispatchMode):
    """Sees how many bytes tensors take that are made in this thread while it is entered.

    Attributes:
        peak: most bytes at a time. What kernels take beside tensors is not in it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made: storages that were not there before."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage()._cdata)
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return found

    def _forget(self, storage: int, size: int) -> None:
        self._live -= size
        self._known.discard(storage)


def is_watched() -> bool:
    """Whether a `Watch` sees what this thread computes."""
    return isinstance(_get_current_dispatch_mode(), Watch)


class Pieces:
    """Evaluates rows in pieces that memory suffices for. Safe to use from several threads.

    The first row of a kind comes alone and is watched; after that come as many at once as `SHARE` of the memory that is
    free at the moment holds. Where even these do not fit they are halved, down to single rows.

    Args:
        device: where rows are evaluated; None halves alone, and looks at no free memory.
        available: bytes that are free on a device.

    Attributes:
        max_rows: most rows at once, as far as memory did not suffice; None for any number.
    """

    def __init__(
        self, device: torch.device | None = None, available: Callable[[torch.device], float] = available_bytes
    ) -> None:
        self.max_rows: int | None = None
        self._device = device
        self._available = available
        #: Bytes that a row takes, by kind.
        self._costs: dict[Hashable, int] = {}

    def run(self, evaluate: Callable[[slice], Tensor], rows: int, kind: Hashable = None) -> Tensor:
        """The outputs of all rows, in their order.

        Args:
            evaluate: some of the rows, each on its own.
            rows: how many there are.
            kind: rows of one kind take the same memory.

        Raises:
            Exception: what `evaluate` raises; that memory does not suffice only of a single row.
        """
        if not rows:
            return evaluate(slice(0, 0))
        outputs: list[Tensor] = []
        start = 0
        while start < rows:
            part = slice(start, start + min(self._most(kind, rows - start), self.max_rows or rows))
            found = self._try(evaluate, part, kind)
            if found is None:
                # Outside of the handler, since the error holds on to the frames that hold the memory.
                self.max_rows = (part.stop - part.start) // 2
                free_memory()
            else:
                outputs.append(found)
                start = part.stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _most(self, kind: Hashable, rows: int) -> int:
        """Of so many rows."""
        if self._device is None:
            return rows
        if (cost := self._costs.get(kind)) is None:
            return 1
        if rows * cost <= SMALL:
            return rows
        return int(max(1, min(rows, SHARE * self._available(self._device) / cost)))

    def _try(self, evaluate: Callable[[slice], Tensor], part: slice, kind: Hashable) -> Tensor | None:
        """None where memory does not suffice for several rows."""
        try:
            if self._device is None or kind in self._costs:
                return evaluate(part)
            with Watch() as watch:
                found = evaluate(part)
            self._costs[kind] = watch.peak
            return found
        except (RuntimeError, MemoryError) as error:
            if part.stop - part.start < 2 or not is_out_of_memory(error):
                raise
            return None


def in_halves(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function(rows)`, or of one half after the other where memory does not suffice, down to single rows.

    Args:
        function: of every row on its own.
        rows: (n, ...).

    Raises:
        Exception: what the function raises; that memory does not suffice only of a single row.
    """
    return Pieces().run(lambda part: function(rows[part]), len(rows))
