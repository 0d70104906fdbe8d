"""The batches of a server: taken in, listed, cancelled, deleted, read. The work on them is `service.batch_work`'s."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from google.protobuf.json_format import ParseDict

from audit.batch.discovery import FALSE_DISCOVERY_RATE, Outcome
from audit.batch.tasks import Subject
from audit.errors import InvalidInput
from audit.v1 import batch_pb2
from service import batch_wire
from service.access import caller
from service.batch_settings import BatchSettings
from service.batch_work import BatchWork
from service.checkpoints import CheckpointRegistry
from service.config import Settings
from service.log import Logger
from service.metrics import Metrics
from service.paging import not_given_out, page_size, read_token, write_token
from service.planning import Planner
from service.prompts import PromptEntry
from service.quotas import Quotas
from service.references import ReferenceRegistry
from service.results import outcomes_of
from service.runners import RAY, RayOptions, find_runner
from service.status import NotEnded, QueueFull, ShuttingDown, within
from service.store.engine import connect, time_statements
from service.store.queue import Queue
from service.store.records import CANCELLED, DONE, PAUSED, PENDING, RUNNING, Batch
from service.store.store import Store
from service.store_calls import StoreCalls
from service.upkeep import apply_retention, watch

MAX_REQUEST_ID = 64
#: Batches and rows that are read at once, and reports, which are larger.
BATCHES, ROWS, REPORTS = 200, 500, 20
#: Seconds between two looks for results that somebody waits for.
FOLLOW = 0.5
#: Batches of which it is remembered what they say.
MOST_CONCLUDED = 16
#: How long after a batch was ended an audit of it may still come to its end.
SETTLED = timedelta(minutes=5)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: What a batch says, by checkpoint and position.
Said = dict[str, dict[int, Outcome]]


class Batches:
    """Batches in a store.

    Args:
        settings: of the server.
        planner: of the server.
        checkpoints: of the server.
        references: of the server.
        quotas: of the server's clients.
        metrics: of the server.
        logger: of the server.
    """

    def __init__(
        self,
        settings: Settings,
        planner: Planner,
        checkpoints: CheckpointRegistry,
        references: ReferenceRegistry,
        quotas: Quotas,
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        self._all_settings = settings
        self._settings = settings.batches
        self._planner = planner
        self._checkpoints = checkpoints
        self._references = references
        self._quotas = quotas
        self._metrics = metrics
        self._logger = logger
        self._ask = StoreCalls(metrics, logger)
        self._store: Store
        self._work: BatchWork | None = None
        self._tasks: list[asyncio.Task[None]] = []
        #: Set when the server stops.
        self._leaving = asyncio.Event()
        #: What batches say of which nothing changes any more, so that it is worked out once.
        self._concluded: dict[str, asyncio.Future[Said]] = {}

    async def start(self) -> None:
        """Open the store and begin to work.

        Raises:
            InvalidInput, NotFound: the store or the Ray cluster cannot be used.
        """
        engine = await self._ask(lambda: connect(self._settings.store_url))
        time_statements(engine, lambda kind, seconds: self._metrics.store_seconds.labels(kind).observe(seconds))
        self._store = Store(engine)
        runner = None
        if self._settings.runner == RAY:
            options = RayOptions(**dict(self._settings.ray))
            runner = await self._ask(partial(find_runner, RAY, "cpu", options))
        retention = apply_retention(engine, self._all_settings.retention, self._ask, self._logger)
        self._tasks = [asyncio.create_task(one) for one in (retention, watch(self._store, self._ask, self._metrics))]
        self._work = BatchWork(
            self._all_settings,
            runner,
            self._store,
            partial(Queue, engine, self._settings.lease_seconds),
            self._checkpoints,
            self._references,
            self._metrics,
            self._logger,
        )

    def look(self) -> None:
        """Checkpoints were loaded or unloaded."""
        if self._work is not None:
            self._work.look()

    async def pause(self) -> None:
        """Stop the work; what is in flight is put back. Callers that wait for it learn that it stops."""
        self._leaving.set()
        if self._work is not None:
            work, self._work = self._work, None
            await work.close()

    async def close(self) -> None:
        """Stop the work and let go of the store."""
        await self.pause()
        for task in self._tasks:
            task.cancel()
        if hasattr(self, "_store"):
            self._store.close()
        self._ask.close()

    async def sleep(self, seconds: float) -> None:
        """Wait a while.

        Raises:
            ShuttingDown: there is nothing to wait for any more.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)
            raise ShuttingDown

    async def take_in(
        self, spec: batch_pb2.BatchSpec, prompts: Sequence[PromptEntry], request_id: str, request: str
    ) -> batch_pb2.Batch:
        """Take a batch in, or find the one of the same request id.

        Args:
            spec: how to run it.
            prompts: what to audit.
            request_id: as `check_request_id` lets it pass; "" makes a new one.
            request: digest of the whole request.

        Raises:
            InvalidInput, NotFound, BrokenReference, NotLoaded, NotReady: the request cannot be served.
            QueueFull: batches have too much to do already.
            QuotaExceeded: the client has asked for too much.
            StoreDown: the store does not answer.
        """
        if not prompts:
            raise InvalidInput("there are no prompts", reason="PROMPTS_EMPTY", field="prompts")
        settings = self._plan(spec).model_copy(update={"request": request})
        total = len(prompts) * len(settings.subjects)
        if total > self._settings.prompts:
            raise InvalidInput(
                f"{total:,} prompts over all checkpoints, this server allows {self._settings.prompts:,}",
                reason="TOO_MANY_PROMPTS",
                field="prompts",
            )
        content, entries = settings.content(), settings.entries(lambda: prompts)
        client, evaluations = caller.get().name, 0
        if await self._known(request_id, request) is None:
            evaluations = len(prompts) * sum(settings.evaluations.values())
            self._quotas.check(client)
            self._quotas.take(client, evaluations)  # at once, or what is left for one would let several in
        try:
            if evaluations:
                await self._check_room(evaluations)
            batch = await self._ask(lambda: self._store.create(entries, content, request_id=request_id))
        except Exception:  # not where the caller has gone away: the store may take the batch in all the same
            self._quotas.take(client, -evaluations)
            raise
        if self._work is not None:
            self._work.wake()
        return await self.describe(batch.id)

    async def repeated(self, request_id: str, request: str) -> batch_pb2.Batch | None:
        """The batch that the same request was answered with before, whatever became of the server since.

        Args:
            request_id: of a caller.
            request: digest of the whole request.

        Raises:
            StoreDown: the store does not answer.
        """
        known = await self._known(request_id, request)
        return None if known is None else await self.describe(known.id)

    async def describe(self, id_: str) -> batch_pb2.Batch:
        """How a batch stands, and what it says once it has ended.

        Raises:
            NotFound: there is none of this id.
            StoreDown: the store does not answer.
        """
        batch = await self._ask(partial(self._store.batch, id_))
        said: dict[str, Counter[str]] | None = None
        if batch.finished is not None:
            outcomes = await self._outcomes(batch)
            said = {name: Counter(map(str, own.values())) for name, own in outcomes.items()}
        message = await self._message(batch, said)
        ParseDict(batch.settings, message.settings)
        return message

    async def list(self, request: batch_pb2.ListBatchesRequest) -> tuple[list[batch_pb2.Batch], str]:
        """A page of batches without what they say, the newest first, and the token of the next one.

        Raises:
            InvalidInput: page size or token are none.
            StoreDown: the store does not answer.
        """
        size, state, after = page_size(request.page_size), batch_wire.state_of(request.state), None
        if request.page_token:
            microseconds, id_ = read_token(request.page_token, "page_token", int, str)
            try:
                after = EPOCH + timedelta(microseconds=microseconds), id_
            except OverflowError as error:
                raise not_given_out("page_token") from error
        states = {"": (), PAUSED: (RUNNING, PAUSED)}.get(state, (state,))  # most that wait are running to the store
        checkpoint, limit = batch_wire.text_of(request.checkpoint, "checkpoint"), max(size + 1, BATCHES)
        ask = partial(self._store.batches, states=states, checkpoint=checkpoint, limit=limit)
        page: list[Batch] = []
        while len(page) <= size:
            found = await self._ask(partial(ask, after=after))
            page += [one for one in found if state in ("", batch_wire.shown_state(one, self._note(one)))]
            if len(found) < limit:
                break
            after = found[-1].created, found[-1].id
        token = ""
        if len(page) > size:
            last = page[size - 1]
            token = write_token((last.created - EPOCH) // timedelta(microseconds=1), last.id)
        return [await self._message(batch) for batch in page[:size]], token

    async def cancel(self, id_: str) -> batch_pb2.Batch:
        """End a batch; one that has ended is left as it is.

        Raises:
            NotFound: there is none of this id.
            StoreDown: the store does not answer.
        """
        await self._ask(partial(self._store.batch, id_))
        if await self._ask(partial(self._store.set_state, id_, CANCELLED, among=(RUNNING, PAUSED))):
            self._logger.info("batch cancelled", batch=id_)
        if self._work is not None:
            self._work.stop(id_)
        return await self.describe(id_)

    async def delete(self, id_: str) -> None:
        """Delete a batch that has ended.

        Raises:
            NotFound: there is none of this id.
            NotEnded: it is worked on.
            StoreDown: the store does not answer.
        """
        batch = await self._ask(partial(self._store.batch, id_))
        if batch.finished is None:
            raise NotEnded("the batch has not ended: cancel it first", reason="BATCH_NOT_ENDED", field="batch")
        await self._ask(partial(self._store.delete, id_))
        self._concluded.pop(id_, None)
        self._logger.info("batch deleted", batch=id_)

    async def results(
        self, request: batch_pb2.StreamBatchResultsRequest
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        """What was found, from a cursor on.

        Raises:
            InvalidInput: the cursor is none.
            NotFound: there is no such batch, or no more.
            StoreDown: the store does not answer.
            ShuttingDown: the server stops while the caller waits.
        """
        after = ("", -1)
        if request.cursor:
            checkpoint, position = read_token(request.cursor, "cursor", str, int)
            after = checkpoint, position
        limit = REPORTS if request.include_reports else ROWS
        outcomes: Said = {}
        while True:
            batch = await self._ask(partial(self._store.batch, request.batch))
            rows = await self._ask(partial(self._store.rows, batch.id, after=after, limit=limit))
            if not rows:
                return
            ended = batch.finished is not None
            if ended and not outcomes:
                outcomes = await self._outcomes(batch)
            waits = False
            for row in rows:
                place = row.entry.checkpoint, row.entry.position
                if request.follow and row.open and not ended:
                    waits = True
                    break
                reports = (
                    await self._ask(partial(self._store.reports, row)) if request.include_reports else (None, None)
                )
                outcome = outcomes[row.entry.checkpoint].get(row.entry.position) if outcomes else None
                result = batch_wire.result_to_proto(row, outcome, reports)
                yield batch_pb2.StreamBatchResultsResponse(result=result, cursor=write_token(*place))
                after = place
            if waits:
                await self.sleep(FOLLOW)

    def _plan(self, spec: batch_pb2.BatchSpec) -> BatchSettings:
        rate = spec.false_discovery_rate if spec.HasField("false_discovery_rate") else FALSE_DISCOVERY_RATE
        if not 0 <= rate <= 1:
            raise InvalidInput(
                f"the false discovery rate must be in [0, 1], not {rate}",
                reason="FALSE_DISCOVERY_RATE_OUT_OF_RANGE",
                field="spec.false_discovery_rate",
            )
        with within("spec"):
            names = list(spec.checkpoints) or [self._planner.checkpoint("", "checkpoints")]
            if len(set(names)) < len(names):
                raise InvalidInput("a checkpoint is named twice", reason="CHECKPOINT_REPEATED", field="checkpoints")
            plans = {name: self._planner.plan(name, spec.reference, spec.sampler, spec.budget) for name in names}
        return BatchSettings(
            subjects={name: Subject.of(plan.auditor, plan.budget, vars(plan.sampler)) for name, plan in plans.items()},
            reference=spec.reference,
            pictures=batch_wire.pictures_of(spec),
            false_discoveries=rate,
            evaluations={name: plan.evaluations for name, plan in plans.items()},
        )

    async def _known(self, request_id: str, request: str) -> Batch | None:
        """The batch of the same request; see `repeated`."""
        known = await self._ask(partial(self._store.batch_of, request_id)) if request_id else None
        return known if known is not None and known.settings.get("request") == request else None

    async def _check_room(self, evaluations: int) -> None:
        """Raises QueueFull when running batches leave no room for so many evaluations more."""
        most, running = self._settings.evaluations, await self._ask(self._store.running)
        planned = {batch.id: batch.settings.get("evaluations", {}) for batch in running}
        there = 0
        for (batch, checkpoint, state), count in (await self._ask(self._store.tasks)).items():
            if state in (PENDING, RUNNING):
                there += count * planned.get(batch, {}).get(checkpoint, 0)
        if there and there + evaluations > most:
            raise QueueFull(
                f"batches have {there:,} denoiser evaluations to make, at most {most:,} may: no room for "
                f"{evaluations:,} more",
                reason="BATCHES_FULL",
                retry_seconds=60.0,
            )

    async def _message(self, batch: Batch, said: Mapping[str, Mapping[str, int]] | None = None) -> batch_pb2.Batch:
        counts = await self._ask(partial(self._store.counts, batch.id))
        rate = 0.0 if batch.finished else await self._ask(partial(self._store.rate, batch))
        return batch_wire.batch_to_proto(batch, counts, rate, self._note(batch), said)

    def _note(self, batch: Batch) -> str:
        """Why it waits here; "" where it does not."""
        return "" if self._work is None else self._work.notes.get(batch.id, "")

    async def _outcomes(self, batch: Batch) -> Said:
        """What a batch that has ended says."""
        assert batch.finished is not None
        found = self._concluded.get(batch.id)
        if found is None:
            rate = batch.settings.get("false_discoveries", FALSE_DISCOVERY_RATE)
            found = asyncio.ensure_future(self._ask(partial(outcomes_of, self._store, batch, rate)))
            self._concluded[batch.id] = found
            while len(self._concluded) > MOST_CONCLUDED:
                del self._concluded[next(iter(self._concluded))]
        try:
            return await asyncio.shield(found)  # others may wait for it, too
        finally:
            # In the others, audits in flight may still come to their end.
            final = batch.state == DONE or datetime.now(UTC) - batch.finished > SETTLED
            if not final or (found.done() and (found.cancelled() or found.exception() is not None)):
                self._concluded.pop(batch.id, None)


def check_request_id(request_id: str) -> None:
    """Raises InvalidInput of an id that is too long or cannot be kept."""
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidInput(
            f"a request id has at most {MAX_REQUEST_ID} characters", reason="REQUEST_ID_TOO_LONG", field="request_id"
        )
    batch_wire.text_of(request_id, "request_id")
