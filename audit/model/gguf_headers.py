"""Headers of GGUF files, read and checked before any library reads the file.

The format (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts; notes, each a key, a type and a value;
tensors, each a name, dimensions with the fastest first, a type and a place; then, padded to a multiple of the
alignment, the tensors' bytes. Numbers are little-endian. The package gguf believes every count: for an array of 2^60
numbers it makes as many objects.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from audit.model.files import broken, shown
from audit.model.headers import MAX_HEADER_BYTES, MAX_TENSORS, Entry, check_extents, damaged

#: Notes, and values in the arrays of all of them. What says how a denoiser is to be read takes a few dozen, and one for
#: each tensor that was laid out anew; vocabularies, which take many more, belong to models of language.
MAX_NOTES = 2**16
#: Bytes of a key or of a tensor's name, dimensions of a tensor (GGML_MAX_DIMS), and bytes that tensors are padded to.
MAX_NAME_BYTES, MAX_DIMENSIONS, MAX_ALIGNMENT = 2**10, 4, 2**12
VERSIONS = (2, 3)
#: Types of values by their numbers in the format; and bytes of each that is a number or a truth value.
UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, 6: 4, 7: 1, UINT64: 8, 11: 8, 12: 8}
#: Notes that the package makes of what stands before them.
TAKEN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its name."""
    return path.suffix == ".gguf"


def require_gguf(path: Path) -> None:
    """Raises BrokenCheckpoint where the package that reads such files is not installed."""
    if find_spec("gguf") is None:
        raise broken(f"{path.name} needs pip install 'basin-audit[quantized]'", "CHECKPOINT_QUANTIZATION_UNSUPPORTED")


def read_gguf_header(path: Path) -> dict[str, Entry]:
    """The tensors of a GGUF file by name. Reads the header alone.

    Shapes have the fastest dimension last, and are of the numbers that the tensors stand for; an entry's dtype is a
    name of gguf's `GGMLQuantizationType`, and its places are counted from the first byte behind the header.

    Raises:
        BrokenCheckpoint: the package gguf is missing; the header is longer than `MAX_HEADER_BYTES` or has more than it
            may, is none, or does not describe the bytes that follow; or a tensor is of a type that diffusers does not
            compute with.
    """
    require_gguf(path)
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header = _Bytes(path, stream.read(MAX_HEADER_BYTES), size)
    except OSError:
        raise broken(f"{path.name} cannot be read", "CHECKPOINT_INCOMPLETE") from None
    if header.take(4) != b"GGUF":
        raise damaged(path, "is no GGUF file")
    if (version := header.count(UINT32)) not in VERSIONS:
        raise damaged(path, f"is of version {version} of the format; supported: {', '.join(map(str, VERSIONS))}")
    tensors, notes = header.count(), header.count()
    if tensors > MAX_TENSORS or notes > MAX_NOTES:
        raise broken(f"{path.name} has more than {MAX_TENSORS} tensors or {MAX_NOTES} notes", "CHECKPOINT_TOO_LARGE")
    alignment = _read_notes(header, notes)
    places = dict(header.tensor() for _ in range(tensors))
    if len(places) < tensors:
        raise damaged(path, "has two tensors of one name")
    entries = {name: _entry(path, name, place) for name, place in places.items()}
    check_extents(path, entries, size - header.place - -header.place % alignment, alignment)
    return entries


@dataclass(frozen=True)
class _Place:
    """What a header says of a tensor.

    Attributes:
        dimensions: the fastest first.
        kind: number of its type.
        begin: of its first byte.
    """

    dimensions: tuple[int, ...]
    kind: int
    begin: int


class _Bytes:
    """The beginning of a file, read from one thing to the next.

    Args:
        path: of the file.
        content: its first bytes.
        size: of the whole file.

    Attributes:
        path: of the file.
        place: of the next byte.
    """

    def __init__(self, path: Path, content: bytes, size: int) -> None:
        self.path = path
        self.place = 0
        self._content = content
        self._size = size

    def take(self, count: int) -> bytes:
        """So many bytes.

        Raises:
            BrokenCheckpoint: the file, or what a header may take of it, has not so many left.
        """
        end = self.place + count
        if end > self._size:
            raise damaged(self.path, "is cut short")
        if end > len(self._content):
            raise broken(f"{self.path.name} has a header of more than {MAX_HEADER_BYTES} bytes", "CHECKPOINT_TOO_LARGE")
        found = self._content[self.place : end]
        self.place = end
        return found

    def count(self, kind: int = UINT64) -> int:
        """A number without a sign."""
        return int.from_bytes(self.take(VALUE_BYTES[kind]), "little")

    def name(self) -> str:
        """A key, or the name of a tensor."""
        if (length := self.count()) > MAX_NAME_BYTES:
            raise damaged(self.path, f"has a name of {length} bytes, more than {MAX_NAME_BYTES}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise damaged(self.path, "has a name that is no text") from None

    def skip(self, kind: int, count: int = 1) -> None:
        """So many values of a type that is no array."""
        if kind == STRING:
            for _ in range(count):
                self.take(self.count())
        elif kind in VALUE_BYTES:
            self.take(count * VALUE_BYTES[kind])
        else:
            raise damaged(self.path, f"has a note of the unknown type {kind}")

    def tensor(self) -> tuple[str, _Place]:
        """The name of a tensor and what is said of it."""
        name = self.name()
        if not 0 < (count := self.count(UINT32)) <= MAX_DIMENSIONS:
            raise damaged(self.path, f"gives the tensor {shown(name)} {count} dimensions")
        dimensions = tuple(self.count() for _ in range(count))
        return name, _Place(dimensions, self.count(UINT32), self.count())


def _read_notes(header: _Bytes, count: int) -> int:
    """The alignment; all other notes are passed over."""
    seen, values, alignment = set(TAKEN), 0, 32
    for _ in range(count):
        key, kind = header.name(), header.count(UINT32)
        if key in seen:
            raise damaged(header.path, f"has the note {shown(key)} twice")
        seen.add(key)
        if key == "general.alignment":
            alignment = header.count(UINT32) if kind == UINT32 else 0
            if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
                raise damaged(header.path, "gives its tensors an impossible alignment")
        elif kind == ARRAY:
            kind, length = header.count(UINT32), header.count()
            if (values := values + length) > MAX_NOTES:
                raise broken(f"{header.path.name} has more than {MAX_NOTES} values in notes", "CHECKPOINT_TOO_LARGE")
            header.skip(kind, length)
        else:
            header.skip(kind)
    return alignment


def _entry(path: Path, name: str, place: _Place) -> Entry:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, *SUPPORTED_GGUF_QUANT_TYPES)
    if place.kind not in known:
        named = next((kind.name for kind in GGMLQuantizationType if kind == place.kind), place.kind)
        raise broken(
            f"{path.name} has the tensor {shown(name)} of type {named}; supported: {', '.join(k.name for k in known)}",
            "CHECKPOINT_QUANTIZATION_UNSUPPORTED",
        )
    kind = GGMLQuantizationType(place.kind)
    block, size = GGML_QUANT_SIZES[kind]
    if not all(0 < length < 2**63 for length in place.dimensions) or place.dimensions[0] % block:
        raise damaged(path, f"gives the tensor {shown(name)} an impossible shape")
    count = math.prod(place.dimensions) // block * size
    return Entry(kind.name, place.dimensions[::-1], place.begin, place.begin + count)
