"""What is said of prompts that repeat."""

from __future__ import annotations

import pytest

from service.repeats import Repeats

CAT, CATS = "a cat asleep on a windowsill", "A cat asleep on a windowsill!"


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([], ""),
        ([CAT, "soup"], ""),
        ([CAT, "soup", CAT, CAT], "Repeated prompts: 2 word for word, audited with the first."),
        ([CAT, "soup", CATS], "Repeated prompts: 2 nearly the same as another."),
        (
            [CAT, CAT, CATS, CATS, "soup"],
            "Repeated prompts: 2 word for word, audited with the first; 2 nearly the same as another.",
        ),
    ],
)
def test_one_line(prompts: list[str], line: str) -> None:
    """Nothing where nothing repeats."""
    assert Repeats.of(dict(enumerate(prompts))).line() == line


def test_prompts_keep_their_positions() -> None:
    """Those of their first copies, whatever the first position is."""
    found = Repeats.of({3: "soup", 7: CATS, 9: CAT, 12: CATS})
    assert (found.prompts, found.distinct, found.copies, found.alike) == (4, 3, 1, 2)
    assert found.plain() == {
        "line": found.line(),
        "exact_copies": 1,
        "similarity": 0.7,
        "near_duplicates": [[{"position": 7, "prompt": CATS}, {"position": 9, "prompt": CAT}]],
    }
