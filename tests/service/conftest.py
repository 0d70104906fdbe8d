"""Real servers on free ports of this machine, and stores in SQLite and PostgreSQL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine

from audit import demo
from audit.v1 import batch_pb2
from service.config import load_settings
from service.server import RunningServer, start_server
from service.store.engine import connect
from service.store.queue import Queue
from service.store.store import Store
from tests.service.batch_calls import cancel, listed
from tests.service.helpers import LONG, Client
from tests.service.postgres import Postgres
from tests.service.processes import Process


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Prompts of the demo checkpoint's ladder."""
    return demo.prompts()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders: a copy of the demo, and ways to be broken."""
    root = tmp_path_factory.mktemp("operators-models")
    names = ("copy", "pickled", "damaged", "incomplete", "foreign", "no-json")
    made = {name: Path(shutil.copytree(demo.CHECKPOINT, root / name)) for name in names}
    weights = "diffusion_pytorch_model.safetensors"
    (made["pickled"] / "unet" / weights).unlink()
    torch.save({"weight": torch.zeros(1)}, made["pickled"] / "unet" / "diffusion_pytorch_model.bin")
    whole = (made["damaged"] / "vae" / weights).read_bytes()
    (made["damaged"] / "vae" / weights).write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(made["incomplete"] / "text_encoder")
    (made["foreign"] / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    (made["no-json"] / "model_index.json").write_text("{")
    return {**made, "missing": root / "missing"}


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Client]]:
    """Start servers with settings of their own; they stop with the module."""
    with ExitStack() as servers:

        def start(**settings: Any) -> Client:
            free = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
            server = servers.enter_context(start_server(load_settings(**free, **settings)))
            assert server.wait_ready(LONG)
            return Client.of(server)

        yield start


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that most tests share: the demo, loaded, and other checkpoints, not loaded."""
    settings = load_settings(
        listen="127.0.0.1:0",
        metrics="127.0.0.1:0",
        demo=True,
        checkpoints={name: {"folder": folder, "preload": False} for name, folder in folders.items()},
        limits={"prompt_characters": 300, "seeds": 64, "image_bytes": 100_000, "evaluations": 64_000},
    )
    with start_server(settings) as running:
        assert running.wait_ready(LONG)
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Client:
    """Of the shared server."""
    return Client.of(server)


@pytest.fixture
def batch_client(batch_server: RunningServer) -> Iterator[Client]:
    """Of the server that the tests of batches share; a test that fails leaves no batch to the others."""
    client = Client.of(batch_server)
    yield client
    for state in (batch_pb2.BATCH_STATE_RUNNING, batch_pb2.BATCH_STATE_PAUSED):
        for id_ in listed(client, state=state):
            cancel(client, id_)
    client.channel.close()


@pytest.fixture(scope="session")
def batch_server(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[RunningServer]:
    """A server with a store of its own.

    Its checkpoints are the demo under two ids, the demo with another calibration, and one that is not loaded.
    """
    root = tmp_path_factory.mktemp("operators-prompts")
    (root / "mine.csv").write_text("prompt,number\nfrom a set,1\nfrom a set too,2\n")
    (root / "deep.jsonl").write_text('{"prompt": "x", "deep": ' + 30 * "[" + 30 * "]" + "}")
    (root / "long.txt").write_text("short\n" + 301 * "x")
    (root / "empty.txt").write_text("")
    calibration = json.loads((demo.CHECKPOINT / "calibration.json").read_text())
    (root / "strict.json").write_text(json.dumps(calibration | {"delta_m": 1e-3, "delta_s": 1e-3}))
    settings = load_settings(
        listen="127.0.0.1:0",
        metrics="127.0.0.1:0",
        demo=True,
        checkpoints={
            "twin": demo.CHECKPOINT,
            "strict": {"folder": demo.CHECKPOINT, "calibration": root / "strict.json"},
            "idle": {"folder": folders["copy"], "preload": False},
        },
        prompts={
            "mine": root / "mine.csv", "deep": root / "deep.jsonl", "long": root / "long.txt",
            "empty": root / "empty.txt", "gone": root / "gone.txt",
        },
        limits={"prompt_characters": 300, "seeds": 64, "evaluations": 64_000},
        batches={"store": f"sqlite:///{root}/basin.db", "prompts": 1000},
    )  # fmt: skip
    with start_server(settings) as running:
        assert running.wait_ready(LONG)
        yield running


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start servers in processes of their own."""
    processes: list[Process] = []

    def start(**settings: Any) -> Process:
        processes.append(Process(tmp_path / f"server-{len(processes)}.log", **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a store that is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/basin.db"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.create()
        yield url
        server.drop(url)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Of a new store."""
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    """A new one, empty."""
    return Store(engine)


@pytest.fixture
def queue(engine: Engine) -> Queue:
    """The tasks of the new store, as a worker sees them."""
    return Queue(engine)
