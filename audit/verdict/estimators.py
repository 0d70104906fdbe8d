"""From features to shares: how much of what a prompt gives recurs, and how much of that is copied.

A feature that a checkpoint cannot give is as likely anything that it was among the prompts of the fit: the estimate
moves towards what is usual there, and is worth less. It is not taken for ordinary, which would be an all-clear.

The estimators ship with Basin and are the same for every checkpoint, because features are free of its scale. They were
fitted by `basin bench --fit` to the truth of the tuning ladders (see `audit.bench.fitting`), and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from scipy.special import expit, logit

from audit.verdict.features import CONTRASTS, MEETINGS, TRACES

FILE = Path(__file__).with_name("estimators.json")
FEATURES = (*CONTRASTS, *TRACES, *MEETINGS)
#: Of the quadrature over features that are missing.
NODES = 32
#: Share of the most that is ever known of copies, from which on more seeds are not worth their cost.
ENOUGH = 0.8


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShareEstimator(_Model):
    """Additive logistic regression of a share on features.

    Every feature has a curve c, straight between knots k and beyond them, whose slopes β are never negative:

        c(f) = β₀ min(f − k₁, 0) + Σ_j β_j min(max(f − k_j, 0), k_{j+1} − k_j),   k_{m+1} = ∞

    The prediction r̂ = 1/(1 + exp(−(b + Σ_i (c_i(f_i) − μ_i)))) is the mean of a Beta(κr̂, κ(1 − r̂)) distribution.

    Attributes:
        features: names, of `FEATURES`.
        knots: k, per feature, ascending, at least one.
        slopes: β, per feature, one more than knots: every feature rises with recall.
        center: μ, mean of the curve over the prompts of the fit, per feature.
        spread: s, its standard deviation over them, per feature.
        intercept: b.
        concentration: κ, how far prompts scatter around the prediction.
    """

    features: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    slopes: tuple[tuple[float, ...], ...]
    center: tuple[float, ...]
    spread: tuple[float, ...]
    intercept: float
    concentration: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = (self.knots, self.slopes, self.center, self.spread)
        if any(len(column) != len(self.features) for column in columns) or set(self.features) - set(FEATURES):
            raise ValueError("one curve with its center and spread for each feature, of known features")
        for knots, slopes in zip(self.knots, self.slopes, strict=True):
            if not knots or list(knots) != sorted(set(knots)) or len(slopes) != len(knots) + 1:
                raise ValueError("knots ascend, and there is a slope to either side of each")
        flat = [value for curve in (*self.knots, *self.slopes) for value in curve]
        numbers = np.asarray([*flat, *self.center, *self.spread, self.intercept, self.concentration])
        if not np.isfinite(numbers).all() or min(self.spread, default=0.0) < 0 or self.concentration <= 0:
            raise ValueError("every number is finite, spreads are not negative, the concentration is positive")
        if min((slope for curve in self.slopes for slope in curve), default=0.0) < 0:
            raise ValueError("slopes are not negative")
        return self

    def predict(self, features: Mapping[str, float]) -> float:
        """r̂ in (0, 1), of all features."""
        return self._share({name: features[name] for name in self.features})

    def _share(self, known: Mapping[str, float]) -> float:
        """r̂ where the curves of other features are at their centers."""
        log_odds = self.intercept
        for name, knots, slopes, center in zip(self.features, self.knots, self.slopes, self.center, strict=True):
            if name in known:
                log_odds += float(segments(known[name], knots) @ np.asarray(slopes)) - center
        return 1.0 / (1.0 + math.exp(-min(max(log_odds, -30.0), 30.0)))

    def distribution(self, features: Mapping[str, float]) -> tuple[float, float]:
        """Mean and concentration of the share, also where features are missing.

        The curve of a missing feature is normally distributed with mean μ and standard deviation s, so that the logit
        has the variance Σ s² over them. The mixture of Beta distributions over it is replaced by one of the same mean
        and variance.
        """
        mean = self._share(features)
        gone = [spread for name, spread in zip(self.features, self.spread, strict=True) if name not in features]
        if not (width := math.hypot(*gone)):
            return mean, self.concentration
        nodes, masses = np.polynomial.hermite_e.hermegauss(NODES)
        shares = expit(logit(mean) + width * nodes)
        masses = masses / masses.sum()
        middle = float(masses @ shares)
        second = float(masses @ (shares**2 + shares * (1 - shares) / (self.concentration + 1)))
        return middle, middle * (1 - middle) / (second - middle**2) - 1


def segments(value: float, knots: Sequence[float]) -> NDArray[np.float64]:
    """How far a value goes along each of the segments that knots part, from the first knot, (knots + 1,)."""
    ends = np.append(knots, np.inf)
    return np.append(min(value - knots[0], 0.0), np.clip(value - ends[:-1], 0.0, np.diff(ends)))


class Look(_Model):
    """What a prompt's evidence is worth after so many seeds.

    Attributes:
        seeds: samples seen; 0 for the screen alone.
        recurring: share of the N samples that recur, copies counted in.
        copied: share of those that are copies.
    """

    seeds: NonNegativeInt
    recurring: ShareEstimator
    copied: ShareEstimator


class Estimators(_Model):
    """Estimators of every look.

    Attributes:
        looks: by seeds, ascending, the screen first.
        definition_samples: N of the truth that they were fitted to.
        source: in words, what they were fitted to.
    """

    looks: tuple[Look, ...]
    definition_samples: PositiveInt
    source: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        seeds = [look.seeds for look in self.looks]
        if not seeds or seeds[0] != 0 or seeds != sorted(set(seeds)):
            raise ValueError("looks are in the order of their seeds, and the first is the screen")
        return self

    @cached_property  # every key of a batch's tasks has it
    def digest(self) -> str:
        """SHA-256, as "sha256:…", of the content."""
        return f"sha256:{hashlib.sha256(self.model_dump_json().encode()).hexdigest()}"

    @cached_property
    def seeds_for_copies(self) -> int:
        """Seeds after which more say hardly more of whether what recurs is copied, where nothing is searched."""
        best = max(look.copied.concentration for look in self.looks)
        return next(look.seeds for look in self.looks if look.copied.concentration >= ENOUGH * best)

    def look(self, seeds: int) -> Look:
        """The one of the most seeds that are not more than these: what more seeds would be worth is not known."""
        return max((look for look in self.looks if look.seeds <= seeds), key=lambda look: look.seeds)


@cache
def shipped() -> Estimators:
    """The estimators that come with Basin."""
    return Estimators.model_validate_json(FILE.read_text())
