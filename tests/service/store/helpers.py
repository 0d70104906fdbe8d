"""What tests put into a store, and processes that work on one, in a module that those can import."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, func, select

from audit.batch.tasks import Task
from audit.errors import AuditError
from audit.v1 import report_pb2
from service.store.engine import StoreFailed, connect
from service.store.queue import Finished, Queue
from service.store.records import Entry
from service.store.schema import Base
from service.store.store import CHUNK, Store

#: Seconds that nothing takes unless it hangs.
LONG = 120
#: Every example makes a batch of its own.
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def key_of(text: str) -> str:
    """A key as batches have them."""
    return hashlib.sha256(text.encode()).hexdigest()


def entry(position: int, *, checkpoint: str = "demo", tag: str = "") -> Entry:
    """A prompt of its own."""
    prompt = f"prompt {tag}{position}"
    return Entry(checkpoint, position, prompt, key_of(f"{checkpoint} {prompt}"), {"number": position})


def entries(count: int, *, checkpoint: str = "demo", tag: str = "") -> list[Entry]:
    """Prompts, each with a key of its own."""
    return [entry(position, checkpoint=checkpoint, tag=tag) for position in range(count)]


def confirmation_of(task: Task) -> str:
    """The key of its second audit."""
    return key_of(f"again {task.key}")


def report(verdict: str = "generalized", *, prompt: str = "", content: str = "") -> report_pb2.Report:
    """A result, sure of its verdict."""
    values = {name: 0.98 if name == verdict else 0.01 for name in ("memorized", "spurious", "generalized")}
    made = report_pb2.Report(
        prompt=prompt,
        verdict=verdict,
        probabilities=report_pb2.ClassValues(**values),
        reasons=[content],
        cost=report_pb2.Cost(evaluations=123, compute_seconds=4.5),
    )
    made.provenance.finish_time.FromDatetime(datetime.now(UTC))
    return made


def finished(task: Task, verdict: str = "generalized", *, content: str = "") -> Finished:
    """A task with a result."""
    return Finished(task, report(verdict, prompt=task.prompt, content=content), confirmation_of(task))


def finish(queue: Queue, id_: str, task: Task, verdict: str = "generalized") -> None:
    """Keep a result of a task."""
    queue.finish(id_, [finished(task, verdict)])


def innocent(task: Task) -> str:
    """Nothing is ever found."""
    return "generalized"


def work_off(queue: Queue, id_: str, verdict: Callable[[Task], str] = innocent, checkpoint: str = "demo") -> list[Task]:
    """Everything that is left to do."""
    done = []
    while tasks := queue.take(id_, checkpoint, 3, idle=True):
        queue.finish(id_, [finished(task, verdict(task)) for task in tasks])
        done += tasks
    return done


def sizes(engine: Engine) -> dict[str, int]:
    """Rows of every table that holds what users gave or got."""
    with engine.connect() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in Base.metadata.tables.items()
            if name != "workers"
        }


# Processes. Each gets one end of a pipe, and the test the other.


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process at work, ended at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what takes seconds to import is imported once
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def told(pipe: Connection) -> Any:
    """What a process says next; EOFError when it says no more."""
    assert pipe.poll(LONG)
    return pipe.recv()


def race(pipe: Connection, url: str, count: int) -> None:
    """When told to, make the store and the batch, unless they are there, and take all tasks that can be had."""
    pipe.send("ready")
    pipe.recv()
    engine = connect(url)
    queue, batch = Queue(engine), Store(engine).create(entries(count), {}, request_id="the same")
    taken = []
    while tasks := queue.take(batch.id, "demo", 2, idle=True):
        taken += [task.id for task in tasks]
    pipe.send((batch.id, taken))


def work(pipe: Connection, url: str, id_: str) -> None:
    """Do tasks, and say so after each."""
    queue = Queue(connect(url))
    while tasks := queue.take(id_, "demo", 4, idle=True):
        for task in tasks:
            finish(queue, id_, task, "memorized" if task.id % 2 else "generalized")
            pipe.send(task.key)


def create_and_hang(pipe: Connection, url: str) -> None:
    """Begin a batch, and never come to its end."""

    def endless() -> Iterator[Entry]:
        yield from entries(CHUNK + 100)
        pipe.send("inside")
        time.sleep(LONG)

    Store(connect(url)).create(endless(), {}, request_id="hanging")


def fill(pipe: Connection, url: str, id_: str, room: int) -> None:
    """Do tasks where files can grow no further than that, and say what was done and what went wrong."""
    queue = Queue(connect(url))
    largest = max(file.stat().st_size for file in Path(url.removeprefix("sqlite:///")).parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, resource.RLIM_INFINITY))
    done = []
    try:
        while tasks := queue.take(id_, "demo", 1, idle=True):
            queue.finish(id_, [finished(tasks[0], "memorized", content="x" * 10_000)])
            done.append(tasks[0].key)
    except StoreFailed as error:
        pipe.send((done, str(error)))


def open_as_nobody(pipe: Connection, folder: Path, name: str) -> None:
    """Open a store as someone who may write nothing."""
    Store(connect(f"sqlite:///{folder}/warm.db")).close()  # whatever is imported on the way
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        connect(f"sqlite:///{folder}/{name}")
    except AuditError as error:
        pipe.send(error)
    else:
        pipe.send(None)
