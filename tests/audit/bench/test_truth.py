"""Truth tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit.bench.truth import (
    DOMINANCE,
    Caption,
    Distances,
    Truth,
    TruthRow,
    leave_out_telling,
    load_truth,
    measure_distances,
    save_truth,
    tabulate,
)
from audit.evidence.neighbors import NeighborFinder
from audit.evidence.stability import measure_stability
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import build_scheduler, sample
from audit.reference.reference_set import ReferenceSet


def distances(rng: np.random.Generator, memorized: float, spurious: float, n: int = 400) -> Distances:
    """Distances of a prompt with these fractions, both kinds with peaks at 0.5 and 8."""
    classes = rng.permutation(np.repeat([0, 1, 2], [round(memorized * n), round(spurious * n),
                                                    n - round(memorized * n) - round(spurious * n)]))  # fmt: skip
    near, far = rng.lognormal(np.log(0.5), 0.3, n), rng.lognormal(np.log(8), 0.2, n)
    reference = np.where(classes == 0, near, far)
    return Distances(reference, reference + 2.5, np.where(classes < 2, near, far))


SPLITS = ("tuning", "held-out")


def table() -> tuple[list[Caption], list[Distances]]:
    """Eight prompts, two of each class and two mixtures, one of each in either half."""
    rng = np.random.default_rng(0)
    shares = [(0.95, 0.03), (0.9, 0.05), (0.1, 0.8), (0.05, 0.9), (0.0, 0.02), (0.0, 0.01), (0.5, 0.3), (0.3, 0.5)]
    sizes = [1, 1, 16, 16, 500, 500, 4, 4]
    captions = [Caption(f"p{i}", size, SPLITS[i % 2]) for i, size in enumerate(sizes)]
    return captions, [distances(rng, m, s) for m, s in shares]


def test_classes_dominate_by_the_rule() -> None:
    """δ_m is the valley, δ_s what 5% of the plain samples fall under, and no class dominates a mixture."""
    captions, every = table()
    truth = tabulate(captions, every, fallback=3.0)
    assert truth.valley
    assert 0.8 < truth.delta_m < 6
    plain = every[4]
    assert (plain.sample <= truth.delta_s).mean() == pytest.approx(0.05, abs=0.01)
    assert [row.dominant for row in truth.rows] == [
        "memorized", "memorized", "spurious", "spurious", "generalized", "generalized", "", "",
    ]  # fmt: skip
    for row in truth.rows:
        best = max(row.memorized, row.spurious, row.generalized)
        assert (best >= DOMINANCE) == bool(row.dominant)
        assert row.memorized + row.spurious + row.generalized == pytest.approx(1, abs=2e-4)
    assert [row.split for row in truth.rows] == [caption.split for caption in captions]


def test_held_out_prompts_do_not_move_the_thresholds() -> None:
    """Only the tuning half decides where the thresholds are."""
    captions, every = table()
    changed = [
        replace(own, reference=own.reference * 3, sample=own.sample * 3) if caption.split == "held-out" else own
        for caption, own in zip(captions, every, strict=True)
    ]
    one, other = tabulate(captions, every, 3.0), tabulate(captions, changed, 3.0)
    assert (one.delta_m, one.delta_s) == (other.delta_m, other.delta_s)


def test_a_ladder_held_out_whole_has_thresholds_of_its_own() -> None:
    """δ_m is the valley over all captions, δ_s is of those that are there to calibrate with."""
    captions, every = table()
    kept = [
        replace(caption, split="calibrate" if caption.images == 500 else "held-out", weight=caption.images)
        for caption in captions
    ]
    truth = tabulate(kept, every, 3.0)
    assert truth.valley
    plain = np.concatenate([every[4].sample, every[5].sample])
    assert (plain <= truth.delta_s).mean() == pytest.approx(0.05, abs=0.01)
    assert [row.weight for row in truth.rows] == [1, 1, 16, 16, 500, 500, 4, 4]


def test_without_a_transition_the_fallback_is_used() -> None:
    """A model that copies nothing has no valley, and says so."""
    captions, every = table()
    rng = np.random.default_rng(1)
    flat = [Distances(*rng.lognormal(2, 0.2, (3, 400))) for _ in every]
    truth = tabulate(captions, flat, fallback=1.25)
    assert truth.delta_m == 1.25
    assert not truth.valley
    assert {row.dominant for row in truth.rows} == {"generalized"}


def row(prompt: str, dominant: str, split: str = "held-out") -> TruthRow:
    """A prompt of a class."""
    return TruthRow(
        prompt,
        1,
        split,
        memorized=float(dominant == "memorized"),
        spurious=float(dominant == "spurious"),
        generalized=float(dominant == "generalized"),
        dominant=dominant,
        reference_distance=1.0,
        original_distance=1.0,
        sample_distance=1.0,
    )


def test_held_out_captions_whose_words_tell_are_left_out() -> None:
    """Only as many as it takes, of those that have a class; a table too small to be balanced stays as it is."""
    rng = np.random.default_rng(2)
    rows = []
    for index in range(120):
        own = ["memorized", "generalized"][index % 2]
        words = [f"word{number}" for number in rng.choice(12, 4)] + ["telling"] * (own == "memorized" and index < 40)
        rows.append(row(" ".join(words), own))
    rows += [row("telling word1", ""), row("telling word2", "memorized", "calibrate")]
    found = leave_out_telling(Truth(tuple(rows), 1.0, 2.0, True))
    gone = [one for one in found.rows if one.split == "left out"]
    assert 0 < len(gone) <= 25
    assert all(one.dominant for one in gone)
    assert [one.split for one in found.rows[-2:]] == ["held-out", "calibrate"]
    for few in ([row("a", "memorized"), row("b", "generalized")], [row("a b", "spurious")] * 3, []):
        small = Truth(tuple(few), 1.0, 2.0, True)
        assert leave_out_telling(small) == small


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """One line per prompt, all of it back."""
    truth = tabulate(*table(), fallback=3.0)
    save_truth(truth, tmp_path / "truth.jsonl")
    assert load_truth(tmp_path / "truth.jsonl") == truth.rows
    assert len((tmp_path / "truth.jsonl").read_text().splitlines()) == 8


def test_distances_are_measured_once(tmp_path: Path, checkpoint: Checkpoint, reference: ReferenceSet) -> None:
    """Distances are those of one batch of all seeds; a prompt that is done is read, not drawn again."""
    sampler = replace(checkpoint.defaults, steps=2, guidance=1.0)
    prompts = ["a red wool coat", "a teal bag"]
    found = measure_distances(checkpoint, reference, prompts, sampler, tmp_path, samples=6)
    drawn = sample(
        checkpoint.denoiser, build_scheduler("", checkpoint.scheduler_config), sampler,
        checkpoint.encode_prompts([prompts[1]]), checkpoint.encode_prompts([""]), range(6), (4, 8, 8),
    )  # fmt: skip
    images = checkpoint.decode(drawn.latents)
    near = NeighborFinder(reference, checkpoint).find(images)
    np.testing.assert_allclose(found[1].reference, near.distance, rtol=1e-3, atol=1e-3)
    between = measure_stability(reference.vectors(images), 1.0).nearest_sample_distance
    np.testing.assert_allclose(found[1].sample, between, rtol=1e-3, atol=1e-3)
    (tmp_path / "0001.npz").unlink()
    stamp = (tmp_path / "0000.npz").stat().st_mtime_ns
    again = measure_distances(checkpoint, reference, prompts, sampler, tmp_path, samples=6)
    assert (tmp_path / "0000.npz").stat().st_mtime_ns == stamp
    np.testing.assert_allclose(again[1].reference, found[1].reference, rtol=1e-3, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.npz", "0001.npz"]
