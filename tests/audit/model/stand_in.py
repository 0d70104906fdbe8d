"""A device that this machine does not have, computed on its CPU: with memory of its own, and without float64.

Its tensors refuse what those of mps and cuda refuse: 64-bit floats, and to be mixed with tensors of the CPU. torch lets
Python stand in for a backend through its PrivateUse1 key, once in a process and for good; so that whoever calls `begin`
does so in a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
#: What takes tensors of both places.
_BETWEEN = (torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class _There(Tensor):
    """A tensor on the device; what it holds is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        made: _There = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Takes the calls that make tensors there."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Makes tensors of numbers on the CPU first: torch hides these from the other mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return function(*args, **kwargs | {"device": "cpu"}).to(NAME)
        return function(*args, **kwargs)


def begin() -> None:
    """From now on torch.device(NAME) is there, in this thread and for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME)
    _Mode().__enter__()
    _Literals().__enter__()


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    wanted = next((leaf.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)), None)
    if not there and wanted != NAME:
        return operation(*args, **kwargs)
    if operation is torch.ops.aten._has_compatible_shallow_copy_type.default:  # modules are made anew, not filled
        return False
    mixed = there and any(tensor.dim() for tensor in tensors if not isinstance(tensor, _There))
    if mixed and operation not in _BETWEEN:
        raise RuntimeError(f"{operation} has tensors of the CPU among those of {NAME}")
    own = {id(tensor.held): tensor for tensor in there}

    def wrap(found: Tensor) -> Tensor:
        if id(found) in own:  # what an operation changed in place
            return own[id(found)]
        if found.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"{operation} makes 64-bit floats, which {NAME} does not have")
        return _There(found)

    args, kwargs = tree_map_only(_There, lambda tensor: tensor.held, (args, kwargs))
    args, kwargs = tree_map_only(torch.device, lambda device: torch.device("cpu"), (args, kwargs))
    # Views of tensors that Python made are not to be had in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        found = operation(*args, **kwargs)
        into_cpu = operation is torch.ops.aten.copy_.default and id(found) not in own
        if wanted not in (None, NAME) or into_cpu:
            return found
        return tree_map_only(Tensor, wrap, found)
