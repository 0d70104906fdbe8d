"""Whether a server can do what it is asked for, found out without touching a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from audit import inspection
from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import InvalidInput
from audit.evidence.screening import EVALUATIONS as SCREENING
from audit.model.sampling import SamplerSettings
from audit.v1 import audit_pb2
from service import wire
from service.checkpoints import CheckpointRegistry
from service.config import Settings
from service.references import ReferenceRegistry
from service.uploads import check_upload


@dataclass(frozen=True)
class Plan:
    """What an audit takes: every setting filled in, within the server's limits.

    Attributes:
        auditor: of its checkpoint and reference set.
        sampler: its settings.
        budget: its bounds.
        evaluations: of the denoiser, at most.
        least_evaluations: where the answer is settled after the fewest seeds.
    """

    auditor: Auditor
    sampler: SamplerSettings
    budget: Budget
    evaluations: int
    least_evaluations: int


@dataclass(frozen=True)
class ScreeningPlan:
    """What a screening takes."""

    sampler: SamplerSettings
    definition_samples: int
    evaluations: int


@dataclass(frozen=True)
class InspectionPlan:
    """What an inspection takes; as in `Plan`."""

    auditor: Auditor
    sampler: SamplerSettings
    evaluations: int
    least_evaluations: int


class Planner:
    """Checks requests.

    Args:
        settings: of the server.
        checkpoints: of the server.
        references: of the server.
    """

    def __init__(self, settings: Settings, checkpoints: CheckpointRegistry, references: ReferenceRegistry) -> None:
        self._limits = settings.limits
        self._defaults = settings.budget.budget()
        self._checkpoints = checkpoints
        self._references = references

    def checkpoint(self, id_: str, field: str = "checkpoint") -> str:
        """The id that a request means, registered or not.

        Raises:
            InvalidInput: it had to name one and did not.
        """
        if checkpoint := self.checkpoint_if_one(id_):
            return checkpoint
        raise InvalidInput(
            f"name one of the server's {len(self._checkpoints.ids)} checkpoints",
            reason="CHECKPOINT_REQUIRED",
            field=field,
        )

    def checkpoint_if_one(self, id_: str) -> str:
        """As `checkpoint`, and "" where a request had to name one and did not."""
        ids = self._checkpoints.ids
        return id_ or (ids[0] if len(ids) == 1 else "")

    def check_prompt(self, prompt: str, field: str = "prompt", checkpoint: str = "") -> None:
        """Raises InvalidInput for a prompt that is empty or too long; the tokenizer has its say when an audit runs.

        Args:
            prompt: to be audited.
            field: of the request.
            checkpoint: id of the one that it is for, if that is known: one that draws without prompts takes none.
        """
        if not prompt.strip() and not (checkpoint and self._checkpoints.takes_no_prompt(checkpoint)):
            raise InvalidInput("the prompt is empty", reason="PROMPT_EMPTY", field=field)
        self._check_length(prompt, field)

    def plan(
        self,
        checkpoint: str,
        reference: str,
        sampler: audit_pb2.SamplerOptions,
        budget: audit_pb2.BudgetOptions,
        explained: str = "",
    ) -> Plan:
        """What audits with a checkpoint take.

        Args:
            checkpoint: id of a registered one.
            reference: name of a registered set; "" for none.
            sampler: on top of the checkpoint's own.
            budget: on top of the server's own.
            explained: the prompt that is to be explained; "" for none.

        Raises:
            InvalidInput, NotFound, BrokenReference, NotLoaded, NotReady: the request cannot be served.
        """
        limits = self._limits
        self._check_length(sampler.negative_prompt, "sampler.negative_prompt")
        with self._checkpoints.use(checkpoint) as loaded:
            auditor = loaded.auditor(self._references.get(reference) if reference else None)
            settings = auditor.resolve_sampler(**wire.sampler_overrides(sampler))
            spent = wire.budget(budget, self._defaults)
            _bound("budget.seeds", "SEEDS_OUT_OF_RANGE", spent.seeds, limits.seeds, "seeds")
            _bound("sampler.steps", "STEPS_OUT_OF_RANGE", settings.steps, limits.steps, "steps")
            for side in ("height", "width"):
                pixels = getattr(settings, side)
                _bound(f"sampler.{side}", "SIZE_OUT_OF_RANGE", pixels, limits.image_side, f"pixels of {side}")
            total = spent.seeds * settings.height * settings.width
            _bound("budget.seeds", "PIXELS_OVER_LIMIT", total, limits.pixels, "pixels over all samples")
            evaluations = auditor.planned_evaluations(settings, spent, explained)
            _bound("budget", "EVALUATIONS_OVER_LIMIT", evaluations, limits.evaluations, "denoiser evaluations")
            fewest = replace(spent, seeds=min(spent.minimum_seeds, spent.seeds))
            least = auditor.planned_evaluations(settings, fewest, explained)
        return Plan(auditor, settings, spent, evaluations, least)

    def plan_screening(self, checkpoint: str, request: audit_pb2.ScreenRequest) -> ScreeningPlan:
        """What a screening takes.

        Args:
            checkpoint: id of a registered one.
            request: as it came.

        Raises:
            InvalidInput, NotFound, NotLoaded, NotReady: the request cannot be served.
        """
        if not request.prompts:
            raise InvalidInput("there are no prompts", reason="PROMPTS_REQUIRED", field="prompts")
        _bound("prompts", "TOO_MANY_PROMPTS", len(request.prompts), self._limits.prompts, "prompts")
        for index, prompt in enumerate(request.prompts):
            self.check_prompt(prompt, f"prompts[{index}]")
        budget = audit_pb2.BudgetOptions()
        if request.HasField("definition_samples"):
            budget.definition_samples = request.definition_samples
        plan = self.plan(checkpoint, "", request.sampler, budget)
        plan.auditor.require_screening(plan.sampler)
        return ScreeningPlan(plan.sampler, plan.budget.definition_samples, SCREENING * len(request.prompts))

    def plan_inspection(self, checkpoint: str, request: audit_pb2.InspectImageRequest) -> InspectionPlan:
        """What an inspection takes. The image is decoded later.

        Args:
            checkpoint: id of a registered one.
            request: as it came.

        Raises:
            InvalidInput, NotFound, BrokenReference, NotLoaded, NotReady: the request cannot be served.
        """
        check_upload(request.image, self._limits.image_bytes)
        if request.prompt:
            self.check_prompt(request.prompt)
        draws = audit_pb2.BudgetOptions(seeds=inspection.DRAWS, minimum_seeds=inspection.DRAWS, curvature="off")
        plan = self.plan(checkpoint, request.reference, request.sampler, draws)
        least, most = inspection.planned_evaluations(plan.auditor, plan.sampler, prompted=bool(request.prompt))
        _bound("sampler", "EVALUATIONS_OVER_LIMIT", most, self._limits.evaluations, "denoiser evaluations")
        return InspectionPlan(plan.auditor, plan.sampler, most, least)

    def _check_length(self, text: str, field: str) -> None:
        _bound(field, "PROMPT_TOO_LONG", len(text), self._limits.prompt_characters, "characters")


def _bound(field: str, reason: str, value: int, most: int, what: str) -> None:
    if value > most:
        raise InvalidInput(f"{value} {what}, this server allows {most}", reason=reason, field=field)
