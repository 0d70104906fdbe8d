"""Text encoders and autoencoders that are on their device only while they are used.

What denoises stays there, since nearly all evaluations are its. The others wait in the memory of the CPU; accelerate
moves each as it is called, and the one before it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import cpu_offload_with_hook

from audit.errors import InvalidInput
from audit.model.checkpoint import Model

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


class Offloaded:
    """Networks that wait on the CPU.

    Args:
        networks: in the order in which they are used.
        device: that computes.
    """

    def __init__(self, networks: Sequence[Any], device: torch.device) -> None:
        self._hooks: list[Any] = []
        for network in networks:
            _, hook = cpu_offload_with_hook(network, device, self._hooks[-1] if self._hooks else None)
            self._hooks.append(hook)
        # One thread might otherwise send away what another one computes with.
        self._lock = threading.Lock()

    def bring(self, model: Model) -> Model:
        """The model of these networks; each of its functions leaves none of them on the device."""
        return replace(
            model,
            encode_prompts=self._returning(model.encode_prompts),
            decode=self._returning(model.decode),
            encode=self._returning(model.encode),
        )

    def _returning(self, function: Callable[[_Given], _Found]) -> Callable[[_Given], _Found]:
        def call(given: _Given) -> _Found:
            with self._lock:
                try:
                    return function(given)
                finally:
                    for hook in self._hooks:
                        hook.offload()

        return call


def require_offloadable(device: torch.device) -> None:
    """Raises InvalidInput for a CPU, whose memory is where networks would be sent to."""
    if device.type == "cpu":
        raise InvalidInput(
            "networks are offloaded from a device to the CPU: name another device, such as cuda, or do not offload",
            reason="OFFLOAD_UNSUPPORTED",
            field="offload",
        )
