"""A network as one recorded graph, which torch runs without Python in between.

A network of Python modules takes Python's lock for each of its hundreds of operations. Beside other threads that use
Python, such as audits that wait for their turn and calls that come in, it waits for the lock as often. A recorded graph
takes it once, and runs the same operations with the same results, bit for bit.

torch calls its recorder deprecated, and has no other that needs no compiler. Where recording does not work out, the
network runs as it is.
"""

from __future__ import annotations

import json
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from audit.model.memory import is_out_of_memory, is_watched
from audit.model.quantized import is_packed

#: Graphs that a process records. torch never forgets one.
MOST_GRAPHS = 32
#: By what is computed and the kinds of inputs, without weights, so that networks of one architecture have it in common;
#: None where recording did not work out.
_graphs: dict[tuple[Hashable, tuple[tuple[torch.Size, torch.dtype], ...]], Any] = {}
_lock = threading.Lock()


class Traced:
    """A network that is recorded when inputs of a kind come first. Safe to use from several threads.

    Only on a CPU, without gradients, with weights that are not quantized and where nobody watches the operations;
    otherwise the network runs as it is.

    Args:
        network: whose rows do not depend on each other. Weights may change, what it computes may not.
        name: what is called.
        call: calls it with the inputs, tensors of as many rows.
    """

    def __init__(self, network: nn.Module, name: str, call: Callable[..., Tensor]) -> None:
        self._call = _Call(network, call)
        weights = tuple((value.shape, value.dtype) for value in self._call.weights)
        # A recorder sees the bytes of such a weight, and not what they stand for.
        self._packed = any(map(is_packed, self._call.weights))
        self._identity = name, type(network), _configuration(network), weights

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output."""
        if is_watched() or torch.is_grad_enabled() or any(value.device.type != "cpu" for value in inputs):
            return self._call(*inputs)
        graph = self._graph(inputs)
        return self._call(*inputs) if graph is None else self._run(graph, inputs)

    def _graph(self, inputs: tuple[Tensor, ...]) -> Any:
        if self._packed:
            return None
        kind = self._identity, tuple((value.shape[1:], value.dtype) for value in inputs)
        if kind not in _graphs:
            with _lock:
                if kind not in _graphs and len(_graphs) < MOST_GRAPHS:
                    try:
                        _graphs[kind] = self._record(inputs)
                    except Exception as error:
                        if not is_out_of_memory(error):  # there may be memory the next time
                            _graphs[kind] = None
        return _graphs.get(kind)

    def _record(self, inputs: tuple[Tensor, ...]) -> Any:
        """A graph that gives what the network does for other values and another number of rows; None without one."""
        own = weakref.ref(self._call)  # torch keeps what was recorded, and with it would keep the weights

        def call(*values: Tensor) -> Any:
            found = own()
            assert found is not None
            return found.with_weights(*values)

        example = tuple(value[:1].repeat(2, *[1] * (value.dim() - 1)) for value in inputs)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = torch.jit.trace(call, (*self._call.weights, *example), check_trace=False)
        other = tuple(_other(value) for value in inputs)
        same = torch.allclose(self._run(graph, other), self._call(*other), rtol=0, atol=0, equal_nan=True)
        return graph if same else None

    def _run(self, graph: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        # Optimization would begin anew with every number of rows.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return graph(*self._call.weights, *inputs)


class _Call(nn.Module):
    """A call as a module.

    Attributes:
        weights: of the network, buffers included.
    """

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._call = call
        self.train(network.training)
        registries: list[dict[str, Any]] = [
            one for module in network.modules() for one in (module._parameters, module._buffers)
        ]
        self._places = [(one, name) for one in registries for name, value in one.items() if value is not None]
        self.weights: tuple[Any, ...] = tuple(registry[name] for registry, name in self._places)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output."""
        return self._call(self.network, *inputs)

    def with_weights(self, *values: Tensor) -> Tensor:
        """The output with these weights instead of its own, and the inputs after them."""
        try:
            # torch.func.functional_call would do this, but not while a graph is being recorded.
            for (registry, name), value in zip(self._places, values, strict=False):
                registry[name] = value
            return self(*values[len(self._places) :])
        finally:
            for (registry, name), value in zip(self._places, self.weights, strict=True):
                registry[name] = value


def _configuration(network: nn.Module) -> Hashable:
    """What decides a network's operations beside the shapes of its weights; like no other where that is not said."""
    config = getattr(network, "config", None)
    if config is None:
        return object()
    # What begins with an underscore says where it comes from.
    return json.dumps({k: v for k, v in dict(config).items() if not k.startswith("_")}, sort_keys=True, default=str)


def _other(value: Tensor) -> Tensor:
    """Three rows like the first ones, of other values where they are no counts."""
    rows = value[torch.arange(3) % len(value)]
    return rows * 0.5 if rows.is_floating_point() else rows
