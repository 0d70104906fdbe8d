"""What goes into an audit: sampler settings and prompts that a checkpoint can take, and what they would cost."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import lru_cache, partial

from audit.budget import Budget
from audit.errors import InvalidInput
from audit.evidence.explanation import evaluations as explaining_evaluations
from audit.evidence.screening import EVALUATIONS as SCREENING
from audit.limits import MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition
from audit.model.sampling import SamplerSettings
from audit.verdict.calibration import Calibration
from audit.verdict.features import NOISE_LEVELS, TRACED

#: Latent dimensions up to which the dense Jacobian is taken: half a gigabyte of float64.
MAX_DENSE_DIMENSION = 8192
#: Conditions that are remembered, and timesteps of schedulers.
ENCODED, SCHEDULED = 64, 256


class Inputs:
    """Settings and prompts of a checkpoint. Nothing here evaluates a denoiser. Safe to use from several threads.

    Args:
        checkpoint: that takes them.
        calibration: whose sampler settings are the usual ones, where it is the checkpoint's own.

    Attributes:
        defaults: the sampler settings that requests build on.
    """

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration) -> None:
        self.checkpoint = checkpoint
        self.calibration = calibration
        # The empty prompt comes with every audit, and a prompt that is flagged comes again.
        self._encode = lru_cache(ENCODED)(lambda prompt: checkpoint.encode_prompts([prompt]))
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

    def require_feasible(self, sampler: SamplerSettings, budget: Budget) -> None:
        """Raises InvalidInput where the dense Jacobian would be too large."""
        dimension = math.prod(self.checkpoint.latent_shape(sampler))
        if budget.curvature.method == "dense" and dimension > MAX_DENSE_DIMENSION:
            raise InvalidInput(
                f"latents of {dimension} dimensions are too large for dense curvature, at most {MAX_DENSE_DIMENSION}",
                reason="CURVATURE_TOO_LARGE",
                field="budget.curvature",
            )

    def require_explainable(self, sampler: SamplerSettings) -> None:
        """Raises InvalidInput where verdicts cannot be explained."""
        for gap in self.checkpoint.gaps(sampler):
            if gap.evidence == "explanation":
                raise InvalidInput(
                    "this checkpoint's verdicts cannot be explained: it takes a text, and a branch without one",
                    reason="EXPLANATION_UNSUPPORTED",
                    field="explain",
                )

    def require_screening(self, sampler: SamplerSettings) -> None:
        """Raises InvalidInput where there is no contrast, which is all that screening sees."""
        if not self.checkpoint.contrasts(sampler):
            raise InvalidInput(
                "this checkpoint cannot be screened: it has no branch without a prompt; audit instead",
                reason="SCREENING_UNSUPPORTED",
                field="checkpoint",
            )

    def planned_evaluations(self, sampler: SamplerSettings, budget: Budget, explained: str = "") -> int:
        """Denoiser evaluations that an audit makes at most: all of its seeds.

        Args:
            sampler: from `resolve_sampler`.
            budget: what to spend.
            explained: the prompt that is to be explained; "" for none.
        """
        sampling = budget.seeds * len(self.timesteps(sampler)) * (2 if sampler.guided else 1)
        tracing = 2 * len(NOISE_LEVELS) * min(TRACED, budget.seeds)
        dimension = math.prod(self.checkpoint.latent_shape(sampler))
        spectrum = budget.curvature.evaluations(budget.seeds, dimension, contrasts=self.checkpoint.contrasts(sampler))
        explaining = explaining_evaluations(explained, budget.seeds) if explained else 0
        return self.screening_evaluations(sampler) + sampling + tracing + spectrum + explaining

    def screening_evaluations(self, sampler: SamplerSettings) -> int:
        """Denoiser evaluations that the screening of a prompt makes: none where there is no contrast."""
        return SCREENING if self.checkpoint.contrasts(sampler) else 0


def _timesteps(checkpoint: Checkpoint, sampler: SamplerSettings) -> tuple[float, ...]:
    return tuple(checkpoint.scheduler(sampler).timesteps.tolist())
