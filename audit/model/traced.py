"""A network as one recorded graph, which torch runs without Python in between.

A network of Python modules takes Python's lock for each of its hundreds of operations. Beside other threads that use
Python, such as audits that wait for their turn and calls that come in, it waits for the lock as often. A recorded graph
takes it once, and runs the same operations with the same results, bit for bit.

torch calls its recorder deprecated, and has no other that needs no compiler. Where recording does not work out, the
network runs as it is.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from audit.model.memory import is_out_of_memory

#: Graphs that are kept, of as many shapes and dtypes.
MOST_GRAPHS = 8
_Kind = tuple[tuple[torch.Size, torch.dtype], ...]


class Traced:
    """A network that is recorded when inputs of a kind come first. Safe to use from several threads.

    Only on a CPU and without gradients; otherwise the network runs as it is.

    Args:
        network: whose rows do not depend on each other. Weights may change, what it computes may not.
        call: calls it with the inputs, tensors of as many rows.
    """

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        self._call = _Call(network, call)
        #: None where recording did not work out.
        self._graphs: dict[_Kind, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output."""
        if torch.is_grad_enabled() or any(value.device.type != "cpu" for value in inputs):
            return self._call(*inputs)
        graph = self._graph(inputs)
        if graph is None:
            return self._call(*inputs)
        return _run(graph, inputs)

    def _graph(self, inputs: tuple[Tensor, ...]) -> Any:
        kind = tuple((value.shape[1:], value.dtype) for value in inputs)
        if kind not in self._graphs:
            with self._lock:
                if kind not in self._graphs:
                    try:
                        graph = self._record(inputs)
                    except Exception as error:
                        if is_out_of_memory(error):
                            return None  # this time
                        graph = None
                    while len(self._graphs) >= MOST_GRAPHS:
                        del self._graphs[next(iter(self._graphs))]
                    self._graphs[kind] = graph
        return self._graphs.get(kind)

    def _record(self, inputs: tuple[Tensor, ...]) -> Any:
        """A graph that gives what the network does for other values and another number of rows; None without one."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            example = tuple(value[:1].repeat(2, *[1] * (value.dim() - 1)) for value in inputs)
            graph = torch.jit.trace(self._call, example, check_trace=False)
        other = tuple(_other(value) for value in inputs)
        same = torch.allclose(_run(graph, other), self._call(*other), rtol=0, atol=0, equal_nan=True)
        return graph if same else None


class _Call(nn.Module):
    """A call as a module, whose weights are the network's."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._call = call
        self.train(network.training)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output."""
        return self._call(self.network, *inputs)


def _run(graph: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    # Optimization would begin anew with every number of rows.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return graph(*inputs)


def _other(value: Tensor) -> Tensor:
    """Three rows like the first ones, of other values where they are no counts."""
    rows = value[torch.arange(3) % len(value)]
    return rows * 0.5 if rows.is_floating_point() else rows
