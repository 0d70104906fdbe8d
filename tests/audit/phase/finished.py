"""A small run of `basin phase run`, made once, that tests look at, copy, and go on with."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from audit.phase import one_model, toy
from audit.phase.data import load_data
from audit.phase.folder import RunFolder
from audit.phase.run import run_phase
from audit.phase.story import Story
from audit.phase.sweep import Sweep
from tests.cli.conftest import WITH_CTRL_C

#: Trained in seconds. Each series is a fleet of eight and one of one.
SWEEP: dict[str, Any] = {
    "data": "folder",
    "sizes": [2, 4, 12],
    "series": [{"architecture": "mlp", "width": width, "learning_rate": 1e-2} for width in (16, 32)],
    "seeds": [0, 1, 2],
    "steps": 200,
    "batch_size": 16,
    "ema_decay": 0.9,
    "samples": 48,
    "sampler_steps": 6,
    "points": 4,
    "basin": {"trials": 3},
}
#: Both spaces and the other architectures; far too short to learn anything.
LATENT = Sweep.model_validate(
    {
        **SWEEP,
        "series": [
            {"architecture": "unet", "width": 8, "space": "latent", "learning_rate": 1e-3},
            {"architecture": "transformer", "width": 32, "learning_rate": 1e-3},
        ],
        "seeds": [0],
        "steps": 20,
        "samples": 24,
        "sampler_steps": 4,
        "points": 2,
        "autoencoder_widths": [8, 8],
        "autoencoder_steps": 10,
    }
)
#: What `basin phase run` makes in its folder.
STAGES = ("training", "networks", "samples", "evidence", "toy", "ladder")
#: A machine under load needs a while to start processes that import torch.
PATIENCE = 300.0


@dataclass(frozen=True)
class Finished:
    """A run that nothing disturbed.

    Attributes:
        folder: of the run.
        config: file of its sweep.
        data: folder of its images.
        out: what the command printed.
        err: its bars and messages.
    """

    folder: Path
    config: Path
    data: Path
    out: str
    err: str

    @property
    def command(self) -> tuple[object, ...]:
        """The command without its --out."""
        return ("phase", "run", "--config", self.config, "--data", self.data, "--workers", 1)

    @property
    def sweep(self) -> Sweep:
        """What was run."""
        return Sweep.model_validate(SWEEP)

    def copy(self, to: Path, *without: str) -> Path:
        """The same run, with the times of its files, somewhere else and without some of its parts."""
        shutil.copytree(self.folder, to)
        for part in without:
            shutil.rmtree(to / part)
        return to

    def claim(self, to: Path, sweep: Sweep, images: NDArray[np.uint8]) -> Path:
        """A folder in which another sweep is to be run, with the circle and the ladder done."""
        RunFolder(to).claim(sweep, images)
        for part in ("toy", "ladder"):
            shutil.copytree(self.folder / part, to / part)
        return to


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Where all processes of a session keep what takes long to make."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "phase"
    folder.mkdir(exist_ok=True)
    return folder


@cache
def finished_run(base: Path) -> Finished:
    """Run `SWEEP` from the command line, below a folder; every test of a session gets the same run."""
    folder, config, data, said = base / "run", base / "tiny.json", base / "data", base / "said.json"
    with FileLock(base / "finished.lock"):
        if not said.exists():
            save_images(data, small_images(12, 8))
            config.write_text(json.dumps(SWEEP))
            RunFolder(folder).claim(Sweep.model_validate(SWEEP), load_data("folder", data).images)
            _measure_circle_and_ladder(folder)
            unfinished = Finished(folder, config, data, "", "")
            with started(*unfinished.command, "--out", folder) as process:
                out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
            said.write_text(json.dumps([out, err]))
    return Finished(folder, config, data, *json.loads(said.read_text()))


@cache
def latent_story(base: Path) -> Story:
    """Run `LATENT` on colour images in an archive, by a call of the library."""
    folder, archive = base / "latent", base / "images.npz"
    with FileLock(base / "latent.lock"):
        if not archive.exists():
            images = small_images(12, 8, channels=3)
            finished_run(base).claim(folder, LATENT, images)
            np.savez(archive, images=images)
        return run_phase(LATENT, folder, source=archive, devices=["cpu"])


def _measure_circle_and_ladder(folder: Path) -> None:
    """Put both into a claimed folder, where a run finds them: measured for real, with fewer steps and points.

    In full they take minutes, and no sweep has a say in them. Two captions are measured; the others get their numbers.
    """

    def silent(share: float) -> None:
        pass

    captions = one_model.measured_captions()
    with pytest.MonkeyPatch.context() as patch:
        for module, constants in (
            (toy, {"STEPS": 50, "GRID": 15, "SAMPLES": 32, "RING": 36}),
            (one_model, {"SAMPLES": 2, "LEVEL_STRIDE": 25}),
        ):
            for name, value in constants.items():
                patch.setattr(module, name, value)
        toy.run_toy(folder / "toy", 0, silent, "cpu")
        for index in captions[:2]:
            one_model.measure_caption(folder / "ladder", index, silent, "cpu")
    for position, index in enumerate(captions[2:]):
        found = json.loads((folder / "ladder" / f"{captions[position % 2]:03d}.json").read_text())
        found["images"] = one_model.truth()[index].images
        (folder / "ladder" / f"{index:03d}.json").write_text(json.dumps(found) + "\n")


def small_images(count: int, side: int, channels: int = 1) -> NDArray[np.uint8]:
    """Random blocks, (count, side, side) or (count, side, side, 3)."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, side // 2, side // 2, channels), dtype=np.uint8)
    images = blocks.repeat(2, axis=1).repeat(2, axis=2)
    return images[..., 0] if channels == 1 else images


def save_images(folder: Path, images: NDArray[np.uint8]) -> Path:
    """Write one PNG file per image."""
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    return folder


def snapshot(*folders: Path) -> dict[Path, tuple[int, str]]:
    """When each file below was written, and a digest of it."""
    return {
        file: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command line as a process group of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, *map(str, arguments)],
        cwd=Path(__file__).parents[3],
        env=dict(os.environ),  # without the COLUMNS that readline, which pytest loads, hands to children
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file may grow beyond this, in this process and those that it starts: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a process; Python's resource tracker is none."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "--multiprocessing-fork" in child.cmdline():
                found.append(child)
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
