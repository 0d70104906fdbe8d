"""Threads of a server: one computes for each device, the others stay alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import threadpool_info

from service.threads import Devices, alone, lone_threads


def test_a_device_has_one_thread() -> None:
    """Calls from anywhere run in the device's thread, one after the other; another device has another."""
    devices, seen, busy = Devices(), set(), threading.Lock()

    def work() -> str:
        assert busy.acquire(blocking=False)
        seen.add(threading.current_thread().name)
        busy.release()
        return "done"

    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(lambda _: devices.run("cpu", work), range(100))) == ["done"] * 100
    assert len(seen) == 1
    devices.run("other", work)
    assert len(seen) == 2
    devices.close()


def test_errors_reach_the_caller() -> None:
    """What fails on a device fails for its caller alone."""
    devices = Devices()
    with pytest.raises(ZeroDivisionError):
        devices.run("cpu", lambda: 1 // 0)
    assert devices.run("cpu", lambda: 1) == 1
    devices.close()


def teams() -> set[int]:
    """Threads that this one computes with."""
    torch.ones(1000, 1000).sin().sum()
    pools = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
    return pools | {torch.get_num_threads()}


def test_lone_threads_have_no_team() -> None:
    """OpenMP gives them one thread, also after torch has been asked, and leaves the other threads theirs."""
    with ThreadPoolExecutor(1) as ordinary, lone_threads(2, "test") as lone:
        ordinary.submit(torch.set_num_threads, 2).result()
        assert ordinary.submit(torch.get_num_threads).result() == 2
        assert lone.submit(teams).result() == {1}
        assert ordinary.submit(torch.get_num_threads).result() == 2


def test_a_thread_is_alone_for_a_while() -> None:
    """It has its team again afterwards, and the others have theirs meanwhile."""

    def check() -> None:
        torch.set_num_threads(2)
        with alone():
            assert teams() == {1}
            assert other.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        other.submit(torch.set_num_threads, 2).result()
        one.submit(check).result()
