"""What one audit found, whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from audit.budget import Budget
from audit.evidence.explanation import Explanation
from audit.evidence.gathered import Evidence
from audit.model.checkpoint import Gap
from audit.model.sampling import SamplerSettings
from audit.reference.reference_set import Entry
from audit.verdict.calibration import Calibration
from audit.verdict.decision import Decision


@dataclass(frozen=True)
class Cost:
    """What an audit took.

    Attributes:
        screening_evaluations: single-row denoiser evaluations on pure noise.
        sampling_evaluations: for the samples.
        curvature_evaluations: for curvature, smoothed or not.
        explaining_evaluations: to explain.
        compute_seconds: of work.
        stage_seconds: by stage.
        queue_seconds: waited before the work began.
    """

    screening_evaluations: int
    sampling_evaluations: int
    curvature_evaluations: int
    explaining_evaluations: int
    compute_seconds: float
    stage_seconds: dict[str, float]
    queue_seconds: float = 0.0

    @property
    def evaluations(self) -> int:
        """NFE in all."""
        return (
            self.screening_evaluations
            + self.sampling_evaluations
            + self.curvature_evaluations
            + self.explaining_evaluations
        )


@dataclass(frozen=True)
class ReferenceUsed:
    """The reference set of an audit.

    Attributes:
        name: of the set.
        digest: of its images.
        size: number of its images.
        complete: whether it is the whole training set.
        entries: what is known of the images that were anybody's nearest, by index.
        images: those images, or their thumbnails where the set has no more, uint8 (height, width, channels), by index;
            empty unless asked for.
        embedder_digest: of the model that searched it by embedding; "" for none.
    """

    name: str
    digest: str
    size: int
    complete: bool
    entries: dict[int, Entry]
    images: dict[int, NDArray[np.uint8]]
    embedder_digest: str


@dataclass(frozen=True)
class Report:
    """One audit: the decision, every measurement behind it, cost and provenance.

    Attributes:
        prompt: audited.
        decision: the verdict, its probabilities, fractions and reasons.
        evidence: every measurement.
        seeds: one per sample.
        sampler: as used.
        scheduler_class: of the diffusers scheduler that drew the samples.
        budget: as asked for.
        checkpoint_name: of the checkpoint.
        checkpoint_digest: of its weights.
        checkpoint_source: what they were loaded from; see `audit.model.checkpoint_source`.
        family: kind of pipeline.
        reference: what samples were compared with; None for nothing.
        calibration: as used.
        calibration_fits: whether it was made with this checkpoint and these sampler settings.
        cost: evaluations and seconds.
        libraries: versions of what decides numbers.
        finished: when, UTC.
        device: and precision, e.g. "cpu float32".
        images: the samples, uint8 (n, height, width, channels); None unless asked for.
        explanation: which words carry the recall, and where it shows; None unless asked for.
        gaps: evidence that the checkpoint cannot give, or that means something else there.
    """

    prompt: str
    decision: Decision
    evidence: Evidence
    seeds: tuple[int, ...]
    sampler: SamplerSettings
    scheduler_class: str
    budget: Budget
    checkpoint_name: str
    checkpoint_digest: str
    checkpoint_source: str
    family: str
    reference: ReferenceUsed | None
    calibration: Calibration
    calibration_fits: bool
    cost: Cost
    libraries: dict[str, str]
    finished: datetime
    device: str
    images: NDArray[np.uint8] | None
    explanation: Explanation | None = None
    gaps: tuple[Gap, ...] = ()
