"""`basin bench`: the comparison on a ladder of a few captions, the fit, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit import demo
from audit.verdict.estimators import Estimators
from tests.cli.conftest import Basin, is_one_error


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    """The demo with a copied and an ordinary caption of each half, and its training set laid out anew."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("recipe.json", "checkpoint"):
        (folder / name).symlink_to(demo.FOLDER / name)
    lines = demo.TRUTH.read_text().splitlines(keepends=True)
    (folder / "truth.jsonl").write_text("".join([*lines[:2], *lines[-2:]]))
    return folder


def test_tables_and_figures(basin: Basin, ladder: Path, tmp_path: Path) -> None:
    """Of the held-out captions: every detector in the tables, and a figure."""
    out = tmp_path / "out"
    result = basin("bench", "--ladder", ladder, "--out", out)
    assert (result.code, result.out) == (0, ""), result
    assert str(out / "detection.md") in result.err.replace("\n", "")
    text = (out / "detection.md").read_text()
    assert "2 of 2 captions have a dominant class: 1 memorized, 0 spurious, 1 generalized." in text
    assert "not to be had from so few prompts" in text
    for name in ("Wen et al., first step, n = 16", "**screen**", "**audit**", "exhaustive"):
        assert f"| {name} |" in text
    assert (out / "detection.png").read_bytes().startswith(b"\x89PNG")


def test_a_fit_to_tuning_captions(basin: Basin, ladder: Path, tmp_path: Path) -> None:
    """The file holds estimators for every look, and says what they are from."""
    out = tmp_path / "estimators.json"
    result = basin("bench", "--fit", out, "--ladder", ladder, "--out", tmp_path / "out")
    assert (result.code, result.out) == (0, ""), result
    found = Estimators.model_validate(json.loads(out.read_text()))
    assert [look.seeds for look in found.looks] == [0, 1, 2, 4, 8, 16, 32]
    assert "small (2 captions)" in found.source


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--ladder", "nowhere"), "nowhere"),
        (("--split", "other"), "other"),
        (("--public",), "--checkpoint"),
        (("--public", "--checkpoint", "demo"), "--memorized"),
    ],
)
def test_refusals(
    basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], word: str
) -> None:
    """One line that names what is wrong."""
    monkeypatch.chdir(tmp_path)
    assert is_one_error(basin("bench", *flags), word)
