"""`basin audit --explain`."""

from __future__ import annotations

import json

import pytest

from audit.v1 import report_pb2
from service.cli.console import results
from service.cli.tables import MOST_CELLS, MOST_WORDS, print_explanation
from tests.cli.conftest import CHEAP, Basin, is_one_error


def test_a_table_shows_words_and_map(basin: Basin, prompt: str) -> None:
    """Below the reasons: every word with its share, and the map in shades."""
    plain = basin("audit", "--local", *CHEAP, prompt)
    result = basin("audit", "--local", "--explain", *CHEAP, prompt)
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    assert all(f"{word} " in text.split("without a word:")[1] for word in prompt.split())
    assert set("░▒▓█") & set(result.out)
    assert not set("░▒▓█") & set(plain.out)
    assert "without a word" not in plain.out


def test_json_is_the_same_here_and_from_a_server(basin: Basin, server: str, prompt: str) -> None:
    """Words in their order, the map row by row, and both only when asked for."""
    flags = ("--format", "json", *CHEAP, prompt)
    here = json.loads(basin("audit", "--local", "--explain", *flags).out)["explanation"]
    there = json.loads(basin("audit", "--server", server, "--explain", *flags).out)["explanation"]
    assert [one["word"] for one in here["words"]] == prompt.split()
    assert [one["weight"] for one in there["words"]] == pytest.approx(
        [one["weight"] for one in here["words"]], abs=1e-3
    )
    assert there["map"]["values"] == pytest.approx(here["map"]["values"], abs=1e-2)
    assert (here["map"]["height"], here["map"]["width"]) == (8, 8)
    assert "explanation" not in json.loads(basin("audit", "--local", *flags).out)


def test_a_screen_explains_nothing(basin: Basin, prompt: str) -> None:
    """It draws no sample that could be explained."""
    assert is_one_error(basin("audit", "--local", "--depth", "screen", "--explain", prompt), "screen", "explains")


@pytest.mark.parametrize(("height", "width", "rows"), [(128, 64, 22), (1, 1, 1), (30, 128, 5)])
def test_large_maps_are_drawn_small(capsys: pytest.CaptureFixture[str], height: int, width: int, rows: int) -> None:
    """At most 24 cells on the longer side; words in brackets are no markup, and only the heaviest are listed."""
    values = [float(y < max(1, height // 2)) for y in range(height) for _ in range(width)]
    found = report_pb2.Explanation(
        words=[report_pb2.WordWeight(word=f"[w{i}]", weight=i / 100) for i in range(30)],
        map=report_pb2.RecallMap(height=height, width=width, values=values, threshold=0.5),
    )
    print_explanation(results(), found)
    out = capsys.readouterr().out
    assert out.count("[w") == MOST_WORDS
    assert "[w29] 29%, [w28] 28%" in out
    drawn = out.rstrip("\n").split("at best:")[1].splitlines()[1:]
    assert len(drawn) == rows
    assert max(len(line.strip()) for line in drawn) <= 2 * MOST_CELLS
    assert "█" in drawn[0]


def test_little_is_drawn_as_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Shades are of half of the error, so that a map of noise is not drawn like a copy."""
    cells = report_pb2.RecallMap(height=1, width=3, values=[0.2, -0.5, 0.01])
    print_explanation(results(), report_pb2.Explanation(map=cells))
    out = capsys.readouterr().out
    assert "18% less error" in out
    assert "░░" in out
    assert not set("▒▓█") & set(out)
