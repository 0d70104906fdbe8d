"""One audit: draw, compare, measure, conclude."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from audit.budget import GROUP, Budget
from audit.errors import require_finite
from audit.evidence.curvature import CurvatureLevel, measure_curvature
from audit.evidence.explanation import Explanation, explain_recall
from audit.evidence.gathered import Draws
from audit.evidence.neighbors import NeighborFinder, Neighbors
from audit.evidence.screening import EVALUATIONS as SCREENING
from audit.evidence.screening import Screen, Screening
from audit.evidence.smoothed import measure_smoothed_trace
from audit.inputs import Inputs
from audit.inspection import Inspection, inspect
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, concatenate
from audit.model.sampling import SamplerSettings
from audit.reference.images import in_chunks, pixel_vectors, to_bytes
from audit.reference.reference_set import ReferenceSet
from audit.report import ReferenceUsed, Report
from audit.verdict.calibration import Calibration
from audit.verdict.decision import Screened, decide, screen
from audit.verdict.features import NOISE_LEVELS, TRACED
from audit.version import library_versions
from audit.work import Progress, Work

#: Latent sizes that an auditor remembers how to screen at.
SCREENS = 4
#: Seed of a sample + this: seed of the noise that its smoothed trace is taken with.
TRACE_SEED = 1 << 62


@dataclass(frozen=True)
class _Given:
    """A prompt as the denoiser takes it, and what was measured before any image."""

    condition: Condition
    unconditional: Condition
    screening: Screening | None


class Auditor(Inputs):
    """Audits prompts of one checkpoint against at most one reference set. Safe to use from several threads.

    Args:
        checkpoint: what is audited.
        reference: what samples are compared with; None compares with nothing.
        calibration: the built-in defaults when None.

    Attributes:
        denoiser: the checkpoint's.
        finder: of nearest references; None without a reference set.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: ReferenceSet | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        from audit.demo import default_calibration

        super().__init__(checkpoint, calibration or default_calibration())
        self.denoiser = checkpoint.denoiser
        self.reference = reference
        self.finder = None if reference is None else NeighborFinder(reference, checkpoint)
        self._screens: dict[tuple[tuple[int, ...], float | None], Screen] = {}
        self._screening = threading.Lock()

    def audit(
        self,
        prompt: str,
        *,
        sampler: SamplerSettings | None = None,
        budget: Budget | None = None,
        include_images: bool = False,
        explain: bool = False,
        denoiser: Denoiser | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        check: Callable[[], None] = lambda: None,
    ) -> Report:
        """Audit one prompt.

        The same prompt, settings and seeds give the same verdict, and numbers within float tolerance.

        Args:
            prompt: what a user would type.
            sampler: from `resolve_sampler`; the checkpoint's own when None.
            budget: what to spend; the defaults when None.
            include_images: whether the report keeps samples and their nearest references as images.
            explain: whether the report says which words carry the recall, and where in the image it shows.
            denoiser: stands in for the checkpoint's own, e.g. one that merges batches.
            on_progress: called at every stage and before every denoiser call.
            check: called before every denoiser call; raises to stop the audit there.

        Raises:
            InvalidInput: the prompt or a setting is impossible.
            BrokenCheckpoint: the checkpoint gives no finite numbers.
            Stopped: `check` said so.
        """
        sampler = sampler or self.resolve_sampler()
        budget = budget or Budget()
        checkpoint = self.checkpoint
        self.require_feasible(sampler, budget)
        if explain:
            self.require_explainable(sampler)
        planned = self.planned_evaluations(sampler, budget, prompt if explain else "")
        work = Work(denoiser or self.denoiser, planned, on_progress, check)
        given = self._enter(prompt, sampler, work)
        fits, gaps = self.calibration.fits(checkpoint.digest, sampler), checkpoint.gaps(sampler)
        groups: list[Draws] = []
        for seeds in budget.groups():
            groups.append(self._draw(seeds, max(0, TRACED - sum(map(len, groups))), sampler, given, work))
            with work.stage("concluding"):
                draws = Draws.concatenate(groups)
                evidence = draws.evidence(given.screening, self.calibration.thresholds(draws.vectors.shape[1])[1])
                decision = decide(
                    evidence,
                    self.calibration,
                    reference_complete=self.reference is not None and self.reference.complete,
                    dimension=draws.vectors.shape[1],
                    definition_samples=budget.definition_samples,
                    fits=fits,
                    gaps=gaps,
                )
            if len(draws) >= budget.minimum_seeds and decision.settled:
                break
        if budget.curvature.method != "off":
            with work.stage("curvature"):
                evidence = replace(evidence, curvature=self._curvature(draws, sampler, budget, given, work))
        explanation = None
        if explain:
            with work.stage("explaining"):
                # Where a copy sits shows in copies.
                order = torch.tensor(decision.sample_classes).argsort(stable=True)
                explanation = self._explain(prompt, draws.samples.latents[order], sampler, work)
        work.enter("concluding")
        return Report(
            prompt=prompt,
            decision=decision,
            evidence=evidence,
            seeds=draws.samples.seeds,
            sampler=sampler,
            scheduler_class=checkpoint.scheduler_class(sampler),
            budget=budget,
            checkpoint_name=checkpoint.name,
            checkpoint_digest=checkpoint.digest,
            checkpoint_source=checkpoint.source,
            family=checkpoint.family,
            reference=self.reference_used(evidence.neighbors, include_images=include_images),
            calibration=self.calibration,
            calibration_fits=fits,
            cost=work.cost(),
            libraries=library_versions(),
            finished=datetime.now(UTC),
            device=checkpoint.place,
            images=to_bytes(draws.images) if include_images else None,
            explanation=explanation,
            gaps=gaps,
        )

    def explain(
        self,
        prompt: str,
        latents: torch.Tensor,
        *,
        denoiser: Denoiser | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Explanation:
        """Say which words of a prompt carry the recall, and where in the image it shows.

        Args:
            prompt: what a user would type.
            latents: samples of it, (n, *latent shape), such as `Samples.latents`.
            denoiser: stands in for the checkpoint's own.
            check: called before every denoiser call; raises to stop there.

        Raises:
            InvalidInput: the prompt is impossible.
            BrokenCheckpoint: the checkpoint gives no finite numbers.
            Stopped: `check` said so.
        """
        sampler = self.resolve_sampler()
        self.require_explainable(sampler)
        self.check_prompt(prompt)
        return self._explain(prompt, latents, sampler, Work(denoiser or self.denoiser, check=check))

    def _explain(self, prompt: str, latents: torch.Tensor, sampler: SamplerSettings, work: Work) -> Explanation:
        def encode(prompts: Sequence[str]) -> Condition:
            return self.checkpoint.told(self.checkpoint.encode_prompts(prompts), sampler)

        found = explain_recall(work.denoiser, prompt, encode, latents)
        require_finite(found.finite, "predictions")
        return found

    def _curvature(
        self, draws: Draws, sampler: SamplerSettings, budget: Budget, given: _Given, work: Work
    ) -> tuple[CurvatureLevel, ...]:
        empty = self.condition("", sampler) if sampler.negative_prompt else given.unconditional
        latents, settings = draws.samples.latents, budget.curvature
        settings = replace(settings, baseline=settings.baseline and self.checkpoint.contrasts(sampler))
        found = measure_curvature(work.denoiser, latents, given.condition, empty, settings, seed=budget.first_seed)
        require_finite(all(math.isfinite(level.prompt.trace) for level in found), "curvature")
        return found

    def measure(
        self, prompt: str, seeds: range, *, sampler: SamplerSettings | None = None
    ) -> tuple[Screening | None, Draws]:
        """What an audit measures of a prompt, at all of these seeds, the smoothed trace too, and no decision.

        Raises:
            InvalidInput: the prompt or a setting is impossible.
            BrokenCheckpoint: the checkpoint gives no finite numbers.
        """
        sampler = sampler or self.resolve_sampler()
        work = Work(self.denoiser)
        given = self._enter(prompt, sampler, work)
        groups = [
            self._draw(seeds[part], len(seeds[part]), sampler, given, work) for part in in_chunks(len(seeds), GROUP)
        ]
        return given.screening, Draws.concatenate(groups)

    def _enter(self, prompt: str, sampler: SamplerSettings, work: Work) -> _Given:
        """Encode and screen a prompt."""
        screening = None
        with work.stage("screening"):
            condition = self.checkpoint.told(self.check_prompt(prompt), sampler)
            unconditional = self.condition(sampler.negative_prompt, sampler, "sampler.negative_prompt")
            if self.checkpoint.contrasts(sampler):
                screening = self.screen_at(sampler, work.denoiser.inner).measure(work.denoiser, condition)[0]
        require_finite(screening is None or bool(np.isfinite(screening.contrast).all()), "predictions")
        return _Given(condition, unconditional, screening)

    def _draw(self, seeds: range, traced: int, sampler: SamplerSettings, given: _Given, work: Work) -> Draws:
        """Draw samples and measure them, the smoothed trace at the first `traced` of them."""
        with work.stage("sampling"):
            samples = self.checkpoint.sample(sampler, given.condition, given.unconditional, seeds, work.denoiser)
        with work.stage("decoding"):
            images = self.checkpoint.decode(samples.latents).cpu()
        require_finite(bool(samples.latents.isfinite().all() and images.isfinite().all()), "images")
        work.check()
        with work.stage("searching"):
            vectors = self.vectors(images)
            neighbors = None if self.finder is None else self.finder.find(images)
        with work.stage("curvature"):
            noises = [TRACE_SEED + seed for seed in seeds[:traced]]
            smoothed = measure_smoothed_trace(
                work.denoiser, samples.latents[:traced], given.condition, NOISE_LEVELS, noises
            )
        require_finite(bool(np.isfinite(smoothed.values).all()), "curvature")
        return Draws(samples, images, vectors, smoothed, neighbors)

    def screen(
        self,
        prompts: Sequence[str],
        *,
        sampler: SamplerSettings | None = None,
        definition_samples: int = 512,
        denoiser: Denoiser | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Screened]:
        """Screen prompts on pure noise, in shared batches: `SCREENING` evaluations each, and no image.

        Args:
            prompts: what users would type.
            sampler: from `resolve_sampler`, which decides the size and whether the calibration fits.
            definition_samples: N.
            denoiser: stands in for the checkpoint's own.
            on_progress: called at every stage and before every denoiser call.
            check: called before every denoiser call; raises to stop there.

        Raises:
            InvalidInput: a prompt is impossible, or the checkpoint has nothing to screen by.
            BrokenCheckpoint: the checkpoint gives no finite numbers.
            Stopped: `check` said so.
        """
        sampler = sampler or self.resolve_sampler()
        self.require_screening(sampler)
        conditions = self.checkpoint.told(concatenate([self.check_prompt(prompt) for prompt in prompts]), sampler)
        work = Work(denoiser or self.denoiser, SCREENING * len(prompts), on_progress, check)
        with work.stage("screening"):
            found = self.screen_at(sampler, work.denoiser.inner).measure(work.denoiser, conditions)
        require_finite(all(bool(np.isfinite(one.contrast).all()) for one in found), "predictions")
        fits = self.calibration.fits(self.checkpoint.digest, sampler)
        with work.stage("concluding"):
            return [screen(one, self.calibration, definition_samples=definition_samples, fits=fits) for one in found]

    def inspect(
        self,
        image: NDArray[np.uint8] | torch.Tensor,
        prompt: str = "",
        *,
        sampler: SamplerSettings | None = None,
        denoiser: Denoiser | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        check: Callable[[], None] = lambda: None,
    ) -> Inspection:
        """Look at an image that already exists as at a sample of the checkpoint; see `audit.inspection`.

        Args:
            image: uint8, (height, width) or (height, width, 1 or 3); or a tensor (1 or 3, height, width) in [-1, 1]. It
                is brought to the size of the sampler.
            prompt: that it is said to come from; "" for none, with which less can be told.
            sampler: from `resolve_sampler`; the checkpoint's own when None.
            denoiser: stands in for the checkpoint's own.
            on_progress: called at every stage and before every denoiser call.
            check: called before every denoiser call; raises to stop there.

        Raises:
            InvalidInput: the image, the prompt or a setting is impossible.
            BrokenCheckpoint: the checkpoint gives no finite numbers.
            Stopped: `check` said so.
        """
        sampler = sampler or self.resolve_sampler()
        return inspect(self, image, prompt, sampler=sampler, denoiser=denoiser, on_progress=on_progress, check=check)

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Samples as pixel vectors: of the reference set's size when there is one, else of their own."""
        if self.reference is not None:
            return self.reference.vectors(images)
        return pixel_vectors(images, images.shape[1], (images.shape[2], images.shape[3]))

    def screen_at(self, sampler: SamplerSettings, denoiser: Denoiser) -> Screen:
        """What screens images of a size. It is made once, and its own evaluations are nobody's."""
        checkpoint, shape = self.checkpoint, self.checkpoint.latent_shape(sampler)
        kind = (shape, sampler.guidance if sampler.embedded else None)
        with self._screening:
            if (found := self._screens.get(kind)) is None:
                if len(self._screens) >= SCREENS:
                    self._screens.clear()
                empty = self.condition("", sampler)
                found = Screen(denoiser, shape, empty, device=checkpoint.device, dtype=checkpoint.dtype)
                self._screens[kind] = found
            return found

    def reference_used(self, neighbors: Neighbors | None, *, include_images: bool = False) -> ReferenceUsed | None:
        """What of the reference set belongs into a report of these neighbours."""
        if self.reference is None or neighbors is None:
            return None
        near = {int(i) for i in neighbors.index if i >= 0}
        if neighbors.clip_index is not None:
            near |= {int(i) for i in neighbors.clip_index}
        indices = sorted(near)
        pictures = {i: self.reference.picture(i) for i in indices} if include_images else {}
        return ReferenceUsed(
            name=self.reference.name,
            digest=self.reference.digest,
            size=len(self.reference),
            complete=self.reference.complete,
            entries=dict(zip(indices, self.reference.entries(indices), strict=True)),
            images={i: picture for i, picture in pictures.items() if picture is not None},
            embedder_digest="" if self.reference.embedder is None else self.reference.embedder.digest,
        )
