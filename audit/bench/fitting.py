"""Fitting the estimators that ship with Basin to prompts whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln, expit
from scipy.stats import beta

from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.bench.truth import DOMINANCE, TruthRow
from audit.verdict.estimators import Estimators, Look, ShareEstimator, segments
from audit.verdict.features import CONTRASTS, KNOTS, MEETINGS, TRACED, TRACES, measurements, meetings, normalise
from audit.verdict.rule import DEFINITION_SAMPLES

#: Numbers of seeds after which an audit may look, and so has estimators.
LOOKS = (0, 1, 2, 4, 8, 16, 32)
#: Seeds that estimators are fitted on: apart from those of the truth, of calibrations and of audits.
FITTING_SEED = 1_000_000
#: Weight of the Gaussian prior on the weights of standardised segments.
RIDGE = 0.02


@dataclass(frozen=True)
class Example:
    """A prompt as an audit sees it at every look, and the truth.

    Attributes:
        features: by look, in the order of `LOOKS`.
        memorized: share of the N samples.
        spurious: likewise.
    """

    features: tuple[dict[str, float], ...]
    memorized: float
    spurious: float


def names_of(seeds: int) -> tuple[str, ...]:
    """Features that so many seeds give."""
    return CONTRASTS + (TRACES if seeds else ()) + (MEETINGS if seeds > 1 else ())


def measure_examples(
    auditor: Auditor, rows: Sequence[TruthRow], *, repeats: int = 2, on_prompt: Callable[[], None] = lambda: None
) -> list[Example]:
    """Prompts at every look, each `repeats` times with fresh seeds.

    Args:
        auditor: of the ladder, with its calibration.
        rows: the truth of the prompts to be measured.
        repeats: examples per prompt.
        on_prompt: called after every prompt.
    """
    examples = []
    for row in rows:
        for repeat in range(repeats):
            first = FITTING_SEED + repeat * max(LOOKS)
            screening, draws = auditor.measure(row.prompt, range(first, first + max(LOOKS)))
            _, delta_s = auditor.calibration.thresholds(draws.vectors.shape[1])
            features = []
            for seeds in LOOKS:
                seen = draws.first(seeds)
                traced = seen.first(TRACED).smoothed if seeds else None
                own = normalise(measurements(screening, traced), auditor.calibration.ordinary)
                features.append(own | (meetings(seen.evidence(screening, delta_s).stability, delta_s) if seeds else {}))
            examples.append(Example(tuple(features), row.memorized, row.spurious))
        on_prompt()
    return examples


def fit_estimators(examples: Sequence[Example], *, source: str) -> Estimators:
    """Estimators of every look, from the examples of all ladders together.

    Args:
        examples: from `measure_examples`.
        source: in words, what they are from.
    """
    recurring = np.asarray([one.memorized + one.spurious for one in examples]) * DEFINITION_SAMPLES
    copied = np.asarray([one.memorized for one in examples]) * DEFINITION_SAMPLES
    looks = []
    for index, seeds in enumerate(LOOKS):
        features = [one.features[index] for one in examples]
        looks.append(
            Look(
                seeds=seeds,
                recurring=fit_share(features, recurring, np.full(len(examples), DEFINITION_SAMPLES), names_of(seeds)),
                copied=fit_share(features, copied, recurring, names_of(seeds)),
            )
        )
    return Estimators(looks=tuple(looks), definition_samples=DEFINITION_SAMPLES, source=source)


def carried_over(ladders: Mapping[str, Sequence[Example]]) -> str:
    """How estimators that were fitted to the other ladders do on each: what to expect of a checkpoint of one's own.

    Args:
        ladders: examples by ladder, of two ladders at least.

    Returns:
        A Markdown table: by ladder and look, how often the larger share is told, and how sure of it the estimator is.
    """
    rows = []
    for name, own in ladders.items():
        others = [example for other, examples in ladders.items() if other != name for example in examples]
        fitted = fit_estimators(others, source="")
        for index, look in enumerate(fitted.looks):
            recurring = _told(look.recurring, index, [(one, one.memorized + one.spurious) for one in own])
            recur = [one for one in own if one.memorized + one.spurious >= DOMINANCE]
            copied = _told(look.copied, index, [(one, one.memorized / (one.memorized + one.spurious)) for one in recur])
            rows.append([name, str(look.seeds), *recurring, *copied])
    header = ["left out", "seeds", "recurring: right", "sure", "of these copied: right", "sure"]
    return markdown(header, rows)


def _told(estimator: ShareEstimator, look: int, examples: Sequence[tuple[Example, float]]) -> tuple[str, str]:
    """How often it is right about which share is larger, where one dominates; and its mean probability for that."""
    clear = [(one, share) for one, share in examples if max(share, 1 - share) >= DOMINANCE]
    chances, right = [], []
    for one, share in clear:
        mean, concentration = estimator.distribution(one.features[look])
        chance = float(beta.sf(0.5, concentration * mean, concentration * (1 - mean)))
        chances.append(max(chance, 1 - chance))
        right.append((chance > 0.5) == (share > 0.5))
    return (f"{np.mean(right):.3f}", f"{np.mean(chances):.3f}") if clear else ("", "")


def fit_share(
    features: Sequence[dict[str, float]],
    counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    names: tuple[str, ...],
) -> ShareEstimator:
    """Beta-binomial regression of a share on monotone curves of features.

    Args:
        features: one dictionary per example.
        counts: of the samples that count, per example.
        totals: of the samples that they are counted among; an example weighs as much as it has of them.
        names: the features to use.
    """
    parts = [np.asarray([segments(row[name], KNOTS[name]) for row in features]) for name in names]
    x = np.concatenate(parts, axis=1)
    # A segment that nothing varies in says nothing here, and must not shout where it does.
    center, spread = x.mean(0), np.where(x.std(0) > 1e-6, x.std(0), np.inf)
    z = (x - center) / spread
    total = np.maximum(totals, 1.0)
    weight = totals / np.maximum(totals.max(), 1.0)
    # The truth itself is a count, half a sample away from certainty.
    count = np.clip(counts, 0.5, total - 0.5)

    def loss(parameters: NDArray[np.float64]) -> float:
        intercept, log_concentration, *weights = parameters
        mean = np.clip(expit(intercept + z @ np.asarray(weights)), 1e-6, 1 - 1e-6)
        concentration = _concentration(log_concentration)
        a, b = concentration * mean, concentration * (1 - mean)
        likelihood = betaln(count + a, total - count + b) - betaln(a, b)
        return float(-(weight * likelihood).sum() / max(weight.sum(), 1e-9) + RIDGE * np.square(weights).sum())

    start = np.concatenate([[0.0, np.log(10.0)], np.full(x.shape[1], 0.3)])
    bounds = [(-20, 20), (None, None), *[(0.0, 20.0)] * x.shape[1]]
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    slopes = np.split(best[2:] / spread, np.cumsum([part.shape[1] for part in parts])[:-1]) if parts else []
    curves = [part @ own for part, own in zip(parts, slopes, strict=True)]
    return ShareEstimator(
        features=names,
        knots=tuple(KNOTS[name] for name in names),
        slopes=tuple(tuple(float(v) for v in own) for own in slopes),
        center=tuple(float(curve.mean()) for curve in curves),
        spread=tuple(float(curve.std()) for curve in curves),
        intercept=float(best[0]),
        concentration=_concentration(best[1]),
    )


def _concentration(logarithm: float) -> float:
    """Within [1, 500]; a bound of the optimizer's own would be overstepped by rounding, which scipy refuses."""
    return float(np.exp(min(max(logarithm, 0.0), np.log(500.0))))
