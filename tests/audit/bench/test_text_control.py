"""The text-only control and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from audit.bench.scores import bootstrap_auc
from audit.bench.text_control import balanced, text_only_auc

WORDS = [f"word{i}" for i in range(12)]


def prompts(rng: np.random.Generator, tell: list[bool], word: str = "") -> list[str]:
    """Random words, and a tell-tale one where it is said to be."""
    return [" ".join([*rng.choice(WORDS, 5), *([word] if told else [])]) for told in tell]


def test_a_tell_tale_word_is_found() -> None:
    """Lists that differ in one word are separated by it."""
    labels = [index % 3 == 0 for index in range(60)]
    area = text_only_auc(prompts(np.random.default_rng(0), labels, "secret"), labels)
    assert area.value > 0.9
    assert area.lower > 0.5


def test_random_words_tell_nothing() -> None:
    """Over many lists without a tell-tale word the mean AUC is a coin's, and most intervals include it."""
    areas = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = (rng.permutation(60) < 20).tolist()
        areas.append(text_only_auc(prompts(rng, labels), labels))
    assert 0.4 < np.mean([area.value for area in areas]) < 0.6
    assert sum(area.lower <= 0.5 <= area.upper for area in areas) >= 15


def test_prompts_that_tell_are_left_out() -> None:
    """Where a few prompts hold a word of their class alone, some of these go, and the words tell nothing any more."""
    rng = np.random.default_rng(1)
    labels = [index % 3 == 0 for index in range(150)]
    telling = [label and rng.random() < 0.4 for label in labels]
    texts = prompts(rng, telling, "secret")
    assert text_only_auc(texts, labels).lower > 0.5
    kept = balanced(texts, [str(label) for label in labels])
    chosen = np.flatnonzero(kept)
    assert text_only_auc([texts[i] for i in chosen], [labels[i] for i in chosen]).lower <= 0.5
    assert 0 < (~kept).sum() <= sum(telling) + 5
    assert np.mean([telling[i] for i in np.flatnonzero(~kept)]) > 0.5


def test_prompts_that_tell_nothing_are_kept() -> None:
    """All of them."""
    rng = np.random.default_rng(3)
    labels = [str(index % 3) for index in range(120)]
    assert balanced(prompts(rng, [False] * 120), labels).all()


def test_prompts_that_cannot_be_balanced() -> None:
    """Lists in words of their own are refused."""
    with pytest.raises(ValueError, match="whichever are left out"):
        balanced([f"{'ab' if i % 2 else 'cd'} x{i}" for i in range(40)], ["even", "odd"] * 20)


@settings(max_examples=20)
@given(data=st.data())
def test_auc_is_the_share_of_pairs_in_order(data: st.DataObject) -> None:
    """Ties count half, the interval holds the value, and all is within [0, 1]."""
    n = data.draw(st.integers(2, 20))
    scores = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    labels = [True, False, *data.draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))]
    area = bootstrap_auc(labels, scores, draws=200)
    assert area.value == pytest.approx(roc_auc_score(labels, scores))
    assert 0 <= area.lower <= area.upper <= 1
    assert area.lower - 0.1 <= area.value <= area.upper + 0.1


def test_intervals_narrow_with_more_items() -> None:
    """Ten times the items have a narrower interval."""
    rng = np.random.default_rng(0)
    widths = []
    for n in (20, 200):
        labels = [index % 2 == 0 for index in range(n)]
        area = bootstrap_auc(labels, (rng.normal(size=n) + np.array(labels)).tolist())
        widths.append(area.upper - area.lower)
    assert widths[1] < widths[0] / 2
