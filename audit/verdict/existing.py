"""From what was measured of an image that already exists to its class as a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audit.evidence.existing import Found
from audit.evidence.gathered import Evidence
from audit.evidence.stability import cluster
from audit.model.checkpoint import Gap
from audit.verdict.calibration import Calibration
from audit.verdict.decision import decide
from audit.verdict.features import Measurement
from audit.verdict.rule import CLASSES, DEFINITION_SAMPLES, PhaseClass


class Conclusion(NamedTuple):
    """Attributes as in `audit.inspection.Inspection`."""

    verdict: PhaseClass | None
    probabilities: tuple[float, float, float] | None
    measurements: tuple[Measurement, ...]
    reasons: tuple[str, ...]


def conclude(
    found: Found,
    calibration: Calibration,
    *,
    complete: bool | None,
    dimension: int,
    fits: bool,
    gaps: Sequence[Gap] = (),
) -> Conclusion:
    """Weigh what was measured.

    Of a sample that is not found in a reference set, the class is that of any sample of its prompt with such a trace:
    the fractions that the estimators expect after one sample, given that it was not found. Where the set covers a
    share v ~ Uniform(0, 1) of what is copied, half of the copies are not found.

    Args:
        found: what was measured.
        calibration: of the checkpoint.
        complete: whether "not found" means "not there"; None when no pixels were compared.
        dimension: of pixel vectors.
        fits: whether the calibration was made with this checkpoint and sampler.
        gaps: evidence that is missing.
    """
    delta_m, delta_s = calibration.thresholds(dimension)
    evidence = Evidence(found.screening, cluster(np.zeros((1, 1)), delta_s), found.smoothed)
    expected = decide(
        evidence,
        calibration,
        reference_complete=False,
        dimension=dimension,
        definition_samples=DEFINITION_SAMPLES,
        fits=fits,
        gaps=gaps,
    )
    prompted, shown = found.prompted, expected.measurements
    copied = found.near <= delta_m
    met = int((found.draws <= delta_s).sum())
    foreign = found.reconstruction > delta_s or not found.basin.found
    unseen = {True: 0.0, False: 0.5, None: 1.0}[complete]

    weights: NDArray[np.float64] | None
    if copied:
        weights = np.array([1.0, 0.0, 0.0])
    elif foreign and not met:
        weights = None
    elif prompted:
        weights = np.array([part.estimate for part in expected.fractions]) * (unseen, 1.0, 0.0 if met else 1.0)
    else:
        weights = np.array([float(unseen > 0), 1.0, 0.0 if met else 1.0])
    probabilities = None
    if weights is not None:
        memorized, spurious, generalized = (float(weight) for weight in weights / weights.sum())
        probabilities = (memorized, spurious, generalized)
    told = probabilities is not None and (prompted or max(probabilities) == 1.0)
    verdict = CLASSES[int(np.argmax(probabilities))] if told and probabilities is not None else None
    reasons = _reasons(found, shown, delta_m, delta_s, met, complete, fits)
    reasons += [gap.reason for gap in gaps if gap.evidence != "explanation"]
    return Conclusion(verdict, probabilities, shown, tuple(reasons))


def _reasons(
    found: Found,
    shown: tuple[Measurement, ...],
    delta_m: float,
    delta_s: float,
    met: int,
    complete: bool | None,
    fits: bool,
) -> list[str]:
    basin, copied, sentences = found.basin, found.near <= delta_m, []
    if complete is None:
        sentences.append("No images of a reference set were compared: a copy of a training image would not be told.")
    elif copied:
        sentences.append(
            f"It is a copy of a training image: at distance {found.near:.2f}, copies are within {delta_m:.2f}."
        )
    else:
        whole = "complete training set" if complete else "partial reference set"
        sentences.append(
            f"It is no copy of an image of the {whole}: the nearest is at distance {found.near:.2f}, copies are within "
            f"{delta_m:.2f}."
        )
        if not complete:
            sentences.append("The reference set is partial: it may still be a copy of an image outside it.")
    same = f"the same image is within {delta_s:.2f}"
    if found.reconstruction > delta_s:
        sentences.append(
            f"The autoencoder does not give it back (distance {found.reconstruction:.2f}, {same}): the checkpoint did "
            "not make it as it is, and the rest is about what the autoencoder makes of it."
        )
    under = "under this prompt" if found.prompted else "without a prompt"
    if met:
        sentences.append(f"{met} of {len(found.draws)} samples drawn {under} are the same image.")
    if basin.found:
        sentences.append(
            f"It lies in a basin {under}: it comes back from the noise of timestep {basin.critical_time}, while noise "
            f"alone makes it another image beyond timestep {basin.noise_time}."
        )
    else:
        how = "does not even come back" if basin.led_away else "comes back only"
        sentences.append(f"It lies in no basin {under}: it {how} from noise that changes nothing by itself.")
        if not (copied or met):
            sentences.append(f"So it is hardly a sample that would be drawn {under}, and has no class as one.")
    if copied and not basin.found:
        sentences.append("Nothing here says that the checkpoint recalls it: it may come from the training set itself.")
    for one in shown:
        if one.name == "trace_near" and one.ordinary is not None:
            low, high = one.ordinary
            sentences.append(
                f"Of the noise added to it, the model finds this share again: {one.value:.2f}; samples of ordinary "
                f"prompts are at {low:.2f} to {high:.2f}."
            )
    if not found.prompted:
        sentences.append("Without a prompt there is no contrast to judge by: whether it recurs is not estimated.")
    if not fits:
        sentences.append(
            "No calibration of this checkpoint with these sampler settings: thresholds and estimates are rough."
        )
    return sentences
