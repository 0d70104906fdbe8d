"""What is usual of a checkpoint: its thresholds, and what ordinary prompts measure on it. No label goes in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from audit.errors import InvalidInput
from audit.model.sampling import SamplerSettings
from audit.verdict.features import CONTRASTS, TRACES, Ordinary

#: Root mean square difference per pixel, on [-1, 1], up to which two images count as the same where a checkpoint has
#: no calibration: about what the eye takes for the same picture.
UNCALIBRATED_RMS = 0.15


Threshold = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Calibration(BaseModel):
    """What verdicts on one checkpoint, under one setting of the sampler, are measured against.

    Attributes:
        checkpoint_digest: of the weights it was made with; "" for the built-in defaults.
        sampler: the settings it was made with; None for the built-in defaults.
        definition_samples: N, which δ_s belongs to.
        delta_m: distance to the nearest reference up to which a sample is memorized; None: `UNCALIBRATED_RMS`.
        delta_s: distance to the nearest other sample up to which it recurs; None: `UNCALIBRATED_RMS`.
        ordinary: measurements of ordinary prompts, by the names of `audit.verdict.features.measurements`; without
            contrasts of a checkpoint that has none.
        prompts: how many ordinary prompts there were.
        screen_threshold: probability of recurrence, from the screen alone, over which a prompt is flagged.
        false_positive_rate: share of ordinary prompts that it flags, at most.
        made: when, UTC; None for the built-in defaults.
        source: in words, what it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_digest: str = ""
    sampler: SamplerSettings | None = None
    definition_samples: int = 512
    delta_m: Threshold | None = None
    delta_s: Threshold | None = None
    ordinary: dict[str, Ordinary]
    prompts: NonNegativeInt
    screen_threshold: float = Field(ge=0, le=1)
    false_positive_rate: float = Field(gt=0, le=1)
    made: datetime | None = None
    source: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ordinary.keys() not in ({*CONTRASTS, *TRACES}, {*TRACES}):
            raise ValueError(f"ordinary prompts are measured by {', '.join((*CONTRASTS, *TRACES))}")
        if not all(math.isfinite(value) for usual in self.ordinary.values() for value in (usual.mean, usual.spread)):
            raise ValueError("every number is finite")
        return self

    @property
    def digest(self) -> str:
        """SHA-256, as "sha256:…", of the content."""
        unsaid = set() if self.sampler is None else self.sampler.unsaid
        return f"sha256:{hashlib.sha256(self.model_dump_json(exclude={'sampler': unsaid}).encode()).hexdigest()}"

    def thresholds(self, dimension: int) -> tuple[float, float]:
        """(δ_m, δ_s) for pixel vectors of a dimension."""
        default = UNCALIBRATED_RMS * dimension**0.5
        return (
            default if self.delta_m is None else self.delta_m,
            default if self.delta_s is None else self.delta_s,
        )

    def fits(self, checkpoint_digest: str, sampler: SamplerSettings) -> bool:
        """Whether these are the checkpoint and the settings it was made with."""
        return self.checkpoint_digest == checkpoint_digest and self.sampler == sampler

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InvalidInput: the file is no calibration.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, UnicodeDecodeError, ValidationError, InvalidInput) as error:
            raise InvalidInput(
                f"{path.name} is not a calibration file", reason="CALIBRATION_DAMAGED", field="calibration"
            ) from error


def conformal_threshold(scores: Sequence[float], false_positive_rate: float) -> float:
    """The score that a fresh ordinary prompt is over with at most this probability.

    The ⌈(1 − α)(n + 1)⌉-th smallest of n scores (Vovk, Gammerman & Shafer 2005, section 2.2), whatever their
    distribution; infinite where n scores are too few for that rate.

    Args:
        scores: of ordinary prompts.
        false_positive_rate: α, in (0, 1).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = math.ceil((1 - false_positive_rate) * (len(ordered) + 1))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf
