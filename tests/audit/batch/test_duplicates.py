"""Near-duplicates: what counts as one, that none is missed, and that the order of the list changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import DisjointSet

from audit import demo
from audit.batch import duplicates
from audit.batch.duplicates import SIMILARITY, near_duplicates, plain

PROMPT = "a watercolor of a sleeping fox under a maple tree"

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda text: text.strip())
spaces = st.text(st.sampled_from(" \t\n\r\u00a0\u2003\u3000"), min_size=1, max_size=3)
cases = st.sampled_from([str.upper, str.lower, str.swapcase, str.title, str.casefold])
#: Few words, so that lists of them are full of prompts that are nearly the same.
words = st.sampled_from(["ab", "red", "green", "velvet", "velvets", "window", "windows", "of"])
alike = st.lists(words, min_size=1, max_size=9).map(" ".join)


def said(prompts: list[str]) -> set[frozenset[str]]:
    """Groups as sets of prompts."""
    return {frozenset(prompts[index] for index in group) for group in near_duplicates(prompts)}


@pytest.mark.parametrize(
    "other",
    [
        "A Watercolor of a Sleeping Fox under a Maple Tree",
        "  a watercolor of a\tsleeping fox   under a maple tree\n",
        "a watercolor of a sleeping fox, under a maple tree!",
        "“a water\u00adcolor of a sleeping fox under a maple-tree”",
        "a watercolor of a sleeping cat under a maple tree",
        "a watercolor of a slepping fox under a maple tree",
        "a watercolor of a sleeping red fox under a maple tree",
        "a watercolor of a fox under a maple tree",
        "under a maple tree: a watercolor of a sleeping fox",
        "a watercolor of a sleeping sleeping fox under a maple tree",
    ],
)
def test_slight_differences(other: str) -> None:
    """Case, spaces, punctuation, hidden characters, one word, the order of words."""
    assert near_duplicates(["something else", PROMPT, "a bowl of soup", other]) == [[1, 3]]


@pytest.mark.parametrize(
    "other",
    [
        "a watercolor of a sleeping fox",
        "an etching of a sleeping fox under an apple tree",
        "a watercolor of three geese on a frozen pond",
        "fox",
        "???",
    ],
)
def test_other_prompts(other: str) -> None:
    """Half of the words, or a few, make no near-duplicate."""
    assert near_duplicates([PROMPT, other]) == []


def test_nothing_of_nothing() -> None:
    """No prompts, one, and one that stands there twice."""
    assert near_duplicates([]) == near_duplicates([PROMPT]) == near_duplicates([PROMPT, PROMPT]) == []


def test_exact_copies_count_once() -> None:
    """A group names the first copy of each of its prompts, and groups come in the order of the list."""
    prompts = ["soup", PROMPT, "Soup!", PROMPT, PROMPT.upper(), "soup", "SOUP"]
    assert near_duplicates(prompts) == [[0, 2, 6], [1, 4]]


def test_a_group_is_a_chain() -> None:
    """Its ends may differ by more than its neighbours do."""
    words = PROMPT.split()
    chain = [" ".join(words[:last]) for last in range(len(words), 4, -1)]
    assert said([chain[0], chain[-1]]) == set()
    assert said(chain) == {frozenset(chain)}


@pytest.mark.parametrize("prompts", [["!!!", "???"], ["🎨", "🦊"], ["c", "d"], ["猫", "犬"], ["\u200b", "\u200d"]])
def test_prompts_without_letters(prompts: list[str]) -> None:
    """They are not all the same for having no words, and are the same with other spaces."""
    assert near_duplicates(prompts) == []
    assert near_duplicates([*prompts, f" {prompts[0]}"]) == [[0, 2]]


@given(texts, cases, spaces, spaces)
@example("\u0131", str.upper, " ", " ")
@example("straße ŉ ﬁ ǆ İ ΐ ᾷ ς", str.upper, " ", " ")
@example("e\u0301 \u1e9e", str.lower, "\n", " ")
def test_case_and_space_are_no_difference(text: str, case: Callable[[str], str], outer: str, inner: str) -> None:
    """A copy with other ones is always found, in whatever script."""
    copy = outer + inner.join(case(text).split()) + outer
    assert plain(copy) == plain(text)
    if copy != text:
        assert near_duplicates([text, copy]) == [[0, 1]]


@settings(deadline=None)
@given(st.lists(alike | texts, max_size=40), st.data())
def test_order_is_no_difference(prompts: list[str], data: st.DataObject) -> None:
    """Nor is it how often a prompt stands there."""
    shuffled = data.draw(st.permutations([*prompts, *prompts[:3]]))
    assert said(shuffled) == said(prompts)


@pytest.mark.parametrize(("block", "pairs"), [(2**22, 2**16), (7, 3)])
@settings(deadline=None)
@given(st.lists(alike | texts, max_size=40))
@example(["velvet", "velvets", "velvet velvets", "a b", "b a c", "x"])
@example([f"window number {index}" for index in range(40)])
def test_no_pair_is_missed(block: int, pairs: int, prompts: list[str]) -> None:
    """The groups are those of comparing every prompt with every other one, however the work is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        patch.setattr(duplicates, "_PAIRS", pairs)
        found = said(prompts)
    everyone = DisjointSet(set(prompts))
    for one, other in combinations(set(prompts), 2):
        if plain(one) == plain(other) or similarity(plain(one), plain(other)) >= SIMILARITY:
            everyone.merge(one, other)
    assert found == {frozenset(group) for group in everyone.subsets() if len(group) > 1}


def similarity(one: str, other: str) -> Fraction:
    """Jaccard's, of four-grams inside words that have a space on either side."""
    left, right = grams(one.split()), grams(other.split())
    return Fraction(len(left & right), len(left | right))


def grams(words: Iterable[str]) -> set[str]:
    """Of all words; a short word is its only one."""
    padded = [f" {word} " for word in words]
    return {word[start : start + 4] for word in padded for start in range(max(1, len(word) - 3))}


def test_a_threshold_is_reached_exactly() -> None:
    """Seven of ten is enough, and no rounding decides."""
    shared = [f"{letter}{letter}" for letter in "abcdefg"]
    for more, alike_enough in ((3, True), (4, False)):
        assert bool(near_duplicates([" ".join(shared), " ".join([*shared, *"xyzw"[:more]])])) == alike_enough


def test_captions_of_the_demo_are_different() -> None:
    """One grammar wrote them, of words that are drawn independently."""
    assert near_duplicates(demo.prompts()) == []
