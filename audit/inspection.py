r"""An image that already exists, as a sample of a checkpoint.

The image x is encoded, ẑ₀ = E(x), and decoded again, D(ẑ₀): what the checkpoint can make of it. Then:

    reconstruction   ‖D(E(x)) − x‖; over δ_s, what comes back is another image, and the checkpoint did not make x
    neighbours       nearest of x and of D(E(x)) to the reconstructed references; within δ_m it is memorized
    draws            samples of the prompt; one within δ_s of D(E(x)) makes it recur, which is the paper's rule
    smoothed trace   at ẑ₀, mean over several noises, as `audit.evidence.smoothed` has it
    basin            ẑ₀ is noised and denoised by the rest of the sampler's own trajectory: from which noise does it
                     come back to within δ_s of D(ẑ₀)? (`audit.evidence.existing`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import InvalidInput, require_finite
from audit.evidence.existing import TRIALS, Basin, Found, measure_return, stride
from audit.evidence.neighbors import Neighbors
from audit.evidence.smoothed import SmoothedTrace, measure_smoothed_trace
from audit.model.denoiser import Denoiser
from audit.model.sampling import SCHEDULERS, SamplerSettings
from audit.reference.images import to_float, with_channels
from audit.report import Cost, ReferenceUsed
from audit.verdict.calibration import Calibration
from audit.verdict.decision import DECIDED
from audit.verdict.existing import conclude
from audit.verdict.features import NOISE_LEVELS, Measurement
from audit.verdict.rule import CLASSES, PhaseClass
from audit.version import library_versions
from audit.work import Progress, Work

if TYPE_CHECKING:
    from audit.auditor import Auditor

#: Noises that the trace is averaged over, and samples drawn.
NOISES, DRAWS = 8, 4
#: Steps of the way back at most: the sampler's own, in fewer steps where it takes more.
WAY_BACK = 20
#: First of the seeds: the same for all images, and none that users are likely to audit with.
FIRST_SEED = 8_000_000_000


@dataclass(frozen=True)
class Inspection:
    """One image as a sample of a checkpoint.

    Attributes:
        prompt: that it was inspected under; "" for none.
        verdict: its most probable class; None where nothing tells.
        probabilities: of each class, in the order of `CLASSES`; None where it is no sample of the checkpoint under the
            prompt, which has no class.
        reasons: in plain sentences, the weightiest first.
        measurements: of the trace and, under a prompt, of the contrast.
        reconstruction_distance: pixel distance of the image to D(E(image)).
        neighbors: the nearest reference; None when nothing was searched. `distance` is that of the image or of
            D(E(image)), whichever is less; `original_distance` that of the image.
        smoothed: the smoothed trace at every noise.
        basin: whether it comes back.
        draw_distance: of D(E(image)) to each sample drawn, (draws,).
        delta_m: as used.
        delta_s: as used.
        sampler: as used.
        scheduler_class: of the diffusers scheduler that drew the samples.
        way_back: the sampler that the basin was measured with.
        checkpoint_name: of the checkpoint.
        checkpoint_digest: of its weights.
        checkpoint_source: what they were loaded from; see `audit.model.checkpoint_source`.
        family: kind of pipeline.
        reference: what it was compared with; None for nothing.
        calibration: as used.
        calibration_fits: whether it was made with this checkpoint and these sampler settings.
        cost: evaluations and seconds; ways back count as sampling.
        libraries: versions of what decides numbers.
        finished: when, UTC.
        device: and precision, e.g. "cpu float32".
    """

    prompt: str
    verdict: PhaseClass | None
    probabilities: tuple[float, float, float] | None
    reasons: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    reconstruction_distance: float
    neighbors: Neighbors | None
    smoothed: SmoothedTrace
    basin: Basin
    draw_distance: NDArray[np.float64]
    delta_m: float
    delta_s: float
    sampler: SamplerSettings
    scheduler_class: str
    way_back: SamplerSettings
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

    @property
    def confidence(self) -> float:
        """Probability of the verdict; 0 without one."""
        if self.verdict is None or self.probabilities is None:
            return 0.0
        return self.probabilities[CLASSES.index(self.verdict)]

    @property
    def decided(self) -> bool:
        """Whether the confidence is high enough to call it an answer."""
        return self.confidence >= DECIDED


def planned_evaluations(auditor: Auditor, sampler: SamplerSettings, *, prompted: bool) -> tuple[int, int]:
    """Denoiser evaluations of an inspection, at least and at most: the image need not come back from every level."""
    back = way_back(auditor, sampler)
    rows = (2 if sampler.guided else 1) * TRIALS
    steps = len(auditor.timesteps(back))
    levels = [steps - step for step in range(steps - 1, -1, -stride(steps))]
    drawing = (2 if sampler.guided else 1) * DRAWS * len(auditor.timesteps(sampler))
    fixed = (auditor.screening_evaluations(sampler) if prompted else 0) + 2 * len(NOISE_LEVELS) * NOISES + drawing
    return fixed + rows * levels[0], fixed + rows * sum(levels)


def way_back(auditor: Auditor, sampler: SamplerSettings) -> SamplerSettings:
    """The sampler in at most `WAY_BACK` steps; DDIM in place of PNDM, which cannot begin in the middle."""
    pndm = auditor.checkpoint.scheduler_class(sampler) == SCHEDULERS["pndm"]
    return replace(sampler, steps=min(sampler.steps, WAY_BACK), scheduler="ddim" if pndm else sampler.scheduler)


def as_batch(image: NDArray[np.uint8] | Tensor) -> Tensor:
    """An image as float32, (1, channels, height, width).

    Args:
        image: uint8, (height, width) or (height, width, 1 or 3); or a tensor (1 or 3, height, width) in [-1, 1].

    Raises:
        InvalidInput: it is neither.
    """
    if isinstance(image, Tensor):
        batch = image.detach().float().cpu()[None]
    else:
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise InvalidInput(f"pixels must be uint8, not {array.dtype}", reason="IMAGE_WRONG_SHAPE", field="image")
        array = array[..., None] if array.ndim == 2 else array
        batch = to_float(array[None].copy()) if array.ndim == 3 else torch.empty(0)
    if batch.dim() != 4 or batch.shape[1] not in (1, 3) or not batch.numel():
        shape = "×".join(map(str, image.shape))
        raise InvalidInput(f"an image has 1 or 3 channels, this is {shape}", reason="IMAGE_WRONG_SHAPE", field="image")
    if not bool(((batch >= -1) & (batch <= 1)).all()):
        raise InvalidInput("pixels must be in [-1, 1]", reason="IMAGE_OUT_OF_RANGE", field="image")
    return batch


def inspect(
    auditor: Auditor,
    image: NDArray[np.uint8] | Tensor,
    prompt: str,
    *,
    sampler: SamplerSettings,
    denoiser: Denoiser | None,
    on_progress: Callable[[Progress], None],
    check: Callable[[], None],
) -> Inspection:
    """See `audit.auditor.Auditor.inspect`."""
    checkpoint, calibration = auditor.checkpoint, auditor.calibration
    given = as_batch(image)
    planned = planned_evaluations(auditor, sampler, prompted=bool(prompt))[1]
    work = Work(denoiser or auditor.denoiser, planned, on_progress, check)
    condition = checkpoint.told(auditor.check_prompt(prompt) if prompt else auditor.encode(""), sampler)
    unconditional = auditor.condition(sampler.negative_prompt, sampler, "sampler.negative_prompt")
    screening = None
    if prompt and checkpoint.contrasts(sampler):
        with work.stage("screening"):
            screening = auditor.screen_at(sampler, work.denoiser.inner).measure(work.denoiser, condition)[0]
        require_finite(bool(np.isfinite(screening.contrast).all()), "predictions")

    size = (sampler.height, sampler.width)
    with work.stage("decoding"):
        if given.shape[-2:] != size:
            given = torch.nn.functional.interpolate(given, size=size, mode="bilinear", antialias=True).clamp(-1, 1)
        given = with_channels(given, checkpoint.image_channels)
        latent = checkpoint.encode(given)
        again = checkpoint.decode(latent).cpu()
    require_finite(bool(latent.isfinite().all() and again.isfinite().all()), "images")
    own = auditor.vectors(again)
    delta_m, delta_s = calibration.thresholds(own.shape[1])

    def apart(latents: Tensor) -> Tensor:
        """Pixel distance to the image of each of the latents."""
        return (auditor.vectors(checkpoint.decode(latents).cpu()) - own).double().norm(dim=1)

    work.check()
    with work.stage("searching"):
        neighbors = None if auditor.finder is None else auditor.finder.find_existing(given, again)
    with work.stage("curvature"):
        seeds = range(FIRST_SEED, FIRST_SEED + NOISES)
        points = latent.expand(NOISES, *latent.shape[1:])
        smoothed = measure_smoothed_trace(work.denoiser, points, condition, NOISE_LEVELS, seeds)
    require_finite(bool(np.isfinite(smoothed.values).all()), "curvature")
    back = way_back(auditor, sampler)
    with work.stage("sampling"):
        drawn = checkpoint.sample(sampler, condition, unconditional, seeds[:DRAWS], work.denoiser).latents
        require_finite(bool(drawn.isfinite().all()), "images")
        draws = apart(drawn).numpy()
        basin = measure_return(
            work.denoiser,
            partial(checkpoint.scheduler, back),
            back,
            latent,
            condition,
            unconditional,
            lambda latents: apart(latents) <= delta_s,
            seed=FIRST_SEED,
        )

    found = Found(
        reconstruction=float((auditor.vectors(given) - own).double().norm()),
        near=float("inf") if neighbors is None else float(neighbors.distance[0]),
        draws=draws,
        basin=basin,
        screening=screening,
        smoothed=smoothed,
        prompted=bool(prompt),
    )
    fits = calibration.fits(checkpoint.digest, sampler)
    searched = neighbors is not None and neighbors.compared
    complete = auditor.reference.complete if auditor.reference is not None and searched else None
    with work.stage("concluding"):
        concluded = conclude(
            found,
            calibration,
            complete=complete,
            dimension=own.shape[1],
            fits=fits,
            gaps=checkpoint.gaps(sampler),
        )
    return Inspection(
        prompt=prompt,
        verdict=concluded.verdict,
        probabilities=concluded.probabilities,
        reasons=concluded.reasons,
        measurements=concluded.measurements,
        reconstruction_distance=found.reconstruction,
        neighbors=neighbors,
        smoothed=smoothed,
        basin=basin,
        draw_distance=draws,
        delta_m=delta_m,
        delta_s=delta_s,
        sampler=sampler,
        scheduler_class=checkpoint.scheduler_class(sampler),
        way_back=back,
        checkpoint_name=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        checkpoint_source=checkpoint.source,
        family=checkpoint.family,
        reference=auditor.reference_used(neighbors),
        calibration=calibration,
        calibration_fits=fits,
        cost=work.cost(),
        libraries=library_versions(),
        finished=datetime.now(UTC),
        device=checkpoint.place,
    )
