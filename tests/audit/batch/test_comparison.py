"""From two posteriors of each prompt to what changed, and to how far all prompts moved."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, poisson_binom

from audit.batch.comparison import CLAIMS, GROUPS, Change, find_changes, find_shifts
from audit.batch.discovery import discoveries
from audit.verdict.decision import INTERVAL_LEVEL

#: Room for rounding.
TINY = 1e-9
SURE = np.eye(3)
MEMORIZED, SPURIOUS, GENERALIZED = SURE
MIRRORED = {
    Change.NEW_MEMORIZED: Change.GONE_MEMORIZED,
    Change.NEW_SPURIOUS: Change.GONE_SPURIOUS,
    Change.NEW_RECURRING: Change.GONE_RECURRING,
    Change.CHANGED: Change.CHANGED,
}

Posterior = tuple[float, float, float]
Case = list[tuple[Posterior, Posterior, bool]]

#: Few values, so that many are equal, or any at all.
weights = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
posteriors = (
    st.tuples(weights, weights, weights)
    .filter(lambda found: sum(found) > 0.1)
    .map(lambda found: tuple(one / sum(found) for one in found))
)
cases = st.lists(st.tuples(posteriors, posteriors, st.sampled_from([False, False, False, True])), max_size=25)
rates = st.sampled_from([0.0, 0.05, 0.2, 1.0]) | st.floats(0, 1)


def sides(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The arguments of both functions."""
    before, after = (np.asarray([one[part] for one in case], dtype=np.float64).reshape(-1, 3) for part in range(2))
    same = np.asarray([one[2] for one in case], dtype=bool)
    return before, np.where(same[:, None], before, after), same  # one audit has one posterior


def draw_sides(rng: np.random.Generator, n: int, moved: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Posteriors of n prompts, some of which did not move and look alike on both sides."""
    before, other = rng.dirichlet([0.15, 0.15, 0.5], (2, n))
    likeness = rng.dirichlet([0.3] * 3, n)
    after = np.where(rng.random((n, 1)) < moved, other, 0.9 * before + 0.1 * likeness)
    return before, after


def draw_classes(rng: np.random.Generator, posterior: NDArray[np.float64]) -> NDArray[np.int64]:
    """Classes as the posteriors have them."""
    return (rng.random((len(posterior), 1)) > posterior.cumsum(1)[:, :2]).sum(1)


# Claims of single prompts.


@pytest.mark.parametrize(("a", "b"), [*product(range(3), repeat=2)])
def test_certain_classes_make_certain_claims(a: int, b: int) -> None:
    """What is claimed of a prompt whose classes are known is what is true of them."""
    found = find_changes([SURE[a]], [SURE[b]], [False], 0.0)
    m, s, g = 0, 1, 2
    true = {
        Change.NEW_MEMORIZED: b == m != a,
        Change.NEW_SPURIOUS: b == s != a,
        Change.NEW_RECURRING: a == g != b,
        Change.GONE_MEMORIZED: a == m != b,
        Change.GONE_SPURIOUS: a == s != b,
        Change.GONE_RECURRING: b == g != a,
        Change.CHANGED: a != b,
    }
    assert {claim: bool(taken[0]) for claim, taken in found.claimed.items()} == true
    assert {claim: float(one[0]) for claim, one in found.probabilities.items()} == true
    assert found.said == [next((claim for claim in CLAIMS if true[claim]), Change.UNCHANGED)]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((0.0, 0.0, 1.0), (0.97, 0.03, 0.0), Change.NEW_MEMORIZED),
        ((0.0, 0.5, 0.5), (0.97, 0.03, 0.0), Change.NEW_MEMORIZED),
        ((0.0, 0.01, 0.99), (0.55, 0.45, 0.0), Change.NEW_RECURRING),
        ((0.0, 0.01, 0.99), (0.5, 0.5, 0.0), Change.NEW_RECURRING),
        ((0.98, 0.0, 0.02), (0.0, 0.98, 0.02), Change.NEW_SPURIOUS),
        ((0.98, 0.02, 0.0), (0.0, 0.5, 0.5), Change.GONE_MEMORIZED),
        ((0.6, 0.4, 0.0), (0.0, 0.02, 0.98), Change.GONE_RECURRING),
        ((0.0, 0.98, 0.02), (0.5, 0.01, 0.49), Change.GONE_SPURIOUS),
        ((0.0, 0.1, 0.9), (0.94, 0.06, 0.0), Change.CHANGED),
        ((0.0, 0.1, 0.9), (0.9, 0.0, 0.1), Change.UNDECIDED),
        ((1 / 3, 1 / 3, 1 / 3), (1 / 3, 1 / 3, 1 / 3), Change.UNDECIDED),
        ((0.0, 0.45, 0.55), (0.0, 0.55, 0.45), Change.UNDECIDED),
        ((0.0, 0.06, 0.94), (0.0, 0.06, 0.94), Change.UNDECIDED),
        ((0.0, 0.04, 0.96), (0.0, 0.04, 0.96), Change.UNCHANGED),
        ((1.0, 0.0, 0.0), (0.9, 0.1, 0.0), Change.UNCHANGED),
    ],
)
def test_one_prompt(before: Posterior, after: Posterior, said: Change) -> None:
    """By hand, at a rate of .05: the gravest claim that can be made, or that none can."""
    assert find_changes([before], [after], [False], 0.05).said == [said]


def test_what_changed_for_sure_may_have_no_further_name() -> None:
    """It was memorized or spurious and is spurious or generalized: with others that are sure, a change and no more."""
    before = [(0.5, 0.5, 0.0), *[MEMORIZED] * 20]
    after = [(0.0, 0.3, 0.7), *[GENERALIZED] * 20]
    found = find_changes(before, after, [False] * 21, 0.05)
    assert found.claimed[Change.CHANGED].all()
    assert not found.claimed[Change.NEW_MEMORIZED].any()
    assert found.probabilities[Change.CHANGED][0] == pytest.approx(0.85)


def test_know_nothings_are_not_carried_along() -> None:
    """Beside a hundred that changed for sure, two audits that know nothing still say nothing of a change."""
    nothing = np.full(3, 1 / 3)
    found = find_changes([nothing, *[GENERALIZED] * 100], [nothing, *[MEMORIZED] * 100], [False] * 101, 0.05)
    assert found.probabilities[Change.CHANGED][0] == pytest.approx(2 / 3)
    assert found.said == [Change.UNDECIDED, *[Change.NEW_MEMORIZED] * 100]


def test_one_audit_on_both_sides_changed_nothing() -> None:
    """Two audits of which both are unsure may differ; one audit does not differ from itself."""
    unsure = (0.0, 0.5, 0.5)
    found = find_changes([unsure, unsure], [unsure, unsure], [True, False])
    assert found.said == [Change.UNCHANGED, Change.UNDECIDED]
    assert found.probabilities[Change.CHANGED].tolist() == [0, 0.5]


def test_nothing_to_compare() -> None:
    """No prompt at all is no error: counts are empty and numbers zero."""
    found = find_changes([], [], [])
    assert found.said == []
    assert all(taken.shape == (0,) for taken in found.claimed.values())
    for shift in find_shifts([], [], []).values():
        assert (shift.before, shift.rise, shift.fall, shift.beyond_noise) == (shift.after, 0, 0, False)


# Properties.


def agreements(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """A of the formula, (n,)."""
    mean = np.maximum((p.mean(0) + q.mean(0)) / 2, 1e-300)
    return (p * q / mean).sum(1)


@given(cases)
@example([((0.5, 0.5, 0.0), (0.0, 0.0, 1.0), False)])
def test_claims_are_what_they_say(case: Case) -> None:
    """The probability of each is that of its pairs of classes; whatever a claim is true of has changed."""
    before, after, same = sides(case)
    found = find_changes(before, after, same)
    p, q, kept = before[~same], after[~same], found.kept
    moved = np.zeros(len(case))
    if len(p):
        moved[~same] = (1 - kept) / (1 - kept + kept * agreements(p, q))
    p, q = before, after
    changed = found.probabilities[Change.CHANGED]
    assert changed == pytest.approx(moved * (1 - (p * q).sum(1)), abs=1e-8)
    assert found.probabilities[Change.NEW_MEMORIZED] == pytest.approx(moved * (1 - p[:, 0]) * q[:, 0], abs=1e-8)
    assert found.probabilities[Change.GONE_RECURRING] == pytest.approx(moved * (1 - p[:, 2]) * q[:, 2], abs=1e-8)
    assert set(found.probabilities) == set(found.claimed) == set(CLAIMS)
    for claim in CLAIMS:
        assert (found.probabilities[claim] <= changed + TINY).all()
        assert not (found.claimed[claim] & ~found.claimed[Change.CHANGED]).any()


@given(posteriors, posteriors)
def test_a_prompt_by_itself_has_nothing_to_learn_from(before: Posterior, after: Posterior) -> None:
    """Its audits alone say whether it changed."""
    found = find_changes([before], [after], [False])
    assert found.kept == 0
    assert found.probabilities[Change.CHANGED] == pytest.approx(1 - np.dot(before, after), abs=TINY)


@given(cases)
def test_the_share_that_was_kept_is_the_most_probable_one(case: Case) -> None:
    """No other share makes the audits likelier, with one prompt more that changed."""
    before, after, same = sides(case)
    kept = find_changes(before, after, same).kept
    assert 0 <= kept < 1
    if not same.all():
        found = agreements(before[~same], after[~same])

        def merit(share: float) -> float:
            return float(np.log1p(share * (found - 1)).sum() + np.log1p(-share))

        assert all(merit(kept) >= merit(share) - 1e-6 for share in np.linspace(0, 0.999, 50))


@given(cases, rates)
@example([((0.5, 0.5, 0.0), (0.0, 0.0, 1.0), False)], 0.6)
def test_swapping_the_sides_swaps_new_and_gone(case: Case, rate: float) -> None:
    """Nothing else depends on which side is which."""
    before, after, same = sides(case)
    one, other = find_changes(before, after, same, rate), find_changes(after, before, same, rate)
    for claim, mirrored in MIRRORED.items():
        assert one.probabilities[claim] == pytest.approx(other.probabilities[mirrored], abs=TINY)
        assert one.claimed[claim].tolist() == other.claimed[mirrored].tolist()
        assert one.claimed[mirrored].tolist() == other.claimed[claim].tolist()
    settled = (Change.UNCHANGED, Change.UNDECIDED)
    assert [said for said in one.said if said in settled] == [said for said in other.said if said in settled]
    ups, downs = find_shifts(before, after, same), find_shifts(after, before, same)
    for name, up in ups.items():
        down = downs[name]
        assert (up.before, up.after) == (down.after, down.before)
        assert up.difference.estimate == pytest.approx(-down.difference.estimate, abs=TINY)
        assert (up.rise, up.fall) == pytest.approx((down.fall, down.rise), abs=TINY)


@given(st.lists(posteriors, max_size=25), rates, st.booleans())
def test_nothing_changed_against_itself(side: list[Posterior], rate: float, same: bool) -> None:
    """Where both sides say the same there is no claim, were both of them unsure or one and the same audit."""
    found = find_changes(side, side, [same] * len(side), rate)
    assert not any(taken.any() for taken in found.claimed.values())
    assert set(found.said) <= ({Change.UNCHANGED} if same else {Change.UNCHANGED, Change.UNDECIDED})
    for shift in find_shifts(side, side, [same] * len(side)).values():
        assert shift.before == shift.after
        assert not shift.beyond_noise
        assert shift.difference.estimate == pytest.approx(0, abs=TINY)
        assert shift.rise == pytest.approx(0 if same else shift.fall, abs=TINY)


@given(cases, rates)
@example([(SURE[2], (0.6, 0.4, 0.0), False), *[(SURE[2], SURE[0], False)] * 12], 0.05)
def test_each_claim_keeps_the_rate(case: Case, rate: float) -> None:
    """By its own probabilities; a prompt of a more probable claim is never left out for a less probable one."""
    before, after, same = sides(case)
    found = find_changes(before, after, same, rate)
    mean = np.maximum((before[~same].sum(0) + after[~same].sum(0)) / max(1, 2 * (~same).sum()), 1e-300)
    pairs = (1 - found.kept) * before[:, :, None] * after[:, None, :]
    pairs += found.kept * np.eye(3) * (before * after / mean)[:, :, None]
    for claim, table in CLAIMS.items():
        probabilities, taken = found.probabilities[claim], found.claimed[claim]
        assert (1 - probabilities[taken]).sum() <= (rate + TINY) * taken.sum()
        assert (probabilities[taken] > 0.5).all()
        among = np.ones(len(case), dtype=bool) if claim is Change.CHANGED else found.claimed[Change.CHANGED]
        likeliest = (pairs * table).max((1, 2), initial=0) > (pairs * ~table).max((1, 2), initial=0)
        for row in np.flatnonzero(among & likeliest & ~taken & ~same):
            assert not (taken & (probabilities < probabilities[row] - TINY)).any()


@given(cases, st.floats(0, 0.3))
def test_what_is_sure_by_itself_is_claimed(case: Case, rate: float) -> None:
    """However many other prompts there are, and whatever they did."""
    before, after, same = sides(case)
    found = find_changes(before, after, same, rate)
    for claim, probabilities in found.probabilities.items():
        assert found.claimed[claim][probabilities >= 1 - rate].all()


@given(cases, rates, st.integers(0, 2**32))
def test_changes_do_not_depend_on_the_order(case: Case, rate: float, seed: int) -> None:
    """Of the prompts."""
    before, after, same = sides(case)
    order = np.random.default_rng(seed).permutation(len(case))
    one = find_changes(before, after, same, rate)
    other = find_changes(before[order], after[order], same[order], rate)
    assert [one.said[row] for row in order] == other.said


# Against simulation.


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("moved", [0.05, 0.5])
def test_calibrated_posteriors_keep_the_rate(rate: float, moved: float) -> None:
    """Where posteriors mean what they say, each list's share of errors is at most the rate, and the rate is used."""
    rng = np.random.default_rng(5)
    shares: dict[Change, list[float]] = {claim: [] for claim in CLAIMS}
    spent, counts = [], []
    for _ in range(200):
        before, after = draw_sides(rng, 1500, moved)
        found = find_changes(before, after, np.zeros(1500, dtype=bool), rate)
        classes = draw_classes(rng, before), draw_classes(rng, after)
        for claim, table in CLAIMS.items():
            taken = found.claimed[claim]
            shares[claim].append((~table[classes][taken]).mean() if taken.any() else 0.0)
        changed = found.claimed[Change.CHANGED]
        if moved > 0.1 and changed.any():
            counts.append(changed.sum())
            spent.append((1 - found.probabilities[Change.CHANGED][changed]).mean())
    for found_shares in shares.values():
        error = np.std(found_shares) / len(found_shares) ** 0.5
        assert np.mean(found_shares) <= rate + 3 * error
    # The list of changes spends its rate, unless there are no more candidates.
    assert moved < 0.1 or np.mean(counts) > 10
    assert moved < 0.1 or 0.7 * rate < np.mean(spent) <= rate + TINY


@pytest.mark.parametrize("moved", [0.0, 0.02, 0.3, 1.0])
def test_few_changes_are_not_drowned_by_unlucky_audits(moved: float) -> None:
    """Audits of 16 fresh seeds that count copies: however few prompts change, the rate is kept, and many are found.

    Were each prompt judged by itself, many findings would be errors where few prompts change.
    """
    rng = np.random.default_rng(9)
    n, seeds, rounds = 3000, 16, 20
    by_count = beta.sf(0.5, np.arange(seeds + 1) + 0.5, seeds - np.arange(seeds + 1) + 0.5)
    shares, alone, right = [], [], []
    for _ in range(rounds):
        rates_before = rng.beta(0.5, 0.5, n)
        rates_after = np.where(rng.random(n) < moved, rng.beta(0.5, 0.5, n), rates_before)
        p, q = (by_count[rng.binomial(seeds, copied)] for copied in (rates_before, rates_after))
        before, after = (np.stack([one, np.zeros(n), 1 - one], axis=1) for one in (p, q))
        changed = (rates_before > 0.5) != (rates_after > 0.5)
        taken = find_changes(before, after, np.zeros(n, dtype=bool), 0.05).claimed[Change.CHANGED]
        shares.append((~changed[taken]).mean() if taken.any() else 0.0)
        right.append((taken & changed).sum())
        by_itself = discoveries(1 - (before * after).sum(1), 0.05)
        alone.append((~changed[by_itself]).mean() if by_itself.any() else 0.0)
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / rounds**0.5
    if moved <= 0.02:
        assert np.mean(alone) > 0.2
    else:
        assert np.mean(right) > 0.4 * moved * n / 2


def test_a_list_within_the_changes_needs_a_rate_of_its_own() -> None:
    """Changes are sure and their kind is not: by the list of changes alone, half the new memorizations were false."""
    rng = np.random.default_rng(6)
    before = np.tile(GENERALIZED, (2000, 1))
    after = np.tile((0.55, 0.45, 0.0), (2000, 1))
    found = find_changes(before, after, np.zeros(2000, dtype=bool), 0.05)
    assert found.claimed[Change.CHANGED].all()
    assert found.claimed[Change.NEW_RECURRING].all()
    assert not found.claimed[Change.NEW_MEMORIZED].any()
    assert (draw_classes(rng, after) != 0).mean() > 0.4


# Numbers of prompts.


@given(cases)
def test_numbers_are_sums_of_probabilities(case: Case) -> None:
    """Expected numbers lie in their intervals' range, and the three classes make up all prompts."""
    before, after, same = sides(case)
    found = find_shifts(before, after, same)
    n = len(case)
    for name, shift in found.items():
        for side, interval in ((before, shift.before), (after, shift.after)):
            assert interval.estimate == pytest.approx((side @ GROUPS[name]).sum(), abs=1e-6)
            assert 0 <= interval.lower <= interval.upper <= n
        assert shift.difference.estimate == pytest.approx(shift.after.estimate - shift.before.estimate, abs=1e-6)
        assert -n <= shift.difference.lower <= shift.difference.upper <= n
        assert 0 <= shift.rise + shift.fall <= 1 + TINY
    kinds = ("memorized", "spurious", "generalized")
    assert sum(found[name].after.estimate for name in kinds) == pytest.approx(n, abs=1e-6)


@given(st.lists(posteriors, min_size=1, max_size=40))
@settings(max_examples=40)
def test_numbers_are_poisson_binomial(side: list[Posterior]) -> None:
    """Ends of the intervals are scipy's quantiles."""
    p = np.clip([one[0] for one in side], 0, 1)
    found = find_shifts(side, side[::-1], [False] * len(side))["memorized"].before
    cdf = poisson_binom.cdf(np.arange(len(p) + 1), p)
    tail = (1 - INTERVAL_LEVEL) / 2
    for end, level in ((found.lower, tail), (found.upper, 1 - tail)):
        assert cdf[int(end)] >= level - TINY
        assert end == 0 or cdf[int(end) - 1] <= level + TINY


def test_the_difference_of_equal_prompts_is_binomial() -> None:
    """One side's number less another's, of prompts that are all alike, by scipy's binomial distribution."""
    before, after = np.tile((0.2, 0.0, 0.8), (30, 1)), np.tile((0.6, 0.0, 0.4), (30, 1))
    shift = find_shifts(before, after, np.zeros(30, dtype=bool))["memorized"]
    one, other = binom.pmf(np.arange(31), 30, 0.2), binom.pmf(np.arange(31), 30, 0.6)
    assert shift.rise == pytest.approx(np.outer(one, other)[np.triu_indices(31, 1)].sum())
    assert shift.fall == pytest.approx(np.outer(one, other)[np.tril_indices(31, -1)].sum())
    assert shift.difference.estimate == pytest.approx(12)
    assert shift.beyond_noise
    assert not find_shifts(before, before, np.zeros(30, dtype=bool))["memorized"].beyond_noise


def test_intervals_hold_the_numbers() -> None:
    """As often as they say, before, after and of the difference; a shared audit is on both sides alike."""
    rng = np.random.default_rng(8)
    before, after = draw_sides(rng, 400, 0.3)
    same = np.arange(400) < 100
    after[same] = before[same]
    shifts = find_shifts(before, after, same)
    held = {(name, part): 0 for name in GROUPS for part in ("before", "after", "difference")}
    rounds = 2000
    for _ in range(rounds):
        earlier = draw_classes(rng, before)
        later = np.where(same, earlier, draw_classes(rng, after))
        for name, group in GROUPS.items():
            numbers = group[earlier].sum(), group[later].sum()
            counted = {"before": numbers[0], "after": numbers[1], "difference": numbers[1] - numbers[0]}
            for part, number in counted.items():
                interval = getattr(shifts[name], part)
                held[name, part] += interval.lower <= number <= interval.upper
    # Numbers are whole: their intervals hold a little more than they say.
    assert all(INTERVAL_LEVEL - 0.02 < one / rounds < INTERVAL_LEVEL + 0.06 for one in held.values())


def test_a_shift_stands_out_where_no_prompt_does() -> None:
    """Of a thousand prompts that all lean a little further none has changed; that they lean further is sure."""
    before, after = np.tile((0.3, 0.0, 0.7), (1000, 1)), np.tile((0.45, 0.0, 0.55), (1000, 1))
    assert set(find_changes(before, after, np.zeros(1000, dtype=bool)).said) == {Change.UNDECIDED}
    shift = find_shifts(before, after, np.zeros(1000, dtype=bool))["memorized"]
    assert shift.beyond_noise
    assert shift.rise > 0.999


def test_claims_come_before_the_rest_and_the_gravest_first() -> None:
    """The order by which a prompt gets its one word."""
    assert [*CLAIMS, Change.UNDECIDED, Change.UNCHANGED] == list(Change)
    order = list(CLAIMS)
    for part in ("memorized", "spurious", "recurring"):
        assert order.index(Change(f"new_{part}")) < order.index(Change(f"gone_{part}")) < order.index(Change.CHANGED)
