"""`basin serve` as a process."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest

from audit import demo
from service.client import BasinClient, ServiceError
from tests.cli.conftest import Basin, is_one_error, start_basin

#: Packages that other commands need, which take a server's start seconds and its memory; each has a library of its own.
OF_OTHERS = {"matplotlib", "ray", "sklearn"}


def packages_of(pid: int) -> set[str]:
    """Installed packages of which a process has loaded a library."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/site-packages/([^/\s]+)/", mapped))


def test_serves_what_the_flags_name_until_sigterm(tmp_path: Path) -> None:
    """Flags reach the server, which loads nothing that it does not need; SIGTERM ends it with 0."""
    (tmp_path / "basin.yaml").write_text("limits: {seeds: 40}\nqueue_evaluations: 3\n")
    process = start_basin(
        "serve", "--config", tmp_path / "basin.yaml", "--listen", "127.0.0.1:0", "--metrics", "off",
        "--queue-evaluations", 5, "--model-control", "start",
        "--checkpoint", f"mine={demo.CHECKPOINT}", "--reference", f"train={demo.REFERENCE}", "--log-format", "json",
    )  # fmt: skip
    try:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        address = next(event["address"] for event in events if event["event"] == "listening")
        assert any(event["event"] == "ready" for event in events)
        loaded = packages_of(process.pid)
        assert {"torch", "grpc"} <= loaded
        assert not OF_OTHERS & loaded
        with BasinClient(address, timeout=60) as client:
            info = client.info()
            with pytest.raises(ServiceError) as refused:
                client.unload_checkpoint("mine")
        assert [checkpoint.id for checkpoint in info.checkpoints] == ["mine"]
        assert [reference.name for reference in info.references] == ["train"]
        assert (info.limits.seeds, info.limits.queue_evaluations) == (40, 5)
        assert refused.value.reason == "MODEL_CONTROL_CLOSED"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config", "missing.yaml"), ["missing.yaml"]),
        (("--config", "wrong.yaml"), ["bogus"]),
        (("--listen", "nowhere"), ["listen", "nowhere"]),
        (("--metrics", "nowhere"), ["metrics", "nowhere"]),
        (("--queue-evaluations", "0"), ["queue_evaluations"]),
        (("--model-control", "none"), ["model_control"]),
        (("--log-level", "loud"), ["log_level"]),
        (("--checkpoint", "folder"), ["NAME=SOURCE", "folder"]),
        (("--checkpoint", "a b=folder"), ["a b"]),
        (("--reference", "x=a", "--reference", "x=b"), ["twice"]),
        (("--no-demo",), ["no checkpoint"]),
    ],
)
def test_a_bad_configuration_is_one_line(
    basin: Basin, flags: tuple[str, ...], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with flags or file is said in one line, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("bogus: 1\n")
    assert is_one_error(basin("serve", *flags), *words)


def test_a_taken_port_is_one_line() -> None:
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        process = start_basin("serve", "--listen", address, "--metrics", "off")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err.splitlines()[-1] == f"error: listen: {address} cannot be bound"
    assert "Traceback" not in err
