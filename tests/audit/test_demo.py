"""The checkpoint that ships with Basin. Those under "trained" hold for the trained one alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit import demo
from audit.auditor import Auditor
from audit.bench.text_control import text_only_auc
from audit.bench.truth import DOMINANCE, TruthRow, load_truth
from audit.evidence.neighbors import NeighborFinder
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import SamplerSettings
from audit.phase.data import load_fashion_mnist
from audit.phase.ladder import PRESETS, lay_out
from audit.reference.reference_set import ReferenceSet
from audit.verdict.rule import CLASSES, PhaseClass


def rows() -> tuple[TruthRow, ...]:
    """The truth table, row by row."""
    return load_truth(demo.FOLDER / "truth.jsonl")


def test_the_folder_is_small() -> None:
    """All that ships is under 25 MB."""
    assert sum(path.stat().st_size for path in demo.FOLDER.rglob("*") if path.is_file()) < 25e6


def test_nothing_in_the_folder_is_pickled() -> None:
    """Weights are safetensors, arrays are NumPy's without objects."""
    suffixes = {path.suffix for path in demo.FOLDER.rglob("*") if path.is_file()}
    assert not suffixes & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def test_the_calibration_fits_the_weights(checkpoint: Checkpoint) -> None:
    """It was made with these weights, and its sampler is one the checkpoint can run."""
    calibration = demo.calibration()
    assert isinstance(calibration.sampler, SamplerSettings)
    assert calibration.fits(checkpoint.digest, calibration.sampler)
    assert Auditor(checkpoint, None, calibration).resolve_sampler() == calibration.sampler


def test_every_prompt_is_one_the_checkpoint_reads(checkpoint: Checkpoint) -> None:
    """Captions are unique and none is over the length."""
    prompts = demo.prompts()
    assert len(set(prompts)) == len(prompts)
    assert len(checkpoint.encode_prompts(prompts)["text"]) == len(prompts)


def test_every_training_image_is_in_the_reference_set(reference: ReferenceSet) -> None:
    """A caption has as many reference images as its K says, and there are no others."""
    counts = {str(row["prompt"]): row["images"] for row in demo.truth()}
    assert {caption: reference.captions.count(caption) for caption in counts} == counts
    assert len(reference) == sum(int(str(count)) for count in counts.values())


# --- trained: what follows holds for the trained checkpoint, not for a placeholder --------------------------------


def test_trained_training_set_is_the_recipes(reference: ReferenceSet) -> None:
    """The reference set is, image by image, what the demo recipe lays out from Fashion-MNIST."""
    recipe = type(PRESETS["demo"]).model_validate_json((demo.FOLDER / "recipe.json").read_bytes())
    ladder = lay_out(recipe, load_fashion_mnist())
    np.testing.assert_array_equal(reference.images[..., 0], ladder.images)
    assert reference.captions == [ladder.captions[owner] for owner in ladder.owners]


@pytest.mark.parametrize("name", list(CLASSES))
def test_trained_every_phase_is_there(name: PhaseClass) -> None:
    """Each class dominates at least five prompts, on both sides of the split."""
    own = [row for row in rows() if row.dominant == name]
    assert len(own) >= 5
    assert {row.split for row in own} == {"tuning", "held-out"}
    assert all(getattr(row, name) >= DOMINANCE for row in own)


@pytest.mark.parametrize("name", list(CLASSES))
def test_trained_words_tell_nothing(name: PhaseClass) -> None:
    """A text-only classifier does not tell a class from the rest: its interval includes a coin's AUC."""
    area = text_only_auc([row.prompt for row in rows()], [row.dominant == name for row in rows()])
    assert area.lower <= 0.5 <= area.upper


def test_trained_few_images_are_memorized_and_many_generalize() -> None:
    """K alone decides: medians of the memorized fraction fall from the first rung to the last."""
    fractions: dict[int, list[float]] = {}
    for row in rows():
        fractions.setdefault(row.images, []).append(row.memorized)
    sizes = sorted(fractions)
    assert np.median(fractions[sizes[0]]) > DOMINANCE
    assert np.median(fractions[sizes[-1]]) < 0.1


def _dominant(name: str) -> Any:
    return next(row for row in rows() if row.dominant == name and row.split == "held-out")


def test_trained_one_image_is_audited_as_memorized(auditor: Auditor) -> None:
    """A caption of a single image gives copies of it."""
    row = next(row for row in rows() if row.images == 1 and row.dominant == "memorized")
    report = auditor.audit(row.prompt)
    assert report.decision.verdict == PhaseClass.MEMORIZED
    assert 2 * report.decision.copies >= len(report.seeds)
    neighbors = report.evidence.neighbors
    assert neighbors is not None
    assert report.reference is not None
    nearest = report.reference.entries[int(neighbors.index[neighbors.distance.argmin()])].caption
    assert nearest == row.prompt


def test_trained_a_thousand_images_are_audited_as_generalized(auditor: Auditor) -> None:
    """A caption of very many images gives something new each time."""
    row = max((row for row in rows() if row.dominant == "generalized"), key=lambda row: row.images)
    report = auditor.audit(row.prompt)
    assert row.images >= 500
    assert report.decision.verdict == PhaseClass.GENERALIZED


def test_trained_copies_stand_at_the_decoders_floor(checkpoint: Checkpoint, reference: ReferenceSet) -> None:
    """An exact copy is found at distance 0 while its original is a reconstruction error away."""
    indices = [0, len(reference) // 2, len(reference) - 1]
    copies = checkpoint.decode(checkpoint.encode(reference.reference_images(indices)))
    found = NeighborFinder(reference, checkpoint).find(copies)
    assert (found.distance < 1e-2).all()
    assert (found.original_distance > 0.5).all()


def test_trained_measurements_tell_recurring_prompts(auditor: Auditor) -> None:
    """A memorized prompt is above the ordinary range, in contrast and in the smoothed trace; its curvature is steeper.

    A generalizing one is below it in neither.
    """
    memorized, generalized = (auditor.audit(_dominant(name).prompt) for name in ("memorized", "generalized"))
    usual = {one.name: one.ordinary for one in memorized.decision.measurements}
    found, plain = ({one.name: one.value for one in report.decision.measurements}
                    for report in (memorized, generalized))  # fmt: skip
    for name in ("contrast_late", "trace_near"):
        _, high = usual[name] or (0, 0)
        assert found[name] > high
        assert found[name] > plain[name]
    for a, b in zip(memorized.evidence.curvature, generalized.evidence.curvature, strict=True):
        assert a.prompt.trace > b.prompt.trace
        assert a.prompt.flat_share <= b.prompt.flat_share


def test_trained_calibration_flags_copies_and_hardly_any_ordinary_prompt(auditor: Auditor) -> None:
    """Of held-out captions the screen flags most of those that are memorized, and at most a few that generalize."""
    held_out = [row for row in rows() if row.split == "held-out"]
    flagged = [one.flagged for one in auditor.screen([row.prompt for row in held_out])]
    shares = {
        name: np.mean([flag for row, flag in zip(held_out, flagged, strict=True) if row.dominant == name])
        for name in CLASSES
    }
    assert shares[PhaseClass.MEMORIZED] >= 0.8
    assert shares[PhaseClass.GENERALIZED] <= 0.2
