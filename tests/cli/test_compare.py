"""`basin compare`: what it leaves and prints, its exit codes, and each way that it cannot begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.v1 import report_pb2
from tests.cli.conftest import Basin, is_one_error
from tests.service.runs import Change, forget_second_audits, make_up, plain_report, settle

FILES = {"compare.html", "compare.json", "compare.md"}


def generalizing(report: report_pb2.Report, position: int) -> None:
    """Every prompt generalizes."""


def recalling(report: report_pb2.Report, position: int) -> None:
    """The first prompt is memorized."""
    settle(report, *((0, 0, 1) if position else (1, 0, 0)))


def slower(report: report_pb2.Report, position: int) -> None:
    """Audited with another sampler."""
    report.subject.sampler.steps = 50


def run_of(folder: Path, **checkpoints: Change) -> Path:
    """A finished run of three prompts."""
    return make_up(folder, 3, plain_report(), checkpoints)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two checkpoints, of which the second one memorizes a prompt."""
    return run_of(tmp_path / "run", first=generalizing, second=recalling)


def written(folder: Path) -> set[str]:
    """What a comparison left in a folder."""
    return {file.name for file in folder.glob("compare*")}


def test_two_checkpoints_of_a_run_are_compared(run: Path, basin: Basin) -> None:
    """The first with the second: files beside the results, a table, and where the page is; again and it is the same."""
    for _ in range(2):
        before = {file.name: file.read_bytes() for file in run.glob("compare*")}
        result = basin("compare", run)
        assert result.code == 0
        assert result.err.splitlines()[-1] == f"The page is {run / 'compare.html'}."
        assert written(run) == FILES
        assert before in ({}, {file.name: file.read_bytes() for file in run.glob("compare*")})
    rows = [line.split() for line in result.out.splitlines()]
    assert ["+■", "new", "memorized", "1", "33.3%"] in rows
    assert ["=", "unchanged", "2", "66.7%"] in rows
    assert ["■", "memorized", "0.0", "(0", "to", "0)", "1.0", "(1", "to", "1)", "+1.0", "(+1", "to", "+1)"] in rows
    summary = json.loads((run / "compare.json").read_text())
    assert (summary["before"]["checkpoint"], summary["after"]["checkpoint"]) == ("first", "second")
    assert summary["values"]["new_memorized"] == 1


def test_sides_are_named_and_swapped(run: Path, basin: Basin) -> None:
    """What is new one way is gone the other way."""
    assert basin("compare", run, "--before", "second").code == 0
    values = json.loads((run / "compare.json").read_text())["values"]
    assert (values["new_memorized"], values["gone_memorized"]) == (0, 1)


def test_two_runs_are_compared(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Into the folder of the second, or into another one; the first is left alone."""
    other = run_of(tmp_path / "other", second=generalizing)
    assert basin("compare", other, run).code == 0
    assert (written(run), written(other)) == (FILES, set())
    out = tmp_path / "new" / "folder"
    result = basin("compare", run, other, "--before", "second", "--out", out)
    assert (result.code, written(out)) == (0, FILES)
    assert f"The page is {out / 'compare.html'}." in result.err
    values = json.loads((out / "compare.json").read_text())["values"]
    assert (values["gone_memorized"], values["prompts"]) == (1, 3)


@pytest.mark.parametrize(
    ("conditions", "tripped"),
    [
        (["new_memorized > 0"], ["new_memorized > 0"]),
        (["gone_memorized > 0"], []),
        (["gone_memorized > 0", "changed_rate > 0.3 and prompts == 3"], ["changed_rate > 0.3 and prompts == 3"]),
        (["undecided > 0", "only_before + only_after > 0", "failed > 0"], []),
    ],
)
def test_a_condition_stops_a_release(run: Path, basin: Basin, conditions: list[str], tripped: list[str]) -> None:
    """With 3, after everything was written, and it is said which one held."""
    result = basin("compare", run, *(part for one in conditions for part in ("--fail-on", one)))
    assert result.code == (3 if tripped else 0)
    assert [line for line in result.err.splitlines() if line.startswith("tripped")] == [
        f"tripped: {one} (first → second)" for one in tripped
    ]
    assert written(run) == FILES


def test_a_condition_waits_for_the_end(tmp_path: Path, basin: Basin) -> None:
    """Of runs that go on, everything is written, with a warning; a condition is refused, whatever it says."""
    run = run_of(tmp_path / "run", first=generalizing, second=recalling)
    forget_second_audits(run)
    result = basin("compare", run)
    assert result.code == 0
    warning = "warning: 1 prompt still to be audited: what the comparison says may change"
    assert result.err.splitlines()[-1] == warning
    for condition in ("new_memorized > 0", "prompts > 0"):
        for name in FILES:
            (run / name).unlink()
        refused = basin("compare", run, "--fail-on", condition)
        assert (refused.code, refused.out) == (2, result.out)
        assert refused.err.splitlines()[1:] == ["error: no condition is judged: 1 prompt still to be audited"]
        assert written(run) == FILES


def test_a_lower_rate_claims_less(tmp_path: Path, basin: Basin) -> None:
    """What is 97% sure is claimed at a rate of 5% and not at one of 1%."""

    def nearly(report: report_pb2.Report, position: int) -> None:
        settle(report, 0.97, 0, 0.03)

    run = run_of(tmp_path / "run", first=generalizing, second=nearly)
    for rate, claimed in ((0.05, 3), (0.01, 0)):
        assert basin("compare", run, "--false-discoveries", rate).code == 0
        summary = json.loads((run / "compare.json").read_text())
        assert (summary["values"]["new_memorized"], summary["false_discovery_rate"]) == (claimed, rate)


def test_other_settings_are_warned_of(tmp_path: Path, basin: Basin) -> None:
    """One line each on stderr, with both values."""
    run = run_of(tmp_path / "run", first=generalizing, second=slower)
    result = basin("compare", run)
    (line,) = [line for line in result.err.splitlines() if line.startswith("warning")]
    assert "sampler: none, 20 steps" in line
    assert "→ none, 50 steps" in line
    assert result.code == 0


def test_a_run_is_not_compared_with_itself(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Neither a checkpoint under one name, nor a run of one, nor the same folder by another way."""
    (tmp_path / "link").symlink_to(run)
    assert is_one_error(basin("compare", run, "--before", "first", "--after", "first"), "both sides are 'first'")
    assert is_one_error(basin("compare", run, tmp_path / "link", "--before", "second", "--after", "second"), "both")
    assert basin("compare", run, tmp_path / "link", "--out", tmp_path / "out").code == 0  # first and second
    alone = run_of(tmp_path / "alone", only=generalizing)
    assert is_one_error(basin("compare", alone), "holds one checkpoint, 'only'", "second run")
    assert is_one_error(basin("compare", alone, alone), "holds one checkpoint, 'only'", "second run")
    assert written(run) == written(alone) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--before", "third"), ("no checkpoint 'third'", "'first', 'second'")),
        (("--after", "third"), ("no checkpoint 'third'", "'first', 'second'")),
        (("missing",), ("no folder",)),
        (("empty",), ("holds no batch",)),
        (("other",), ("--before", "'first', 'second'")),
        (("strangers", "--before", "first"), ("no prompt in common",)),
        (("--fail-on", "memorized > 0"), ("there is no memorized", "new_memorized_rate")),
        (("--fail-on", "new_memorized"), ("compare it with a number",)),
        (("--store", "nonsense"), ("no database URL",)),
        (("--out", "file"), ("file",)),
        (("--out", "file/below"), ("file",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    """Whatever is wrong is told before anything is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")

    def strange(report: report_pb2.Report, position: int) -> None:
        report.prompt = f"another prompt {position}"

    run_of(tmp_path / "other", third=generalizing)
    run_of(tmp_path / "strangers", first=strange)
    assert is_one_error(basin("compare", "run", *arguments), *words)
    assert not list(tmp_path.rglob("*compare*"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_of_another_version_is_refused(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Either one, and a store that is gone."""
    other = run_of(tmp_path / "other", second=generalizing)
    (other / "run.json").write_text('{"format": 2, "request_id": "a"}')
    for arguments in ((run, other), (other, run)):
        assert is_one_error(basin("compare", *arguments), "other holds a batch of another version")
    (run / "basin.db").unlink()
    assert is_one_error(basin("compare", run), "the store of", "is gone")
    assert not list(tmp_path.rglob("compare*"))
