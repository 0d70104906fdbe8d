"""The ladders that ship with Basin, beside the demo: what their folders say is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audit.bench.ladders import FOLDER, TrainedLadder, open_ladder, shipped
from audit.bench.text_control import text_only_auc
from audit.bench.truth import DOMINANCE
from audit.errors import NotFound
from audit.phase.ladder import PRESETS
from audit.verdict.rule import CLASSES

FOLDERS = sorted(file.parent for file in FOLDER.glob("*/recipe.json"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def ladder(request: pytest.FixtureRequest) -> TrainedLadder:
    """Each of them."""
    return open_ladder(request.param)


def test_nothing_in_the_folders_is_pickled() -> None:
    """Weights are safetensors, arrays are NumPy's without objects, and all of it is small."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".md", ".npz", ".png", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 25e6


def test_a_ladder_is_to_tune_on_or_to_report() -> None:
    """Never both."""
    tuned, reported = (set(shipped(split)) for split in ("tuning", "held-out"))
    assert set(FOLDERS) < tuned | reported
    assert not tuned & reported


def test_the_folder_is_what_the_preset_makes(ladder: TrainedLadder) -> None:
    """Recipe, training set and calibration belong together, and every caption but those with templates has a truth."""
    assert ladder.recipe == PRESETS[ladder.name]
    assert ladder.calibration.fits(ladder.checkpoint.digest, ladder.sampler)
    assert len(ladder.reference) == sum(rung.images * rung.captions for rung in ladder.recipe.rungs)
    audited = [rung for rung in ladder.recipe.rungs if rung.purpose != "locate"]
    assert len(ladder.rows) == sum(rung.captions for rung in audited)
    with np.load(FOLDER / ladder.name / "distances.npz") as distances:
        near, other = distances["reference"], distances["sample"]
    memorized = (near <= ladder.calibration.delta_m).mean(1)
    spurious = ((near > ladder.calibration.delta_m) & (other <= ladder.calibration.delta_s)).mean(1)
    # Distances are kept in half precision: a few samples stand on the other side of a threshold.
    np.testing.assert_allclose(memorized, [row.memorized for row in ladder.rows], atol=0.01)
    np.testing.assert_allclose(spurious, [row.spurious for row in ladder.rows], atol=0.01)


def test_every_phase_is_there_and_words_tell_nothing(ladder: TrainedLadder) -> None:
    """Each class dominates at least ten captions that are audited, and words tell none of them."""
    own = [row for row in ladder.rows if row.split in ("tuning", "held-out") and row.dominant]
    for name in CLASSES:
        dominated = [row for row in own if row.dominant == name]
        assert len(dominated) >= 10
        assert all(getattr(row, name) >= DOMINANCE for row in dominated)
        area = text_only_auc([row.prompt for row in own], [row.dominant == name for row in own])
        assert area.lower <= 0.5 <= area.upper


def test_reports_are_of_enough_prompts() -> None:
    """A ladder to report has at least 200 prompts that generalize and 100 that recur."""
    for folder in shipped("held-out"):
        classes = [row.dominant for row in open_ladder(folder).split("held-out")]
        assert classes.count("generalized") >= 200
        assert classes.count("memorized") + classes.count("spurious") >= 100


def test_the_weights_do_what_the_table_says(ladder: TrainedLadder) -> None:
    """Under the caption that copies most often samples are copies, under one that generalizes none is."""
    rows = [row for row in ladder.rows if row.split != "calibrate"]
    copied, new = (max(rows, key=lambda row: getattr(row, name)).prompt for name in ("memorized", "generalized"))
    auditor = ladder.auditor()
    shares = []
    for prompt in (copied, new):
        _, draws = auditor.measure(prompt, range(8))
        assert draws.neighbors is not None
        shares.append(float((draws.neighbors.distance <= ladder.calibration.delta_m).mean()))
    assert shares[0] >= 0.75
    assert shares[1] == 0


def test_a_folder_that_is_no_ladder(tmp_path: Path) -> None:
    """Is named."""
    with pytest.raises(NotFound, match="no ladder"):
        open_ladder(tmp_path)
