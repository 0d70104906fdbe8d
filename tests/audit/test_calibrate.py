"""What is learned of a checkpoint from ordinary prompts and from its reference set."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi

from audit import demo
from audit.auditor import Auditor
from audit.calibrate import (
    FALSE_COPIES,
    FALSE_POSITIVE_RATE,
    FIRST_SEED,
    ORDINARY_RECURRENCE,
    STAND_INS,
    calibrate,
    copy_threshold,
    recurrence_threshold,
    usual,
)
from audit.errors import InvalidInput
from audit.evidence.neighbors import NeighborFinder
from audit.evidence.stability import pairwise_distances
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import SamplerSettings
from audit.reference.reference_set import ReferenceSet
from audit.verdict.calibration import conformal_threshold
from audit.verdict.decision import screen
from audit.verdict.features import CONTRASTS, TRACES, measurements

PROMPTS = demo.prompts()


@pytest.fixture(scope="module")
def images(reference: ReferenceSet) -> NDArray[np.uint8]:
    """Forty different images of the demo's training set."""
    images = np.unique(np.asarray(reference.images), axis=0)
    return images[np.linspace(0, len(images) - 1, 40).astype(int)]


def of(images: NDArray[np.uint8]) -> ReferenceSet:
    """Images as a set, pixels only."""
    return ReferenceSet("small", images, [""] * len(images), complete=True)


@pytest.fixture(scope="module")
def bare(checkpoint: Checkpoint) -> Auditor:
    """Of the demo without a reference set or a calibration of its own."""
    return Auditor(checkpoint)


@pytest.fixture(scope="module")
def quick(bare: Auditor) -> SamplerSettings:
    """As few steps as there can be."""
    return bare.resolve_sampler(steps=2)


# --- thresholds ------------------------------------------------------------------------------------------------------


def gaussian_pairs(dimension: int, prompts: int, samples: int, seed: int) -> NDArray[np.float64]:
    """Distances between the samples of each prompt, all of them standard normal."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            pairwise_distances(torch.from_numpy(rng.normal(size=(samples, dimension))))[np.triu_indices(samples, 1)]
            for _ in range(prompts)
        ]
    )


def recurring(delta: float, dimension: int, samples: int) -> float:
    """Share of so many samples that have another one within δ: distances are √2 times a χ variable."""
    return float(1 - (1 - chi(dimension).cdf(delta / 2**0.5)) ** (samples - 1))


@pytest.mark.parametrize("dimension", [5, 10, 20, 50])
def test_recurrence_thresholds_let_the_wanted_share_recur(dimension: int) -> None:
    """Extrapolated from 50 prompts of 16 samples to pairs a thousand times rarer than those in the tail.

    Of 16 trials the share is the wanted 5% within a factor of 3 in the median, and of 6 in every one.
    """
    found = [recurring(recurrence_threshold(gaussian_pairs(dimension, 50, 16, seed)), dimension, 512)
             for seed in range(16)]  # fmt: skip
    assert ORDINARY_RECURRENCE / 3 < np.median(found) < ORDINARY_RECURRENCE * 3
    assert min(found) > ORDINARY_RECURRENCE / 6
    assert max(found) < ORDINARY_RECURRENCE * 6


@pytest.mark.parametrize("dimension", [2, 20])
def test_what_is_seen_often_enough_is_counted(dimension: int) -> None:
    """Among 16 samples the pairs that matter are many: the share is the wanted one within a quarter in the median."""
    found = [
        recurring(recurrence_threshold(gaussian_pairs(dimension, 100, 16, seed), 16), dimension, 16)
        for seed in range(10)
    ]
    assert np.median(found) == pytest.approx(ORDINARY_RECURRENCE, rel=0.25)


def test_recurrence_thresholds_have_the_unit_of_the_distances() -> None:
    """Pixels twice as large, a threshold twice as large; the order of the pairs does not matter."""
    pairs = gaussian_pairs(5, 20, 8, 0)
    once = recurrence_threshold(pairs)
    assert recurrence_threshold(2 * pairs) == pytest.approx(2 * once)
    assert recurrence_threshold(np.random.default_rng(1).permutation(pairs)) == pytest.approx(once)


def test_fewer_samples_to_meet_among_allow_a_larger_threshold() -> None:
    """The same share recurs among fewer samples when they are given more room."""
    pairs = gaussian_pairs(5, 50, 16, 0)
    found = [recurrence_threshold(pairs, samples) for samples in (1000, 512, 100, 16)]
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[0]


def test_samples_that_are_all_alike_have_a_threshold() -> None:
    """A checkpoint that only copies divides by nothing."""
    found = recurrence_threshold(np.zeros(120))
    assert math.isfinite(found)
    assert found > 0


def test_usual_is_the_normal_distribution_behind() -> None:
    """Mean and spread of 10,000 normal values within 5%, also where a tenth of them is far out."""
    values = np.random.default_rng(0).normal(3.0, 0.5, 10_000)
    plain = usual(values.tolist())
    assert (plain.mean, plain.spread) == pytest.approx((3.0, 0.5), rel=0.05)
    values[:1000] = 50.0
    dirty = usual(values.tolist())
    assert dirty.mean == pytest.approx(3.0, abs=0.1)
    assert dirty.spread == pytest.approx(0.5, rel=0.2)


def test_copy_thresholds_let_few_images_from_elsewhere_be_copies(
    checkpoint: Checkpoint, images: NDArray[np.uint8]
) -> None:
    """δ_m is the 1% quantile of how near each image of the set is to the others."""
    finder = NeighborFinder(of(images), checkpoint)
    found = copy_threshold(finder)
    assert len(images) <= STAND_INS
    between = finder.between_references(range(len(images)))
    assert found == pytest.approx(np.quantile(between, FALSE_COPIES), rel=1e-3)
    assert np.mean(between < found - 1e-3) <= FALSE_COPIES
    assert found == copy_threshold(finder)
    assert found > 1


@pytest.mark.parametrize("kind", ["doubles", "one"])
def test_reference_sets_that_tell_no_threshold_are_no_crash(
    bare: Auditor, quick: SamplerSettings, images: NDArray[np.uint8], kind: str
) -> None:
    """Training sets hold images twice, which tell nothing; a single one leaves the threshold to the pixels."""
    small = of(np.concatenate([images, images[:10]]) if kind == "doubles" else images[:1])
    found = calibrate(Auditor(bare.checkpoint, small), PROMPTS[:2], sampler=quick, samples=4).delta_m
    assert (found is None) == (kind == "one")
    assert found is None or 0 < found < math.inf


# --- calibrations ----------------------------------------------------------------------------------------------------


def test_a_calibration_is_of_checkpoint_sampler_and_prompts(bare: Auditor, quick: SamplerSettings) -> None:
    """What ordinary prompts measure, thresholds of their samples, and whose they are; it fits from then on."""
    told: list[int] = []
    made = calibrate(
        bare, PROMPTS[:3], sampler=quick, samples=4, source="three captions", on_prompt=lambda: told.append(1)
    )
    assert len(told) == 3
    assert (made.checkpoint_digest, made.sampler) == (bare.checkpoint.digest, quick)
    assert (made.prompts, made.source, made.definition_samples) == (3, "three captions", 512)
    assert made.made is not None
    assert abs((datetime.now(UTC) - made.made).total_seconds()) < 3600
    assert made.delta_m is None
    rows, pairs = [], []
    for prompt in PROMPTS[:3]:
        screening, draws = bare.measure(prompt, range(FIRST_SEED, FIRST_SEED + 4), sampler=quick)
        rows.append(measurements(screening, draws.smoothed))
        pairs.append(pairwise_distances(draws.vectors)[np.triu_indices(4, 1)])
    assert made.delta_s == pytest.approx(recurrence_threshold(np.concatenate(pairs)), rel=1e-3)
    assert set(made.ordinary) == {*CONTRASTS, *TRACES}
    for name, found in made.ordinary.items():
        expected = usual([row[name] for row in rows])
        assert (found.mean, found.spread) == pytest.approx((expected.mean, expected.spread), abs=1e-4)
    # Three prompts cannot bound a rate of less than a quarter.
    assert made.false_positive_rate == 1 / 4
    own = Auditor(bare.checkpoint, None, made)
    assert own.defaults == quick
    assert made.fits(own.checkpoint.digest, own.resolve_sampler())


def test_calibrations_do_not_depend_on_the_one_before(bare: Auditor, quick: SamplerSettings) -> None:
    """The same prompts give the same numbers, whatever the auditor was calibrated with."""
    other = demo.calibration().model_copy(update={"delta_s": 0.1, "screen_threshold": 0.01})
    first, second = (
        calibrate(auditor, PROMPTS[:2], sampler=quick, samples=4)
        for auditor in (bare, Auditor(bare.checkpoint, None, other))
    )
    assert replace_time(first) == replace_time(second)


def replace_time(made: object) -> object:
    """Without when it was made."""
    return {name: value for name, value in vars(made).items() if name != "made"}


def test_thresholds_that_are_known_are_kept(bare: Auditor, quick: SamplerSettings, images: NDArray[np.uint8]) -> None:
    """A reference set gives δ_m where nobody does."""
    auditor = Auditor(bare.checkpoint, of(images))
    known = calibrate(auditor, PROMPTS[:2], sampler=quick, samples=4, delta_m=1.5, delta_s=2.5)
    assert (known.delta_m, known.delta_s) == (1.5, 2.5)
    found = calibrate(auditor, PROMPTS[:2], sampler=quick, samples=4, delta_s=2.5)
    assert found.delta_m == pytest.approx(copy_threshold(NeighborFinder(of(images), bare.checkpoint)), rel=1e-3)
    assert found.source == "2 ordinary prompts, 4 samples each"


def test_few_of_the_prompts_themselves_are_flagged(bare: Auditor, quick: SamplerSettings) -> None:
    """The threshold is the conformal one of their own screens, of the rate that so many of them can bound."""
    prompts = PROMPTS[-24:]
    made = calibrate(bare, prompts, sampler=replace(quick, steps=1), samples=4, delta_s=4.0)
    assert made.false_positive_rate == FALSE_POSITIVE_RATE
    screened = Auditor(bare.checkpoint, None, made).screen(prompts)
    scores = [one.recurring_probability for one in screened]
    assert made.screen_threshold == pytest.approx(conformal_threshold(scores, made.false_positive_rate), abs=1e-3)
    assert 0 < made.screen_threshold < 1
    assert sum(one.flagged for one in screened) <= 1
    screening, _ = bare.measure(prompts[0], range(1), sampler=replace(quick, steps=1))
    again = screen(screening, made, definition_samples=512, fits=True)
    assert again.recurring_probability == pytest.approx(scores[0], abs=1e-3)


@pytest.mark.parametrize("count", [2, 18, 19])
def test_few_prompts_bound_the_rate_that_they_can(bare: Auditor, quick: SamplerSettings, count: int) -> None:
    """Up to 18 prompts nothing is over the largest of their scores; from 19 on the rate is 1/20."""
    made = calibrate(bare, PROMPTS[:count], sampler=replace(quick, steps=1), samples=4, delta_s=4.0)
    assert made.false_positive_rate == pytest.approx(max(FALSE_POSITIVE_RATE, 1 / (count + 1)))
    screened = Auditor(bare.checkpoint, None, made).screen(PROMPTS[:count])
    assert made.screen_threshold == pytest.approx(max(one.recurring_probability for one in screened), abs=1e-3)


@pytest.mark.parametrize(
    ("prompts", "samples"),
    [([], 16), (PROMPTS[:1], 16), (PROMPTS[:1] * 5, 16), (PROMPTS[:5], 3), (PROMPTS[:5], 0)],
)
def test_too_little_is_no_calibration(bare: Auditor, quick: SamplerSettings, prompts: list[str], samples: int) -> None:
    """One prompt, the same one again and again, or few samples tell no spread: refused before anything is drawn."""
    told: list[int] = []
    with pytest.raises(InvalidInput) as caught:
        calibrate(bare, prompts, sampler=quick, samples=samples, on_prompt=lambda: told.append(1))
    assert (caught.value.reason, caught.value.field) == ("CALIBRATION_TOO_SMALL", "prompts")
    assert told == []


def test_impossible_prompts_are_named(bare: Auditor, quick: SamplerSettings) -> None:
    """An empty one, or one that is too long, is no ordinary prompt."""
    for prompt, reason in (("", "PROMPT_EMPTY"), ("coat " * 100, "PROMPT_TOO_LONG")):
        with pytest.raises(InvalidInput) as caught:
            calibrate(bare, [PROMPTS[0], prompt], sampler=quick, samples=4)
        assert caught.value.reason == reason
