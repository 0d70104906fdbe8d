"""`basin phase run`: everything that a run leaves, and kills and other mishaps on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
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
from audit.phase.toy import SIZES
from audit.phase.train_sweep import fleet_name, fleets
from tests.audit.phase.finished import (
    PATIENCE,
    STAGES,
    SWEEP,
    Finished,
    full_disk,
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
