"""Messages of batch.proto from and to the types of the store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import code_pb2, status_pb2

from audit.batch.discovery import Answer, Outcome
from audit.errors import InvalidInput
from audit.v1 import audit_pb2, batch_pb2, report_pb2
from audit.verdict.rule import CLASSES, PhaseClass
from service.batch_settings import BatchSettings
from service.pictures import Pictures
from service.results import Concluded
from service.store.records import BATCH_STATES, CANCELLED, DONE, FAILED, PAUSED, RUNNING, Batch, Counts, Entry, Row

#: What stands before the id in an operation's name.
OPERATIONS = "operations/"

#: Levels of objects and lists in `extra`: protobuf reads a few more.
MOST_LEVELS = 24
#: Largest whole number that double precision has with all smaller ones.
MOST_WHOLE = 2**53

_PICTURES = "BATCH_PICTURES_"
_STATE = "BATCH_STATE_"
_OUTCOME = "BATCH_OUTCOME_"


def pictures_to_proto(pictures: Pictures) -> str:
    """As the wire names it."""
    return _PICTURES + pictures.upper()


def pictures_of(spec: batch_pb2.BatchSpec) -> Pictures:
    """Which results of a batch keep their pictures.

    Raises:
        InvalidInput: a value that this version does not know.
    """
    if not spec.pictures:
        return Pictures.FLAGGED
    try:
        return Pictures(batch_pb2.BatchPictures.Name(spec.pictures).removeprefix(_PICTURES).lower())
    except ValueError as error:
        raise InvalidInput(
            f"pictures has no value {spec.pictures}", reason="PICTURES_UNKNOWN", field="spec.pictures"
        ) from error


def state_to_proto(state: str) -> str:
    """As the wire names it; "" is none.

    Raises:
        InvalidInput: there is no such state.
    """
    if state and state not in BATCH_STATES:
        raise InvalidInput(
            f"there is no state {state!r}; states: {', '.join(BATCH_STATES)}", reason="STATE_UNKNOWN", field="state"
        )
    return _STATE + (state.upper() or "UNSPECIFIED")


def state_of(value: batch_pb2.BatchState) -> str:
    """A state as the store has it; "" for none.

    Raises:
        InvalidInput: a value that this version does not know.
    """
    try:
        name = batch_pb2.BatchState.Name(value).removeprefix(_STATE).lower()
    except ValueError as error:
        raise InvalidInput(f"there is no state {value}", reason="STATE_UNKNOWN", field="state") from error
    return name if name in BATCH_STATES else ""


@contextmanager
def about(place: str) -> Iterator[None]:
    """Errors in here are about a part of what was given: their messages say which."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}", reason=error.reason, field=error.field) from error


def text_of(value: str, field: str) -> str:
    """A text of a request that is to be kept or looked for.

    Raises:
        InvalidInput: it holds NUL, which PostgreSQL cannot even be asked for.
    """
    if "\0" in value:
        name = field.rpartition(".")[2]
        raise InvalidInput(f"there is a character NUL in {name}", reason="NUL_CHARACTER", field=field)
    return value


def prompt_to_proto(prompt: str, extra: dict[str, Any]) -> batch_pb2.BatchPrompt:
    """A prompt with whatever else belongs to it.

    Raises:
        InvalidInput: that is more than the wire carries.
    """
    message = batch_pb2.BatchPrompt(prompt=prompt)
    if extra:
        ParseDict(_carried(extra, "extra"), message.extra)
    return message


def extra_of(prompt: batch_pb2.BatchPrompt, field: str) -> dict[str, Any]:
    """What else belongs to a prompt, as JSON has it. Numbers that are whole come as such.

    Raises:
        InvalidInput: it holds infinities, or what is no number.
    """
    try:
        extra: dict[str, Any] = _carried(MessageToDict(prompt.extra), field)
    except ValueError as error:
        raise InvalidInput("extra holds a number that JSON has not", reason="EXTRA_INVALID", field=field) from error
    return extra


def shown_state(batch: Batch, note: str) -> str:
    """A batch's state for clients: one that the store has running is paused while there is a note why it waits."""
    return PAUSED if batch.state == RUNNING and note else batch.state


def batch_to_proto(
    batch: Batch, counts: Counts, rate: float, note: str = "", outcomes: Mapping[str, Mapping[str, int]] | None = None
) -> batch_pb2.Batch:
    """A batch and how it stands, without its settings.

    Args:
        batch: from the store.
        counts: of its tasks.
        rate: audits per second, lately.
        note: why it waits, where the store does not say.
        outcomes: prompts by checkpoint and outcome; None while it has not ended.
    """
    progress = batch_pb2.BatchProgress(
        batch=batch.id,
        state=state_to_proto(shown_state(batch, note)),
        note=batch.note or note,
        prompts=batch.prompts,
        open=counts.open,
        done=counts.done,
        failed=counts.failed,
        verdicts={name: counts.verdicts.get(name, 0) for name in CLASSES},
        rate=rate,
    )
    if rate > 0 and counts.open and batch.finished is None:
        progress.time_left.FromSeconds(math.ceil(counts.open / rate))
    message = batch_pb2.Batch(id=batch.id, spec=_spec(batch.settings), progress=progress)
    message.create_time.FromDatetime(batch.created)
    if batch.finished is not None:
        message.finish_time.FromDatetime(batch.finished)
    for checkpoint, own in (outcomes or {}).items():
        message.outcomes.add(checkpoint=checkpoint, prompts=own)
    return message


def operation_of(batch: batch_pb2.Batch) -> operations_pb2.Operation:
    """A batch as a long-running operation: done when it has ended."""
    operation = operations_pb2.Operation(name=OPERATIONS + batch.id)
    operation.metadata.Pack(batch.progress)
    state, note = state_of(batch.progress.state), batch.progress.note
    operation.done = state in (DONE, CANCELLED, FAILED)
    if state == DONE:
        operation.response.Pack(batch)
    elif state == CANCELLED:
        operation.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message=note or "somebody cancelled it"))
    elif state == FAILED:
        operation.error.CopyFrom(status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message=note))
    return operation


def result_to_proto(
    row: Row, outcome: Outcome | None, reports: Iterable[report_pb2.Report | None] = (None, None)
) -> batch_pb2.BatchResult:
    """What was found of one item.

    Args:
        row: from the store.
        outcome: None while the batch has not ended.
        reports: of its first and second audit, where they were asked for.
    """
    message = batch_pb2.BatchResult(
        checkpoint=row.entry.checkpoint,
        position=row.entry.position,
        prompt=prompt_to_proto(row.entry.prompt, row.entry.extra),
        outcome=_OUTCOME + ("UNSPECIFIED" if outcome is None else outcome.upper()),
        error=row.error,
        open=row.open,
        key=row.entry.key,
        confirmation=row.confirmation,
    )
    answers = (message.first, row.first), (message.second, row.second)
    for (part, answer), report in zip(answers, reports, strict=True):
        if answer is not None:
            part.CopyFrom(_answer(answer))
            if report is not None:
                part.report.CopyFrom(report)
    return message


def entry_of(result: batch_pb2.BatchResult) -> Entry:
    """The item of a result."""
    extra = extra_of(result.prompt, "prompt.extra")
    return Entry(result.checkpoint, result.position, result.prompt.prompt, result.key, extra)


def concluded_of(result: batch_pb2.BatchResult) -> Concluded:
    """A result, for a client. Where the batch has not ended, it counts as open."""
    first, second = (
        _answer_of(part) if result.HasField(name) else None
        for name, part in (("first", result.first), ("second", result.second))
    )
    ended = result.outcome != batch_pb2.BATCH_OUTCOME_UNSPECIFIED
    to_do = result.open or not ended
    name = batch_pb2.BatchOutcome.Name(result.outcome).removeprefix(_OUTCOME).lower()
    row = Row(entry_of(result), first, second, result.error, result.confirmation, to_do)
    return Concluded(row, Outcome(name) if ended else Outcome.FAILED)


def _carried(value: Any, field: str, levels: int = MOST_LEVELS) -> Any:
    """JSON as a Struct carries it, whose numbers are all of double precision.

    Raises:
        InvalidInput: a number would lose its last digits, or it is nested too deeply.
    """
    if isinstance(value, dict | list):
        if not levels:
            raise InvalidInput(
                f"extra is nested more than {MOST_LEVELS} levels deep", reason="EXTRA_INVALID", field=field
            )
        if isinstance(value, dict):
            return {name: _carried(part, field, levels - 1) for name, part in value.items()}
        return [_carried(part, field, levels - 1) for part in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_WHOLE:
        return int(value)
    if isinstance(value, int) and abs(value) > MOST_WHOLE:
        raise InvalidInput(
            f"extra holds the number {str(value)[:32]}, which has too many digits: make it text",
            reason="EXTRA_INVALID",
            field=field,
        )
    return value


def _answer_of(message: batch_pb2.BatchAnswer) -> Answer:
    probabilities = message.probabilities
    return Answer(
        PhaseClass(report_pb2.Verdict.Name(message.verdict)),
        (probabilities.memorized, probabilities.spurious, probabilities.generalized),
    )


def _answer(answer: Answer) -> batch_pb2.BatchAnswer:
    return batch_pb2.BatchAnswer(
        verdict=str(answer.verdict),
        probabilities=report_pb2.ClassValues(**dict(zip(CLASSES, answer.probabilities, strict=True))),
    )


def _spec(content: Mapping[str, Any]) -> batch_pb2.BatchSpec:
    """Every setting filled in; the sampler's only where all checkpoints share them."""
    try:
        settings = BatchSettings.read(content)
    except InvalidInput:  # it can still be listed
        return batch_pb2.BatchSpec(checkpoints=list(content.get("subjects", ())))
    subjects = list(settings.subjects.values())
    budget, samplers = subjects[0].budget, {subject.sampler for subject in subjects}
    spec = batch_pb2.BatchSpec(
        checkpoints=list(settings.subjects),
        reference=settings.reference,
        budget=audit_pb2.BudgetOptions(
            seeds=budget.seeds,
            minimum_seeds=budget.minimum_seeds,
            first_seed=budget.first_seed,
            definition_samples=budget.definition_samples,
            curvature=budget.curvature.method,
        ),
        pictures=pictures_to_proto(settings.pictures),
        false_discovery_rate=settings.false_discoveries,
    )
    if len(samplers) == 1:
        shared, options = samplers.pop(), audit_pb2.SamplerOptions.DESCRIPTOR.fields
        spec.sampler.CopyFrom(audit_pb2.SamplerOptions(**{one.name: getattr(shared, one.name) for one in options}))
    return spec
