"""Real servers on free ports of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from audit import demo
from service.config import load_settings
from service.server import RunningServer, start_server
from tests.service.helpers import LONG, Client


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
    (made["foreign"] / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
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
