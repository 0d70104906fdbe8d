"""`basin audit --local`, from flags to output."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from audit import demo
from audit.errors import Stopped
from audit.v1 import audit_pb2
from service.local import LocalAudits
from tests.cli.conftest import CHEAP, Basin, is_one_error

LOCAL = ("audit", "--local", "--reference", "demo", *CHEAP)


def test_json_is_one_report_a_line_and_nothing_else(basin: Basin, tmp_path: Path) -> None:
    """JSON mode prints reports in the order of the prompts, without images even when a picture is drawn."""
    wanted = demo.prompts()[:3]
    file = tmp_path / "prompts.txt"
    file.write_text(f"{wanted[1]}\n\n  {wanted[2]}\r\n", encoding="utf-8")
    picture = tmp_path / "sheet.png"

    result = basin(*LOCAL, "--format", "json", "--prompts", file, "--image", picture, wanted[0])

    reports = [json.loads(line) for line in result.out.splitlines()]
    assert (result.code, result.err) == (0, "")
    assert [report["prompt"] for report in reports] == wanted
    for report in reports:
        assert report["verdict"] in ("memorized", "spurious", "generalized")
        assert report["subject"]["reference_complete"] is True
        assert len(report["samples"]) == 2
        assert report["cost"]["evaluations"] == "20"
        assert "image" not in report["samples"][0]
    with Image.open(picture) as sheet:
        assert sheet.format == "PNG"
        assert 800 <= sheet.width <= 2000
        assert sheet.height > 3 * 150


def test_settings_reach_the_report(basin: Basin, prompt: str) -> None:
    """Every sampler and budget flag ends up in the report."""
    result = basin(
        "audit", "--local", "--format", "json", "--scheduler", "euler", "--steps", 3, "--guidance", 2.5,
        "--negative-prompt", "a grey bag", "--size", "32x32", "--eta", 0.5, "--seed", 7, "--seeds", 2,
        "--definition-samples", 100, "--curvature", "off", prompt,
    )  # fmt: skip

    report = json.loads(result.out)
    assert result.code == 0
    assert report["subject"]["sampler"] == {
        "scheduler": "EulerDiscreteScheduler",
        "steps": 3,
        "guidance": 2.5,
        "negative_prompt": "a grey bag",
        "height": 32,
        "width": 32,
        "eta": 0.5,
        "true_guidance": 1.0,
        "embedded": False,
    }
    assert [sample["seed"] for sample in report["samples"]] == ["7", "8"]
    assert report["subject"]["definition_samples"] == 100
    assert report["subject"]["reference"] == ""
    assert report["curvature"] == []


def test_table_names_prompt_verdict_and_reasons(basin: Basin, prompt: str) -> None:
    """Table mode shows a row and why."""
    result = basin(*LOCAL, prompt)

    assert (result.code, result.err) == (0, "")
    assert prompt.split()[-1] in result.out
    assert " sure" in result.out
    assert "2 seeds" in result.out
    assert "copies" in result.out


def test_prompts_come_from_standard_input(basin: Basin, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--prompts -` reads one prompt a line."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
    assert json.loads(basin(*LOCAL, "--format", "json", "--prompts", "-").out)["prompt"] == prompt


def test_a_bad_prompt_does_not_stop_the_others(basin: Basin, prompt: str) -> None:
    """A prompt that cannot be audited costs its own report and the exit code, nothing else."""
    result = basin(*LOCAL, "--format", "json", prompt, " ", prompt)

    assert result.code == 2
    assert len(result.out.splitlines()) == 2
    assert result.err == "error: prompt 2: the prompt is empty\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*CHEAP, ""), ["empty"]),
        ((*CHEAP, "word " * 2000), ["characters"]),
        ((*CHEAP, "\udcff"), ["prompt", "text"]),
        (CHEAP, ["--prompts"]),
        (("--prompts", "missing.txt"), ["missing.txt"]),
        (("--prompts", "empty.txt"), ["empty.txt", "no prompts"]),
        (("--prompts", "binary.txt"), ["binary.txt", "UTF-8"]),
        (("--guidance", "nan", "x"), ["guidance", "nan"]),
        (("--steps", "0", "x"), ["steps"]),
        (("--steps", "9" * 20, "x"), ["steps"]),
        (("--seeds", "0", "x"), ["seeds"]),
        (("--seed", "-1", "x"), ["first_seed"]),
        (("--eta", "2", "x"), ["eta"]),
        (("--size", "33", "x"), ["height", "33"]),
        (("--size", "axb", "x"), ["size", "axb"]),
        (("--scheduler", "bogus", "x"), ["scheduler", "bogus"]),
        (("--curvature", "bogus", "x"), ["curvature", "bogus"]),
        (("--dtype", "float7", "x"), ["float7"]),
        (("--device", "bogus", "x"), ["bogus"]),
        (("--offload", "x"), ["offload"]),
        (("--checkpoint", "missing", "x"), ["missing"]),
        (("--checkpoint", "broken", "x"), ["model_index.json"]),
        (("--checkpoint", "pickled", "x"), ["pickled", "safetensors"]),
        (("--checkpoint", "damaged", "x"), ["damaged"]),
        (("--reference", "missing", "x"), ["missing"]),
        (("--reference", "broken", "x"), ["broken"]),
        (("--server", "localhost:1", "x"), ["--local"]),
        (("--image", "no/folder/x.png", "x"), ["no/folder"]),
    ],
)
def test_bad_input_is_one_line(
    basin: Basin, flags: tuple[str, ...], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong is said in one line, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "reference.json").write_text("{")
    for name in ("pickled", "damaged"):
        shutil.copytree(demo.CHECKPOINT, tmp_path / name)
    weights = next((tmp_path / "pickled" / "unet").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    next((tmp_path / "damaged" / "unet").glob("*.safetensors")).write_bytes(b"no weights")

    assert is_one_error(basin("audit", "--local", *flags), *words)


def test_closing_stops_what_is_in_flight(prompt: str) -> None:
    """What Ctrl-C does: the audit ends before its next denoiser call."""
    source = LocalAudits("demo")
    seen: list[audit_pb2.Progress] = []

    def stop_at_the_second(progress: audit_pb2.Progress) -> None:
        seen.append(progress)
        if len(seen) == 2:
            source.close()

    request = audit_pb2.AuditRequest(prompt=prompt)
    request.sampler.steps = 100
    with pytest.raises(Stopped):
        source.audit(request, stop_at_the_second)
    assert len(seen) <= 3
