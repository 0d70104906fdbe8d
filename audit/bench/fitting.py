"""Fitting a checkpoint's calibration on prompts whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln, expit

from audit.auditor import Auditor, Budget
from audit.bench.truth import Truth
from audit.model.checkpoint import Checkpoint
from audit.model.sampling import SamplerSettings
from audit.progress import progress_bar
from audit.reference.reference_set import ReferenceSet
from audit.verdict.calibration import Calibration, RecurrenceEstimator, recurrence_features

#: The features of the two estimators. All of them rise with recurrence (the paper: attractors are curved and seeds
#: meet at them), so their weights are kept non-negative.
WITH_CURVATURE = ("meeting", "closeness", "trace")
WITHOUT_CURVATURE = ("meeting", "closeness")
#: Seeds of the audits that estimators are fitted on: apart from those of the truth and from the default ones.
FITTING_SEED = 1_000_000
#: Weight of the Gaussian prior on the weights of standardised features.
RIDGE = 0.02


def fit_recurrence(
    features: Sequence[dict[str, float]], recurring: Sequence[float], names: tuple[str, ...], samples: int
) -> RecurrenceEstimator:
    """Beta-binomial regression of recurrence on features, weights non-negative.

    Args:
        features: one dictionary per audit.
        recurring: share of the prompt's N samples that recur.
        names: the features to use.
        samples: N.
    """
    x = np.asarray([[row[name] for name in names] for row in features])
    # A feature that does not vary here says nothing, and must not shout where it does.
    center, spread = x.mean(0), np.where(x.std(0) > 1e-6, x.std(0), 1.0)
    z = (x - center) / spread
    # The truth itself is a count among N samples, half a sample away from certainty.
    count = np.clip(np.asarray(recurring) * samples, 0.5, samples - 0.5)

    def loss(parameters: NDArray[np.float64]) -> float:
        intercept, log_concentration, *weights = parameters
        mean = np.clip(expit(intercept + z @ np.asarray(weights)), 1e-6, 1 - 1e-6)
        a, b = np.exp(log_concentration) * mean, np.exp(log_concentration) * (1 - mean)
        likelihood = betaln(count + a, samples - count + b) - betaln(a, b)
        return float(-likelihood.mean() + RIDGE * np.square(weights).sum())

    start = np.concatenate([[0.0, np.log(10.0)], np.ones(len(names))])
    bounds = [(-20, 20), (np.log(1.0), np.log(500.0)), *[(0.0, 20.0)] * len(names)]
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    return RecurrenceEstimator(
        features=names,
        center=tuple(float(v) for v in center),
        spread=tuple(float(v) for v in spread),
        weights=tuple(float(v) for v in best[2:]),
        intercept=float(best[0]),
        concentration=float(np.exp(best[1])),
    )


def fit_calibration(
    checkpoint: Checkpoint,
    reference: ReferenceSet,
    truth: Truth,
    sampler: SamplerSettings,
    *,
    source: str,
    budget: Budget | None = None,
    repeats: int = 4,
) -> Calibration:
    """A calibration from the tuning split of a truth table.

    Every tuning prompt is audited `repeats` times with fresh seeds, exactly as users will audit it.

    Args:
        checkpoint: what is audited.
        reference: its complete training set.
        truth: the table.
        sampler: the settings that the truth was measured with.
        source: in words, what this is made from.
        budget: of one audit; the default when None.
        repeats: audits per prompt.
    """
    budget = budget or Budget()
    unfitted = RecurrenceEstimator(features=(), center=(), spread=(), weights=(), intercept=0.0, concentration=1.0)
    provisional = Calibration(
        checkpoint_digest=checkpoint.digest,
        sampler=sampler,
        noise_levels=budget.curvature.noise_levels,
        definition_samples=budget.definition_samples,
        delta_m=truth.delta_m,
        delta_s=truth.delta_s,
        with_curvature=unfitted,
        without_curvature=unfitted,
        typical={"trace": (0.0, 1.0)},
        source="nothing yet",
    )
    auditor = Auditor(checkpoint, reference, provisional)
    rows = [row for row in truth.rows if row.split == "tuning"]
    features, recurring, generalizing = [], [], []
    with progress_bar() as bar:
        task = bar.add_task("calibration", total=len(rows) * repeats, note="")
        for row in rows:
            for repeat in range(repeats):
                fresh = replace(budget, first_seed=FITTING_SEED + repeat * budget.seeds)
                report = auditor.audit(row.prompt, budget=fresh)
                features.append(recurrence_features(report.stability, report.curvature, truth.delta_s))
                recurring.append(row.memorized + row.spurious)
                generalizing.append(row.dominant == "generalized")
                bar.advance(task)
    typical_of = [row for row, counts in zip(features, generalizing, strict=True) if counts] or features
    samples = budget.definition_samples
    return provisional.model_copy(
        update={
            "with_curvature": fit_recurrence(features, recurring, WITH_CURVATURE, samples),
            "without_curvature": fit_recurrence(features, recurring, WITHOUT_CURVATURE, samples),
            "typical": {
                name: tuple(float(v) for v in np.quantile([row[name] for row in typical_of], [0.05, 0.95]))
                for name in features[0]
            },
            "source": source,
        }
    )
