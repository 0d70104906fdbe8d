"""`basin batch run`: what it leaves, and its exit codes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
from pyarrow import parquet

from audit import demo
from service.run_folder import read_run
from service.store.records import DONE
from tests.cli.batch_runs import RUN, lines, opened, prompt_file, some
from tests.cli.conftest import Basin


def test_a_run_leaves_what_it_found(basin: Basin, tmp_path: Path) -> None:
    """A table on stdout, rows in two files with what stood beside the prompts, and a folder that knows its batch."""
    memorized, generalized = (
        str(max(demo.truth(), key=lambda row: float(str(row[kind])))["prompt"]) for kind in ("memorized", "generalized")
    )
    long = "shirt " * 600
    file = prompt_file(
        tmp_path,
        {"prompt": generalized, "id": 7, "tags": ["a", "b"]},
        {"prompt": memorized, "id": "eight", "prompt_source": {"shop": "é"}},
        {"prompt": long},
        {"prompt": memorized, "outcome": "mine"},
    )
    out = tmp_path / "new" / "run"
    result = basin(
        "batch", "run", "--checkpoint", "demo", "--reference", "demo", "--prompts", file, "--out", out,
        "--seeds", 16, "--steps", 5, "--guidance", 1, "--curvature", "off",
    )  # fmt: skip
    assert result.code == 0, result
    rows = lines(out)
    assert [row["prompt"] for row in rows] == [generalized, memorized, long, memorized]
    assert [row["outcome"] for row in rows] == ["generalized", "memorized", "failed", "memorized"]
    assert [row["first_verdict"] for row in rows] == ["generalized", "memorized", None, "memorized"]
    assert [row["second_verdict"] for row in rows] == [None, "memorized", None, "memorized"]
    assert [row.get("id") for row in rows] == [7, "eight", None, None]
    assert (rows[0]["tags"], rows[1]["prompt_source"]) == (["a", "b"], {"shop": "é"})
    assert rows[3]["given_outcome"] == "mine"
    assert rows[2]["error"]
    assert "Error" not in rows[2]["error"]
    table = parquet.read_table(out / "results.parquet").to_pylist()
    assert [row["prompt"] for row in table] == [row["prompt"] for row in rows]
    assert [row["first_memorized"] for row in table] == [row["first_memorized"] for row in rows]
    assert [row["id"] for row in table] == ["7", '"eight"', None, None]
    heading, numbers = (line.split() for line in result.out.splitlines())
    named = [word for word in heading if word.isalpha()]
    assert named == ["checkpoint", "recurring", "memorized", "spurious", "generalized", "undecided", "failed"]
    assert numbers == ["demo", "2", "2", "0", "1", "0", "1"]
    with opened(out) as store:
        batch = store.batch_of(read_run(out).request_id)
        assert batch is not None
        assert (batch.state, batch.prompts) == (DONE, 4)
        assert store.counts(batch.id).done == 3  # the same prompt twice is one task, and one that confirms it
    again = basin(
        "batch", "run", "--checkpoint", "demo", "--reference", "demo", "--prompts", file, "--out", out,
        "--seeds", 16, "--steps", 5, "--guidance", 1, "--curvature", "off", "--fail-on", "memorized > 0",
    )  # fmt: skip
    assert again.code == 3
    assert again.out == result.out
    assert lines(out) == rows


def test_a_run_ends_with_its_report(basin: Basin, tmp_path: Path) -> None:
    """Whatever its exit code, and just as `basin report` writes it again."""
    out, names = tmp_path / "run", {"report.html", "report.json", "report.md"}
    command = (*RUN, "--prompts", some(tmp_path, 2), "--out", out)
    for conditions, code in (((), 0), (("--fail-on", "prompts > 0"), 3)):
        result = basin(*command, *conditions)
        assert result.code == code
        assert f"The page is {out / 'report.html'}." in result.err.splitlines()
        written = {file.name: file.read_bytes() for file in out.glob("report*")}
        assert written.keys() == names
        assert basin("report", out).code == 0
        assert {file.name: file.read_bytes() for file in out.glob("report*")} == written
        for name in names:
            (out / name).unlink()


def test_names_are_no_markup(basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are shown as they are called by every command that names them."""
    monkeypatch.chdir(tmp_path)
    out = "runs/[rc1]/x[/tmp]"
    shutil.copytree(demo.CHECKPOINT, tmp_path / "[red]one[" / "red]")
    shutil.copytree(demo.CHECKPOINT, tmp_path / "[red]")
    command = (*RUN, "--checkpoint", "[red]", "--checkpoint", "[red]one[/red]", "--prompts", some(tmp_path, 1))
    result = basin(*command, "--out", out, "--fail-on", "prompts > 0")
    assert result.code == 3
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["demo", "[red]", "red]"]
    assert f"The page is {out}/report.html." in result.err
    assert "tripped: prompts > 0 ([red])" in result.err
    assert f"The page is {out}/report.html." in basin("report", out).err
    compared = basin("compare", out, "--before", "[red]", "--after", "red]")
    assert compared.code == 0
    assert f"The page is {out}/compare.html." in compared.err
    told = basin("store", "info", "--run", out)
    assert told.code == 0
    assert f"sqlite:///{out}/basin.db" in unquote(told.out)
    assert basin("batch", "delete", out, "--yes").code == 0


def test_conditions_decide_the_exit_code(basin: Basin, tmp_path: Path, audited: list[str]) -> None:
    """3 where one holds for a checkpoint, which is named; and nothing is audited a second time for it."""
    other = shutil.copytree(demo.CHECKPOINT, tmp_path / "candidate")
    file, out = some(tmp_path, 2), tmp_path / "run"
    command = (*RUN, "--checkpoint", other, "--prompts", file, "--out", out)
    assert basin(*command, "--fail-on", "failed > 0").code == 0
    done = len(audited)
    assert done > 0
    result = basin(
        *command, "--fail-on", "failed > 0", "--fail-on", "prompts >= 2 and not failed > 0", "--fail-on", "prompts<3"
    )
    assert result.code == 3
    assert [line for line in result.err.splitlines() if line.startswith("tripped: ")] == [
        f"tripped: {condition} ({name})"
        for name in ("demo", "candidate")
        for condition in ("prompts >= 2 and not failed > 0", "prompts<3")
    ]
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["demo", "candidate"]
    assert len(audited) == done
    assert Counter(row["checkpoint"] for row in lines(out)) == {"demo": 2, "candidate": 2}


@pytest.mark.parametrize("condition", ["memorized > 0", "failed > 0", "prompts < 0 or failed == 1"])
def test_a_condition_needs_an_audit(basin: Basin, tmp_path: Path, condition: str) -> None:
    """Where every prompt failed, none is judged, whatever it says; everything is written nevertheless."""
    out, file = tmp_path / "run", prompt_file(tmp_path, {"prompt": "shirt " * 600})
    command = (*RUN, "--checkpoint", "demo", "--prompts", file, "--out", out)
    result = basin(*command, "--fail-on", condition)
    why = "error: no condition is judged: none of the prompts could be audited"
    assert (result.code, result.err.splitlines()[-1]) == (2, f"{why} (demo)")
    assert [row["outcome"] for row in lines(out)] == ["failed", "failed"]
    assert (out / "report.html").exists()
    assert basin(*command).code == 0
    compared = basin("compare", out, "--fail-on", "changed > 0")
    assert (compared.code, compared.err.splitlines()[-1]) == (2, f"{why} (demo → demo-2)")
    assert (out / "compare.html").exists()


def test_the_same_checkpoint_twice_is_audited_once(basin: Basin, tmp_path: Path, audited: list[str]) -> None:
    """And has a row under either name."""
    out = tmp_path / "run"
    assert basin(*RUN, "--checkpoint", "demo", "--prompts", some(tmp_path, 2), "--out", out).code == 0
    rows = lines(out)
    assert [row["checkpoint"] for row in rows] == ["demo", "demo", "demo-2", "demo-2"]
    assert len(audited) == len(set(audited))
    one, other = ([{**row, "checkpoint": ""} for row in rows[part]] for part in (slice(2), slice(2, 4)))
    assert one == other
