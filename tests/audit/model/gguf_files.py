"""GGUF files of networks, written and read back by gguf itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from torch import Tensor

#: Types that gguf reads and does not write; where they have their scales, half-precision numbers, in a block.
SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def save_gguf(weights: Mapping[str, Tensor], file: Path, *kinds: str, matrices: bool = True) -> dict[str, Tensor]:
    """Write a GGUF file as quantizers do: matrices in blocks where they divide into these, all else as it is.

    Args:
        weights: by name.
        file: to write.
        kinds: names of `GGMLQuantizationType`s, which tensors have in turn.
        matrices: whether nothing else is quantized.

    Returns:
        What the file holds, as gguf itself reads it.
    """
    turn, found = itertools.cycle(kinds), {}
    writer = GGUFWriter(str(file), "denoiser")
    for name, value in weights.items():
        array, kind = value.float().numpy(), GGMLQuantizationType.F32
        if array.ndim == 2 or not matrices:
            kind = GGMLQuantizationType[next(turn)]
            if array.shape[-1] % GGML_QUANT_SIZES[kind][0]:
                kind = GGMLQuantizationType.F32
        packed = _blocks(array, kind) if kind.name in SCALES else quantize(array, kind)
        found[name] = torch.from_numpy(dequantize(packed, kind).reshape(array.shape).astype(np.float32))
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def _blocks(array: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Random blocks for an array, of a type that gguf only reads; their numbers are as large as the array's."""
    block, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (array.size // block, size), dtype=np.uint8)
    for begin in SCALES[kind.name]:
        raw[:, begin : begin + 2] = np.full((len(raw), 1), 1e-3, np.float16).view(np.uint8)
    scale = np.abs(array).mean() / np.abs(dequantize(raw, kind)).mean()
    for begin in SCALES[kind.name]:
        raw[:, begin : begin + 2] = np.full((len(raw), 1), 1e-3 * scale, np.float16).view(np.uint8)
    return raw.reshape(*array.shape[:-1], array.shape[-1] // block * size)
