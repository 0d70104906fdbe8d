"""Run folders: whose they are, and files that are whole or not there."""

from __future__ import annotations

import json
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from audit.errors import InvalidInput
from audit.evidence.basin import BasinSettings
from audit.phase.folder import RunFolder, read_arrays, write_arrays, write_whole
from audit.phase.sweep import PRESETS, Network, Series, Sweep

SWEEP = Sweep(
    data="digits", sizes=(2, 4, 8), series=(Series(architecture="mlp", width=16, learning_rate=1e-3),), steps=10
)
IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)


@pytest.fixture
def claimed(tmp_path: Path) -> RunFolder:
    """A folder of `SWEEP` on `IMAGES`."""
    run = RunFolder(tmp_path / "run")
    run.claim(SWEEP, IMAGES)
    return run


def test_a_claimed_folder_says_whose_it_is(claimed: RunFolder) -> None:
    """Anybody can read the sweep from config.json and make the same run again."""
    content = json.loads((claimed.path / "config.json").read_text())
    assert Sweep.model_validate(content["sweep"]) == SWEEP
    assert content["images"].startswith("sha256:")
    assert {"torch", "diffusers"} <= set(content["versions"])


def test_the_same_sweep_on_the_same_images_goes_on(claimed: RunFolder) -> None:
    """Nothing is changed, whatever the folder holds by then and however the images lie in memory."""
    (claimed.path / "training").mkdir()
    before = (claimed.path / "config.json").read_bytes()
    claimed.claim(SWEEP.model_copy(), np.asfortranarray(IMAGES))
    assert (claimed.path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 11},
        {"sizes": (2, 4, 9)},
        {"seeds": (1,)},
        {"basin": BasinSettings(trials=9)},
        {"distance": "clip"},
        {"series": PRESETS["minutes"].series},
    ],
)
def test_another_sweep_is_refused(claimed: RunFolder, changes: dict[str, Any]) -> None:
    """Whatever it differs in, and the folder stays as it is."""
    before = (claimed.path / "config.json").read_bytes()
    with pytest.raises(InvalidInput, match="another configuration") as caught:
        claimed.claim(SWEEP.model_copy(update=changes), IMAGES)
    assert (caught.value.reason, caught.value.field) == ("RUN_OF_ANOTHER_CONFIGURATION", "out")
    assert (claimed.path / "config.json").read_bytes() == before


def test_other_images_are_refused(claimed: RunFolder) -> None:
    """A single grey level tells them apart."""
    other = IMAGES.copy()
    other[1, 2, 3] += 1
    with pytest.raises(InvalidInput, match="other images") as caught:
        claimed.claim(SWEEP, other)
    assert caught.value.reason == "RUN_OF_ANOTHER_CONFIGURATION"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Somebody's files, or a file where the folder should be: nothing is written."""
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InvalidInput, match="in use") as caught:
            RunFolder(path).claim(SWEEP, IMAGES)
        assert (caught.value.reason, caught.value.field) == ("FOLDER_IN_USE", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_one_that_is_not_there_can_be_claimed(tmp_path: Path) -> None:
    """Parents are made."""
    for path in (tmp_path, tmp_path / "a" / "b"):
        RunFolder(path).claim(SWEEP, IMAGES)
        assert (path / "config.json").is_file()


def test_a_claim_that_was_killed_while_it_was_written_can_be_repeated(tmp_path: Path) -> None:
    """All that a kill leaves behind is half a file under another name."""
    (tmp_path / ".partial-config.json").write_text('{"format": 1, "sw')
    RunFolder(tmp_path).claim(SWEEP, IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"sweep"', b"{}", b"\xff\xfe", b'{"format": 1}', b'{"format": 1, "sweep": 7}'],
)
def test_a_damaged_configuration_is_refused(claimed: RunFolder, content: bytes) -> None:
    """As another one: nothing says that the run is this sweep's."""
    (claimed.path / "config.json").write_bytes(content)
    with pytest.raises(InvalidInput, match="another"):
        claimed.claim(SWEEP, IMAGES)


@pytest.mark.parametrize("key", ["format", "sweep", "images"])
@pytest.mark.parametrize("value", [None, 7, "other", {}])
def test_a_configuration_with_one_entry_changed_or_missing_is_refused(
    claimed: RunFolder, key: str, value: object
) -> None:
    """Each entry counts; versions of libraries are told but do not."""
    file = claimed.path / "config.json"
    content = json.loads(file.read_text())
    for changed in ({**content, key: value}, {name: inner for name, inner in content.items() if name != key}):
        file.write_text(json.dumps(changed))
        with pytest.raises(InvalidInput, match="another"):
            claimed.claim(SWEEP, IMAGES)
    file.write_text(json.dumps({**content, "versions": {}}))
    claimed.claim(SWEEP, IMAGES)


def test_every_network_has_files_of_its_own() -> None:
    """No two networks of a sweep share a file, and no two kinds of files do."""
    run = RunFolder(Path("/run"))
    sweep = PRESETS["evening"]
    kinds = (run.weights, run.samples, run.evidence)
    files = [kind(network) for network in sweep.networks for kind in kinds]
    assert len(set(files)) == 3 * len(sweep.networks)
    network = Network(series="mlp-16", size=4, seed=1)
    assert run.weights(network) == Path("/run/networks/mlp-16/K00004-seed1.safetensors")


@pytest.mark.parametrize("content", [b"", b"\0\xff", "text with α"])
def test_what_is_written_is_there(tmp_path: Path, content: bytes | str) -> None:
    """Text as UTF-8; folders are made, what was there before is replaced, nothing else is left."""
    file = tmp_path / "a" / "b" / "file.bin"
    for before in (b"older", content):
        write_whole(file, before)
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(file.parent.iterdir()) == [file]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process may grow beyond `room` bytes: writes are cut short and then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("before", [None, b"whole"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, before: bytes | None) -> None:
    """The error reaches the caller, the older file is whole, and the half-written one is gone."""
    file, table = tmp_path / "file.bin", tmp_path / "table.npz"
    if before is not None:
        file.write_bytes(before)
        table.write_bytes(before)
    with full_disk(1000):
        with pytest.raises(OSError, match="too large"):
            write_whole(file, b"x" * 5000)
        with pytest.raises(OSError, match="too large"):
            write_arrays(table, {"values": np.zeros(1000)})
        write_whole(tmp_path / "small.bin", b"x" * 500)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    small = {"small.bin": b"x" * 500}
    assert left == (small if before is None else {"file.bin": before, "table.npz": before, **small})


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While a file is written again and again, every look at it finds one content or the other, whole."""
    file = tmp_path / "file.bin"
    contents = [bytes([value]) * 2_000_000 for value in (1, 2)]
    write_whole(file, contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(60):
            write_whole(file, contents[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not done.is_set() or not looks:
        assert file.read_bytes() in contents
        looks += 1
    writer.join()


@given(
    values=st.dictionaries(
        st.sampled_from(["latents", "class", "sample_index", "delta_m"]),
        st.sampled_from([np.float64, np.float16, np.int64, np.uint8, np.bool_]).flatmap(
            lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
    )
)
def test_arrays_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, values: dict[str, np.ndarray]) -> None:
    """Names, types, shapes and every value, not-a-numbers too."""
    file = tmp_path_factory.mktemp("arrays") / "deep" / "file.npz"
    write_arrays(file, values)
    found = read_arrays(file)
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    """A pickle could run anything."""
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "file.npz", {"values": np.asarray([{}])})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "file.npz", values=np.asarray([{}]))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "file.npz")
