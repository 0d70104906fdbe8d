"""A trained ladder as the benchmark takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audit import demo
from audit.auditor import Auditor
from audit.bench.truth import TruthRow, load_truth
from audit.errors import NotFound
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.sampling import SamplerSettings
from audit.phase.data import load_fashion_mnist
from audit.phase.ladder import Recipe, lay_out
from audit.reference.reference_set import ReferenceSet
from audit.verdict.calibration import Calibration

#: The ladders that ship with Basin, beside the demo.
FOLDER = Path(__file__).with_name("ladders")


@dataclass(frozen=True)
class TrainedLadder:
    """A folder that `basin train ladder` wrote.

    Attributes:
        name: of the folder.
        recipe: that made it.
        checkpoint: its model.
        reference: its complete training set.
        calibration: of its own.
        rows: the truth of every caption.
        sampler: that the truth was drawn with.
    """

    name: str
    recipe: Recipe
    checkpoint: Checkpoint
    reference: ReferenceSet
    calibration: Calibration
    rows: tuple[TruthRow, ...]
    sampler: SamplerSettings

    def auditor(self, *, reference: bool = True) -> Auditor:
        """With its calibration, against its complete training set or nothing."""
        return Auditor(self.checkpoint, self.reference if reference else None, self.calibration)

    def split(self, name: str) -> list[TruthRow]:
        """Captions of a split."""
        return [row for row in self.rows if row.split == name]

    def ordinary(self) -> list[str]:
        """Captions that are there to calibrate with."""
        return [row.prompt for row in self.split("calibrate")]


def shipped(split: str) -> list[Path]:
    """Ladders to tune on, the demo among them; or those to report, which nothing was tuned on.

    Args:
        split: "tuning" or "held-out".
    """
    found = {
        folder: _recipe(folder) for folder in (demo.FOLDER, *sorted(p.parent for p in FOLDER.glob("*/recipe.json")))
    }
    return [folder for folder, recipe in found.items() if (recipe.held_out == "all") == (split == "held-out")]


def _recipe(folder: Path) -> Recipe:
    return Recipe.model_validate_json((folder / "recipe.json").read_text())


def open_ladder(folder: Path) -> TrainedLadder:
    """Load a ladder. Where its training set was left out, it is laid out again from the recipe.

    Raises:
        NotFound: there is no such folder, or no data set to lay the training set out from.
        BrokenCheckpoint, BrokenReference, InvalidInput: something in it is damaged.
    """
    if not (folder / "recipe.json").exists():
        raise NotFound(f"no ladder in {folder}", reason="LADDER_NOT_FOUND", field="ladder")
    recipe = _recipe(folder)
    checkpoint = load_checkpoint(folder / "checkpoint", name=folder.name)
    if (folder / "reference").exists():
        reference = ReferenceSet.load(folder / "reference")
    else:
        try:
            ladder = lay_out(recipe, load_fashion_mnist())
        except FileNotFoundError as error:
            raise NotFound(str(error), reason="DATA_NOT_FOUND", field="data") from error
        captions = [ladder.captions[owner] for owner in ladder.owners]
        reference = ReferenceSet(folder.name, ladder.images[..., None], captions, complete=True)
    return TrainedLadder(
        name=folder.name,
        recipe=recipe,
        checkpoint=checkpoint,
        reference=reference,
        calibration=Calibration.load(folder / "checkpoint" / "calibration.json"),
        rows=load_truth(folder / "truth.jsonl"),
        sampler=recipe.settings(checkpoint.defaults),
    )
