"""The paper's rule and its thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.verdict.rule import CLASSES, PhaseClass, class_fractions, classify_samples, find_valley

DISTANCES = st.floats(0, 10) | st.just(np.inf)


@given(
    pairs=st.lists(st.tuples(DISTANCES, DISTANCES), min_size=1, max_size=30),
    delta_m=st.floats(0, 10),
    delta_s=st.floats(0, 10),
)
def test_each_sample_has_the_class_of_the_rule(
    pairs: list[tuple[float, float]], delta_m: float, delta_s: float
) -> None:
    """Near a reference → memorized; else near another sample → spurious; else generalized; thresholds included."""
    reference, sample = np.array(pairs).T
    classes = classify_samples(reference, sample, delta_m, delta_s)
    for found, (to_reference, to_sample) in zip(classes, pairs, strict=True):
        if to_reference <= delta_m:
            assert CLASSES[found] == PhaseClass.MEMORIZED
        elif to_sample <= delta_s:
            assert CLASSES[found] == PhaseClass.SPURIOUS
        else:
            assert CLASSES[found] == PhaseClass.GENERALIZED
    fractions = class_fractions(classes)
    assert fractions.shape == (3,)
    assert fractions.sum() == pytest.approx(1)


def test_fractions_count_classes_that_are_absent() -> None:
    """A class without samples has fraction 0, not no entry."""
    assert class_fractions(np.array([0, 0, 0, 0])).tolist() == [1, 0, 0]
    assert class_fractions(np.array([2, 1, 2, 2])).tolist() == [0, 0.25, 0.75]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_valley_of_a_mixture_lies_between_its_peaks(share: float, seed: int) -> None:
    """A narrow peak of copies and a broad one of new images are told apart, and few samples fall on the wrong side."""
    rng = np.random.default_rng(seed)
    n = 2000
    copies = rng.lognormal(np.log(0.6), 0.3, int(share * n))
    others = rng.lognormal(np.log(8.0), 0.25, n - len(copies))
    valley = find_valley(np.concatenate([copies, others]))
    assert 0.8 < valley < 7
    assert np.mean(copies > valley) < 0.02
    assert np.mean(others <= valley) < 0.02


def test_valley_scales_with_the_distances() -> None:
    """Distances in other units have their valley at the same place."""
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.lognormal(0, 0.3, 300), rng.lognormal(2, 0.3, 700)])
    assert find_valley(10 * distances) == pytest.approx(10 * find_valley(distances), rel=1e-6)


def test_stragglers_are_no_peak() -> None:
    """A few identical samples or a few lost ones move the valley little, and make none where there is none."""
    rng = np.random.default_rng(1)
    copies, others = rng.lognormal(-0.5, 0.3, 400), rng.lognormal(2, 0.25, 1600)
    clean = find_valley(np.concatenate([copies, others]))
    dirty = find_valley(np.concatenate([copies, others, [0.0] * 5, [500.0] * 5]))
    assert np.mean(copies > dirty) < 0.02
    assert np.mean(others <= dirty) < 0.02
    assert dirty == pytest.approx(clean, rel=0.5)
    with pytest.raises(ValueError, match="one peak"):
        find_valley(np.concatenate([others, [0.0] * 5, [500.0] * 5]))


@pytest.mark.parametrize("seed", range(3))
def test_a_single_peak_has_no_valley(seed: int) -> None:
    """Where nothing is copied there is no threshold to be found, and that is said."""
    distances = np.random.default_rng(seed).lognormal(2, 0.3, 1500)
    with pytest.raises(ValueError, match="one peak"):
        find_valley(distances)


def test_equal_distances_have_no_valley() -> None:
    """A constant is a single peak."""
    with pytest.raises(ValueError, match="one peak"):
        find_valley(np.full(50, 3.0))
