"""`basin demo` and what it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from service.cli.demonstration import choose
from tests.cli.conftest import Basin, is_one_error


def test_demo_audits_over_grpc_and_draws(basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demonstration, with less work per prompt than usual."""
    monkeypatch.setenv("BASIN_BUDGET__SEEDS", "2")
    monkeypatch.setenv("BASIN_BUDGET__CURVATURE", "off")
    monkeypatch.chdir(tmp_path)

    result = basin("demo")

    assert (result.code, result.err) == (0, "")
    assert "over gRPC at 127.0.0.1:" in result.out
    assert "truth" in result.out
    assert "verdicts agree" in result.out
    assert "basin-demo.png" in result.out
    with Image.open(tmp_path / "basin-demo.png") as sheet:
        assert sheet.height > 3 * 150


def test_demo_that_cannot_write_says_so_first(basin: Basin) -> None:
    """No audit is run for a picture that cannot be written."""
    assert is_one_error(basin("demo", "--image", "no/folder/x.png"), "no/folder")


def test_prompts_are_held_out_decided_and_spread() -> None:
    """Of each class the held-out prompts with the fewest and the most images, never one without a dominant class."""
    table = [
        {"prompt": f"{name} {size} {split}", "images": size, "split": split, "dominant": name}
        for name in ("generalized", "spurious", "memorized", "")
        for size in (4, 1, 2)
        for split in ("tuning", "held-out")
    ]
    assert [row["prompt"] for row in choose(table)] == [
        f"{name} {size} held-out" for name in ("memorized", "spurious", "generalized") for size in (1, 4)
    ]
    assert choose(table[:2]) == [table[1]]
