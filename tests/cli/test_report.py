"""`basin report`: what it leaves, and each way that it cannot begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Basin, is_one_error
from tests.service.runs import make_up, plain_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of three prompts."""
    return make_up(tmp_path / "run", 3, plain_report(), lambda report, position: None)


def test_the_report_is_written_beside_the_results(run: Path, basin: Basin) -> None:
    """A page, a summary for machines, one for people, and where the page is; again and it is the same."""
    for _ in range(2):
        before = {file.name: file.read_bytes() for file in run.glob("report.*")}
        result = basin("report", run)
        assert (result.code, result.out) == (0, "")
        assert result.err.splitlines()[-1] == f"The page is {run / 'report.html'}."
        assert {file.name for file in run.glob("report*")} == {"report.html", "report.json", "report.md"}
        assert before in ({}, {file.name: file.read_bytes() for file in run.glob("report.*")})
    assert json.loads((run / "report.json").read_text())["checkpoints"][0]["outcomes"]["generalized"]["count"] == 3


def test_a_store_that_was_moved_is_named(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Without its store a run has nothing to report, and no empty one is made in its place."""
    (run / "basin.db").rename(tmp_path / "moved.db")
    assert is_one_error(basin("report", run), "the store of", "is gone")
    assert not (run / "basin.db").exists()
    assert basin("report", run, "--store", f"sqlite:///{tmp_path}/moved.db").code == 0
    other = make_up(tmp_path / "other", 1, plain_report(), lambda report, position: None)
    assert is_one_error(basin("report", run, "--store", f"sqlite:///{other}/basin.db"), "is not in its store")
    assert is_one_error(basin("report", run, "--store", "nonsense"), "no database URL")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}x",
        '{"format": 2, "request_id": "a"}',
        '{"format": 1, "request_id": 5}',
        '{"format": 1, "x": 1}',
    ],
)
def test_a_run_of_another_version_is_refused(run: Path, basin: Basin, content: str) -> None:
    """Nothing is guessed of a run.json that this version did not write, and nothing is written."""
    (run / "run.json").write_text(content)
    assert is_one_error(basin("report", run), "another version")
    assert not list(run.glob("report*"))


def test_a_folder_that_is_no_run_is_refused(basin: Basin, tmp_path: Path) -> None:
    """Nor is a file, an empty folder, or nothing at all."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "phase").mkdir()
    (tmp_path / "phase" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name in ("empty", "phase", "file"):
        assert is_one_error(basin("report", tmp_path / name), f"{name} holds no batch")
    assert is_one_error(basin("report", tmp_path / "missing"), "no folder")
    assert not list(tmp_path.rglob("*.db"))
