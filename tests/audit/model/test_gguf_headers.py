"""Headers of GGUF files: what gguf reads passes, and nothing that it could choke on does."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from audit.errors import BrokenCheckpoint
from audit.model import gguf_headers
from audit.model.gguf_headers import read_gguf_header
from audit.model.headers import Entry, elements
from tests.audit.model.gguf_files import save_gguf
from tests.audit.model.refusals import check_what_passes, reason

WEIGHTS = {"a.weight": torch.randn(3, 64), "a.bias": torch.randn(3), "b.weight": torch.randn(2, 2, 3, 3)}


def text(value: bytes) -> bytes:
    """As the format has it."""
    return struct.pack("<Q", len(value)) + value


def note(key: bytes, kind: int, value: bytes) -> bytes:
    """One of them."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"a", dimensions: Any = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """What is said of one."""
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def header(
    *parts: bytes, notes: int = 0, tensors: int = 1, version: int = 3, magic: bytes = b"GGUF", data: int = 128
) -> bytes:
    """A file with so many bytes behind its header."""
    found = magic + struct.pack("<IQQ", version, tensors, notes) + b"".join(parts)
    return found + b"\0" * (-len(found) % 32) + b"\0" * data


def file(folder: Path, content: bytes) -> Path:
    """With that in it."""
    path = folder / "file.gguf"
    path.write_bytes(content)
    return path


def library(path: Path) -> dict[str, Entry]:
    """What gguf reads."""
    reader = GGUFReader(path)
    return {
        one.name: Entry(
            one.tensor_type.name,
            tuple(reversed(one.shape.tolist())),
            one.data_offset - reader.data_offset,
            one.data_offset - reader.data_offset + one.n_bytes,
        )
        for one in reader.tensors
    }


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "IQ4_NL"])
def test_headers_tell_what_the_library_reads(tmp_path: Path, kind: str) -> None:
    """Names, types, shapes and places."""
    path = tmp_path / "file.gguf"
    save_gguf(WEIGHTS, path, kind)
    found = read_gguf_header(path)
    assert found == library(path)
    assert found["a.weight"].dtype == kind
    assert elements(found) == sum(value.numel() for value in WEIGHTS.values())


def test_notes_of_every_kind(tmp_path: Path) -> None:
    """They are passed over, but for the alignment."""
    path = tmp_path / "file.gguf"
    writer = GGUFWriter(str(path), "flux")
    writer.add_custom_alignment(64)
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 7)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "ε̂")
    writer.add_array("a.strings", ["one", "", "three"])
    writer.add_array("a.numbers", [1, 2, 3])
    for name, value in WEIGHTS.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf_header(path)
    assert found == library(path)
    assert all(entry.begin % 64 == 0 for entry in found.values())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "DAMAGED"),
        (b"GGUF", "DAMAGED"),
        (b"\xff" * 64, "DAMAGED"),
        (header(tensor(), magic=b"FUGG"), "DAMAGED"),
        (header(tensor(), version=1), "DAMAGED"),
        (header(tensor(), version=3 << 24), "DAMAGED"),  # of a machine whose numbers begin at the other end
        (header(tensor(), tensors=2), "DAMAGED"),
        (header(tensor(), tensors=2**64 - 1), "TOO_LARGE"),
        (header(tensor(), notes=2**64 - 1), "TOO_LARGE"),
        (header(struct.pack("<Q", 2**63), tensor(), notes=1), "DAMAGED"),
        (header(note(b"\xff", 0, b"\1"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"x", 13, b"\1"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"x", 8, struct.pack("<Q", 2**60)), tensor(), notes=1), "DAMAGED"),
        (header(note(b"x", 9, struct.pack("<IQ", 0, 2**60)), tensor(), notes=1), "TOO_LARGE"),
        (header(note(b"x", 9, struct.pack("<IQ", 8, 2**15)), tensor(), notes=1), "DAMAGED"),
        (header(note(b"x", 9, struct.pack("<IQIQ", 9, 1, 0, 0)), tensor(), notes=1), "DAMAGED"),
        (header(note(b"x", 0, b"\1"), note(b"x", 0, b"\1"), tensor(), notes=2), "DAMAGED"),
        (header(note(b"GGUF.version", 4, b"\1\0\0\0"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"general.alignment", 4, b"\0\0\0\0"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"general.alignment", 4, b"\x18\0\0\0"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"general.alignment", 4, b"\0\0\0\x40"), tensor(), notes=1), "DAMAGED"),
        (header(note(b"general.alignment", 10, b"\x20" + b"\0" * 7), tensor(), notes=1), "DAMAGED"),
        (header(tensor(b"\xff")), "DAMAGED"),
        (header(tensor(b"a" * 2000)), "DAMAGED"),
        (header(tensor(dimensions=())), "DAMAGED"),
        (header(tensor(dimensions=(32, 1, 1, 1, 1))), "DAMAGED"),
        (header(tensor(dimensions=(0,)), data=0), "DAMAGED"),
        (header(tensor(dimensions=(2**62, 2**62, 4))), "DAMAGED"),  # no bytes, modulo 2^64
        (header(tensor(dimensions=(2**64 - 1,))), "DAMAGED"),
        (header(tensor(dimensions=(2**40,))), "DAMAGED"),
        (header(tensor(dimensions=(33,), kind=8), data=64), "DAMAGED"),  # no whole blocks
        (header(tensor(kind=9), data=64), "QUANTIZATION_UNSUPPORTED"),  # which only gguf knows
        (header(tensor(kind=16), data=64), "QUANTIZATION_UNSUPPORTED"),
        (header(tensor(kind=4), data=64), "QUANTIZATION_UNSUPPORTED"),  # which nobody knows
        (header(tensor(), tensor(), tensors=2), "DAMAGED"),
        (header(tensor(), tensor(b"b"), tensors=2), "DAMAGED"),
        (header(tensor(), tensor(b"b", offset=64), tensors=2, data=192), "DAMAGED"),
        (header(tensor(offset=32), data=160), "DAMAGED"),
        (header(tensor(offset=2**63)), "DAMAGED"),
        (header(tensor(), data=127), "DAMAGED"),
        (header(tensor(), data=129), "DAMAGED"),
        (header(tensors=0, data=1), "DAMAGED"),
    ],
)
def test_impossible_headers(tmp_path: Path, content: bytes, expected: str) -> None:
    """None of them describes the bytes behind it."""
    assert reason(read_gguf_header, file(tmp_path, content)) == f"CHECKPOINT_{expected}"


def test_a_header_that_describes_its_file(tmp_path: Path) -> None:
    """What is refused above is so for what is wrong with it."""
    path = file(tmp_path, header(note(b"x", 9, struct.pack("<IQ", 8, 1) + text(b"y")), tensor(), notes=1))
    assert read_gguf_header(path) == library(path) == {"a": Entry("F32", (32,), 0, 128)}


def test_long_headers_are_not_read_to_their_end(tmp_path: Path) -> None:
    """A text of a terabyte in a (sparse) file of as much is refused."""
    path = file(tmp_path, header(note(b"x", 8, struct.pack("<Q", 2**40)), notes=1))
    with path.open("r+b") as stream:
        stream.truncate(2**40 + 2**10)
    assert reason(read_gguf_header, path) == "CHECKPOINT_TOO_LARGE"


def test_the_package_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed it is told what to install."""
    path = file(tmp_path, header(tensor()))
    monkeypatch.setattr(gguf_headers, "find_spec", lambda name: None)
    with pytest.raises(BrokenCheckpoint, match=r"pip install 'basin-audit\[quantized\]'"):
        read_gguf_header(path)


def test_every_header_that_passes_is_one_of_the_library(tmp_path: Path) -> None:
    """Bytes of a file are changed at will: what we let through, gguf reads as we do."""
    path = tmp_path / "file.gguf"
    save_gguf(WEIGHTS, path, "Q8_0")

    def check(found: dict[str, Entry]) -> None:
        assert found == library(path)

    check_what_passes(path.read_bytes(), path, read_gguf_header, check, 250)
