"""Why a verdict is what it is, in plain sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from audit.evidence.gathered import Evidence
from audit.model.checkpoint import Gap
from audit.verdict.features import CONTRASTS, TRACES, Measurement

#: What measurements are of.
_KINDS = {"curvature": TRACES, "contrast": CONTRASTS}
#: How the measurements that decide most are said.
_SAID = {
    "trace_near": "Of the noise added to its samples, the model finds this share again:",
    "contrast_late": "On pure noise the prompt changes the prediction by, per latent value:",
}


def give_reasons(
    evidence: Evidence,
    measured: Sequence[Measurement],
    features: Collection[str],
    *,
    fits: bool,
    expected: float,
    copies: int,
    distinct: int,
    delta_m: float,
    delta_s: float,
    complete: bool,
    definition_samples: int,
    gaps: Sequence[Gap],
) -> list[str]:
    """The reasons of a verdict, the weightiest first.

    Args:
        evidence: of at least one sample.
        measured: what the estimators saw.
        features: names of those that could be made of it.
        fits: whether the calibration was made with this checkpoint and sampler.
        expected: share of N samples that is expected to recur.
        copies: samples within δ_m of a reference image.
        distinct: different reference images among them.
        delta_m: as used.
        delta_s: as used.
        complete: whether "not found" means "not there".
        definition_samples: N.
        gaps: evidence that is missing.
    """
    stability, neighbors = evidence.stability, evidence.neighbors
    n = len(stability.mode_of)
    sentences = []
    kinds = " and ".join(kind for kind, names in _KINDS.items() if set(features) & set(names)) or "where seeds meet"
    judged = f"whether what recurs is copied is judged by {kinds} alone."
    if neighbors is None:
        sentences.append(f"No reference set was searched: {judged}")
    elif not neighbors.compared:
        sentences.append(f"The reference set keeps no images, so that pixels were not compared: {judged}")
        if neighbors.clip_similarity is not None:
            sentences.append(
                f"By embedding, the most similar image of the reference set is at cosine similarity "
                f"{neighbors.clip_similarity.max():.2f}."
            )
    elif copies:
        images = "one training image" if distinct == 1 else f"{distinct} different training images"
        sentences.append(
            f"{copies} of {n} seeds gave copies of {images}: the nearest is at distance "
            f"{neighbors.distance.min():.2f}, copies are within {delta_m:.2f}."
        )
    else:
        whole = "complete training set" if complete else "partial reference set"
        sentences.append(
            f"None of {n} seeds came near an image of the {whole}: the nearest is at distance "
            f"{neighbors.distance.min():.2f}, copies are within {delta_m:.2f}."
        )
        if not complete:
            sentences.append(
                "The reference set is partial: an image that recurs may still be a copy of one outside it."
            )
    recurring = sum(len(mode.members) for mode in stability.modes if mode.recurs)
    if recurring:
        meeting = f"two seeds meet with probability {stability.meeting_rate:.2f}"
        count = sum(mode.recurs for mode in stability.modes)
        places = "one image" if count == 1 else f"{count} images"
        sentences.append(f"{recurring} of {n} seeds returned to {places} that another seed also reached; {meeting}.")
    elif n > 1:
        sentences.append(f"No two of {n} seeds met (closer than {delta_s:.2f}).")
    for one in measured:
        if one.name in _SAID and one.ordinary is not None:
            low, high = one.ordinary
            place = "above" if one.value > high else "below" if one.value < low else "within"
            sentences.append(
                f"{_SAID[one.name]} {one.value:.2f}, {place} the range of ordinary prompts ({low:.2f} to {high:.2f})."
            )
    sentences.append(f"From this, {expected:.0%} of {definition_samples} samples are expected to recur.")
    sentences += [gap.reason for gap in gaps if gap.evidence != "explanation"]
    if not fits:
        sentences.append(
            "No calibration of this checkpoint with these sampler settings: thresholds and estimates are rough."
        )
    return sentences
