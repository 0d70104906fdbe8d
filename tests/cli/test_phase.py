"""`basin phase run`: everything that a run leaves, kills and other mishaps, and each way that it cannot begin."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import load_file

from audit.phase.folder import RunFolder, read_arrays
from audit.phase.one_model import measured_captions
from audit.phase.similarity import embedder
from audit.phase.toy import SIZES
from audit.phase.train_sweep import fleet_name, fleets
from tests.audit.phase.finished import (
    PATIENCE,
    STAGES,
    SWEEP,
    Finished,
    finished_run,
    full_disk,
    save_images,
    small_images,
    snapshot,
    started,
    wait_for,
    workers_of,
)
from tests.cli.conftest import Basin, Result, is_one_error

FIGURES = (
    "fractions",
    "capacities",
    "samples",
    "distances",
    "circle",
    "basins",
    "spectra",
    "energy",
    "ladder",
    "losses",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing disturbed."""
    return finished_run(tmp_path_factory.getbasetemp() / "phase")


def ended_badly(result: Result, *words: str) -> bool:
    """Whether a command failed with one line that holds these words, below the bars of what it had done."""
    *bars, line = result.err.splitlines()
    assert (result.code, result.out) == (2, ""), result
    assert line.startswith("error: "), result
    assert all(word in line for word in words), result
    assert all(bar.split()[0] in STAGES and " left " in bar for bar in bars if bar.strip()), result
    return True


def numbers(value: Any) -> Iterator[float]:
    """All numbers inside a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def test_a_run_leaves_everything_that_it_measured(finished: Finished) -> None:
    """Configuration, weights, arrays and loss curves of every network, the circle and the ladder are there and load."""
    run, sweep = RunFolder(finished.folder), finished.sweep
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["sweep"]["sizes"] == SWEEP["sizes"]
    assert config["sweep"]["seeds"] == SWEEP["seeds"]
    assert config["images"].startswith("sha256:")
    assert config["versions"]["torch"]
    assert len(sweep.networks) == 18
    for network in sweep.networks:
        weights = load_file(run.weights(network))
        assert all(np.isfinite(tensor).all() for tensor in weights.values())
        samples, evidence = read_arrays(run.samples(network)), read_arrays(run.evidence(network))
        assert samples["latents"].shape == (48, 1, 8, 8)
        assert set(samples["reference_index"]) <= set(range(12))
        assert len(set(samples["reference_index"])) <= network.size
        assert 1 <= len(evidence["index"]) <= 12
        assert len(evidence["training_trace"]) == min(network.size, 4)
        for name in ("critical_time", "log_volume", "singular", "trace", "energy", "energy_line"):
            assert np.isfinite(evidence[name]).all()
    for fleet in fleets(sweep):
        curve = [json.loads(line) for line in (run.training / f"{fleet_name(fleet)}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in curve] == [100, 200]
        assert all(len(line["loss"]) == len(fleet) for line in curve)
    assert [file.name for file in run.training.iterdir() if file.suffix != ".jsonl"] == []
    for size in SIZES:
        assert "attractors" in read_arrays(finished.folder / "toy" / f"K{size:04d}.npz")
    assert len(list((finished.folder / "ladder").glob("*.json"))) == len(measured_captions())
    assert not list(finished.folder.rglob(".partial-*"))


def test_metrics_are_json_lines_one_per_network(finished: Finished) -> None:
    """Every number is finite or null, and the three fractions of a network make one."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (finished.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert all(np.isfinite(number) for number in numbers(lines))
    networks = [line for line in lines if line["kind"] == "network"]
    assert [(line["series"], line["size"], line["seed"]) for line in networks] == [
        (network.series, network.size, network.seed) for network in finished.sweep.networks
    ]
    for line in networks:
        assert line["memorized"] + line["spurious"] + line["generalized"] == pytest.approx(1)
        for name in ("memorized", "spurious", "generalized"):
            assert (line[name] == 0) == (line[f"{name}_trace"] is None)
    kinds = [line["kind"] for line in lines]
    assert kinds.count("thresholds") == 1
    assert kinds.count("capacities") == 2
    assert kinds.count("ordering") == 2 * 12
    assert kinds.count("circle") == len(SIZES)
    assert kinds.count("caption") == len(measured_captions())
    # Few images are copied, and a wider network copies more of them.
    memorized = {
        (series, size): np.mean(
            [line["memorized"] for line in networks if (line["series"], line["size"]) == (series, size)]
        )
        for series in ("mlp-16", "mlp-32")
        for size in (2, 12)
    }
    assert memorized["mlp-16", 2] > memorized["mlp-16", 12]
    assert memorized["mlp-32", 12] > memorized["mlp-16", 12]


def test_figures_are_png_and_svg(finished: Finished) -> None:
    """Each figure is there twice, and both can be opened."""
    files = sorted(file.name for file in (finished.folder / "figures").iterdir())
    assert files == sorted(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg"))
    for name in FIGURES:
        with Image.open(finished.folder / "figures" / f"{name}.png") as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10
        root = ElementTree.parse(finished.folder / "figures" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_result_goes_to_stdout_and_bars_with_time_left_to_stderr(finished: Finished) -> None:
    """The tables name every series and every expectation; each stage has its bar; the page is named last."""
    for series in finished.sweep.series:
        assert finished.out.count(series.name) == 2
    for quantity in ("critical time", "basin log-volume", "trace", "flat", "depth of the energy"):
        assert quantity in finished.out
    assert "━" not in finished.out
    *bars, last = [line for line in finished.err.splitlines() if line.strip()]
    assert [bar.split()[0] for bar in bars] == ["networks", "samples", "evidence"]
    assert all(" left " in bar and " jobs" in bar for bar in bars)
    assert last == f"The page is {finished.folder / 'index.html'}."


def test_nothing_is_made_twice_and_other_thresholds_measure_again(
    basin: Basin, finished: Finished, tmp_path: Path
) -> None:
    """A second run makes the page alone; with other thresholds evidence is taken anew and nothing else."""
    folder = finished.copy(tmp_path / "run", "figures")
    (folder / "index.html").unlink()
    kept = [folder / stage for stage in STAGES]
    before = snapshot(*kept)
    again = basin(*finished.command, "--out", folder)
    assert (again.code, again.out) == (0, finished.out)
    assert again.err.splitlines() == [f"The page is {folder / 'index.html'}."]
    assert snapshot(*kept) == before
    assert (folder / "index.html").is_file()
    assert (folder / "metrics.jsonl").read_text() == (finished.folder / "metrics.jsonl").read_text()

    other = basin(*finished.command, "--out", folder, "--delta-m", "0.5", "--delta-s", "1.5")
    assert other.code == 0, other
    assert [line.split()[0] for line in other.err.splitlines() if line.strip()] == ["evidence", "The"]
    after = snapshot(*kept)
    assert after.keys() == before.keys()
    assert {file for file in before if after[file] != before[file]} == set(snapshot(folder / "evidence"))
    for network in finished.sweep.networks:
        evidence = read_arrays(RunFolder(folder).evidence(network))
        assert (float(evidence["delta_m"]), float(evidence["delta_s"])) == (0.5, 1.5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (thresholds,) = (line for line in lines if line["kind"] == "thresholds")
    assert (thresholds["delta_m"], thresholds["source_m"], thresholds["source_s"]) == (0.5, "given", "given")


def test_killed_anywhere_a_run_goes_on_to_the_same_networks(basin: Basin, finished: Finished, tmp_path: Path) -> None:
    """Killed with its workers, and then without them, it keeps what is finished and ends as if undisturbed."""
    folder = finished.copy(tmp_path / "run", "training", "networks", "figures")
    run = RunFolder(folder)
    (folder / "index.html").unlink()
    trained = sorted(fleets(finished.sweep), key=lambda fleet: (len(fleet), fleet[0].series), reverse=True)
    first, second = ([run.weights(network) for network in fleet] for fleet in trained[:2])

    with started(*finished.command, "--out", folder) as process:
        wait_for(lambda: all(file.is_file() for file in first), process)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not all(file.is_file() for file in second)
    kept = {file: state for file, state in snapshot(run.path / "networks").items() if file in first}
    assert len(kept) == len(first)

    with started(*finished.command, "--workers", 2, "--out", folder) as process:
        wait_for(lambda: len(workers_of(process.pid)) == 2, process)
        workers = workers_of(process.pid)
        wait_for(lambda: all(file.is_file() for file in second), process)
        process.kill()
        assert psutil.wait_procs(workers, timeout=PATIENCE)[1] == []
        process.communicate()  # ends when nobody holds its pipes any more
    kept |= {file: state for file, state in snapshot(run.path / "networks").items() if file in second}
    assert len(kept) == len(first) + len(second)

    last = basin(*finished.command, "--out", folder)
    assert last.code == 0, last
    after = snapshot(run.path / "networks")
    assert {file: after[file] for file in kept} == kept
    for network in finished.sweep.networks:
        one, other = load_file(run.weights(network)), load_file(RunFolder(finished.folder).weights(network))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            np.testing.assert_allclose(tensor, other[name], atol=1e-5, err_msg=f"{network.name} {name}")
    assert not list(run.training.glob("*.state.*"))
    assert (folder / "index.html").is_file()


def test_ctrl_c_and_a_lost_worker_cost_only_what_was_under_way(
    basin: Basin, finished: Finished, tmp_path: Path
) -> None:
    """Ctrl-C ends a run silently, also while workers start; a killed worker is one line; afterwards the run goes on."""
    folder = finished.copy(tmp_path / "run", "evidence")
    evidence = [RunFolder(folder).evidence(network) for network in finished.sweep.networks]
    command = (*finished.command, "--out", folder)

    def begun(process: Any) -> bool:
        return any(file.is_file() for file in evidence)

    for moment in (lambda process: workers_of(process.pid), begun):
        with started(*command) as process:
            wait_for(lambda: moment(process), process)  # noqa: B023
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (130, "")
        assert [line.split()[0] for line in err.splitlines() if line.strip()] == ["evidence"], err
        assert not all(file.is_file() for file in evidence)
    kept = snapshot(folder / "evidence")
    assert any(file in kept for file in evidence)

    def kill_a_worker() -> None:
        while not (workers := workers_of(os.getpid())):
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    assert ended_badly(basin(*command), "worker", "killed", "run the same command again")
    killer.join()
    assert workers_of(os.getpid()) == []

    last = basin(*command)
    assert last.code == 0, last
    after = snapshot(folder / "evidence")
    assert {file: after[file] for file in evidence if file in kept} == {
        file: kept[file] for file in evidence if file in kept
    }
    assert (folder / "metrics.jsonl").read_text() == (finished.folder / "metrics.jsonl").read_text()


def test_a_full_disk_is_one_line_and_costs_nothing(basin: Basin, finished: Finished, tmp_path: Path) -> None:
    """Full at the first file, in a worker, or at the last page: what was there stays, and with room it goes on."""
    advice = ("File too large", "make room", "run the same command again")
    with full_disk(100):
        result = basin(*finished.command, "--out", tmp_path / "new")
    assert is_one_error(result, str(tmp_path / "new"), *advice)
    assert snapshot(tmp_path / "new") == {}

    folder = finished.copy(tmp_path / "run", "training", "networks")
    before = snapshot(folder)
    with full_disk(20_000):
        result = basin(*finished.command, "--out", folder)
    assert ended_badly(result, *advice)
    assert {file: state for file, state in snapshot(folder).items() if file in before} == before
    assert not list((folder / "networks").rglob("*.safetensors"))

    last = basin(*finished.command, "--out", folder)
    assert last.code == 0, last
    assert (folder / "metrics.jsonl").read_text() == (finished.folder / "metrics.jsonl").read_text()
    before = snapshot(folder)
    with full_disk(1000):
        result = basin(*finished.command, "--out", folder)
    assert is_one_error(result, *advice)
    assert snapshot(folder) == before


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
        (("--config", valid, "--data", finished.data, "--delta-m", "inf"), ["delta_m", "finite"]),
        (("--config", valid, "--data", finished.data, "--delta-s", "inf"), ["delta_s", "finite"]),
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
