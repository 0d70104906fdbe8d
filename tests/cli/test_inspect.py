"""`basin inspect`, from flags to output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from audit import demo
from audit.reference.images import encode_png
from audit.reference.reference_set import ReferenceSet
from tests.cli.conftest import Basin, is_one_error

FEW = ("--steps", "4", "--reference", "demo")


@pytest.fixture
def picture(tmp_path: Path, prompt: str) -> Path:
    """A training image of the prompt."""
    reference = ReferenceSet.load(demo.REFERENCE)
    file = tmp_path / "picture.png"
    file.write_bytes(encode_png(np.asarray(reference.images[reference.captions.index(prompt)])))
    return file


def test_a_table_here_and_json_of_a_server(basin: Basin, picture: Path, prompt: str, server: str) -> None:
    """Both say that it is a copy, and of which image."""
    here = basin("inspect", "--local", *FEW, "--prompt", prompt, picture)
    assert (here.code, here.err) == (0, "")
    assert "picture.png" in here.out
    assert "memorized" in here.out
    assert "It is a copy of a training image" in here.out
    there = basin("inspect", "--server", server, *FEW, "--prompt", prompt, "--format", "json", picture)
    found = json.loads(there.out)
    assert there.code == 0
    assert found["verdict"] == "memorized"
    assert found["nearest_reference"]["caption"] == prompt
    assert found["subject"]["sampler"]["steps"] == 4


def test_no_class_is_said(basin: Basin, picture: Path) -> None:
    """Without prompt and reference set nothing tells."""
    found = basin("inspect", "--local", "--steps", "4", picture)
    assert found.code == 0
    assert "none" in found.out
    assert "contrast" in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("missing.png",), ["cannot read", "missing.png"]),
        (("notes.png",), ["not a readable image"]),
        (("--prompt", " ", "picture.png"), ["empty"]),
        (("--size", "33", "picture.png"), ["height", "33"]),
        (("--reference", "missing", "picture.png"), ["missing"]),
        (("--server", "localhost:1", "picture.png"), ["--local"]),
    ],
)
def test_what_is_wrong_is_one_line(
    basin: Basin, picture: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: list[str]
) -> None:
    """And exit code 2."""
    monkeypatch.chdir(picture.parent)
    (picture.parent / "notes.png").write_text("no image")
    assert is_one_error(basin("inspect", "--local", *flags), *words)
