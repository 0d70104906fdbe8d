"""Who works on a batch: what is refused before any work, and copies that are none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from audit import demo
from audit.auditor import Auditor
from audit.batch.tasks import Subject
from audit.budget import Budget
from audit.errors import AuditError, InvalidInput, NotFound
from service.local import open_checkpoint, open_reference
from service.runners import RayOptions, Source, find_runner, run_copy, run_here


@pytest.mark.parametrize(
    ("name", "device", "options", "error", "reason", "field"),
    [
        ("dask", "cpu", RayOptions(), InvalidInput, "RUNNER_UNKNOWN", "runner"),
        ("ray", "cuda", RayOptions(), InvalidInput, "DEVICE_NOT_OF_RAY", "device"),
        ("ray", "cpu", RayOptions(gpus=1.5), InvalidInput, "RAY_GPUS_INVALID", "ray_gpus"),
        ("ray", "cpu", RayOptions("127.0.0.1:1"), NotFound, "RAY_UNREACHABLE", "ray_address"),
        ("ray", "cpu", RayOptions("nowhere.invalid:6379"), NotFound, "RAY_UNREACHABLE", "ray_address"),
        ("ray", "cpu", RayOptions("ray://127.0.0.1:10001"), InvalidInput, "RAY_ADDRESS_INVALID", "ray_address"),
        ("ray", "cpu", RayOptions("127.0.0.1:99999"), InvalidInput, "RAY_ADDRESS_INVALID", "ray_address"),
        ("ray", "cpu", RayOptions("127.0.0.1"), InvalidInput, "RAY_ADDRESS_INVALID", "ray_address"),
        ("ray", "cpu", RayOptions("local"), InvalidInput, "RAY_ADDRESS_INVALID", "ray_address"),
        ("ray", "cpu", RayOptions(""), InvalidInput, "RAY_ADDRESS_INVALID", "ray_address"),
    ],
)
def test_refused_runners(
    name: str, device: str, options: RayOptions, error: type[AuditError], reason: str, field: str
) -> None:
    """Before anything is loaded, with the flag at fault."""
    with pytest.raises(error) as refused:
        find_runner(name, device, options)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what auto means, and held to the same rules."""
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(InvalidInput, match="Ray clients"):
        find_runner("ray", "cpu", RayOptions())


def test_ray_is_not_needed_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the error says what to install; everything else works."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "audit.batch.ray", raising=False)
    with pytest.raises(InvalidInput, match="not installed") as refused:
        find_runner("ray", "cpu", RayOptions())
    assert "basin-audit[ray]" in str(refused.value)
    assert find_runner("local", "cuda", RayOptions()) is run_here


@pytest.fixture(scope="module")
def source() -> Source:
    """The demo."""
    loaded, calibration = open_checkpoint("demo", "cpu", "float32")
    subject = Subject.of(Auditor(loaded, open_reference("demo"), calibration), Budget(), {"steps": 5})
    return Source("demo", "demo", subject, calibration, "cpu", "float32", include_images=False)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"checkpoint_digest": "sha256:0"}, "checkpoint"),
        ({"reference_digest": ""}, "reference"),
        ({"precision": "float16", "embedder_digest": ""}, "precision and the embedder"),
    ],
)
def test_a_copy_of_something_else_is_none(source: Source, changes: dict[str, str], what: str) -> None:
    """Its results would be kept under keys that they do not belong to."""
    with pytest.raises(InvalidInput, match=f"^the {what} of demo is not") as refused:
        run_copy(replace(source, subject=replace(source.subject, **changes))).__enter__()
    assert refused.value.reason == "SUBJECT_CHANGED"


def test_what_changed_since_the_batch_began_is_not_audited_here_either(source: Source) -> None:
    """A folder may hold something else when its turn comes, hours later."""
    loaded, calibration = open_checkpoint("demo", "cpu", "float32")
    changed = replace(source, subject=replace(source.subject, checkpoint_digest="sha256:0"))
    with pytest.raises(InvalidInput, match=r"^the checkpoint of demo is not what the batch began with$"):
        run_here(changed, lambda: Auditor(loaded, open_reference("demo"), calibration)).__enter__()


def test_a_copy_is_judged_by_the_thresholds_of_the_batch(source: Source) -> None:
    """Not by those that lie beside its checkpoint."""
    other = demo.calibration().model_copy(update={"delta_m": 1.0})
    with pytest.raises(InvalidInput, match=r"^the calibration of demo is not"):
        run_copy(replace(source, calibration=other)).__enter__()
    with run_copy(replace(source, subject=replace(source.subject, calibration_digest=other.digest), calibration=other)):
        pass


def test_a_copy_needs_the_same_folders(source: Source, tmp_path: Path) -> None:
    """What is missing is named."""
    with pytest.raises(NotFound, match="gone"):
        run_copy(replace(source, checkpoint=str(tmp_path / "gone"))).__enter__()
