"""Reports made by hand, with pictures, for what only draws or prints them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from audit.v1 import report_pb2

FRACTIONS = {
    report_pb2.memorized: (0.97, 0.02, 0.01),
    report_pb2.spurious: (0.08, 0.71, 0.21),
    report_pb2.generalized: (0.02, 0.07, 0.91),
}


def picture(pixels: NDArray[np.uint8]) -> report_pb2.Image:
    """A wire image of uint8 pixels (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return report_pb2.Image(png=buffer.getvalue(), height=pixels.shape[0], width=pixels.shape[1])


def make_report(
    verdict: report_pb2.Verdict,
    modes: list[list[NDArray[np.uint8]]],
    *,
    prompt: str = "a red silk dress for spring from oslo",
    nearest: list[NDArray[np.uint8]] | None = None,
    distance: float = 7.0,
) -> report_pb2.Report:
    """A report whose seeds gave these images, mode by mode; all else is made up.

    Args:
        verdict: of the prompt and of every sample.
        modes: images of each mode.
        prompt: audited.
        nearest: the nearest reference image of each mode; None for an audit without a reference set.
        distance: to the nearest reference image; up to 4 is a copy.
    """
    values = FRACTIONS[verdict]
    names = ("memorized", "spurious", "generalized")
    fractions = report_pb2.ClassIntervals(level=0.9)
    for name, value in zip(names, values, strict=True):
        getattr(fractions, name).MergeFrom(
            report_pb2.Interval(estimate=value, lower=max(0, value - 0.08), upper=min(1, value + 0.06))
        )
    total = sum(map(len, modes))
    report = report_pb2.Report(
        prompt=prompt,
        verdict=verdict,
        confidence=0.98 if verdict != report_pb2.spurious else 0.74,
        decided=verdict != report_pb2.spurious,
        probabilities=report_pb2.ClassValues(**dict(zip(names, values, strict=True))),
        fractions=fractions,
        recurring_probability=values[0] + values[1],
        reasons=[f"{total} seeds were drawn.", "The curvature's trace is 1.10 [high]."],
        subject=report_pb2.Subject(
            checkpoint="demo",
            checkpoint_digest="sha256:" + 64 * "a",
            family="StableDiffusionPipeline",
            sampler=report_pb2.Sampler(scheduler="DDIMScheduler", steps=20, guidance=1.0, height=32, width=32),
            definition_samples=512,
            calibration=report_pb2.CalibrationInfo(delta_m=4.0, delta_s=4.0, fits=True),
        ),
        cost=report_pb2.Cost(
            evaluations=1024, sampling_evaluations=640, curvature_evaluations=384, compute_seconds=2.5
        ),
        provenance=report_pb2.Provenance(basin_version="0.1.0", device="cpu float32"),
    )
    if nearest is None:
        report.copies.rate_upper_bound = 1.0
    else:
        report.subject.MergeFrom(report_pb2.Subject(reference="demo", reference_size=13_000, reference_complete=True))
        if distance <= 4:
            report.copies.MergeFrom(
                report_pb2.CopyEvidence(found=total, distinct_references=len(modes), rate_upper_bound=1.0)
            )
    seed = 0
    for index, images in enumerate(modes):
        neighbor = None
        if nearest is not None:
            neighbor = report_pb2.Neighbor(
                index=index, caption=f"training image {index}", distance=distance, image=picture(nearest[index])
            )
        seeds = []
        for pixels in images:
            report.samples.append(
                report_pb2.SampleEvidence(
                    seed=seed, verdict=verdict, mode=index, nearest_reference=neighbor, image=picture(pixels)
                )
            )
            seeds.append(seed)
            seed += 1
        report.stability.modes.append(
            report_pb2.Mode(seeds=seeds, share=len(seeds) / total, verdict=verdict, nearest_reference=neighbor)
        )
    return report
