"""Prompt sets: the shipped ones, and the registry of a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit import demo
from audit.batch.duplicates import near_duplicates
from audit.errors import BrokenPrompts, NotFound
from service.prompt_sets import SHIPPED, PromptSets


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The file of a registered set."""
    file = tmp_path / "secret" / "mine.csv"
    file.parent.mkdir()
    file.write_text("prompt,topic\na cat,pets\na dog,pets\n")
    return file


def test_the_demo_set_carries_the_truth() -> None:
    """Every caption of the ladder, with its number of images and the fractions of the truth table."""
    entries = list(PromptSets({}).entries("demo"))
    assert [entry.prompt for entry in entries] == demo.prompts()
    for entry, row in zip(entries, demo.truth(), strict=True):
        assert {"prompt": entry.prompt, **entry.extra} == row
        assert entry.extra["images"] >= 1
        assert entry.extra["dominant"] in ("memorized", "spurious", "generalized", "")


def test_the_ordinary_set_is_diverse() -> None:
    """About 200 prompts, short and long, none like another, and plain to read: what a calibration draws from."""
    prompts = [entry.prompt for entry in PromptSets({}).entries("ordinary")]
    lengths = sorted(len(prompt.split()) for prompt in prompts)
    assert 190 <= len(prompts) == len(set(prompts)) <= 250
    assert near_duplicates(prompts) == []
    assert lengths[0] <= 2
    assert lengths[-1] >= 30
    assert 5 <= lengths[len(lengths) // 2] <= 12
    assert len({word for prompt in prompts for word in prompt.lower().split()}) > 800
    assert all(prompt == " ".join(prompt.split()) and prompt.isprintable() for prompt in prompts)


def test_shipped_sets_are_always_there(mine: Path) -> None:
    """Beside what is registered, which takes no name of theirs."""
    sets = PromptSets({"mine": mine, "demo": mine})
    assert sets.names == ["demo", "mine", "ordinary"]
    assert sets.path("demo") == SHIPPED["demo"].file
    assert sets.path("mine") == mine
    assert [(entry.prompt, entry.extra["topic"]) for entry in sets.entries("mine")] == [
        ("a cat", "pets"),
        ("a dog", "pets"),
    ]


@pytest.mark.parametrize("name", ["", "Demo", "demo ", "../demo", "x" * 1000])
def test_unknown_names(name: str) -> None:
    """A name is one that is registered, letter by letter, or none."""
    for ask in (PromptSets({}).path, PromptSets({}).entries):
        with pytest.raises(NotFound, match="there is no prompt set") as unknown:
            ask(name)
        assert (unknown.value.reason, unknown.value.field) == ("PROMPT_SET_NOT_FOUND", "prompt_set")
        assert len(str(unknown.value)) < 120


def test_a_file_that_vanished(mine: Path) -> None:
    """It is named by its set: clients need not know where it was."""
    sets = PromptSets({"mine": mine})
    mine.unlink()
    for _ in range(2):
        with pytest.raises(BrokenPrompts, match=r"^the file of the prompt set 'mine' is gone$") as gone:
            sets.entries("mine")
        assert (gone.value.reason, gone.value.field) == ("PROMPT_SET_GONE", "prompt_set")
        mine.mkdir(exist_ok=True)


def test_a_file_that_is_damaged(mine: Path) -> None:
    """What stands before the damage is read; then the set, the place and the reason are told, and no folder."""
    sets = PromptSets({"mine": mine})
    mine.write_text("prompt\na cat\na,dog\n")
    entries = sets.entries("mine")
    assert next(entries).prompt == "a cat"
    with pytest.raises(BrokenPrompts, match=r"^the prompt set 'mine': mine.csv, line 3: 2 columns") as damaged:
        next(entries)
    assert (damaged.value.reason, damaged.value.field) == ("PROMPTS_UNREADABLE", "prompt_set")


def test_a_file_that_vanishes_before_its_turn(mine: Path) -> None:
    """The message names no folder."""
    entries = PromptSets({"mine": mine}).entries("mine")
    mine.unlink()
    with pytest.raises(BrokenPrompts, match=r"cannot read mine.csv: No such file") as gone:
        next(entries)
    assert "secret" not in str(gone.value)
