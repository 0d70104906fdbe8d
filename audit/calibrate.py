"""Learning what is usual of a checkpoint from about 50 ordinary prompts. Nobody has to know what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from audit.auditor import Auditor
from audit.errors import InvalidInput
from audit.evidence.neighbors import NeighborFinder
from audit.evidence.screening import Screening
from audit.evidence.stability import pairwise_distances
from audit.model.sampling import SamplerSettings
from audit.verdict.calibration import Calibration, conformal_threshold
from audit.verdict.decision import screen
from audit.verdict.features import Ordinary, measurements
from audit.verdict.rule import DEFINITION_SAMPLES

#: Seeds of the samples, apart from those that people audit with.
FIRST_SEED = 3_000_000_000
#: Samples under each prompt.
SAMPLES = 16
#: Fewest prompts from which a spread can be told; about 50 tell it well.
MINIMUM_PROMPTS = 2
#: Share of the samples of ordinary prompts that may count as recurring among N.
ORDINARY_RECURRENCE = 0.05
#: Share of ordinary prompts that screening may flag; more where they are too few to tell.
FALSE_POSITIVE_RATE = 0.05
#: Share of pairs of samples whose distances are taken for the lower tail.
TAIL = 0.1
#: Share of real images from elsewhere that may count as copies.
FALSE_COPIES = 0.01
#: Distance up to which two reference images are one: what rounding leaves of nothing.
SAME = 1e-3
#: Reference images that stand for them, at most.
STAND_INS = 1000


def calibrate(
    auditor: Auditor,
    prompts: Sequence[str],
    *,
    sampler: SamplerSettings | None = None,
    samples: int = SAMPLES,
    delta_m: float | None = None,
    delta_s: float | None = None,
    source: str = "",
    on_prompt: Callable[[], None] = lambda: None,
) -> Calibration:
    """Measure ordinary prompts and the reference set, as the checkpoint stands.

    Args:
        auditor: of the checkpoint, with the reference set that it will audit against, if any.
        prompts: ordinary ones, at least `MINIMUM_PROMPTS`; a few that recall something do little harm.
        sampler: the settings that audits will use; the auditor's own when None.
        samples: under each prompt, at least 4.
        delta_m: the threshold, where it is known; else from the reference set, see `copy_threshold`.
        delta_s: the threshold, where it is known; else see `recurrence_threshold`.
        source: in words, where the prompts are from.
        on_prompt: called after every prompt.

    Raises:
        InvalidInput: there are too few prompts or samples, a prompt is impossible, or the checkpoint takes none.
        BrokenCheckpoint: the checkpoint gives no finite numbers.
    """
    if len(set(prompts)) < MINIMUM_PROMPTS or samples < 4:
        raise InvalidInput(
            f"a calibration takes at least {MINIMUM_PROMPTS} different prompts and 4 samples of each",
            reason="CALIBRATION_TOO_SMALL",
            field="prompts",
        )
    if auditor.checkpoint.prompts == "none":
        raise InvalidInput(
            "a checkpoint that takes no prompt has no ordinary ones to learn from",
            reason="CALIBRATION_UNSUPPORTED",
            field="checkpoint",
        )
    sampler = sampler or auditor.resolve_sampler()
    screenings: list[Screening] = []
    measured: list[dict[str, float]] = []
    pairs: list[NDArray[np.float64]] = []
    for prompt in prompts:
        screening, draws = auditor.measure(prompt, range(FIRST_SEED, FIRST_SEED + samples), sampler=sampler)
        if screening is not None:
            screenings.append(screening)
        measured.append(measurements(screening, draws.smoothed))
        pairs.append(pairwise_distances(draws.vectors)[np.triu_indices(samples, 1)])
        on_prompt()
    if delta_m is None and auditor.finder is not None:
        delta_m = copy_threshold(auditor.finder)
    calibration = Calibration(
        checkpoint_digest=auditor.checkpoint.digest,
        sampler=sampler,
        delta_m=delta_m,
        delta_s=recurrence_threshold(np.concatenate(pairs)) if delta_s is None else delta_s,
        ordinary={name: usual([row[name] for row in measured]) for name in measured[0]},
        prompts=len(prompts),
        screen_threshold=1.0,
        false_positive_rate=max(FALSE_POSITIVE_RATE, 1 / (len(prompts) + 1)),
        made=datetime.now(UTC),
        source=source or f"{len(prompts)} ordinary prompts, {samples} samples each",
    )
    scores = [
        screen(one, calibration, definition_samples=DEFINITION_SAMPLES, fits=True).recurring_probability
        for one in screenings
    ]
    # Without contrasts there is no screening, and no threshold of it.
    threshold = conformal_threshold(scores, calibration.false_positive_rate) if scores else 1.0
    return calibration.model_copy(update={"screen_threshold": threshold})


def usual(values: Sequence[float]) -> Ordinary:
    """Mean and standard deviation, by the median and the median absolute deviation.

    They are what they would be of a normal distribution, and a fifth of prompts that recall something hardly moves them
    (Rousseeuw & Croux 1993).
    """
    middle = float(np.median(values))
    return Ordinary(mean=middle, spread=1.4826 * float(np.median(np.abs(np.asarray(values) - middle))))


def recurrence_threshold(pairs: NDArray[np.float64], definition_samples: int = DEFINITION_SAMPLES) -> float:
    """The δ_s within which `ORDINARY_RECURRENCE` of the samples of ordinary prompts have another one, among N.

    A sample has another one of N − 1 within δ with probability 1 − (1 − F(δ))^(N−1), F the distribution of the
    distance between two samples. That asks for F where few pairs are seen: its lower tail is taken for that of a
    log-normal distribution, a straight line of log δ over the normal quantile of F, drawn through the lowest tenth.

    Args:
        pairs: distances between two samples of one prompt, of all prompts.
        definition_samples: N.
    """
    wanted = 1 - (1 - ORDINARY_RECURRENCE) ** (1 / (definition_samples - 1))
    ordered = np.maximum(np.sort(pairs), 1e-9)
    if wanted * len(ordered) >= 10:  # seen often enough to be counted
        return float(np.quantile(ordered, wanted))
    count = max(min(10, len(ordered)), round(TAIL * len(ordered)))
    quantiles = norm.ppf((np.arange(count) + 0.5) / len(ordered))
    slope, intercept = np.polyfit(quantiles, np.log(ordered[:count]), 1)
    return float(np.exp(intercept + slope * norm.ppf(wanted)))


def copy_threshold(finder: NeighborFinder) -> float | None:
    """The δ_m within which `FALSE_COPIES` of real images that are not in the reference set would be copies.

    Each of up to `STAND_INS` reference images stands for one that is not there: it is compared with all the others.
    Images that are in the set twice stand for nothing.

    Returns:
        The threshold; None where the set is too small to tell, or keeps no images.
    """
    if not finder.reference.has_images:
        return None
    count = min(len(finder.reference), STAND_INS)
    chosen = np.random.default_rng(0).choice(len(finder.reference), count, replace=False)
    distances = finder.between_references([int(i) for i in np.sort(chosen)])
    apart = distances[np.isfinite(distances) & (distances > SAME)]
    return float(np.quantile(apart, FALSE_COPIES)) if len(apart) else None
