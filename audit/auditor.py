"""One audit: draw, compare, measure, conclude."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from audit.errors import BrokenCheckpoint, InvalidInput
from audit.evidence.curvature import CurvatureSettings, measure_curvature
from audit.evidence.neighbors import NeighborFinder, Neighbors
from audit.evidence.stability import measure_stability
from audit.limits import MAX_DEFINITION_SAMPLES, MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_SEEDS
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser
from audit.model.memory import in_halves
from audit.model.sampling import SCHEDULERS, SamplerSettings, Samples, build_scheduler
from audit.reference.images import in_chunks, pixel_vectors, to_bytes
from audit.reference.reference_set import ReferenceSet
from audit.report import Cost, ReferenceUsed, Report, library_versions
from audit.verdict.calibration import Calibration
from audit.verdict.decision import decide

#: Latent dimensions up to which the dense Jacobian is taken: half a gigabyte of float64.
MAX_DENSE_DIMENSION = 8192
#: Most seeds that one group draws side by side.
GROUP = 64
#: Conditions that an auditor remembers, and timesteps of schedulers.
ENCODED, SCHEDULED = 64, 256


@dataclass(frozen=True)
class Budget:
    """How much an audit may spend.

    Attributes:
        seeds: samples drawn.
        first_seed: samples use the consecutive seeds from here.
        definition_samples: N: fractions are those expected among so many samples.
        curvature: what is spent on curvature.
    """

    seeds: int = 16
    first_seed: int = 0
    definition_samples: int = 512
    curvature: CurvatureSettings = field(default_factory=CurvatureSettings)

    def __post_init__(self) -> None:
        """Raises InvalidInput, naming the field, for values out of range."""
        for name, low, high in (
            ("seeds", 2, MAX_SEEDS),
            ("first_seed", 0, MAX_SEED),
            ("definition_samples", 2, MAX_DEFINITION_SAMPLES),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(
                    f"{name} must be in [{low}, {high}], not {value}",
                    reason=f"{name.upper()}_OUT_OF_RANGE",
                    field=f"budget.{name}",
                )
        for name in ("samples", "probes", "steps"):
            if getattr(self.curvature, name) < 1:
                raise InvalidInput(
                    f"curvature needs at least one of its {name}", reason="CURVATURE_EMPTY", field="budget.curvature"
                )
        if not self.curvature.noise_levels or not all(0 < level <= 1 for level in self.curvature.noise_levels):
            raise InvalidInput(
                f"noise levels of curvature are in (0, 1], not {self.curvature.noise_levels}",
                reason="NOISE_LEVELS_OUT_OF_RANGE",
                field="budget.curvature",
            )
        if self.curvature.method not in ("lanczos", "dense", "off"):
            raise InvalidInput(
                f"curvature must be lanczos, dense or off, not {self.curvature.method!r}",
                reason="CURVATURE_UNKNOWN",
                field="budget.curvature",
            )


@dataclass(frozen=True)
class Progress:
    """How far an audit is: the stage, and denoiser evaluations done and planned."""

    stage: str
    evaluations: int
    planned: int


class Auditor:
    """Audits prompts of one checkpoint against at most one reference set. Safe to use from several threads.

    Args:
        checkpoint: what is audited.
        reference: what samples are compared with; None compares with nothing.
        calibration: the built-in defaults when None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: ReferenceSet | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        from audit.demo import default_calibration

        self.checkpoint = checkpoint
        self.reference = reference
        self.calibration = calibration or default_calibration()
        self._finder = None if reference is None else NeighborFinder(reference, checkpoint)
        # The empty prompt comes with every audit, and a prompt that is flagged comes again.
        self._encode = lru_cache(ENCODED)(lambda prompt: checkpoint.encode_prompts([prompt]))
        # diffusers takes milliseconds to make a scheduler, which a server asks for before it lets a caller in.
        self._timesteps = lru_cache(SCHEDULED)(partial(_timesteps, checkpoint.scheduler_config))
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
        factor = self.checkpoint.size_factor
        for name in ("height", "width"):
            side = getattr(settings, name)
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

    def timesteps(self, sampler: SamplerSettings) -> tuple[float, ...]:
        """Timesteps that the sampler visits, first to last; some schedulers visit more than the steps asked for."""
        return self._timesteps(sampler.scheduler, sampler.steps)

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
            InvalidInput: the prompt is empty, longer than the checkpoint reads, or no text.
        """
        if not prompt.strip():
            raise InvalidInput("the prompt is empty", reason="PROMPT_EMPTY", field="prompt")
        return self.encode(prompt)

    def audit(
        self,
        prompt: str,
        *,
        sampler: SamplerSettings | None = None,
        budget: Budget | None = None,
        include_images: bool = False,
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
        checkpoint, spent = self.checkpoint, _Stopwatch()
        planned = self.planned_evaluations(sampler, budget)
        dimension = math.prod(checkpoint.latent_shape(sampler))
        if budget.curvature.method == "dense" and dimension > MAX_DENSE_DIMENSION:
            raise InvalidInput(
                f"latents of {dimension} dimensions are too large for dense curvature, at most {MAX_DENSE_DIMENSION}",
                reason="CURVATURE_TOO_LARGE",
                field="budget.curvature",
            )
        stage = "sampling"

        def tell(entered: str) -> None:
            nonlocal stage
            stage = entered
            on_progress(Progress(stage, meter.evaluations, planned))

        def before_call() -> None:
            check()
            tell(stage)

        def decode(latents: torch.Tensor) -> torch.Tensor:
            return checkpoint.decode(latents).cpu()

        meter = MeteredDenoiser(denoiser or checkpoint.denoiser, before_call)
        with spent.stage("sampling"):
            condition = self.check_prompt(prompt)
            unconditional = self.encode(sampler.negative_prompt, "sampler.negative_prompt")
            seeds = range(budget.first_seed, budget.first_seed + budget.seeds)
            samples = Samples.concatenate(
                [
                    checkpoint.sample(sampler, condition, unconditional, seeds[part], meter)
                    for part in in_chunks(len(seeds), GROUP)
                ]
            )
        sampling_evaluations = meter.evaluations

        tell("comparing")
        with spent.stage("decoding"):
            images = torch.cat([in_halves(decode, part) for part in samples.latents.split(GROUP)])
        _require_finite(bool(samples.latents.isfinite().all() and images.isfinite().all()), "images")
        check()
        with spent.stage("searching"):
            neighbors = None if self._finder is None else self._finder.find(images)
            vectors = self.vectors(images)
            _, delta_s = self.calibration.thresholds(vectors.shape[1])
            stability = measure_stability(vectors, delta_s, samples.displacements, samples.latents)

        tell("curvature")
        with spent.stage("curvature"):
            empty = self.encode("") if sampler.negative_prompt else unconditional
            curvature = measure_curvature(
                meter, samples.latents, condition, empty, budget.curvature, seed=budget.first_seed
            )
        _require_finite(all(math.isfinite(level.prompt.trace) for level in curvature), "curvature")

        tell("concluding")
        with spent.stage("concluding"):
            fits = self.calibration.fits(checkpoint.digest, sampler, budget.curvature)
            decision = decide(
                stability,
                neighbors,
                curvature,
                self.calibration,
                reference_complete=self.reference is not None and self.reference.complete,
                dimension=vectors.shape[1],
                definition_samples=budget.definition_samples,
                fits=fits,
            )
        return Report(
            prompt=prompt,
            decision=decision,
            stability=stability,
            neighbors=neighbors,
            curvature=curvature,
            seeds=samples.seeds,
            sampler=sampler,
            scheduler_class=SCHEDULERS.get(sampler.scheduler, checkpoint.scheduler_config["_class_name"]),
            budget_definition_samples=budget.definition_samples,
            curvature_settings=budget.curvature,
            checkpoint_name=checkpoint.name,
            checkpoint_digest=checkpoint.digest,
            family=checkpoint.family,
            reference=self._reference_used(neighbors, include_images),
            calibration_digest=self.calibration.digest if self.calibration.checkpoint_digest else "",
            calibration_fits=fits,
            cost=Cost(
                sampling_evaluations=sampling_evaluations,
                curvature_evaluations=meter.evaluations - sampling_evaluations,
                compute_seconds=spent.total,
                stage_seconds=dict(spent.stages),
            ),
            libraries=library_versions(),
            finished=datetime.now(UTC),
            device=f"{checkpoint.device.type} {str(checkpoint.dtype).removeprefix('torch.')}",
            images=to_bytes(images) if include_images else None,
        )

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Samples as pixel vectors: of the reference set's size when there is one, else of their own."""
        if self.reference is not None:
            return self.reference.vectors(images)
        return pixel_vectors(images, images.shape[1], (images.shape[2], images.shape[3]))

    def planned_evaluations(self, sampler: SamplerSettings, budget: Budget) -> int:
        """Denoiser evaluations that an audit will make."""
        sampling = budget.seeds * len(self.timesteps(sampler)) * (2 if sampler.guided else 1)
        curve = budget.curvature
        points = min(curve.samples, budget.seeds) * len(curve.noise_levels) * (2 if curve.baseline else 1)
        dimension = math.prod(self.checkpoint.latent_shape(sampler))
        products = {"off": 0, "dense": dimension, "lanczos": curve.probes * min(curve.steps, dimension)}[curve.method]
        return sampling + 2 * points * products

    def _reference_used(self, neighbors: Neighbors | None, include_images: bool) -> ReferenceUsed | None:
        if self.reference is None or neighbors is None:
            return None
        near = {int(i) for i in neighbors.index}
        if neighbors.clip_index is not None:
            near |= {int(i) for i in neighbors.clip_index}
        return ReferenceUsed(
            name=self.reference.name,
            digest=self.reference.digest,
            size=len(self.reference),
            complete=self.reference.complete,
            captions={i: self.reference.captions[i] for i in near},
            images={i: np.asarray(self.reference.images[i]) for i in near} if include_images else {},
            embedder_digest="" if self.reference.embedder is None else self.reference.embedder.digest,
        )


def _timesteps(config: dict[str, Any], name: str, steps: int) -> tuple[float, ...]:
    scheduler = build_scheduler(name, config)
    scheduler.set_timesteps(steps)
    return tuple(scheduler.timesteps.tolist())


def _require_finite(finite: bool, what: str) -> None:
    """NaN compares as far from everything: it would pass for something new."""
    if not finite:
        raise BrokenCheckpoint(
            f"the checkpoint gives {what} that are not finite under these settings; try another precision",
            reason="SAMPLES_NOT_FINITE",
        )


class _Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        return sum(self.stages.values())
