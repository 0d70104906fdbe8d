"""One audit: draw, compare, measure, conclude."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from audit.budget import GROUP, Budget
from audit.errors import InvalidInput, require_finite
from audit.evidence.curvature import CurvatureLevel, measure_curvature
from audit.evidence.explanation import Explanation, explain_recall
from audit.evidence.explanation import evaluations as explaining_evaluations
from audit.evidence.gathered import Draws
from audit.evidence.neighbors import NeighborFinder, Neighbors
from audit.evidence.screening import EVALUATIONS as SCREENING
from audit.evidence.screening import Screen, Screening
from audit.evidence.smoothed import measure_smoothed_trace
from audit.inspection import Inspection, inspect
from audit.limits import MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, concatenate
from audit.model.memory import in_halves
from audit.model.pieces import InPieces
from audit.model.sampling import SamplerSettings
from audit.reference.images import in_chunks, pixel_vectors, to_bytes
from audit.reference.reference_set import ReferenceSet
from audit.report import ReferenceUsed, Report, library_versions
from audit.verdict.calibration import Calibration
from audit.verdict.decision import SETTLED, Screened, decide, screen
from audit.verdict.features import NOISE_LEVELS, TRACED
from audit.work import Progress, Work

#: Latent dimensions up to which the dense Jacobian is taken: half a gigabyte of float64.
MAX_DENSE_DIMENSION = 8192
#: Conditions that an auditor remembers, timesteps of schedulers, and latent sizes it screens at.
ENCODED, SCHEDULED, SCREENS = 64, 256, 4
#: Seed of a sample + this: seed of the noise that its smoothed trace is taken with.
TRACE_SEED = 1 << 62


@dataclass(frozen=True)
class _Given:
    """A prompt as the denoiser takes it, and what was measured before any image."""

    condition: Condition
    unconditional: Condition
    screening: Screening | None


class Auditor:
    """Audits prompts of one checkpoint against at most one reference set. Safe to use from several threads.

    Args:
        checkpoint: what is audited.
        reference: what samples are compared with; None compares with nothing.
        calibration: the built-in defaults when None.

    Attributes:
        denoiser: the checkpoint's, in as many rows at once as memory suffices for.
        finder: of nearest references; None without a reference set.
        defaults: the sampler settings that requests build on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: ReferenceSet | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        from audit.demo import default_calibration

        self.checkpoint = checkpoint
        self.denoiser = InPieces(checkpoint.denoiser)
        self.reference = reference
        self.calibration = calibration or default_calibration()
        self.finder = None if reference is None else NeighborFinder(reference, checkpoint)
        # The empty prompt comes with every audit, and a prompt that is flagged comes again.
        self._encode = lru_cache(ENCODED)(lambda prompt: checkpoint.encode_prompts([prompt]))
        self._screens: dict[tuple[tuple[int, ...], float | None], Screen] = {}
        self._screening = threading.Lock()
        # diffusers takes milliseconds to make a scheduler, which a server asks for before it lets a caller in.
        self._timesteps = lru_cache(SCHEDULED)(partial(_timesteps, checkpoint))
        own = self.calibration.sampler if self.calibration.checkpoint_digest == checkpoint.digest else None
        self.defaults = own or checkpoint.defaults

    def resolve_sampler(self, **overrides: object) -> SamplerSettings:
        """The checkpoint's sampler settings with those of a request on top; None means not given.

        Raises:
            InvalidInput: a value is out of range, or the size is none that the checkpoint can make.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        assert given.keys() <= {f.name for f in fields(SamplerSettings)}
        settings = replace(self.defaults, **given)  # type: ignore[arg-type]
        self._check_fit(settings)
        factor = self.checkpoint.size_multiple
        for name in ("height", "width"):
            side = getattr(settings, name)
            if self.checkpoint.fixed_size and side != getattr(self.checkpoint.defaults, name):
                raise InvalidInput(
                    f"the checkpoint makes images of one size: {name} must be "
                    f"{getattr(self.checkpoint.defaults, name)}, not {side}",
                    reason="SIZE_OUT_OF_RANGE",
                    field=f"sampler.{name}",
                )
            if not (factor <= side <= MAX_IMAGE_SIDE and side % factor == 0):
                raise InvalidInput(
                    f"{name} must be a multiple of {factor} up to {MAX_IMAGE_SIDE}, not {side}",
                    reason="SIZE_OUT_OF_RANGE",
                    field=f"sampler.{name}",
                )
        if settings.steps > len(self.checkpoint.denoiser.schedule):
            raise InvalidInput(
                f"steps must be at most the {len(self.checkpoint.denoiser.schedule)} timesteps of the checkpoint, "
                f"not {settings.steps}",
                reason="STEPS_OUT_OF_RANGE",
                field="sampler.steps",
            )
        try:
            possible = max(self.timesteps(settings)) < len(self.checkpoint.denoiser.schedule)
        except (ValueError, IndexError):  # how a scheduler says that it needs more steps
            possible = False
        if not possible:
            raise InvalidInput(
                f"the scheduler cannot make {settings.steps} steps", reason="STEPS_OUT_OF_RANGE", field="sampler.steps"
            )
        return settings

    def _check_fit(self, settings: SamplerSettings) -> None:
        """Raises InvalidInput for a scheduler or a guidance that the checkpoint does not know."""
        checkpoint = self.checkpoint
        if settings.scheduler and settings.scheduler not in checkpoint.schedulers:
            raise InvalidInput(
                f"{settings.scheduler} cannot step this checkpoint; these can: {', '.join(checkpoint.schedulers)}",
                reason="SCHEDULER_UNSUITABLE",
                field="sampler.scheduler",
            )
        if checkpoint.prompts == "none" and (settings.guided or settings.negative_prompt):
            raise InvalidInput(
                "this checkpoint takes no prompt, so that nothing can guide it: guidance must be 1",
                reason="GUIDANCE_UNSUPPORTED",
                field="sampler.guidance" if settings.guided else "sampler.negative_prompt",
            )
        if settings.true_guidance != 1 and not settings.embedded:
            raise InvalidInput(
                "this checkpoint is not told its guidance: classifier-free guidance is `guidance` itself",
                reason="GUIDANCE_UNSUPPORTED",
                field="sampler.true_guidance",
            )
        if checkpoint.guidance == "none" and checkpoint.prompts != "none" and settings.guidance != 1:
            raise InvalidInput(
                "this checkpoint was distilled and is told no guidance: leave it at 1, or ask for true guidance",
                reason="GUIDANCE_UNSUPPORTED",
                field="sampler.guidance",
            )

    def timesteps(self, sampler: SamplerSettings) -> tuple[float, ...]:
        """Timesteps that the sampler visits, first to last; some schedulers visit more than the steps asked for."""
        return self._timesteps(sampler)

    def condition(self, prompt: str, sampler: SamplerSettings, field: str = "prompt") -> Condition:
        """As `encode`, with the guidance of the sampler where the network is told of it."""
        return self.checkpoint.told(self.encode(prompt, field), sampler)

    def encode(self, prompt: str, field: str = "prompt") -> Condition:
        """The condition of a prompt, one row.

        Raises:
            InvalidInput: the prompt is longer than the checkpoint reads, or no text; the error names `field`.
        """
        try:
            if len(prompt) > MAX_PROMPT_CHARACTERS:  # before the tokenizer has to read it
                raise InvalidInput(
                    f"the prompt has {len(prompt)} characters, at most {MAX_PROMPT_CHARACTERS} are read",
                    reason="PROMPT_TOO_LONG",
                    field=field,
                )
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise InvalidInput("the prompt is no valid Unicode text", reason="PROMPT_NOT_TEXT", field=field)
            return self._encode(prompt)
        except InvalidInput as error:
            error.field = field
            raise

    def check_prompt(self, prompt: str) -> Condition:
        """The condition of a prompt to be audited.

        Raises:
            InvalidInput: the prompt is empty, and the checkpoint takes prompts; longer than it reads; or no text.
        """
        if not prompt.strip() and self.checkpoint.prompts != "none":
            raise InvalidInput("the prompt is empty", reason="PROMPT_EMPTY", field="prompt")
        return self.encode(prompt)

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
        dimension = math.prod(checkpoint.latent_shape(sampler))
        if budget.curvature.method == "dense" and dimension > MAX_DENSE_DIMENSION:
            raise InvalidInput(
                f"latents of {dimension} dimensions are too large for dense curvature, at most {MAX_DENSE_DIMENSION}",
                reason="CURVATURE_TOO_LARGE",
                field="budget.curvature",
            )
        if explain:
            self._require_explainable(sampler)
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
            if len(draws) >= budget.minimum_seeds and decision.confidence >= SETTLED:
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
        self._require_explainable(sampler)
        self.check_prompt(prompt)
        return self._explain(prompt, latents, sampler, Work(denoiser or self.denoiser, check=check))

    def _explain(self, prompt: str, latents: torch.Tensor, sampler: SamplerSettings, work: Work) -> Explanation:
        def encode(prompts: Sequence[str]) -> Condition:
            return self.checkpoint.told(self.checkpoint.encode_prompts(prompts), sampler)

        found = explain_recall(work.denoiser, prompt, encode, latents)
        require_finite(found.finite, "predictions")
        return found

    def _require_explainable(self, sampler: SamplerSettings) -> None:
        for gap in self.checkpoint.gaps(sampler):
            if gap.evidence == "explanation":
                raise InvalidInput(
                    "this checkpoint's verdicts cannot be explained: it takes a text, and a branch without one",
                    reason="EXPLANATION_UNSUPPORTED",
                    field="explain",
                )

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
            images = in_halves(self._decode, samples.latents)
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

    def require_screening(self, sampler: SamplerSettings) -> None:
        """Raises InvalidInput where there is no contrast, which is all that screening sees."""
        if not self.checkpoint.contrasts(sampler):
            raise InvalidInput(
                "this checkpoint cannot be screened: it has no branch without a prompt; audit instead",
                reason="SCREENING_UNSUPPORTED",
                field="checkpoint",
            )

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

    def planned_evaluations(self, sampler: SamplerSettings, budget: Budget, explained: str = "") -> int:
        """Denoiser evaluations that an audit makes at most: all of its seeds.

        Args:
            sampler: from `resolve_sampler`.
            budget: what to spend.
            explained: the prompt that is to be explained; "" for none.
        """
        sampling = budget.seeds * len(self.timesteps(sampler)) * (2 if sampler.guided else 1)
        tracing = 2 * len(NOISE_LEVELS) * min(TRACED, budget.seeds)
        curve = budget.curvature
        branches = 2 if curve.baseline and self.checkpoint.contrasts(sampler) else 1
        points = min(curve.samples, budget.seeds) * len(curve.noise_levels) * branches
        dimension = math.prod(self.checkpoint.latent_shape(sampler))
        products = {"off": 0, "dense": dimension, "lanczos": curve.probes * min(curve.steps, dimension)}[curve.method]
        explaining = explaining_evaluations(explained, budget.seeds) if explained else 0
        return self.screening_evaluations(sampler) + sampling + tracing + 2 * points * products + explaining

    def screening_evaluations(self, sampler: SamplerSettings) -> int:
        """Denoiser evaluations that the screening of a prompt makes: none where there is no contrast."""
        return SCREENING if self.checkpoint.contrasts(sampler) else 0

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

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.checkpoint.decode(latents).cpu()

    def reference_used(self, neighbors: Neighbors | None, *, include_images: bool = False) -> ReferenceUsed | None:
        """What of the reference set belongs into a report of these neighbours."""
        if self.reference is None or neighbors is None:
            return None
        near = {int(i) for i in neighbors.index if i >= 0}
        if neighbors.clip_index is not None:
            near |= {int(i) for i in neighbors.clip_index}
        indices = sorted(near)
        entries = dict(zip(indices, self.reference.entries(indices), strict=True))
        pictures = {i: self.reference.picture(i) for i in indices} if include_images else {}
        return ReferenceUsed(
            name=self.reference.name,
            digest=self.reference.digest,
            size=len(self.reference),
            complete=self.reference.complete,
            captions={i: entry.caption for i, entry in entries.items()},
            images={i: picture for i, picture in pictures.items() if picture is not None},
            embedder_digest="" if self.reference.embedder is None else self.reference.embedder.digest,
        )


def _timesteps(checkpoint: Checkpoint, sampler: SamplerSettings) -> tuple[float, ...]:
    return tuple(checkpoint.scheduler(sampler).timesteps.tolist())
