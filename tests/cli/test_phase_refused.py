"""`basin phase run`: each way that it cannot begin is one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.phase.similarity import embedder
from tests.audit.phase.finished import (
    SWEEP,
    Finished,
    save_images,
    small_images,
    snapshot,
)
from tests.cli.conftest import Basin, is_one_error


def config_file(folder: Path, **changes: object) -> Path:
    """A file of the small sweep with some of its fields changed."""
    file = folder / f"config{len(list(folder.glob('config*.json')))}.json"
    file.write_text(json.dumps({**SWEEP, **changes}))
    return file


def series(**changes: object) -> list[dict[str, object]]:
    """One series, with some of its fields changed."""
    return [{"architecture": "mlp", "width": 16, "learning_rate": 1e-2, **changes}]


def is_refused(basin: Basin, finished: Finished, flags: Sequence[object], words: Sequence[str]) -> bool:
    """Whether a run ends with one line that holds these words, makes no folder and leaves a finished run alone."""
    nowhere = finished.folder.with_name("never-made")
    assert is_one_error(basin("phase", "run", *flags, "--out", nowhere), *words)
    assert not nowhere.exists()
    before = snapshot(finished.folder)
    assert is_one_error(basin("phase", "run", *flags, "--out", finished.folder), *words)
    assert snapshot(finished.folder) == before
    return True


def test_sweeps_that_cannot_be_run_are_one_line(
    basin: Basin, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with a configuration is said before a folder is made."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    embedder.cache_clear()
    (tmp_path / "broken.json").write_text("{")
    uneven = save_images(tmp_path / "uneven", small_images(12, 10))
    large = save_images(tmp_path / "large", small_images(12, 32))
    valid = config_file(tmp_path)
    for config, data, words in (
        (tmp_path / "missing.json", finished.data, ["missing.json", "No such file"]),
        (tmp_path, finished.data, ["cannot read"]),
        (tmp_path / "broken.json", finished.data, ["broken.json", "JSON"]),
        (config_file(tmp_path, stepz=1), finished.data, ["stepz"]),
        (config_file(tmp_path, sizes=[0, 2, 4]), finished.data, ["sizes.0", "greater than 0"]),
        (config_file(tmp_path, sizes=[4, 2, 8]), finished.data, ["sizes", "ascend"]),
        (config_file(tmp_path, sizes=[2, 4]), finished.data, ["sizes", "at least 3"]),
        (config_file(tmp_path, sizes=[2, 4, 13]), finished.data, ["12 images", "K = 13", "leave out"]),
        (config_file(tmp_path, series=series(width=0)), finished.data, ["width", "greater than 0"]),
        (config_file(tmp_path, series=series() * 2), finished.data, ["two series"]),
        (config_file(tmp_path, series=series(architecture="unet", width=12)), finished.data, ["multiple of 8"]),
        (config_file(tmp_path, series=series(architecture="transformer")), finished.data, ["multiple of 32"]),
        (config_file(tmp_path, series=series(space="latent")), uneven, ["multiples of 4", "10×10"]),
        (config_file(tmp_path, series=series(architecture="ddpm")), uneven, ["multiples of 8", "10×10"]),
        (config_file(tmp_path, distance="lpips"), finished.data, ["LPIPS", "32 pixels", "8×8"]),
        (config_file(tmp_path, distance="lpips"), large, ["LPIPS", "AlexNet", str(tmp_path / "no-weights")]),
    ):
        assert is_refused(basin, finished, ("--config", config, "--data", data), words)
    for flags, words in (
        (("--config", valid, "--preset", "minutes"), ["--preset", "--config"]),
        (("--config", valid, "--data", finished.data, "--delta-m", "inf"), ["--delta-m", "finite"]),
        (("--config", valid, "--data", finished.data, "--delta-s", "inf"), ["--delta-s", "finite"]),
    ):
        assert is_refused(basin, finished, flags, words)


def idx_file(*shape: int, content: bytes = b"") -> bytes:
    """An IDX file that promises a shape and holds something."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def test_images_that_cannot_be_trained_on_are_one_line(basin: Basin, finished: Finished, tmp_path: Path) -> None:
    """No images, too few, of several sizes, damaged files of every format: said before a folder is made."""
    places = {name: tmp_path / name for name in ("empty", "mixed", "broken", "idx", "not-idx", "cifar", "cut-cifar")}
    save_images(places["empty"], small_images(0, 8))
    save_images(places["mixed"], small_images(12, 8))
    Image.fromarray(small_images(1, 10)[0]).save(places["mixed"] / "12.png")
    save_images(places["broken"], small_images(12, 8))
    (places["broken"] / "05.png").write_bytes((places["broken"] / "04.png").read_bytes()[:50])
    for name, content in (("idx", idx_file(2, 28, 28, content=b"short")), ("not-idx", b"<html>")):
        places[name].mkdir()
        (places[name] / "train-images-idx3-ubyte").write_bytes(content)
        (places[name] / "train-labels-idx1-ubyte").write_bytes(idx_file(2, content=b"\0\1"))
    for name, content in (("cifar", b"\x0a" * 3073), ("cut-cifar", b"\0" * 3072)):
        places[name].mkdir()
        for number in range(1, 6):
            (places[name] / f"data_batch_{number}.bin").write_bytes(content)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b and no more")
    np.savez(tmp_path / "floats.npz", images=np.zeros((12, 8, 8)))
    (tmp_path / "text.npz").write_text("no archive")
    folder = config_file(tmp_path)
    mnist, cifar = config_file(tmp_path, data="mnist"), config_file(tmp_path, data="cifar10")
    for config, data, words in (
        (folder, None, ["--data"]),
        (folder, tmp_path / "missing", ["no images", "missing"]),
        (folder, places["empty"], ["empty", "no images"]),
        (folder, places["mixed"], ["mixed", "8×8", "10×10"]),
        (folder, places["broken"], ["05.png"]),
        (folder, tmp_path / "floats.npz", ["floats.npz", "uint8"]),
        (folder, tmp_path / "text.npz", ["text.npz"]),
        (mnist, places["idx"], ["train-images-idx3-ubyte", "promises"]),
        (mnist, places["not-idx"], ["train-images-idx3-ubyte", "not an IDX file"]),
        (mnist, places["empty"], ["MNIST not found", "--data"]),
        (cifar, places["cifar"], ["data_batch_1.bin", "label 10"]),
        (cifar, places["cut-cifar"], ["data_batch_1.bin", "3072 bytes"]),
        (cifar, tmp_path / "cifar-10-binary.tar.gz", ["not a whole tar.gz"]),
        (cifar, places["empty"], ["CIFAR-10 not found", "--data"]),
        (config_file(tmp_path, data="digits"), places["mixed"], ["digits", "--data"]),
        (config_file(tmp_path, data="digits", sizes=[2, 4, 1798]), None, ["1,797 images", "K = 1,798"]),
    ):
        flags = () if data is None else ("--data", data)
        assert is_refused(basin, finished, ("--config", config, *flags), words)


def test_folders_that_are_not_this_runs_are_left_alone(basin: Basin, finished: Finished, tmp_path: Path) -> None:
    """The run of another configuration or of other images, anything else, or no place for a folder: nothing changes."""
    other_images = save_images(tmp_path / "other", 255 - small_images(12, 8))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    damaged = finished.copy(tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    for changes, data, out, words in (
        ({"steps": 201}, finished.data, finished.folder, ["another configuration", "--out"]),
        ({"seeds": [0, 1]}, finished.data, finished.folder, ["another configuration", "--out"]),
        ({}, other_images, finished.folder, ["other images", "--out"]),
        ({}, finished.data, damaged, ["another configuration", "--out"]),
        ({}, finished.data, tmp_path / "notes", ["holds no run", "--out"]),
        ({}, finished.data, finished.config, ["tiny.json", "--out"]),
        ({}, finished.data, finished.config / "run", ["cannot make", "tiny.json", "--out"]),
        ({}, finished.data, Path("/proc/basin/run"), ["cannot make", "/proc/basin", "--out"]),
    ):
        config = config_file(tmp_path, **changes)
        before = snapshot(tmp_path, finished.folder)
        result = basin("phase", "run", "--config", config, "--data", data, "--out", out)
        assert is_one_error(result, *words)
        assert snapshot(tmp_path, finished.folder) == before
