"""The whole benchmark on a few captions of the demo, small; and its tables on made-up scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit import demo
from audit.bench.baselines import SEEDS, Baselines
from audit.bench.comparison import Comparison, Verdicts, compare
from audit.bench.ladders import TrainedLadder, open_ladder
from audit.bench.tables import EQUAL, Scored, draw, page
from audit.bench.truth import TruthRow


@pytest.fixture(scope="module")
def ladder() -> TrainedLadder:
    """The demo."""
    return open_ladder(demo.FOLDER)


@pytest.fixture(scope="module")
def compared(ladder: TrainedLadder) -> Comparison:
    """A copied caption and one of many images of the tuning half."""
    rows = ladder.split("tuning")
    return compare(ladder, [rows[0], rows[-1]], samples=8, steps=5)


def test_a_ladder_without_its_images_lays_them_out_again(ladder: TrainedLadder, tmp_path: Path) -> None:
    """The training set that a recipe gives is the one that was saved."""
    for name in ("recipe.json", "truth.jsonl", "checkpoint"):
        (tmp_path / name).symlink_to(demo.FOLDER / name)
    again = open_ladder(tmp_path)
    np.testing.assert_array_equal(again.reference.images[:], ladder.reference.images[:])
    assert list(again.reference.captions) == list(ladder.reference.captions)
    assert again.reference.complete


def test_every_detector_scores_every_prompt_and_says_what_it_costs(compared: Comparison, ladder: TrainedLadder) -> None:
    """At 1, 4 and 16 seeds; a copied caption scores higher where the detector can tell at all."""
    steps = ladder.sampler.steps
    costs = {
        "Wen et al., first step": 2, "Wen et al., all steps": 2 * steps, "Jeon et al.": 4,
        "Asthana & Belagiannis, γ = 2": 4, "Kim & Lee, last contrast": 2 * steps,
        "Kim & Lee, diagonal": 2 * steps + 64, "Carlini et al.": 2 * steps, "trajectory displacement": 2 * steps,
    }  # fmt: skip
    found = {(one.name, one.seeds): one for one in compared.baselines}
    for name, cost in costs.items():
        for seeds in SEEDS:
            if name.startswith("Carlini") and seeds == 1:
                assert (name, seeds) not in found
                continue
            one = found[name, seeds]
            assert one.evaluations == cost * seeds
            assert one.scores.shape == (2,)
            assert np.isfinite(one.scores).all()
            assert one.seconds > 0
    for name in ("Carlini et al.", "Kim & Lee, diagonal"):
        copied, ordinary = found[name, 16].scores
        assert copied > ordinary


def test_ours_say_what_they_cost_too(compared: Comparison, ladder: TrainedLadder) -> None:
    """Screens by their noises, audits by what they took; both prompts are told apart by all of them."""
    found = {one.name: one for one in compared.ours}
    assert [found[f"screen, {n} noise{'s' * (n > 1)}"].evaluations.tolist() for n in (1, 2, 8)] == [
        [2, 2], [4, 4], [16, 16],
    ]  # fmt: skip
    assert found["screen"].evaluations.tolist() == [8, 8]
    assert found["1 seed"].evaluations.tolist() == 2 * [8 + ladder.sampler.steps + 4]
    assert found["exhaustive"].evaluations.tolist() == [80, 80]
    assert found["audit"].evaluations.min() >= 8 + 4 * ladder.sampler.steps + 16
    assert set(EQUAL.values()) <= found.keys()
    for one in found.values():
        assert one.fractions.shape == one.probabilities.shape == (2, 3)
        np.testing.assert_allclose(one.fractions.sum(1), 1, atol=1e-6)
        assert one.fractions[0, 2] < 0.5 < one.fractions[1, 2], one.name


def test_detectors_see_the_same_noise(compared: Comparison, ladder: TrainedLadder) -> None:
    """A prompt's score depends on nothing but itself and the seeds."""
    alone = Baselines(ladder.auditor(), ladder.sampler, 4_000_000).run(
        [compared.rows[1].prompt], [compared.rows[1].prompt]
    )
    both = {(one.name, one.seeds): one.scores[1] for one in compared.baselines}
    for one in alone:
        if one.name != "trajectory displacement":  # which is told what is ordinary
            assert one.scores[0] == pytest.approx(both[one.name, one.seeds], rel=1e-3)


def made_up(count: int = 60) -> Comparison:
    """Scores that tell classes apart a little, by a detector and by ours."""
    rng = np.random.default_rng(0)
    names = ("memorized", "spurious", "generalized")
    rows = tuple(
        TruthRow(
            f"a {word} number {i}", 1 if i % 3 == 0 else 64, "held-out", memorized=1.0, spurious=0.0, generalized=0.0,
            dominant=names[i % 3] if i % 10 else "", reference_distance=1.0, original_distance=1.0, sample_distance=1.0,
        )
        for i, word in enumerate(rng.choice(["red", "green", "blue"], count))
    )  # fmt: skip
    truth = np.arange(count) % 3
    from audit.bench.baselines import Detection

    detections = tuple(
        Detection("Somebody et al.", n, 2 * n, 0.01 * n, (truth == 0) + rng.normal(0, 1, count)) for n in SEEDS
    )
    sure = np.eye(3)[truth] * 0.8 + 0.2 / 3
    names_of_ours = (*EQUAL.values(), "screen", "audit", "audit, no reference set", "exhaustive")
    ours = [Verdicts(name, np.full(count, 50), 0.1, sure, sure) for name in names_of_ours]
    ours[0] = replace(ours[0], evaluations=np.full(count, 2))
    return Comparison("made up", rows, detections, tuple(ours))


def test_the_page_says_what_was_found() -> None:
    """Prompts without a dominant class do not count; perfect scores are perfect; the control is there."""
    scored = Scored(made_up(), draws=100)
    text = page(scored)
    assert "54 of 60 captions have a dominant class" in text
    assert "| **audit** | 50 | 100 | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in text
    assert "Somebody et al., n = 16" in text
    assert "A classifier of the words alone: memorized against the rest" in text
    assert text.count("| NFE at most |") == 2
    # Confidence of 0.87 where all is right: off by 0.13.
    (line,) = [line for line in text.splitlines() if line.startswith("| audit |")]
    assert "0.133 (0.133 to 0.133)" in line
    # A tenth of 32 evaluations is what one noise takes, and not what two do.
    (line,) = [line for line in text.splitlines() if line.startswith("| memorized, AUC |")]
    assert "Somebody et al., n = 16: " in line
    assert "screen, 1 noise: 1.000 at 2 NFE" in line
    assert "| memorized against spurious, AUC |  | audit, no reference set: 1.000 (1.000 to 1.000) |" in text


def test_the_figure_has_a_row_per_ladder() -> None:
    """ROC curves on the left, cost on the right."""
    figure = draw([Scored(made_up(), 20), Scored(made_up(), 20)])
    assert len(figure.axes) == 4
    assert all(axes.get_legend() for axes in figure.axes)
