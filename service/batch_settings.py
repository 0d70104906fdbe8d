"""What a batch is run with, as its store keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from audit.auditor import Auditor
from audit.batch.discovery import FALSE_DISCOVERY_RATE
from audit.batch.tasks import Subject
from audit.errors import InvalidInput
from audit.verdict.decision import ALGORITHM
from service.pictures import Pictures
from service.prompts import PromptEntry
from service.store.records import Entry


class BatchSettings(BaseModel):
    """Everything that decides the results of a batch, but for its prompts.

    Attributes:
        subjects: what is audited, by the name of the checkpoint.
        reference: name of the reference set; "" for none.
        pictures: which results keep theirs.
        false_discoveries: expected share of errors among the prompts that count as found.
        in_run_folder: whether the process that owns a run folder does the work, which servers then leave alone.
        request: digest of what a server was asked for; "" in run folders.
        evaluations: of the denoiser that an audit plans, by the name of the checkpoint; none in run folders.
        algorithm: of the verdicts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subjects: dict[str, Subject]
    reference: str = ""
    pictures: Pictures = Pictures.FLAGGED
    false_discoveries: float = FALSE_DISCOVERY_RATE
    in_run_folder: bool = False
    request: str = ""
    evaluations: dict[str, int] = {}
    algorithm: int = ALGORITHM

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> BatchSettings:
        """From the store.

        Raises:
            InvalidInput: another version wrote them.
        """
        try:
            settings = cls.model_validate(content)
        except ValidationError as error:
            raise _of_another_version() from error
        if settings.algorithm != ALGORITHM:
            raise _of_another_version()
        return settings

    def content(self) -> dict[str, Any]:
        """For the store."""
        return self.model_dump(mode="json")

    def entries(self, prompts: Callable[[], Iterable[PromptEntry]]) -> Iterator[Entry]:
        """The items of a batch, by checkpoint, in the order of the prompts.

        Args:
            prompts: reads them from the first one on; called for each checkpoint.
        """
        for name, subject in self.subjects.items():
            for position, given in enumerate(prompts()):
                yield Entry(name, position, given.prompt, subject.key(given.prompt), given.extra)

    def check(self, name: str, auditor: Auditor) -> None:
        """Whether an auditor would still audit what was asked for.

        Raises:
            InvalidInput: a digest is another one: results would not be those of the batch's keys.
        """
        if changed := self.subjects[name].changed(auditor):
            raise InvalidInput(
                f"the {' and the '.join(changed)} of {name} changed since the batch was taken in",
                reason="SUBJECT_CHANGED",
                field="checkpoints",
            )


def _of_another_version() -> InvalidInput:
    return InvalidInput("the batch was taken in by another version", reason="BATCH_OF_ANOTHER_VERSION", field="batch")
