"""Checkpoints come and go while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch

from audit import demo
from audit.model.checkpoint_source import CheckpointSource
from audit.model.sources import weights_bytes
from audit.v1 import audit_pb2, checkpoint_pb2
from tests.service.helpers import (
    LONG,
    NOT_SERVING,
    SERVING,
    Client,
    endless,
    eventually,
    failure,
    small,
    unhurried,
    until_sampling,
)


def _load(client: Client, id_: str) -> checkpoint_pb2.CheckpointInfo:
    request = checkpoint_pb2.LoadCheckpointRequest(checkpoint=id_)
    return client.checkpoints.LoadCheckpoint(request, timeout=LONG).checkpoint


def _unload(client: Client, id_: str) -> checkpoint_pb2.CheckpointInfo:
    request = checkpoint_pb2.UnloadCheckpointRequest(checkpoint=id_)
    return client.checkpoints.UnloadCheckpoint(request, timeout=LONG).checkpoint


def _listed(client: Client, id_: str) -> checkpoint_pb2.CheckpointInfo:
    everything = client.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(), timeout=LONG)
    return next(info for info in everything.checkpoints if info.id == id_)


def test_list_says_what_is_loaded(client: Client) -> None:
    """A loaded checkpoint tells what it is; one on disk only its id."""
    loaded = _listed(client, "demo")
    assert loaded.state == checkpoint_pb2.CHECKPOINT_STATE_READY
    assert loaded.digest.startswith("sha256:")
    assert loaded.family == "StableDiffusionPipeline"
    assert loaded.parameters > 10_000
    assert loaded.calibrated
    other = _listed(client, "copy")
    assert other == checkpoint_pb2.CheckpointInfo(id="copy", state=checkpoint_pb2.CHECKPOINT_STATE_UNLOADED)


def test_list_in_pages(client: Client) -> None:
    """Pages follow each other in the order of the ids, and none is empty."""
    ids, token = [], ""
    while True:
        request = checkpoint_pb2.ListCheckpointsRequest(page_size=3, page_token=token)
        reply = client.checkpoints.ListCheckpoints(request, timeout=LONG)
        assert 0 < len(reply.checkpoints) <= 3
        ids += [info.id for info in reply.checkpoints]
        token = reply.next_page_token
        if not token:
            break
    assert ids == sorted(ids)
    assert {"demo", "copy", "pickled"} <= set(ids)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"page_size": -1}, "PAGE_SIZE_NEGATIVE", "page_size"),
        ({"page_token": "???"}, "PAGE_TOKEN_INVALID", "page_token"),
    ],
)
def test_bad_page(client: Client, fields: dict[str, object], reason: str, field: str) -> None:
    """Neither a negative size nor a made-up token is taken."""
    request = checkpoint_pb2.ListCheckpointsRequest(**fields)
    refused = failure(lambda: client.checkpoints.ListCheckpoints(request, timeout=LONG))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert refused.fields == (field,)


def test_load_audit_unload(client: Client, prompts: list[str]) -> None:
    """A checkpoint that is loaded on request audits like any other, and is gone after it is unloaded."""
    loaded_before = client.metric("basin_checkpoints_loaded")
    assert _load(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_READY
    assert _load(client, "copy").digest == _listed(client, "demo").digest
    assert client.metric("basin_checkpoints_loaded") == loaded_before + 1
    report = client.audit(small(prompts[0], checkpoint="copy"))
    assert report.subject.checkpoint == "copy"
    other = unhurried(client.audit(small(prompts[0])))
    other.subject.checkpoint = other.subject.checkpoint_source = "copy"
    assert unhurried(report) == other
    assert _unload(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED
    assert _unload(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED
    assert client.metric("basin_checkpoints_loaded") == loaded_before
    gone = failure(lambda: client.audit(small(prompts[0], checkpoint="copy")))
    assert (gone.code, gone.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_NOT_LOADED")


def test_without_a_checkpoint_a_server_is_not_ready(launch: Callable[..., Client], folders: dict[str, Path]) -> None:
    """Whoever began with one and has none left can serve nobody, until there is one again, whichever it is."""
    own = launch(demo=True, checkpoints={"other": {"source": str(folders["copy"]), "preload": False}})
    _unload(own, "demo")
    eventually(lambda: own.health("readiness") == NOT_SERVING)
    assert own.health("startup") == own.health("audit.v1.CheckpointService") == SERVING
    assert own.metric("basin_ready") == 0
    _load(own, "other")
    eventually(lambda: own.health("readiness") == SERVING)


def test_unload_waits_for_audits_in_flight(client: Client, prompts: list[str]) -> None:
    """Unloading takes no new audits, but lets the one at work finish first; loading waits for it."""
    _load(client, "copy")
    sampler = audit_pb2.SamplerOptions(steps=60)
    call = client.stream(small(prompts[0], checkpoint="copy", sampler=sampler))
    until_sampling(call)
    with ThreadPoolExecutor(2) as callers:
        unloading = callers.submit(_unload, client, "copy")
        eventually(lambda: _listed(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED)
        refused = failure(lambda: client.audit(small(prompts[0], checkpoint="copy")))
        assert refused.reason == "CHECKPOINT_NOT_LOADED"
        loading = callers.submit(_load, client, "copy")
        *_, last = call
        assert last.report.cost.sampling_evaluations == 120
        unloading.result()
        assert loading.result().state == checkpoint_pb2.CHECKPOINT_STATE_READY
    _unload(client, "copy")


def test_unload_goes_on_when_its_caller_leaves(client: Client, prompts: list[str]) -> None:
    """An unload whose deadline passes happens all the same, once the audit is over."""
    _load(client, "copy")
    call = client.stream(endless(prompts[0], checkpoint="copy"))
    until_sampling(call)
    unload = checkpoint_pb2.UnloadCheckpointRequest(checkpoint="copy")
    late = failure(lambda: client.checkpoints.UnloadCheckpoint(unload, timeout=0.2))
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    call.cancel()
    assert _unload(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED


def test_audits_are_put_off_while_loading(client: Client, prompts: list[str]) -> None:
    """An audit of a checkpoint that is on its way in is told to come again, and served then."""
    _load(client, "copy")
    call = client.stream(endless(prompts[0], checkpoint="copy"))
    until_sampling(call)
    with ThreadPoolExecutor(2) as callers:
        callers.submit(_unload, client, "copy")
        eventually(lambda: _listed(client, "copy").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED)
        loading = callers.submit(_load, client, "copy")  # it waits for the unloading, which waits for the audit
        early = small(prompts[0], checkpoint="copy")
        eventually(lambda: failure(lambda: client.audit(early)).reason == "CHECKPOINT_LOADING")
        refused = failure(lambda: client.audit(early))
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert refused.retry_seconds
        call.cancel()
        assert loading.result().state == checkpoint_pb2.CHECKPOINT_STATE_READY
    assert client.audit(early)
    _unload(client, "copy")


@pytest.mark.parametrize(
    ("id_", "reason"),
    [
        ("pickled", "CHECKPOINT_PICKLED"),
        ("damaged", "CHECKPOINT_DAMAGED"),
        ("incomplete", "CHECKPOINT_INCOMPLETE"),
        ("foreign", "CHECKPOINT_FAMILY_UNSUPPORTED"),
        ("no-json", "CHECKPOINT_INCOMPLETE"),
        ("missing", "CHECKPOINT_NOT_FOUND"),
    ],
)
def test_broken_checkpoint(client: Client, prompts: list[str], folders: dict[str, Path], id_: str, reason: str) -> None:
    """A folder that cannot be loaded says why, without its path, and leaves the others serving."""
    broken = failure(lambda: _load(client, id_))
    assert (broken.code, broken.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    listed = _listed(client, id_)
    assert listed.state == checkpoint_pb2.CHECKPOINT_STATE_FAILED
    assert listed.error == broken.message
    assert str(folders[id_].parent) not in broken.message
    refused = failure(lambda: client.audit(small(prompts[0], checkpoint=id_)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_NOT_LOADED")
    assert client.audit(small(prompts[0]))
    assert client.health() == SERVING


@pytest.mark.parametrize("act", [_load, _unload])
def test_unknown_checkpoint(client: Client, act: object) -> None:
    """Only registered ids are known, whatever lies on the disk."""
    assert callable(act)
    unknown = failure(lambda: act(client, "../demo"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
    empty = failure(lambda: act(client, ""))
    assert (empty.code, empty.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("checkpoint",))


def test_the_one_idle_for_longest_makes_room(
    launch: Callable[..., Client], folders: dict[str, Path], prompts: list[str]
) -> None:
    """Under a memory budget, loading a checkpoint pushes out another one that nobody uses, and never a used one."""
    size = weights_bytes(CheckpointSource(str(demo.CHECKPOINT)), torch.float32)
    names = ("a", "b", "c")
    entries = {name: {"source": str(folders["copy"]), "preload": False} for name in names}
    own = launch(checkpoints=entries, demo=False, checkpoint_memory_bytes=int(2.5 * size), model_control="explicit")

    def loaded() -> set[str]:
        return {name for name in names if own.metric("basin_checkpoint_loaded", checkpoint=name)}

    _load(own, "a")
    assert own.metric("basin_checkpoint_memory_bytes", checkpoint="a") == size
    _load(own, "b")
    own.audit(small(prompts[0], checkpoint="a"))
    _load(own, "c")
    assert loaded() == {"a", "c"}
    assert own.metric("basin_checkpoint_evictions_total") == 1
    calls = [own.stream(endless(prompts[0], checkpoint=name)) for name in ("a", "c")]
    for call in calls:
        until_sampling(call)
    refused = failure(lambda: _load(own, "b"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_MEMORY")
    assert loaded() == {"a", "c"}
    assert own.metric("basin_checkpoint_loads_total", checkpoint="b", result="failed") == 1
    for call in calls:
        call.cancel()
    eventually(lambda: own.metric("basin_audits_in_flight") == 0)
    _load(own, "b")
    assert "b" in loaded()


def test_what_cannot_fit_pushes_nothing_out(launch: Callable[..., Client], folders: dict[str, Path]) -> None:
    """Where all that is idle would not be room enough, it stays."""
    size = weights_bytes(CheckpointSource(str(demo.CHECKPOINT)), torch.float32)
    small_one = {"source": str(folders["copy"]), "dtype": "float16", "preload": False}
    entries = {"small": small_one, "large": {"source": str(folders["copy"]), "preload": False}}
    own = launch(checkpoints=entries, demo=False, checkpoint_memory_bytes=int(0.9 * size))
    _load(own, "small")
    assert failure(lambda: _load(own, "large")).reason == "CHECKPOINT_MEMORY"
    assert own.metric("basin_checkpoint_loaded", checkpoint="small") == 1
    assert own.metric("basin_checkpoint_evictions_total") == 0


def test_weights_take_room_until_they_are_gone(
    launch: Callable[..., Client], folders: dict[str, Path], prompts: list[str]
) -> None:
    """A checkpoint that is unloaded while an audit uses it makes room when that has ended, and no sooner."""
    size = weights_bytes(CheckpointSource(str(demo.CHECKPOINT)), torch.float32)
    entries = {name: {"source": str(folders["copy"]), "preload": False} for name in ("leaving", "next")}
    own = launch(checkpoints=entries, demo=False, checkpoint_memory_bytes=int(1.5 * size))
    _load(own, "leaving")
    call = own.stream(endless(prompts[0], checkpoint="leaving"))
    until_sampling(call)
    with ThreadPoolExecutor(1) as callers:
        unloading = callers.submit(_unload, own, "leaving")
        eventually(lambda: _listed(own, "leaving").state == checkpoint_pb2.CHECKPOINT_STATE_UNLOADED)
        assert own.metric("basin_checkpoint_memory_bytes", checkpoint="leaving") == size
        assert failure(lambda: _load(own, "next")).reason == "CHECKPOINT_MEMORY"
        call.cancel()
        unloading.result()
    assert own.metric("basin_checkpoint_memory_bytes", checkpoint="leaving") == 0
    assert _load(own, "next").state == checkpoint_pb2.CHECKPOINT_STATE_READY


def test_a_size_is_known_before_loading(folders: dict[str, Path]) -> None:
    """From the headers of the files, for any precision; what cannot be read counts nothing."""
    whole = weights_bytes(CheckpointSource(str(demo.CHECKPOINT)), torch.float32)
    assert weights_bytes(CheckpointSource(str(demo.CHECKPOINT)), torch.float16) == whole / 2
    assert 0 < weights_bytes(CheckpointSource(str(folders["damaged"])), torch.float32) < whole
    assert weights_bytes(CheckpointSource(str(folders["missing"])), torch.float32) == 0
