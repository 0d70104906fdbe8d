"""`basin audit --server` against real servers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from audit.demo import prompts
from tests.cli import stub
from tests.cli.conftest import CHEAP, Basin, is_one_error, start_basin


def test_reports_come_in_order_and_are_those_of_a_local_audit(basin: Basin, server: str, tmp_path: Path) -> None:
    """Many in flight, one line each in the order asked; the same numbers as without a server."""
    wanted = prompts()[:6]
    picture = tmp_path / "sheet.png"
    flags = ("--reference", "demo", "--format", "json", *CHEAP)

    remote = basin("audit", "--server", server, *flags, "--image", picture, *wanted)
    local = basin("audit", "--local", *flags, *wanted)

    assert (remote.code, remote.err) == (0, "")
    there, here = ([json.loads(line) for line in result.out.splitlines()] for result in (remote, local))
    assert [report["prompt"] for report in there] == wanted
    for one, other in zip(there, here, strict=True):
        assert one["verdict"] == other["verdict"]
        assert one["subject"] == other["subject"]
        for sample, twin in zip(one["samples"], other["samples"], strict=True):
            assert sample["nearest_sample_distance"] == pytest.approx(twin["nearest_sample_distance"], rel=1e-3)
    with Image.open(picture) as sheet:
        assert sheet.height > 6 * 150


def test_the_server_may_come_from_the_environment(
    basin: Basin, server: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BASIN_SERVER names the server, a table is the default, and a lone checkpoint need not be named."""
    monkeypatch.setenv("BASIN_SERVER", server)
    result = basin("audit", *CHEAP, prompt)
    assert (result.code, result.err) == (0, "")
    assert "verdict" in result.out


def test_the_environment_does_not_forbid_local_audits(
    basin: Basin, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--local wins over BASIN_SERVER."""
    monkeypatch.setenv("BASIN_SERVER", "127.0.0.1:1")
    assert basin("audit", "--local", *CHEAP, prompt).code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("",), ["prompt", "empty"]),
        (("word " * 100,), ["prompt", "tokens"]),
        (("word " * 2000,), ["characters"]),
        (("--checkpoint", "missing", "x"), ["missing"]),
        (("--checkpoint", "/etc", "x"), ["checkpoint"]),
        (("--reference", "missing", "x"), ["missing"]),
        (("--guidance", "nan", "x"), ["guidance"]),
        (("--guidance", "inf", "x"), ["guidance"]),
        (("--steps", "0", "x"), ["steps"]),
        (("--seeds", "100000", "x"), ["seeds"]),
        (("--scheduler", "bogus", "x"), ["scheduler"]),
        (("--curvature", "bogus", "x"), ["curvature"]),
        (("--size", "7", "x"), ["height"]),
        (("--timeout", "0.001", "x"), ["time"]),
        (("--device", "cuda", "x"), ["--local"]),
        (("--offload", "x"), ["--local"]),
    ],
)
def test_refusals_are_one_line_and_the_server_lives_on(
    basin: Basin, server: str, prompt: str, flags: tuple[str, ...], words: list[str]
) -> None:
    """Whatever the server refuses is said in one line, with exit code 2; the next audit is served."""
    assert is_one_error(basin("audit", "--server", server, *flags), *words)
    assert basin("audit", "--server", server, *CHEAP, prompt).code == 0


def test_a_bad_prompt_does_not_stop_the_others(basin: Basin, server: str, prompt: str) -> None:
    """A prompt that cannot be audited costs its own report and the exit code, nothing else."""
    result = basin("audit", "--server", server, "--format", "json", *CHEAP, prompt, "word " * 100, prompt)
    assert result.code == 2
    assert [json.loads(line)["prompt"] for line in result.out.splitlines()] == [prompt, prompt]
    assert result.err.startswith("error: prompt 2: ")


def test_no_server(basin: Basin, prompt: str) -> None:
    """Nobody there, and no address at all."""
    assert is_one_error(basin("audit", "--server", "127.0.0.1:1", prompt), "no server answers at 127.0.0.1:1")
    assert is_one_error(basin("audit", "--server", "not an address", prompt), "no server answers")


def test_ctrl_c_cancels_and_leaves_quietly() -> None:
    """SIGINT ends the command with 130 and without a trace, and the server learns that nobody waits any more."""
    audits = stub.Audits()
    with stub.serve(audits) as address:
        process = start_basin("audit", "--server", address, "endless")
        assert audits.started.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert audits.cancelled.result(30)
    assert (process.returncode, out, err) == (130, "", "")
