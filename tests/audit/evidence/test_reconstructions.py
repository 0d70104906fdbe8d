"""What is remembered of reconstructions: true or nothing, within bounds."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from audit.evidence import reconstructions as module
from audit.evidence.reconstructions import Reconstructions

WIDTH = 5


def vector(index: int) -> NDArray[np.float32]:
    """What the image of this number looks like."""
    return np.linspace(-1, 1, WIDTH, dtype=np.float32) * (index + 1)


def known(memory: Reconstructions, count: int) -> list[int]:
    """Numbers of the images that are remembered, each rightly."""
    found = {index: memory.get(index) for index in range(count)}
    for index, values in found.items():
        assert values is None or np.array_equal(values, vector(index))
    return [index for index, values in found.items() if values is not None]


def test_it_is_remembered_by_whoever_asks_for_the_same(tmp_path: Path) -> None:
    """At once in another process, and in another run; not under another key or for another set."""
    there = Reconstructions("a", 8, WIDTH, tmp_path)
    here = Reconstructions("a", 8, WIDTH, tmp_path)
    there.put(0, vector(0))
    there.put(6, vector(6))
    assert known(here, 8) == [0, 6]
    del there, here
    assert known(Reconstructions("a", 8, WIDTH, tmp_path), 8) == [0, 6]
    for key, count, width in (("b", 8, WIDTH), ("a", 9, WIDTH), ("a", 8, WIDTH + 1)):
        assert Reconstructions(key, count, width, tmp_path).get(0) is None


def test_the_file_is_nobody_elses(tmp_path: Path) -> None:
    """They are images of somebody's training set."""
    Reconstructions("a", 8, WIDTH, tmp_path / "new").put(0, vector(0))
    for path in (tmp_path / "new", *(tmp_path / "new").iterdir()):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_bound_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool) -> None:
    """Beyond it an image takes another's place, and none is taken for another."""
    slot = 12 + 4 * WIDTH
    monkeypatch.setattr(module, "FILE_BYTES" if on_disk else "MEMORY_BYTES", 4 * slot + slot // 2)
    folder = tmp_path / "there"
    if not on_disk:
        folder.write_text("no folder")
    memory = Reconstructions("a", 100, WIDTH, folder)
    for index in range(100):
        memory.put(index, vector(index))
        assert index in known(memory, 100)
        assert len(known(memory, 100)) <= 4
    if on_disk:
        assert [path.stat().st_size for path in folder.iterdir()] == [4 * slot]


@given(data=st.data())
def test_damage_is_never_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file cut short or changed anywhere loses the images there and no others."""
    folder = tmp_path_factory.mktemp("damaged")
    memory = Reconstructions("a", 6, WIDTH, folder)
    for index in range(6):
        memory.put(index, vector(index))
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
        whole = list(range(position // (12 + 4 * WIDTH)))
    else:
        content[position] ^= data.draw(st.integers(1, 255))
        whole = [index for index in range(6) if index != position // (12 + 4 * WIDTH)]
    file.write_bytes(content)
    assert known(memory, 6) == whole
    memory.put(3, vector(3))
    assert 3 in known(memory, 6)


def test_a_disk_without_room_is_no_hindrance(tmp_path: Path) -> None:
    """What cannot be written is not remembered, and that is all."""
    memory = Reconstructions("a", 6, WIDTH, tmp_path)
    memory.put(0, vector(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        memory.put(1, vector(1))
        memory.put(5, vector(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert known(memory, 6) == [0]
    memory.put(5, vector(5))
    assert known(memory, 6) == [0, 5]


def test_pairs_that_nobody_uses_go(tmp_path: Path) -> None:
    """The files in use longest ago first; who still has one of them open is not disturbed."""
    oldest = Reconstructions("0", 6, WIDTH, tmp_path)
    oldest.put(2, vector(2))
    for key in range(1, module.FILES + 2):
        Reconstructions(str(key), 6, WIDTH, tmp_path).put(0, vector(0))
    assert len(list(tmp_path.iterdir())) == module.FILES
    assert known(oldest, 6) == [2]
    assert known(Reconstructions(str(module.FILES + 1), 6, WIDTH, tmp_path), 6) == [0]
    assert known(Reconstructions("0", 6, WIDTH, tmp_path), 6) == []


def test_threads_do_not_mix_images_up(tmp_path: Path) -> None:
    """Two handles of one file, two threads each."""
    handles = [Reconstructions("a", 6, WIDTH, tmp_path) for _ in range(2)]
    failed: list[BaseException] = []

    def work(memory: Reconstructions) -> None:
        try:
            for number in range(600):
                memory.put(number % 6, vector(number % 6))
                known(memory, 6)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(handle,)) for handle in handles for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert known(handles[0], 6) == list(range(6))
