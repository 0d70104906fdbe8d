"""Audits of a batch: the digest that knows whether one was done before, and who hands them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from audit.auditor import Auditor
from audit.budget import Budget
from audit.limits import MAX_SEED
from audit.model.sampling import SamplerSettings
from audit.report import Report
from audit.verdict.decision import ALGORITHM
from audit.verdict.estimators import shipped


@dataclass(frozen=True)
class Subject:
    """All that decides the outcome of an audit, but for the prompt.

    Attributes:
        checkpoint_digest: of the weights.
        precision: that they are computed in, as torch names it.
        sampler: every field filled in; no scheduler means the checkpoint's own, which its digest covers.
        budget: what is spent.
        reference_digest: of the images that samples are compared with; "" for none.
        embedder_digest: of the CLIP model; "" for none.
        calibration_digest: of thresholds and of what is ordinary.
    """

    checkpoint_digest: str
    precision: str
    sampler: SamplerSettings
    budget: Budget
    reference_digest: str
    embedder_digest: str
    calibration_digest: str

    @classmethod
    def of(cls, auditor: Auditor, budget: Budget, overrides: Mapping[str, Any]) -> Subject:
        """What an auditor would audit.

        Args:
            auditor: of the checkpoint.
            budget: of every audit.
            overrides: sampler settings on top of the checkpoint's own.

        Raises:
            InvalidInput: a setting is impossible with this checkpoint.
        """
        reference = auditor.reference
        embedder = None if reference is None else reference.embedder
        return cls(
            checkpoint_digest=auditor.checkpoint.digest,
            precision=str(auditor.checkpoint.dtype).removeprefix("torch."),
            sampler=auditor.resolve_sampler(**overrides),
            budget=budget,
            reference_digest="" if reference is None else reference.digest,
            embedder_digest="" if embedder is None else embedder.digest,
            calibration_digest=auditor.calibration.digest,
        )

    def changed(self, auditor: Auditor) -> list[str]:
        """In what, in words, an auditor differs from the one that this was made of; results would not be the same."""
        now = Subject.of(auditor, self.budget, vars(self.sampler))
        return [
            field.removesuffix("_digest")
            for field in ("checkpoint_digest", "precision", "reference_digest", "embedder_digest", "calibration_digest")
            if getattr(now, field) != getattr(self, field)
        ]

    @property
    def confirmation(self) -> Subject:
        """The same with seeds that no first audit drew."""
        first, seeds = self.budget.first_seed, self.budget.seeds
        fresh = first + seeds if first + seeds <= MAX_SEED else first - seeds
        return replace(self, budget=replace(self.budget, first_seed=fresh))

    def key(self, prompt: str) -> str:
        """SHA-256, in hexadecimal, of everything that decides an audit: the same key, the same answer."""
        content = {"algorithm": ALGORITHM, "estimators": shipped().digest, "prompt": prompt, **asdict(self)}
        for name in self.sampler.unsaid:
            del content["sampler"][name]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """An audit to do.

    Attributes:
        id: in the ledger.
        checkpoint: by name.
        prompt: to audit.
        key: of the result.
        confirms: key of the first audit that this one confirms; "" where it is a first one.
    """

    id: int
    checkpoint: str
    prompt: str
    key: str
    confirms: str


class Ledger(Protocol):
    """Who knows what is to be done and keeps what was found. Called by one thread at a time."""

    def beat(self) -> None:
        """Called about twice a second while there is work: what was taken is being worked on."""
        ...

    def take(self, most: int, *, idle: bool) -> Sequence[Task]:
        """Begin some tasks; none when nothing is left, or when what is left has to wait until nothing else runs."""
        ...

    def finish(self, done: Sequence[tuple[Task, Report]]) -> None:
        """Keep results; when this returns, they are kept for good."""
        ...

    def fail(self, task: Task, error: BaseException, *, final: bool) -> None:
        """Note an error; the task comes back unless it is final or was the last of too many."""
        ...

    def lose(self, tasks: Sequence[Task]) -> None:
        """Take tasks back whose worker was lost; one that is lost too often is set aside."""
        ...

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Take tasks back that were begun and not done."""
        ...
