"""From audits to what counts as found."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from audit.batch.discovery import FALSE_DISCOVERY_RATE, Answer, Outcome, conclude, discoveries
from audit.verdict.decision import DECIDED
from audit.verdict.rule import CLASSES, PhaseClass

MEMORIZED, SPURIOUS, GENERALIZED = CLASSES
#: Room for rounding.
TINY = 1e-9

#: Few values, so that many are equal, or any at all.
posteriors = st.lists(st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]) | st.floats(0, 1), max_size=30).map(
    lambda found: np.asarray(found, dtype=np.float64)
)
rates = st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]) | st.floats(0, 1)


def answer(verdict: PhaseClass, confidence: float) -> Answer:
    """An audit that is so sure of its verdict; the other classes share the rest."""
    rest = (1 - confidence) / 2
    memorized, spurious, generalized = (confidence if one is verdict else rest for one in CLASSES)
    return Answer(verdict, (memorized, spurious, generalized))


answers = st.builds(answer, st.sampled_from(CLASSES), st.floats(0.34, 1.0)) | st.none()


# Discoveries.


@given(posteriors, rates)
@example(np.full(30, 0.9), 0.1)
@example(np.asarray([1.0, 0.9, 0.9]), 0.05)
def test_the_expected_share_of_errors_is_at_most_the_rate(probabilities: NDArray[np.float64], rate: float) -> None:
    """Of those taken; and all of them are more probable than all that are left."""
    taken = discoveries(probabilities, rate)
    assert taken.shape == probabilities.shape
    assert (1 - probabilities[taken]).sum() <= (rate + TINY) * taken.sum()
    assert not taken.any() or taken.all() or probabilities[taken].min() > probabilities[~taken].max()


@given(posteriors, rates)
@example(np.full(30, 0.9), 0.1)
@example(np.asarray([1.0, 0.9, 0.9]), 0.05)
def test_as_many_as_possible_are_taken(probabilities: NDArray[np.float64], rate: float) -> None:
    """Those that are next, all of equal probability, would exceed the rate."""
    taken = discoveries(probabilities, rate)
    if not taken.all():
        more = probabilities >= probabilities[~taken].max()
        assert (1 - probabilities[more]).mean() > rate - TINY


@given(posteriors, rates, st.integers(0, 2**32))
def test_discoveries_do_not_depend_on_the_order(probabilities: NDArray[np.float64], rate: float, seed: int) -> None:
    """Nor do equals: those are taken together or not at all."""
    order = np.random.default_rng(seed).permutation(len(probabilities))
    taken = discoveries(probabilities, rate)
    assert discoveries(probabilities[order], rate).tolist() == taken[order].tolist()
    for value in set(probabilities.tolist()):
        assert len(set(taken[probabilities == value].tolist())) == 1


@given(posteriors, rates, rates)
def test_a_higher_rate_takes_no_fewer(probabilities: NDArray[np.float64], one: float, other: float) -> None:
    """What is found at a rate is found at every higher one."""
    lower, higher = sorted([one, other])
    assert (discoveries(probabilities, lower) <= discoveries(probabilities, higher)).all()


@pytest.mark.parametrize(
    ("probabilities", "rate", "expected"),
    [
        ([], 0.05, []),
        ([0.99, 1.0, 0.5, 1.0], 0.0, [False, True, False, True]),
        ([0.99, 0.5], 0.0, [False, False]),
        ([0.99, 0.0, 0.5], 1.0, [True, True, True]),
        ([0.96], 0.05, [True]),
        ([0.94], 0.05, [False]),
        ([0.94, 0.99], 0.05, [True, True]),  # the mean error is .035
        ([0.5, 0.94, 0.99], 0.05, [False, True, True]),
        ([1.0, 0.9, 0.9], 0.05, [True, False, False]),  # one of the equals would do, both would not
        ([0.8, 0.8], 0.2, [True, True]),
    ],
)
def test_discoveries_by_hand(probabilities: list[float], rate: float, expected: list[bool]) -> None:
    """Rates 0 and 1, none at all, the border, equals."""
    assert discoveries(probabilities, rate).tolist() == expected


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_calibrated_probabilities_keep_the_rate(rate: float) -> None:
    """Where probabilities mean what they say, the share of errors is the rate, however few of the prompts are true."""
    rng = np.random.default_rng(7)
    probabilities = rng.beta(0.2, 0.6, 100_000)
    true = rng.random(100_000) < probabilities
    taken = discoveries(probabilities, rate)
    assert taken.sum() > 1000
    assert (~true[taken]).mean() == pytest.approx(rate, abs=4 * (rate / taken.sum()) ** 0.5)
    # Judged one by one at the same rate, fewer would be found.
    assert taken.sum() > 1.1 * (probabilities > 1 - rate).sum()


# Conclusions.


@pytest.mark.parametrize("first", [None, *product(CLASSES, (0.6, 0.99))])
@pytest.mark.parametrize("second", [None, *product(CLASSES, (0.6, 0.99))])
def test_one_prompt(first: tuple[PhaseClass, float] | None, second: tuple[PhaseClass, float] | None) -> None:
    """Flagged prompts are what their second audit is sure of; others what the first one is sure of."""
    if first is None:
        expected = Outcome.FAILED
    elif first[0] is GENERALIZED:
        expected = Outcome.GENERALIZED if first[1] > DECIDED else Outcome.UNDECIDED
    elif second is None:
        expected = Outcome.FAILED
    else:
        # What is left of an unsure answer is spread evenly, so that it is not sure to recur either.
        expected = Outcome(second[0]) if second[1] > DECIDED else Outcome.UNDECIDED
    one, other = (None if given is None else answer(*given) for given in (first, second))
    assert conclude([one], [other], 0.05) == [expected]


@given(st.lists(st.tuples(answers, answers), max_size=20), rates)
def test_a_flag_never_counts_unconfirmed(pairs: list[tuple[Answer | None, Answer | None]], rate: float) -> None:
    """Whatever else is in the batch, only what two audits flagged is memorized or spurious, as the second one said."""
    outcomes = conclude([one for one, _ in pairs], [other for _, other in pairs], rate)
    assert len(outcomes) == len(pairs)
    for (one, other), outcome in zip(pairs, outcomes, strict=True):
        if outcome in (Outcome.MEMORIZED, Outcome.SPURIOUS):
            assert one is not None
            assert one.flagged
            assert other is not None
            assert str(outcome) == str(other.verdict)
        if outcome is Outcome.GENERALIZED:
            last = other if one is not None and one.flagged else one
            assert last is not None
            assert last.verdict is GENERALIZED
            assert last.decided


@given(st.lists(st.tuples(answers, answers), max_size=20), rates, st.sampled_from(CLASSES[:2]))
def test_each_class_keeps_the_rate(
    pairs: list[tuple[Answer | None, Answer | None]], rate: float, verdict: PhaseClass
) -> None:
    """By the probabilities of the second audits; the rest of what they confirm is undecided, not generalized."""
    outcomes = conclude([one for one, _ in pairs], [other for _, other in pairs], rate)
    candidates = [
        (other.probabilities[CLASSES.index(verdict)], outcome)
        for (one, other), outcome in zip(pairs, outcomes, strict=True)
        if one is not None and one.flagged and other is not None and other.verdict is verdict
    ]
    assert {outcome for _, outcome in candidates} <= {Outcome(verdict), Outcome.RECURRING, Outcome.UNDECIDED}
    taken = [outcome is Outcome(verdict) for _, outcome in candidates]
    assert taken == discoveries([probability for probability, _ in candidates], rate).tolist()


def test_what_recurs_counts_where_its_kind_is_not_known() -> None:
    """As without a reference set, where copies and images of the model's own making look alike."""
    either, other = Answer(MEMORIZED, (0.502, 0.498, 0.0)), Answer(SPURIOUS, (0.498, 0.502, 0.0))
    assert conclude([either, other] * 50, [other, either] * 50) == [Outcome.RECURRING] * 100
    unsure = Answer(MEMORIZED, (0.5, 0.3, 0.2))
    assert conclude([either], [unsure]) == [Outcome.UNDECIDED]
    assert conclude([answer(GENERALIZED, 0.6)], [either]) == [Outcome.UNDECIDED]
    # Among many that are surely one or the other, those of a known kind are still told apart.
    known = answer(MEMORIZED, 1.0)
    assert conclude([either, known], [either, known]) == [Outcome.RECURRING, Outcome.MEMORIZED]


def test_sure_ones_carry_a_less_sure_one() -> None:
    """The rate is the batch's: beside nine that are certain, one of 60% may be counted, and alone it may not."""
    unsure, sure = answer(MEMORIZED, 0.6), answer(MEMORIZED, 1.0)
    assert conclude([unsure] * 10, [unsure, *[sure] * 9], 0.05) == [Outcome.MEMORIZED] * 10
    assert conclude([unsure], [unsure], 0.05) == [Outcome.UNDECIDED]
    # Those of another class carry no more than that it recurs, as they do.
    apart = answer(SPURIOUS, 1.0)
    assert conclude([unsure] * 10, [unsure, *[apart] * 9], 0.05) == [Outcome.RECURRING, *[Outcome.SPURIOUS] * 9]


def test_a_second_audit_without_a_flag_is_not_looked_at() -> None:
    """A prompt that the first audit cleared stays cleared."""
    assert conclude([answer(GENERALIZED, 0.95)], [answer(MEMORIZED, 1.0)]) == [Outcome.GENERALIZED]


def test_confirmation_keeps_innocents_out() -> None:
    """Ten thousand innocent prompts, of which a hundred are flagged by chance: a second audit by chance leaves few."""
    rng = np.random.default_rng(3)
    guilty = np.arange(10_000) < 50
    flagged = guilty | (rng.random(10_000) < 0.01)
    again = guilty | (rng.random(10_000) < 0.01)

    def audits(flags: NDArray[np.bool_]) -> list[Answer]:
        return [answer(MEMORIZED if flag else GENERALIZED, 0.99) for flag in flags]

    outcomes = conclude(audits(flagged), audits(again), FALSE_DISCOVERY_RATE)
    found = np.asarray([outcome is Outcome.MEMORIZED for outcome in outcomes])
    assert flagged.sum() > 120
    assert found[guilty].all()
    assert found[~guilty].sum() <= 5
    assert Outcome.FAILED not in outcomes
