"""A server's batch in a run folder of one's own, where it can be reported, compared and gated like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from audit.batch.tasks import Task
from audit.errors import InvalidInput
from audit.v1 import batch_pb2, report_pb2
from service.batch_settings import BatchSettings
from service.batch_wire import concluded_of, entry_of, state_of
from service.chunks import chunks
from service.client import BasinClient
from service.results import Concluded, conclude_batch
from service.run_folder import Run, claim, store_url, write_run
from service.store.engine import connect
from service.store.queue import Known, Queue
from service.store.store import Store

#: Results that are written at once.
CHUNK = 50


def fetch(
    client: BasinClient, id_: str, out: Path, on_result: Callable[[], None] = lambda: None
) -> dict[str, list[Concluded]]:
    """Bring what a server's batch has found so far into a run folder; again, to bring what came since.

    Args:
        client: of the server.
        id_: of the batch.
        out: the folder.
        on_result: called for every result.

    Returns:
        What the batch says so far, by checkpoint, in the order of the prompts.

    Raises:
        ServiceError: the server refuses or does not answer.
        InvalidInput: the folder holds something else, or another batch.
    """
    batch = client.batch(id_)
    settings = BatchSettings.read(MessageToDict(batch.settings))
    with ExitStack() as made:  # what is raised in here undoes what was made
        run = made.enter_context(claim(out, Run(request_id=id_)))
        if run.request_id != id_:
            raise _another_batch(out)
        engine = connect(store_url(out, run.store))
        store = made.enter_context(closing(Store(engine)))
        entries = (entry_of(one.result) for one in client.batch_results(id_))
        try:
            own = store.create(entries, settings.content(), request_id=id_)
        except InvalidInput as error:
            if error.reason != "REQUEST_ID_REUSED":
                raise
            raise _another_batch(out) from error
        write_run(out, run.model_copy(update={"false_discoveries": settings.false_discoveries}))
        resources = made.pop_all()
    with resources:
        queue = Queue(engine)
        for chunk in chunks(_known(client, id_, on_result), CHUNK):
            queue.adopt(own.id, chunk)
        if (state := state_of(batch.progress.state)) != own.state:  # or it would come to its end again
            store.set_state(own.id, state)
        return conclude_batch(store, own, settings.false_discoveries)


def _another_batch(out: Path) -> InvalidInput:
    return InvalidInput(
        f"{out} holds another batch; name another --out folder", reason="RUN_OF_ANOTHER_CONFIGURATION", field="out"
    )


def results_so_far(client: BasinClient, id_: str) -> Iterator[Concluded]:
    """What a server's batch has found, by checkpoint and position.

    Raises:
        ServiceError: the server refuses or does not answer.
    """
    for one in client.batch_results(id_):
        yield concluded_of(one.result)


def _known(client: BasinClient, id_: str, on_result: Callable[[], None]) -> Iterator[Known]:
    for one in client.batch_results(id_, include_reports=True):
        result = one.result
        on_result()
        yield Known(
            Task(0, result.checkpoint, result.prompt.prompt, result.key, ""),
            _report(result.first),
            result.confirmation,
            _report(result.second),
            result.error,
        )


def _report(answer: batch_pb2.BatchAnswer) -> report_pb2.Report | None:
    return answer.report if answer.HasField("report") else None
