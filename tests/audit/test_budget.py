"""What an audit may spend, and in what order its seeds are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.budget import GROUP, Budget
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.limits import MAX_SEED, MAX_SEEDS

SEEDS = st.integers(1, MAX_SEEDS)


@given(seeds=SEEDS, minimum=SEEDS, first=st.integers(0, MAX_SEED))
def test_groups_are_all_seeds_once(seeds: int, minimum: int, first: int) -> None:
    """In order, none twice, none left out, never more side by side than fit into a group."""
    groups = list(Budget(seeds=seeds, minimum_seeds=minimum, first_seed=first).groups())
    assert [seed for group in groups for seed in group] == list(range(first, first + seeds))
    assert all(1 <= len(group) <= GROUP for group in groups)


@given(seeds=SEEDS, minimum=SEEDS)
def test_groups_double_what_was_drawn(seeds: int, minimum: int) -> None:
    """The least number first, then each time as many again as there were before, up to a group and to the last seed."""
    sizes = [len(group) for group in Budget(seeds=seeds, minimum_seeds=minimum).groups()]
    assert sizes[0] == min(minimum, seeds, GROUP)
    for index, size in enumerate(sizes[1:], 1):
        before = sum(sizes[:index])
        assert size == min(before, GROUP, seeds - before)


def test_the_usual_groups() -> None:
    """Four seeds, then four more, eight, sixteen: looks that there are estimators for."""
    assert [list(group) for group in Budget().groups()] == [
        [0, 1, 2, 3], [4, 5, 6, 7], list(range(8, 16)), list(range(16, 32)),
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 5, GROUP])
def test_a_fixed_budget_is_one_group(seeds: int) -> None:
    """With as many seeds at least as at most, all of them are drawn side by side."""
    assert list(Budget(seeds=seeds, minimum_seeds=seeds, first_seed=7).groups()) == [range(7, 7 + seeds)]


@pytest.mark.parametrize(
    ("make", "reason", "field"),
    [
        (lambda: Budget(seeds=0), "SEEDS_OUT_OF_RANGE", "budget.seeds"),
        (lambda: Budget(seeds=1025), "SEEDS_OUT_OF_RANGE", "budget.seeds"),
        (lambda: Budget(minimum_seeds=0), "MINIMUM_SEEDS_OUT_OF_RANGE", "budget.minimum_seeds"),
        (lambda: Budget(minimum_seeds=1025), "MINIMUM_SEEDS_OUT_OF_RANGE", "budget.minimum_seeds"),
        (lambda: Budget(first_seed=-1), "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
        (lambda: Budget(first_seed=2**63), "FIRST_SEED_OUT_OF_RANGE", "budget.first_seed"),
        (lambda: Budget(definition_samples=1), "DEFINITION_SAMPLES_OUT_OF_RANGE", "budget.definition_samples"),
        (lambda: Budget(curvature=CurvatureSettings("exact")), "CURVATURE_UNKNOWN", "budget.curvature"),  # type: ignore
        (lambda: Budget(curvature=CurvatureSettings(samples=0)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(probes=0)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(steps=-1)), "CURVATURE_EMPTY", "budget.curvature"),
        (lambda: Budget(curvature=CurvatureSettings(noise_levels=())), "NOISE_LEVELS_OUT_OF_RANGE", "budget.curvature"),
        (
            lambda: Budget(curvature=CurvatureSettings(noise_levels=(math.nan,))),
            "NOISE_LEVELS_OUT_OF_RANGE",
            "budget.curvature",
        ),
    ],
)
def test_impossible_budgets_are_named(make: Callable[[], Budget], reason: str, field: str) -> None:
    """A value out of range is refused with its field and a stable reason."""
    with pytest.raises(InvalidInput) as caught:
        make()
    assert (caught.value.reason, caught.value.field) == (reason, field)
