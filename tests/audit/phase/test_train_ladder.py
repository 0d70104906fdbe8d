"""A whole ladder, tiny and hardly trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audit.auditor import Auditor
from audit.bench.truth import load_truth
from audit.budget import Budget
from audit.model.loading import load_checkpoint
from audit.phase.data import LabeledImages
from audit.phase.ladder import Recipe, Rung
from audit.phase.train_ladder import train_ladder
from audit.reference.reference_set import ReferenceSet
from audit.verdict.calibration import Calibration

RECIPE = Recipe(
    seed=1,
    rungs=(Rung(images=1, captions=2), Rung(images=3, captions=3)),
    autoencoder_channels=(8, 8, 16),
    autoencoder_steps=4,
    unet_channels=(16, 32),
    text_width=16,
    prediction_type="v_prediction",
    denoiser_steps=4,
    clip_steps=2,
    batch_size=4,
    sampler_steps=2,
)
FILES = {
    "README.md", "recipe.json", "curves.png", "truth.jsonl", "checkpoint/model_index.json",
    "checkpoint/calibration.json", "checkpoint/unet/diffusion_pytorch_model.safetensors",
    "checkpoint/vae/diffusion_pytorch_model.safetensors", "checkpoint/text_encoder/model.safetensors",
    "checkpoint/scheduler/scheduler_config.json", "clip/open_clip_config.json", "clip/open_clip_model.safetensors",
    "reference/reference.json",
}  # fmt: skip


def data() -> LabeledImages:
    """Noise in ten classes."""
    rng = np.random.default_rng(0)
    return LabeledImages(rng.integers(0, 256, (200, 32, 32), dtype=np.uint8), np.arange(200) % 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with the work beside it."""
    folder = tmp_path_factory.mktemp("ladder")
    train_ladder(RECIPE, data(), folder / "out", folder / "work")
    return folder


def test_the_whole_folder_is_written(trained: Path) -> None:
    """Pipeline, calibration, open_clip model, reference set, truth, card: also where nothing was learned."""
    out = trained / "out"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} >= FILES
    assert not list(out.rglob("*.bin"))
    assert not list(out.rglob("*.pt"))


def test_the_folder_is_audited_like_any_other(trained: Path) -> None:
    """It loads, its calibration fits, its reference set is complete, and an audit of a caption runs."""
    out = trained / "out"
    checkpoint, calibration = load_checkpoint(out / "checkpoint"), Calibration.load(out / "checkpoint/calibration.json")
    reference = ReferenceSet.load(out / "reference")
    assert checkpoint.denoiser.prediction_type == "v_prediction"
    assert calibration.checkpoint_digest == checkpoint.digest
    assert reference.complete
    assert len(reference) == 2 * 1 + 3 * 3
    report = Auditor(checkpoint, reference, calibration).audit(
        load_truth(out / "truth.jsonl")[0].prompt, budget=Budget(2)
    )
    assert report.calibration_fits


def test_the_truth_has_a_row_for_every_caption(trained: Path) -> None:
    """Fractions sum to one, the split alternates, and K is the recipe's."""
    rows = load_truth(trained / "out" / "truth.jsonl")
    assert [row.images for row in rows] == [1, 1, 3, 3, 3]
    assert [row.split for row in rows] == ["tuning", "held-out", "tuning", "held-out", "tuning"]
    for row in rows:
        assert row.memorized + row.spurious + row.generalized == pytest.approx(1, abs=2e-4)
    reference = ReferenceSet.load(trained / "out" / "reference")
    assert [reference.captions.count(row.prompt) for row in rows] == [1, 1, 3, 3, 3]


def test_the_card_says_what_was_done(trained: Path) -> None:
    """Recipe, thresholds and where they are from, and the licence; nothing is left blank."""
    card = (trained / "out" / "README.md").read_text()
    calibration = Calibration.load(trained / "out/checkpoint/calibration.json")
    assert f"δ_m = {calibration.delta_m:.2f}" in card
    assert f"δ_s = {calibration.delta_s:.2f}" in card
    assert "what 5% of the plain captions' samples fall under" in card
    assert "MIT License" in card
    assert "v_prediction" in card
    assert "intervals: ." not in card
    assert not re.search(r"\bnan\b", card)
    assert Recipe.model_validate_json((trained / "out" / "recipe.json").read_text()) == RECIPE


def test_the_calibration_is_of_the_captions_of_many_images(trained: Path) -> None:
    """Two of the tuning half's captions are ordinary here; the sampler is the recipe's, thresholds are the truth's."""
    calibration = Calibration.load(trained / "out/checkpoint/calibration.json")
    assert calibration.prompts == 2
    assert calibration.source.startswith("2 captions of many images")
    assert calibration.sampler is not None
    assert (calibration.sampler.steps, calibration.sampler.guidance) == (RECIPE.sampler_steps, RECIPE.guidance)
    assert calibration.delta_m is not None
    assert calibration.delta_s is not None
    distances = np.load(trained / "out" / "distances.npz")
    rows = load_truth(trained / "out" / "truth.jsonl")
    assert distances["reference"].shape == (len(rows), 512)
    for row, near in zip(rows, distances["reference"].astype(float), strict=True):
        # Distances are kept in half precision.
        assert row.memorized == pytest.approx((near <= calibration.delta_m).mean(), abs=0.02)


def test_calibrations_of_nothing_learned_stay_sober(trained: Path) -> None:
    """Measurements that hardly differ between prompts blow no feature up, and what is ordinary is within its range."""
    calibration = Calibration.load(trained / "out/checkpoint/calibration.json")
    for usual in calibration.ordinary.values():
        low, high = usual.range
        assert low <= usual.mean <= high
    checkpoint = load_checkpoint(trained / "out" / "checkpoint")
    prompts = [row.prompt for row in load_truth(trained / "out" / "truth.jsonl")]
    for found in Auditor(checkpoint, None, calibration).screen(prompts):
        assert sum(found.probabilities) == pytest.approx(1)
        assert all(np.isfinite(one.value) for one in found.measurements)


def test_a_killed_training_goes_on(trained: Path, tmp_path: Path) -> None:
    """With the denoiser's stage, the truth and the reference set cut short, the same weights come out."""
    shutil.copytree(trained / "work", tmp_path / "work")
    shutil.copytree(trained / "out", tmp_path / "out")
    (tmp_path / "work" / "denoiser.state.pt").unlink()
    (tmp_path / "out" / "reference" / "reference.json").unlink()
    train_ladder(RECIPE, data(), tmp_path / "out", tmp_path / "work")
    for part in ("unet", "vae"):
        name = f"out/checkpoint/{part}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(tmp_path / name), load_file(trained / name)
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6)
    assert len(ReferenceSet.load(tmp_path / "out" / "reference")) == 11


def test_the_work_of_another_recipe_is_not_continued(trained: Path, tmp_path: Path) -> None:
    """A run folder belongs to its recipe."""
    shutil.copy(trained / "work" / "recipe.json", tmp_path / "recipe.json")
    with pytest.raises(ValueError, match="another recipe"):
        train_ladder(RECIPE.model_copy(update={"seed": 2}), data(), tmp_path / "out", tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 1
