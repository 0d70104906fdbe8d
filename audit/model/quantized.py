"""Networks whose weights are quantized: GGUF files, as diffusers computes with them.

The weights of linear layers stay in blocks of a few bits a number, and become numbers of the network's precision each
time that a layer is evaluated, one layer after the other. All other tensors become numbers once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audit.model.files import broken
from audit.model.headers import Entry, elements
from audit.model.networks import require_every_weight

#: Types of tensors in GGUF files that are no blocks, and are loaded as numbers.
PLAIN = ("F32", "F16")
#: How the names of a denoiser's tensors begin in files that hold other networks, too.
DENOISER = "model.diffusion_model."


def gguf_options(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of diffusers' `from_single_file` for a GGUF file.

    Args:
        dtype: of activations, and of weights while they are computed with.
    """
    from diffusers import GGUFQuantizationConfig

    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}


def require_own_names(network: nn.Module, entries: Mapping[str, Entry], file: Path) -> None:
    """Refuse a file in which tensors have diffusers' names, but not all that a network has, or others.

    Args:
        network: as its configuration describes it; its tensors may have shapes alone.
        entries: of the file. Where few have such names, they have those of the original layout.
        file: for messages.

    Raises:
        BrokenCheckpoint: it is such a file.
    """
    own = network.state_dict().keys()
    if 2 * len(own & entries.keys()) > len(entries):
        require_every_weight(file.name, own - entries.keys(), entries.keys() - own)


def settle(network: nn.Module, entries: Mapping[str, Entry], file: Path, dtype: torch.dtype) -> None:
    """Finish a network out of a GGUF file: what diffusers does not unpack when it computes is unpacked once.

    Args:
        network: which diffusers made.
        entries: of the file.
        file: for messages.
        dtype: of what is unpacked.

    Raises:
        BrokenCheckpoint: the file holds more, or other shapes, than the network has places for.
    """
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    # diffusers renames, splits and joins the file's tensors, and passes over those that it does not know.
    marked = {name: entry for name, entry in entries.items() if name.startswith(DENOISER)}
    own = sum(map(numbers, network.state_dict(keep_vars=True).values()))
    if own != (there := elements(marked or entries)):
        raise broken(
            f"{file.name} holds {there} numbers, and a {type(network).__name__} of this configuration {own}",
            "CHECKPOINT_DAMAGED",
        )
    for module in network.modules():
        for registry in (module._parameters, module._buffers):
            for name, value in registry.items():
                if isinstance(value, GGUFParameter) and not (isinstance(module, GGUFLinear) and name == "weight"):
                    plain = dequantize_gguf_tensor(value).to(dtype)
                    registry[name] = nn.Parameter(plain) if registry is module._parameters else plain


def numbers(weight: torch.Tensor) -> int:
    """How many numbers a weight stands for, quantized or not."""
    return math.prod(getattr(weight, "quant_shape", weight.shape))


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight is of a class of its own, which unpacks it when it is computed with."""
    return type(weight) not in (torch.Tensor, nn.Parameter)


def loaded_bytes(entries: Mapping[str, Entry], dtype: torch.dtype) -> int:
    """Bytes that the tensors of a GGUF file take in memory, a few that are unpacked left aside.

    Args:
        entries: of the file.
        dtype: of the network.
    """
    return sum(
        math.prod(entry.shape) * dtype.itemsize if entry.dtype in PLAIN else entry.end - entry.begin
        for entry in entries.values()
    )
