"""Headers of safetensors files: what the library reads passes, and nothing that it could choke on does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from audit import demo
from audit.errors import BrokenCheckpoint
from audit.model import headers
from audit.model.headers import Entry, elements, read_header, read_headers
from tests.audit.model.refusals import check_what_passes, reason
from tests.mutations import reconfigured, run

GOOD = save({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0, 5).half()})


def file(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with a header, given as JSON or as bytes, and what follows it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "file.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """A tensor as headers describe it."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_headers_tell_what_the_library_reads() -> None:
    """Names, shapes and sizes of real files are those that safetensors gives."""
    files = sorted(demo.CHECKPOINT.glob("*/*.safetensors"))
    assert len(files) == 3
    for path in files:
        found = read_header(path)
        with safe_open(path, framework="pt") as tensors:
            assert found.keys() == set(tensors.keys())
            for name in found:
                tensor = tensors.get_tensor(name)
                assert found[name].shape == tensor.shape
                assert found[name].end - found[name].begin == tensor.nbytes


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    """A tensor of no dimensions has one number, one with an empty dimension none."""
    path = tmp_path / "file.safetensors"
    path.write_bytes(GOOD)
    found = read_header(path)
    assert {name: one.shape for name, one in found.items()} == {"a": (2, 3), "b": (), "c": (0, 5)}
    assert elements(found) == 7


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8, b"\xff" * 64, (100).to_bytes(8, "little") + b"{}"])
def test_files_that_are_cut_short(tmp_path: Path, content: bytes) -> None:
    """A header that is longer than its file is refused, however long it claims to be."""
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert reason(read_header, path) == "CHECKPOINT_DAMAGED"


def test_the_length_is_believed_before_anything_is_read(tmp_path: Path) -> None:
    """A header of a terabyte in a (sparse) file of as much is refused without reading it."""
    path = file(tmp_path, b"{}", length=2**40)
    with path.open("r+b") as stream:
        stream.truncate(2**40 + 8)
    assert reason(read_header, path) == "CHECKPOINT_TOO_LARGE"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"[]", "CHECKPOINT_DAMAGED"),
        (b"{", "CHECKPOINT_DAMAGED"),
        (b"\xff\xfe{}", "CHECKPOINT_DAMAGED"),
        (b'{"a": ' + b"9" * 5000 + b"}", "CHECKPOINT_DAMAGED"),
        (b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}', "CHECKPOINT_DAMAGED"),
        (b'{"a":' * 60_000, "CHECKPOINT_TOO_LARGE"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "CHECKPOINT_TOO_LARGE"),
        (b'{"a": [' + b"[]," * 600_000 + b"[]]}", "CHECKPOINT_TOO_LARGE"),
        ({"__metadata__": {"format": 1}}, "CHECKPOINT_DAMAGED"),
        ({"__metadata__": []}, "CHECKPOINT_DAMAGED"),
        ({"a": 1}, "CHECKPOINT_DAMAGED"),
        ({"a\n" * 500: {**entry(), "more": 1}}, "CHECKPOINT_DAMAGED"),
        ({"a": entry("F31")}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(["F32"])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=2)}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[-2], offsets=[8, 0])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[True, 2])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[2.0])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[1] * 9 + [2])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[2**62, 2**62, 4])}, "CHECKPOINT_DAMAGED"),  # 8 bytes, modulo 2^64
        ({"a": entry(shape=[2**63, 0], offsets=[0, 0])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(offsets=[0, 4])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(offsets=[0, 8, 8])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(), "b": entry()}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "CHECKPOINT_DAMAGED"),
        ({"b": entry(shape=[1], offsets=[4, 8])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "CHECKPOINT_DAMAGED"),
        ({"a": entry(shape=[3], offsets=[0, 12])}, "CHECKPOINT_DAMAGED"),
        ({}, "CHECKPOINT_DAMAGED"),
    ],
)
def test_impossible_headers(tmp_path: Path, header: Any, expected: str) -> None:
    """Eight bytes of data under headers that do not describe them."""
    assert reason(read_header, file(tmp_path, header, b"\0" * 8)) == expected


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tensors is bounded."""
    path = file(tmp_path, {str(number): entry(shape=[0], offsets=[0, 0]) for number in range(5)})
    assert len(read_header(path)) == 5
    monkeypatch.setattr(headers, "MAX_TENSORS", 4)
    assert reason(read_header, path) == "CHECKPOINT_TOO_LARGE"


def test_files_must_not_share_names(tmp_path: Path) -> None:
    """Of two shards with a tensor of one name, none can be trusted."""
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for number, path in enumerate(files):
        save_file({f"t{number}": torch.zeros(2)}, path)
    assert read_headers(files).keys() == {"t0", "t1"}
    save_file({"t0": torch.zeros(2)}, files[1])
    with pytest.raises(BrokenCheckpoint, match="another file has"):
        read_headers(files)


def test_every_header_that_passes_is_one_of_the_library(tmp_path: Path) -> None:
    """Bytes of a file are changed at will: what we let through, safetensors reads as we do."""
    path = tmp_path / "file.safetensors"

    def check(found: dict[str, Entry]) -> None:
        with safe_open(path, framework="pt") as tensors:
            assert {name: tensors.get_slice(name).get_shape() for name in tensors.keys()} == {  # noqa: SIM118
                name: list(one.shape) for name, one in found.items()
            }

    check_what_passes(GOOD, path, read_header, check, 400)


def test_every_value_that_passes_describes_the_file(tmp_path: Path) -> None:
    """Values of a header are changed at will: what passes still covers every byte once."""
    good = {"a": entry(shape=[2, 3], offsets=[0, 24]), "b": entry("I64", [], [24, 32])}
    refused = []

    @run(300)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = file(tmp_path, data.draw(reconfigured(good)), b"\0" * 32)
        try:
            found: dict[str, Entry] = read_header(path)
        except BrokenCheckpoint:
            refused.append(True)
            return
        refused.append(False)
        assert sum(one.end - one.begin for one in found.values()) == 32

    check()
    assert any(refused)
