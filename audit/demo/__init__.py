"""The ladder checkpoint that ships with Basin: weights, complete training set, calibration, truth table."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.verdict.calibration import Calibration

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
REFERENCE = FOLDER / "reference"
#: The open_clip model.
CLIP = FOLDER / "clip"
#: The truth table: a JSON object per caption (see the model card).
TRUTH = FOLDER / "truth.jsonl"


@cache
def default_calibration() -> Calibration:
    """What an uncalibrated checkpoint is judged by.

    What ordinary prompts measure on the demo, for want of anything better, without its thresholds.
    """
    own = calibration()
    return own.model_copy(
        update={"checkpoint_digest": "", "sampler": None, "delta_m": None, "delta_s": None, "made": None}
    )


@cache
def calibration() -> Calibration:
    """Of the demo checkpoint."""
    from audit.verdict.calibration import Calibration  # and torch: not for those who want a path or the truth

    return Calibration.load(CHECKPOINT / "calibration.json")


@cache
def truth() -> tuple[dict[str, object], ...]:
    """The truth table: one row per caption (see the model card)."""
    return tuple(json.loads(line) for line in TRUTH.read_text().splitlines())


def prompts() -> list[str]:
    """The captions of the ladder."""
    return [str(row["prompt"]) for row in truth()]
