"""Messages of proto/audit/v1 from and to the types of `audit`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from audit.auditor import Auditor
from audit.budget import Budget
from audit.evidence import attribution, curvature, localization, stability
from audit.evidence.explanation import Explanation
from audit.evidence.neighbors import Neighbors
from audit.evidence.screening import EVALUATIONS as SCREENING
from audit.inspection import Inspection
from audit.model.checkpoint import Gap
from audit.model.sampling import SamplerSettings
from audit.reference.images import encode_png
from audit.reference.reference_set import Entry
from audit.report import Cost, ReferenceUsed, Report
from audit.v1 import audit_pb2, report_pb2
from audit.verdict import calibration, decision, features
from audit.verdict.estimators import shipped
from audit.verdict.rule import CLASSES, DEFINITION_SAMPLES
from audit.version import basin_version

#: In the order of `CLASSES`.
VERDICTS = (report_pb2.memorized, report_pb2.spurious, report_pb2.generalized)
#: Longer side of the images in a report, in pixels.
IMAGE_SIDE = 256
#: A report of more samples has smaller images, so that their sum stays bounded.
FULL_SIZE_IMAGES = 64


def report_to_proto(report: Report) -> report_pb2.Report:
    """A report as its message, every field filled in; images as PNG files."""
    decided, pictures = report.decision, _Pictures(report)
    message = report_pb2.Report(
        prompt=report.prompt,
        verdict=VERDICTS[CLASSES.index(decided.verdict)],
        confidence=decided.confidence,
        decided=decided.decided,
        probabilities=report_pb2.ClassValues(**dict(zip(CLASSES, decided.probabilities, strict=True))),
        fractions=report_pb2.ClassIntervals(
            **{name: _interval(value) for name, value in zip(CLASSES, decided.fractions, strict=True)},
            level=decision.INTERVAL_LEVEL,
        ),
        recurring_probability=decided.recurring_probability,
        copies=report_pb2.CopyEvidence(
            found=decided.copies,
            distinct_references=decided.distinct_references,
            rate_upper_bound=decided.copy_rate_bound,
        ),
        reasons=decided.reasons,
        stability=report_pb2.StabilityEvidence(
            modes=[_mode(report, mode, pictures) for mode in report.evidence.stability.modes],
            meeting_rate=report.evidence.stability.meeting_rate,
            recurring_share=report.evidence.stability.recurring_share,
            median_nearest_sample_distance=float(np.median(report.evidence.stability.nearest_sample_distance)),
            final_step=report.evidence.stability.final_step,
        ),
        curvature=[_curvature(report, level) for level in report.evidence.curvature],
        samples=[_sample(report, index, pictures) for index in range(len(report.seeds))],
        measurements=[measurement(one) for one in decided.measurements],
        explanation=None if report.explanation is None else _explanation(report.explanation),
        subject=_subject(report, decided.delta_m, decided.delta_s),
        cost=_cost(report.cost),
        provenance=_provenance(report),
        gaps=gaps_to_proto(report.gaps),
    )
    message.subject.definition_samples = report.budget.definition_samples
    message.subject.budget.MergeFrom(
        report_pb2.Budget(
            seeds=report.budget.seeds,
            minimum_seeds=report.budget.minimum_seeds,
            first_seed=report.budget.first_seed,
            curvature=report.budget.curvature.method,
        )
    )
    return message


def gaps_to_proto(gaps: Sequence[Gap]) -> list[report_pb2.EvidenceGap]:
    """What a checkpoint lacks."""
    return [report_pb2.EvidenceGap(evidence=gap.evidence, reason=gap.reason) for gap in gaps]


def sampler_overrides(options: audit_pb2.SamplerOptions) -> dict[str, Any]:
    """The settings that a request gives, for `audit.auditor.Auditor.resolve_sampler`; None means not given."""
    given: dict[str, Any] = {
        name: getattr(options, name) if options.HasField(name) else None
        for name in ("steps", "guidance", "height", "width", "eta", "true_guidance")
    }
    return {"scheduler": options.scheduler or None, "negative_prompt": options.negative_prompt or None, **given}


def budget(options: audit_pb2.BudgetOptions, defaults: Budget) -> Budget:
    """The budget of a request: what it gives on top of the defaults.

    Raises:
        InvalidInput: a value is out of range.
    """
    given = {
        name: getattr(options, name)
        for name in ("seeds", "minimum_seeds", "first_seed", "definition_samples")
        if options.HasField(name)
    }
    # Not a method until Budget has looked at it.
    method = cast(curvature.Method, options.curvature or defaults.curvature.method)
    return replace(defaults, **given, curvature=replace(defaults.curvature, method=method))


class _Pictures:
    """The images of a report, each encoded once; none when it has none."""

    def __init__(self, report: Report) -> None:
        self._samples = report.images
        self._references = report.reference.images if report.reference else {}
        count = len(report.seeds)
        self._side = IMAGE_SIDE if count <= FULL_SIZE_IMAGES else int(IMAGE_SIDE * (FULL_SIZE_IMAGES / count) ** 0.5)
        self._encoded: dict[int, report_pb2.Image] = {}

    def sample(self, index: int) -> report_pb2.Image | None:
        return None if self._samples is None else picture(self._samples[index], self._side)

    def reference(self, index: int) -> report_pb2.Image | None:
        if index not in self._references:
            return None
        if index not in self._encoded:
            self._encoded[index] = picture(self._references[index], self._side)
        return self._encoded[index]


def picture(image: NDArray[np.uint8], side: int = IMAGE_SIDE) -> report_pb2.Image:
    """An image as a message, brought down to `side` pixels on its longer side.

    Args:
        image: uint8, (height, width, 1 or 3).
        side: most pixels on the longer side.
    """
    height, width, channels = image.shape
    if max(height, width) > side:
        shrink = side / max(height, width)
        height, width = max(1, round(height * shrink)), max(1, round(width * shrink))
        full = Image.fromarray(image[..., 0] if channels == 1 else image)
        image = np.asarray(full.resize((width, height), Image.Resampling.LANCZOS)).reshape(height, width, channels)
    return report_pb2.Image(png=encode_png(image), height=height, width=width)


def screening_to_proto(
    prompts: Sequence[str],
    found: Sequence[decision.Screened],
    auditor: Auditor,
    sampler: SamplerSettings,
    *,
    seconds: float,
    queue_seconds: float = 0.0,
) -> audit_pb2.ScreenResponse:
    """What screening found, and what it took."""
    used, evaluations = auditor.calibration, SCREENING * len(found)
    response = audit_pb2.ScreenResponse(
        calibration=calibration_info(used, used.fits(auditor.checkpoint.digest, sampler)),
        threshold=used.screen_threshold,
        false_positive_rate=used.false_positive_rate,
        cost=report_pb2.Cost(
            evaluations=evaluations,
            screening_evaluations=evaluations,
            queue_seconds=queue_seconds,
            compute_seconds=seconds,
            stage_seconds={"screening": seconds},
        ),
    )
    for prompt, one in zip(prompts, found, strict=True):
        response.results.add(
            prompt=prompt,
            flagged=one.flagged,
            recurring_probability=one.recurring_probability,
            probabilities=report_pb2.ClassValues(**dict(zip(CLASSES, one.probabilities, strict=True))),
            fractions=report_pb2.ClassValues(**dict(zip(CLASSES, one.fractions, strict=True))),
            measurements=[measurement(each) for each in one.measurements],
        )
    return response


def inspection_to_proto(found: Inspection, image: bytes) -> audit_pb2.InspectImageResponse:
    """What was found about an image, as its message.

    Args:
        found: of the image.
        image: the file that it came in.
    """
    basin, probabilities = found.basin, found.probabilities
    shares = None if probabilities is None else dict(zip(CLASSES, probabilities, strict=True))
    message = audit_pb2.InspectImageResponse(
        verdict=report_pb2.VERDICT_UNSPECIFIED if found.verdict is None else VERDICTS[CLASSES.index(found.verdict)],
        confidence=found.confidence,
        decided=found.decided,
        probabilities=None if shares is None else report_pb2.ClassValues(**shares),
        reasons=found.reasons,
        reconstruction_distance=found.reconstruction_distance,
        nearest_reference=_neighbor(found.neighbors, found.reference, 0, None),
        nearest_clip=_clip_neighbor(found.neighbors, found.reference, 0),
        measurements=[measurement(one) for one in found.measurements],
        basin=audit_pb2.BasinEvidence(
            found=basin.found,
            critical_time=basin.critical_time,
            noise_time=basin.noise_time,
            log_volume=basin.log_volume,
            levels=[
                audit_pb2.BasinLevel(timestep=int(timestep), recovery=share)
                for timestep, share in zip(basin.timesteps, basin.recovery, strict=True)
                if not np.isnan(share)
            ],
        ),
        sample_distances=found.draw_distance.tolist(),
        prompt=found.prompt,
        image_digest=f"sha256:{hashlib.sha256(image).hexdigest()}",
        subject=_subject(found, found.delta_m, found.delta_s),
        cost=_cost(found.cost),
        provenance=_provenance(found),
    )
    message.subject.definition_samples = DEFINITION_SAMPLES
    return message


def measurement(found: features.Measurement) -> report_pb2.Measurement:
    """A measurement with what is ordinary."""
    low, high = found.ordinary or (None, None)
    return report_pb2.Measurement(name=found.name, value=found.value, ordinary_lower=low, ordinary_upper=high)


def calibration_info(used: calibration.Calibration, fits: bool) -> report_pb2.CalibrationInfo:
    """Which calibration was used, thresholds left out."""
    info = report_pb2.CalibrationInfo(
        digest=used.digest if used.checkpoint_digest else "",
        fits=fits,
        prompts=used.prompts,
        estimators_digest=shipped().digest,
    )
    if used.made is not None:
        info.make_time.FromDatetime(used.made)
    return info


def _interval(interval: decision.Interval) -> report_pb2.Interval:
    return report_pb2.Interval(estimate=interval.estimate, lower=interval.lower, upper=interval.upper)


def neighbor(index: int, entry: Entry, original_distance: float, image: report_pb2.Image | None) -> report_pb2.Neighbor:
    """A reference image by what is known of it, and how far it is as it is stored."""
    return report_pb2.Neighbor(
        index=index,
        key=entry.key,
        caption=entry.caption,
        url=entry.url,
        copies=entry.copies,
        original_distance=original_distance,
        image=image,
    )


def clip_neighbor(index: int, entry: Entry, similarity: float) -> report_pb2.ClipNeighbor:
    """A reference image by what is known of it, and how similar it is in CLIP space."""
    return report_pb2.ClipNeighbor(
        index=index, key=entry.key, caption=entry.caption, url=entry.url, similarity=similarity
    )


def _neighbor(
    neighbors: Neighbors | None, reference: ReferenceUsed | None, index: int, pictures: _Pictures | None
) -> report_pb2.Neighbor | None:
    """The nearest reference of an image; None when no pixels were compared."""
    if neighbors is None or reference is None or not neighbors.compared:
        return None
    found = int(neighbors.index[index])
    message = neighbor(
        found,
        reference.entries[found],
        neighbors.original_distance[index],
        None if pictures is None else pictures.reference(found),
    )
    message.distance = neighbors.distance[index]
    return message


def _clip_neighbor(
    neighbors: Neighbors | None, reference: ReferenceUsed | None, index: int
) -> report_pb2.ClipNeighbor | None:
    if reference is None or neighbors is None or neighbors.clip_index is None or neighbors.clip_similarity is None:
        return None
    found = int(neighbors.clip_index[index])
    return clip_neighbor(found, reference.entries[found], neighbors.clip_similarity[index])


def _mode(report: Report, mode: stability.Mode, pictures: _Pictures) -> report_pb2.Mode:
    center = mode.members[0]
    return report_pb2.Mode(
        seeds=[report.seeds[member] for member in mode.members],
        share=mode.share,
        verdict=VERDICTS[report.decision.sample_classes[center]],
        nearest_reference=_neighbor(report.evidence.neighbors, report.reference, center, pictures),
    )


def _sample(report: Report, index: int, pictures: _Pictures) -> report_pb2.SampleEvidence:
    return report_pb2.SampleEvidence(
        seed=report.seeds[index],
        verdict=VERDICTS[report.decision.sample_classes[index]],
        mode=int(report.evidence.stability.mode_of[index]),
        nearest_reference=_neighbor(report.evidence.neighbors, report.reference, index, pictures),
        nearest_clip=_clip_neighbor(report.evidence.neighbors, report.reference, index),
        nearest_sample_seed=report.seeds[int(report.evidence.stability.nearest_sample[index])],
        nearest_sample_distance=report.evidence.stability.nearest_sample_distance[index],
        image=pictures.sample(index),
    )


def _spectrum(spectrum: curvature.Spectrum) -> report_pb2.Spectrum:
    return report_pb2.Spectrum(
        trace=spectrum.trace,
        trace_error=spectrum.trace_error,
        flat_share=spectrum.flat_share,
        log_volume=spectrum.log_volume,
        top=spectrum.top,
        bottom=spectrum.bottom,
        asymmetry=spectrum.asymmetry,
    )


def _curvature(report: Report, level: curvature.CurvatureLevel) -> report_pb2.CurvatureEvidence:
    return report_pb2.CurvatureEvidence(
        timestep=level.timestep,
        sigma=level.sigma,
        prompt=_spectrum(level.prompt),
        unconditional=None if level.unconditional is None else _spectrum(level.unconditional),
        samples=min(report.budget.curvature.samples, len(report.seeds)),
        method=report.budget.curvature.method,
    )


def _explanation(found: Explanation) -> report_pb2.Explanation:
    words, places = found.attribution, found.localization
    height, width = places.values.shape
    return report_pb2.Explanation(
        words=[
            report_pb2.WordWeight(word=word, weight=weight)
            for word, weight in zip(words.words, words.weights, strict=True)
        ],
        map=report_pb2.RecallMap(
            height=height, width=width, values=places.values.flatten(), threshold=places.threshold
        ),
        words_method=attribution.METHOD,
        map_method=localization.METHOD,
        samples=places.samples,
    )


def _cost(cost: Cost) -> report_pb2.Cost:
    return report_pb2.Cost(
        evaluations=cost.evaluations,
        screening_evaluations=cost.screening_evaluations,
        sampling_evaluations=cost.sampling_evaluations,
        curvature_evaluations=cost.curvature_evaluations,
        explaining_evaluations=cost.explaining_evaluations,
        queue_seconds=cost.queue_seconds,
        compute_seconds=cost.compute_seconds,
        stage_seconds=cost.stage_seconds,
    )


def _provenance(report: Report | Inspection) -> report_pb2.Provenance:
    message = report_pb2.Provenance(basin_version=basin_version(), libraries=report.libraries, device=report.device)
    message.finish_time.FromDatetime(report.finished)
    return message


def _subject(report: Report | Inspection, delta_m: float, delta_s: float) -> report_pb2.Subject:
    sampler, reference = report.sampler, report.reference
    message = report_pb2.Subject(
        checkpoint=report.checkpoint_name,
        checkpoint_digest=report.checkpoint_digest,
        checkpoint_source=report.checkpoint_source,
        family=report.family,
        sampler=report_pb2.Sampler(
            scheduler=report.scheduler_class,
            steps=sampler.steps,
            guidance=sampler.guidance,
            negative_prompt=sampler.negative_prompt,
            height=sampler.height,
            width=sampler.width,
            eta=sampler.eta,
            true_guidance=sampler.true_guidance,
            embedded=sampler.embedded,
        ),
        calibration=calibration_info(report.calibration, report.calibration_fits),
    )
    message.calibration.delta_m = delta_m
    message.calibration.delta_s = delta_s
    if reference is not None:
        message.reference = reference.name
        message.reference_digest = reference.digest
        message.reference_size = reference.size
        message.reference_complete = reference.complete
        message.embedder_digest = reference.embedder_digest
    return message
