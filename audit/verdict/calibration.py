"""What a checkpoint's verdicts rest on: thresholds, the recurrence estimator, and what is typical of the checkpoint."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError, model_validator

from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureLevel, CurvatureSettings
from audit.evidence.stability import Stability
from audit.model.sampling import SamplerSettings

#: Root mean square difference per pixel, on [-1, 1], up to which two images count as the same where a checkpoint has
#: no calibration: about what the eye takes for the same picture.
UNCALIBRATED_RMS = 0.15


#: Names that `recurrence_features` gives.
FEATURES = {"meeting", "closeness", "trace", "flat_share", "log_volume"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecurrenceEstimator(_Model):
    """Logistic regression of the share of samples that recur among N on what a few seeds show.

    The prediction r̂ = 1/(1 + exp(−(b + Σ w_i (f_i − μ_i)/s_i))) is the mean of a Beta(κr̂, κ(1 − r̂)) posterior.

    Attributes:
        features: names, as `recurrence_features` gives them.
        center: μ, per feature.
        spread: s, per feature.
        weights: w, per feature; their signs are what theory says (see `MONOTONE`).
        intercept: b.
        concentration: κ, how far prompts scatter around the prediction.
    """

    features: tuple[str, ...]
    center: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    concentration: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = (self.center, self.spread, self.weights)
        if any(len(column) != len(self.features) for column in columns) or set(self.features) - FEATURES:
            raise ValueError("one center, spread and weight for each feature, of known features")
        numbers = np.asarray([*self.center, *self.spread, *self.weights, self.intercept, self.concentration])
        if not np.isfinite(numbers).all() or min(*self.spread, self.concentration, 1.0) <= 0:
            raise ValueError("every number is finite, spreads and concentration are positive")
        return self

    def predict(self, features: dict[str, float]) -> float:
        """r̂ in (0, 1)."""
        values = np.asarray([features[name] for name in self.features])
        logit = self.intercept + float(((values - self.center) / self.spread) @ np.asarray(self.weights))
        return 1.0 / (1.0 + math.exp(-min(max(logit, -30.0), 30.0)))


class Calibration(_Model):
    """Thresholds and estimators of one checkpoint under one setting of the sampler and of the curvature.

    Attributes:
        checkpoint_digest: of the weights it was made with; "" for the built-in defaults.
        sampler: the settings it was made with; None for the built-in defaults.
        noise_levels: at which curvature was measured, which its features are means over.
        definition_samples: N.
        delta_m: distance to the nearest reference up to which a sample is memorized; None: `UNCALIBRATED_RMS`.
        delta_s: distance to the nearest other sample up to which it recurs; None: `UNCALIBRATED_RMS`.
        with_curvature: the estimator when curvature was measured.
        without_curvature: the estimator when it was not.
        typical: for each feature, its 5% and 95% quantiles over generalizing prompts.
        source: in words, what it was made from.
    """

    checkpoint_digest: str = ""
    sampler: SamplerSettings | None = None
    noise_levels: tuple[float, ...]
    definition_samples: int = 512
    delta_m: PositiveFloat | None = None
    delta_s: PositiveFloat | None = None
    with_curvature: RecurrenceEstimator
    without_curvature: RecurrenceEstimator
    typical: dict[str, tuple[float, float]]
    source: str

    @property
    def digest(self) -> str:
        """SHA-256, as "sha256:…", of the content."""
        return f"sha256:{hashlib.sha256(self.model_dump_json().encode()).hexdigest()}"

    def thresholds(self, dimension: int) -> tuple[float, float]:
        """(δ_m, δ_s) for pixel vectors of a dimension."""
        default = UNCALIBRATED_RMS * dimension**0.5
        return (
            default if self.delta_m is None else self.delta_m,
            default if self.delta_s is None else self.delta_s,
        )

    def fits(self, checkpoint_digest: str, sampler: SamplerSettings, curvature: CurvatureSettings) -> bool:
        """Whether these are the checkpoint and the settings it was made with; unused noise levels do not count."""
        return (
            self.checkpoint_digest == checkpoint_digest
            and self.sampler == sampler
            and (curvature.method == "off" or curvature.noise_levels == self.noise_levels)
        )

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


def recurrence_features(
    stability: Stability, curvature: tuple[CurvatureLevel, ...], delta_s: float
) -> dict[str, float]:
    """What foretells, from a few seeds, whether samples recur among many.

    Returns:
        `meeting`: log of the collision rate, smoothed by half a pair. `closeness`: −log of the median distance to the
        nearest other sample, in units of δ_s. `trace`, `flat_share`, `log_volume`: means over noise levels; only when
        curvature was measured.
    """
    n = len(stability.mode_of)
    pairs = max(1.0, n * (n - 1) / 2)
    rate = 0.0 if math.isnan(stability.meeting_rate) else stability.meeting_rate
    nearest = float(np.median(stability.nearest_sample_distance))
    features = {
        "meeting": math.log((rate * pairs + 0.5) / (pairs + 1)),
        "closeness": -math.log(min(max(nearest / delta_s, 1e-3), 1e3)),
    }
    if curvature:
        features["trace"] = float(np.mean([level.prompt.trace for level in curvature]))
        features["flat_share"] = float(np.mean([level.prompt.flat_share for level in curvature]))
        features["log_volume"] = float(np.mean([level.prompt.log_volume for level in curvature]))
    return features
