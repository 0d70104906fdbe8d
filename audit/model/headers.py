"""Headers of safetensors files, read and checked before any library maps the file.

The format (huggingface.co/docs/safetensors, "Format"): eight bytes with the header's length n, little-endian; n bytes
of JSON that give each tensor's dtype, shape and place; then the tensors, without overlap or gaps, to the end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.errors import BrokenCheckpoint
from audit.model.files import broken, parse_json, shown

#: Bytes, tensors and JSON values of a header. A checkpoint of today has at most a few thousand tensors in a file, and
#: 150 bytes for each; what LoRA trainers note beside them takes a few hundred kilobytes.
MAX_HEADER_BYTES, MAX_TENSORS, MAX_HEADER_VALUES = 2**23, 2**16, 2**20
#: Dimensions of a tensor.
MAX_DIMENSIONS = 8
#: Bytes of one element of each dtype. Smaller ones than a byte are left out: no library here computes with them.
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of which the header tells.

    Attributes:
        dtype: a key of `ELEMENT_BYTES`; of a GGUF file, a name of gguf's `GGMLQuantizationType`.
        shape: of the tensor.
        begin: of its first byte behind the header.
        end: of the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name. Reads the header alone.

    Raises:
        BrokenCheckpoint: the header is longer than the file or than `MAX_HEADER_BYTES`, is no header, or does not
            describe the bytes that follow.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise damaged(path, "is cut short")
            if length > MAX_HEADER_BYTES:
                raise broken(
                    f"{path.name} has a header of {length} bytes, more than {MAX_HEADER_BYTES}", "CHECKPOINT_TOO_LARGE"
                )
            raw = stream.read(length)
    except OSError:
        raise broken(f"{path.name} cannot be read", "CHECKPOINT_INCOMPLETE") from None
    try:
        found = parse_json(
            raw, f"the header of {path.name}", most_bytes=MAX_HEADER_BYTES, most_values=MAX_HEADER_VALUES
        )
    except BrokenCheckpoint as error:
        if error.reason == "CHECKPOINT_TOO_LARGE":
            raise
        raise broken(str(error), "CHECKPOINT_DAMAGED") from None
    notes = found.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise damaged(path, "has notes in its header that are no text")
    if len(found) > MAX_TENSORS:
        raise broken(f"{path.name} has more than {MAX_TENSORS} tensors", "CHECKPOINT_TOO_LARGE")
    entries = {name: _entry(path, name, value) for name, value in found.items()}
    check_extents(path, entries, size - 8 - length)
    return entries


def read_headers(files: Sequence[Path]) -> dict[str, Entry]:
    """The tensors of several files by name.

    Raises:
        BrokenCheckpoint: see `read_header`; or two files have a tensor of one name.
    """
    found: dict[str, Entry] = {}
    for path in files:
        header = read_header(path)
        if twice := sorted(header.keys() & found.keys()):
            raise damaged(path, f"has the tensor {shown(twice[0])} that another file has, too")
        found |= header
    return found


def elements(entries: Mapping[str, Entry]) -> int:
    """Numbers in tensors, together."""
    return sum(math.prod(entry.shape) for entry in entries.values())


def check_extents(path: Path, entries: Mapping[str, Entry], size: int, alignment: int = 1) -> None:
    """Raises BrokenCheckpoint unless the tensors cover so many bytes once each, but for what aligns them."""
    place = 0
    for begin, end in sorted((entry.begin, entry.end) for entry in entries.values()):
        if begin != place + -place % alignment:
            raise damaged(path, "has tensors that overlap, or bytes between them")
        place = end
    if not place <= size <= place + -place % alignment:
        raise damaged(path, f"has {size} bytes behind its header, and tensors of {place}")


def damaged(path: Path, what: str) -> BrokenCheckpoint:
    """The error that refuses a file of weights."""
    return broken(f"{path.name} {what}", "CHECKPOINT_DAMAGED")


def _entry(path: Path, name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"describes the tensor {shown(name)} in an unknown way")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise damaged(path, f"has the tensor {shown(name)} of the unknown dtype {shown(dtype)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise damaged(path, f"gives the tensor {shown(name)} an impossible shape or place")
    begin, end = offsets
    if end - begin != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise damaged(path, f"has other bytes for the tensor {shown(name)} than its shape takes")
    return Entry(dtype, tuple(shape), begin, end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
