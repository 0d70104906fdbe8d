"""Public prompt lists: what goes in, families, and the whole path on the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit import demo
from audit.bench.public import CALIBRATING, families_of, split_lists
from audit.bench.scores import resamples
from audit.errors import InvalidInput
from service.cli import main

TRUTH = demo.truth()


def captions(least: int, most: int, count: int) -> list[str]:
    """Of the tuning half, with so many images."""
    tuning = [row for row in TRUTH if row["split"] == "tuning"]
    return [str(row["prompt"]) for row in tuning if least <= int(str(row["images"])) <= most][:count]


def test_ordinary_prompts_that_calibrate_are_not_told_apart() -> None:
    """The first fifty, or a list of their own; repeats count once."""
    ordinary = [f"ordinary {number}" for number in range(CALIBRATING + 3)]
    first, second, usual = split_lists(["a", "b", "a"], [*ordinary, ordinary[0]])
    assert (first, second, usual) == (["a", "b"], ordinary[CALIBRATING:], ordinary[:CALIBRATING])
    first, second, usual = split_lists(["a", "b"], ordinary, ["other", "another", ordinary[5]])
    assert usual == ["other", "another", ordinary[5]]
    assert second == [prompt for prompt in ordinary if prompt != ordinary[5]]


@pytest.mark.parametrize(
    ("memorized", "ordinary", "reason", "field"),
    [
        (["a", "b"], ["a", *"cdefg"], "LISTS_OVERLAP", "ordinary"),
        (["a"], [str(number) for number in range(60)], "LIST_TOO_SHORT", "memorized"),
        (["a", "b"], [str(number) for number in range(CALIBRATING + 1)], "LIST_TOO_SHORT", "ordinary"),
    ],
)
def test_lists_that_tell_nothing_are_refused(
    memorized: list[str], ordinary: list[str], reason: str, field: str
) -> None:
    """What is in both, and what is too little."""
    with pytest.raises(InvalidInput) as refused:
        split_lists(memorized, ordinary)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_families_are_drawn_together() -> None:
    """Prompts that are nearly the same have one number, and are in a resample equally often."""
    prompts = [
        "a portrait of an old fisherman on the coast of norway",
        "a portrait of an old fisherman on the coast of norway!",
        "seven red bicycles before a yellow wall in lisbon",
        "A portrait of an old fisherman on the coast of Norway",
    ]
    families = families_of(prompts)
    assert families.tolist() == [0, 0, 2, 0]
    for counts in resamples([1, 1, 1, 1], draws=50, families=families):
        assert counts[0] == counts[1] == counts[3]
        assert counts[0] + counts[2] == 2  # two families, drawn twice


def test_the_whole_path(tmp_path: Path) -> None:
    """From two lists and a checkpoint to tables and a figure: copies are told from ordinary captions."""
    (tmp_path / "memorized.txt").write_text("\n".join(captions(1, 2, 2)))
    (tmp_path / "ordinary.jsonl").write_text(
        "\n".join(json.dumps({"prompt": prompt}) for prompt in captions(256, 1000, 2))
    )
    (tmp_path / "calibrate.csv").write_text("prompt\n" + "\n".join(captions(32, 128, 3)))
    with pytest.raises(SystemExit) as end:
        main(
            [
                "bench", "--public", "--checkpoint", str(demo.CHECKPOINT), "--out", str(tmp_path / "out"),
                "--memorized", str(tmp_path / "memorized.txt"), "--ordinary", str(tmp_path / "ordinary.jsonl"),
                "--calibrate", str(tmp_path / "calibrate.csv"), "--steps", "6", "--guidance", "1",
            ]
        )  # fmt: skip
    assert not end.value.code
    text = (tmp_path / "out" / "public.md").read_text()
    assert "4 prompts in 4 families: 2 said to be memorized, 2 not. Nobody measured whether they are." in text
    assert "| **audit, no reference set** |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| **1 seed, no reference set** |")]
    assert "1.000 (1.000 to 1.000)" in line
    assert "A classifier of the words alone" in text
    assert (tmp_path / "out" / "public.png").stat().st_size > 10_000


@pytest.mark.parametrize("missing", ["checkpoint", "memorized", "ordinary"])
def test_what_is_missing_is_named(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    given = {"checkpoint": "demo", "memorized": "x", "ordinary": "y"}
    flags = [part for name, value in given.items() if name != missing for part in (f"--{name}", value)]
    with pytest.raises(SystemExit) as end:
        main(["bench", "--public", "--out", str(tmp_path), *flags])
    assert end.value.code == 2
    assert f"--public needs --{missing}" in capsys.readouterr().err
