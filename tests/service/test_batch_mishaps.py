"""Batches whose checkpoints go away, come back or change, and servers that stop in the middle of them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.rpc import code_pb2
from safetensors.torch import load_file, save_file
from sqlalchemy import update

from audit import demo
from audit.auditor import Auditor
from audit.errors import InvalidInput
from audit.v1 import batch_pb2
from service import upkeep
from service.config import ConfigError, load_settings
from service.local_batch import LocalBatch, Wanted
from service.log import make_logger
from service.server import RunningServer, start_server
from service.store.engine import connect
from service.store.schema import BatchRow
from tests.service.batch_calls import (
    begun,
    cancel,
    create,
    ended,
    endless,
    get,
    listed,
    load,
    results,
    slow,
    spec,
    stream,
    unload,
)
from tests.service.helpers import LONG, Client, eventually, failure

RUNNING, PAUSED = batch_pb2.BATCH_STATE_RUNNING, batch_pb2.BATCH_STATE_PAUSED
DONE, FAILED = batch_pb2.BATCH_STATE_DONE, batch_pb2.BATCH_STATE_FAILED


def _recalibrate(folder: Path) -> None:
    calibration = folder / "calibration.json"
    calibration.write_text(json.dumps(json.loads(calibration.read_text()) | {"delta_m": 1.0}))


def test_a_checkpoint_that_is_unloaded(batch_client: Client) -> None:
    """It goes at once; the batch does what it can do without it, waits, lets others pass, and goes on after a load."""
    how = slow("strict", "demo")
    id_ = create(batch_client, [f"unloaded {number}" for number in range(10)], how)
    begun(batch_client, id_)
    unload(batch_client, "strict")
    assert get(batch_client, id_).progress.open
    eventually(lambda: get(batch_client, id_).progress.state == PAUSED)
    waiting = get(batch_client, id_)
    assert waiting.progress.note == "the checkpoint 'strict' is not loaded"
    assert waiting.progress.open
    assert not waiting.HasField("finish_time")
    found = {name: [one for one in results(batch_client, id_) if one.checkpoint == name] for name in ("strict", "demo")}
    assert not any(one.open for one in found["demo"])
    assert any(one.open for one in found["strict"])
    assert listed(batch_client, state=PAUSED) == [id_]
    assert listed(batch_client, state=RUNNING) == []
    assert ended(batch_client, create(batch_client, ["another"])).progress.state == DONE
    blocking = create(batch_client, ["in between"], endless())
    eventually(lambda: get(batch_client, id_).progress.state == PAUSED)
    load(batch_client, "strict")  # it is loaded, and another batch is at work
    assert (get(batch_client, id_).progress.state, get(batch_client, id_).progress.note) == (RUNNING, "")
    cancel(batch_client, blocking)
    begun(batch_client, id_, waiting.progress.done + 1)
    assert get(batch_client, id_).progress.state in (RUNNING, DONE)
    last = ended(batch_client, id_)
    assert (last.progress.state, last.progress.failed, last.progress.note) == (DONE, 0, "")


def test_flags_that_were_known_are_confirmed_before_the_end(batch_client: Client, prompts: list[str]) -> None:
    """A batch all of whose first audits were known is not done while its second ones wait for a checkpoint."""
    how = spec("demo")
    ended(batch_client, create(batch_client, prompts[:2], how))
    blocking = create(batch_client, ["in front"], endless())
    how.checkpoints[:] = ["twin"]
    how.budget.first_seed += how.budget.seeds  # those of the second audits
    id_ = create(batch_client, prompts[:2], how)
    assert (get(batch_client, id_).progress.done, get(batch_client, id_).progress.open) == (2, 0)
    unload(batch_client, "twin")
    cancel(batch_client, blocking)
    eventually(lambda: get(batch_client, id_).progress.state == PAUSED)
    assert all(one.open and one.HasField("first") for one in results(batch_client, id_))
    load(batch_client, "twin")
    assert ended(batch_client, id_).progress.done == 4
    assert all(one.HasField("second") and not one.open for one in results(batch_client, id_))


def test_servers_after_each_other(tmp_path: Path) -> None:
    """Of what one left, the next does what is still the same, and says why it cannot do the rest."""
    names = ("same", "recalibrated", "retrained", "left", "older")
    folders = {name: Path(shutil.copytree(demo.CHECKPOINT, tmp_path / name)) for name in names}
    store = f"sqlite:///{tmp_path}/basin.db"

    def settings(*names: str) -> Any:
        chosen = {name: folders[name] for name in names}
        batches = {"store": store, "lease_seconds": 1}
        return load_settings(listen="127.0.0.1:0", metrics="off", checkpoints=chosen, batches=batches)

    with start_server(settings(*names)) as first, ThreadPoolExecutor(2) as callers:
        assert first.wait_ready(LONG)
        client = Client.of(first)
        ids = {"same": create(client, [f"of {number}" for number in range(10)], slow("same"))}
        ids |= {name: create(client, ["x"], endless(name)) for name in names[1:]}
        begun(client, ids["same"], 2)
        following = callers.submit(list, stream(client, ids["left"], follow=True))
        wait = operations_pb2.WaitOperationRequest(name=f"operations/{ids['left']}")
        waiting = callers.submit(client.operations.WaitOperation, wait, timeout=LONG)
        eventually(lambda: get(client, ids["same"]).progress.done > 2)
        first.stop()
        for call in (following, waiting):
            refused = failure(lambda call=call: call.result(LONG))
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert refused.retry_seconds

    _recalibrate(folders["recalibrated"])
    weights = folders["retrained"] / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.001 * tensor for name, tensor in load_file(weights).items()}, weights)
    engine = connect(store)
    with engine.begin() as connection:
        row = connection.execute(BatchRow.__table__.select().where(BatchRow.id == ids["older"])).one()
        content = row.settings | {"algorithm": 0}
        connection.execute(update(BatchRow).where(BatchRow.id == ids["older"]).values(settings=content))
    engine.dispose()

    with start_server(settings("same", "recalibrated", "retrained", "older")) as second:
        client = Client.of(second)
        kept = get(client, ids["same"]).progress
        assert kept.done > 2
        assert second.wait_ready(LONG)
        assert ended(client, ids["same"]).progress.state == DONE
        assert not any(one.open for one in results(client, ids["same"]))
        for name, note in (
            ("recalibrated", "the calibration of recalibrated changed since the batch was taken in"),
            ("retrained", "the checkpoint of retrained changed since the batch was taken in"),
            ("older", "the batch was taken in by another version"),
        ):
            batch = ended(client, ids[name])
            assert (batch.progress.state, batch.progress.note) == (FAILED, note)
            assert list(batch.spec.checkpoints) == [name]
            request = operations_pb2.GetOperationRequest(name=f"operations/{ids[name]}")
            error = client.operations.GetOperation(request, timeout=LONG).error
            assert (error.code, error.message) == (code_pb2.FAILED_PRECONDITION, note)
            (found,) = results(client, ids[name])
            assert (found.outcome, found.open) == (batch_pb2.BATCH_OUTCOME_FAILED, True)
            assert cancel(client, ids[name]).progress.state == FAILED
        eventually(lambda: get(client, ids["left"]).progress.state == PAUSED)
        assert get(client, ids["left"]).progress.note == "no checkpoint 'left' is registered"
        assert listed(client, state=FAILED) == [ids[name] for name in ("older", "retrained", "recalibrated")]
        assert cancel(client, ids["left"]).progress.state == batch_pb2.BATCH_STATE_CANCELLED


def test_servers_that_differ_share_a_store(tmp_path: Path) -> None:
    """As while they are upgraded: a batch is worked on by those that it fits, and fails when there are none left."""
    before, after = (Path(shutil.copytree(demo.CHECKPOINT, tmp_path / name)) for name in ("before", "after"))
    _recalibrate(after)
    note = "the calibration of release changed since the batch was taken in"

    @contextmanager
    def server(folder: Path) -> Iterator[RunningServer]:
        batches = {"store": f"sqlite:///{tmp_path}/basin.db", "lease_seconds": 1}
        settings = load_settings(listen="127.0.0.1:0", metrics="off", checkpoints={"release": folder}, batches=batches)
        with start_server(settings) as server:
            assert server.wait_ready(LONG)
            yield server

    with ExitStack() as servers:
        new, old = servers.enter_context(server(after)), servers.enter_context(server(before))
        one, other = Client.of(old), Client.of(new)
        shared = create(one, [f"shared {number}" for number in range(6)], slow("release"))
        eventually(lambda: get(other, shared).progress.note == note)
        assert get(other, shared).progress.state == PAUSED
        assert ended(one, shared).progress.state == DONE
        newer = create(other, ["x"], endless("release"))
        eventually(lambda: get(one, newer).progress.note == note)
        cancel(other, newer)
        left = create(one, ["x"], endless("release"))
        old.stop()
        last = ended(other, left).progress
        assert (last.state, last.note) == (FAILED, note)


def test_what_is_wrong_with_a_server_is_for_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers learn that an audit failed, three times, and not what it said of the server's inside."""

    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("/models/secret is upside down")

    monkeypatch.setattr(Auditor, "audit", broken)
    log = io.StringIO()
    batches = {"store": f"sqlite:///{tmp_path}/basin.db"}
    settings = load_settings(listen="127.0.0.1:0", metrics="off", demo=True, batches=batches)
    with start_server(settings, make_logger("info", "json", log)) as server:
        assert server.wait_ready(LONG)
        client = Client.of(server)
        id_ = create(client, ["broken"])
        assert ended(client, id_).progress.failed == 1
        (found,) = results(client, id_)
    assert found.error == "an internal error; the server's log has it"
    assert log.getvalue().count("RuntimeError: /models/secret is upside down") == 3


def test_run_folders_on_the_same_store_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that owns the folder does the work, and says so when somebody ends it; no server counts it as its."""
    monkeypatch.setattr(upkeep, "WATCH_SECONDS", 0.1)
    store = f"sqlite:///{tmp_path}/basin.db"
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    how = spec()
    wanted = Wanted(("demo",), tmp_path / "prompts.txt", "", how.sampler, how.budget)
    with closing(LocalBatch(wanted, tmp_path / "run", store)) as own:
        free = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
        with start_server(load_settings(**free, demo=True, batches={"store": store})) as server:
            assert server.wait_ready(LONG)
            client = Client.of(server)
            assert ended(client, create(client, ["of the server"])).progress.state == DONE
            eventually(lambda: client.metric("basin_batch_last_success_timestamp_seconds"))
            assert client.metric("basin_batches", state="running") == 1
            assert client.metric("basin_batch_items", state="pending") == 0
            assert own.store.counts(own.batch.id).open == 3
            with pytest.raises(InvalidInput, match="cancelled or deleted meanwhile"):
                own.run(lambda: cancel(client, own.batch.id))
            assert get(client, own.batch.id).progress.state == batch_pb2.BATCH_STATE_CANCELLED
        own.run()
        assert own.store.batch(own.batch.id).state == "done"
        assert own.store.counts(own.batch.id).open == 0


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("nonsense", "no database URL"),
        ("mysql://host/name", "SQLite file or PostgreSQL"),
        ("sqlite:///{folder}/text.db", "not a database"),
        ("sqlite:////proc/none/basin.db", "cannot make"),
        ("postgresql://basin:secret@127.0.0.1:1/name", "postgresql://basin:***@127.0.0.1:1/name"),
    ],
)
def test_a_store_that_cannot_be_used(tmp_path: Path, store: str, words: str) -> None:
    """The server does not start, and says why in one line, without the password."""
    (tmp_path / "text.db").write_text("some text that is no database at all\n" * 100)
    url = store.format(folder=tmp_path)
    with pytest.raises(ConfigError) as error:
        start_server(load_settings(listen="127.0.0.1:0", metrics="off", batches={"store": url}))
    message = str(error.value)
    assert message.startswith("batches.store: ")
    assert words in message
    assert "\n" not in message
    assert "secret" not in message
