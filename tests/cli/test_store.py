"""`basin store` and `basin batch delete`: what they do to a run folder and its store, and each way that they refuse."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyarrow import parquet
from sqlalchemy import update

from audit.errors import InvalidInput
from audit.v1 import report_pb2
from service.cli.store import parse_age
from service.results import open_run, write_results
from service.run_folder import claim, read_run
from service.store.deletion import delete_batch, delete_prompt
from service.store.engine import connect
from service.store.records import DONE, RUNNING, Batch
from service.store.schema import BatchRow, ResultRow
from service.store.store import Store
from tests.cli.conftest import Basin, is_one_error
from tests.service.runs import make_up, plain_report

PICTURE = report_pb2.Image(png=b"FACE" * 100, height=8, width=8)
FILES = ["report.html", "report.json", "report.md", "results.jsonl", "results.parquet"]


def picture(report: report_pb2.Report, position: int) -> None:
    """Give a report a picture of its own, which is no PNG: nothing here draws it."""
    del report.samples[2:]
    sample = report.samples.add(seed=10, mode=0)
    sample.image.CopyFrom(PICTURE)


@pytest.fixture
def run(tmp_path: Path, basin: Basin) -> Path:
    """A finished run of three prompts that ended 40 days ago, with all the files that commands write."""
    folder = make_up(tmp_path / "run", 3, plain_report(), picture)
    age(folder, timedelta(days=40))
    with open_run(folder) as opened:
        write_results(opened.concluded, folder)
    assert basin("report", folder).code == 0
    assert files(folder) == ["basin.db", *FILES, "run.json"]
    return folder


def url_of(run: Path) -> str:
    """The store inside a run folder."""
    return f"sqlite:///{run}/basin.db"


def age(run: Path, by: timedelta) -> None:
    """Let a run's batch and audits have ended so long ago."""
    engine, time = connect(url_of(run)), datetime.now(UTC) - by
    with engine.begin() as connection:
        connection.execute(update(BatchRow).values(created=time, finished=time))
        connection.execute(update(ResultRow).values(finished=time))
    engine.dispose()


def batches(url: str) -> list[Batch]:
    """All batches of a store."""
    with closing(Store(connect(url, make=False))) as store:
        return store.batches()


def files(folder: Path) -> list[str]:
    """Everything in a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def files_with(folder: Path, mark: str) -> list[str]:
    """Files that hold a text."""
    return [
        name for name in files(folder) if (folder / name).is_file() and mark.encode() in (folder / name).read_bytes()
    ]


def prompts_of(run: Path) -> list[str | None]:
    """Prompts in results.parquet, which is compressed."""
    return list(parquet.read_table(run / "results.parquet").column("prompt").to_pylist())


# Looking.


def test_info_tells_what_is_there(run: Path, basin: Basin) -> None:
    """By either way of naming the store, and without changing it."""
    before = (run / "basin.db").read_bytes()
    for chosen in (("--run", run), ("--store", url_of(run))):
        result = basin("store", "info", *chosen)
        assert result.code == 0
        told = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in result.out.splitlines()[:8])
        assert told["store"] == url_of(run)
        assert re.fullmatch(r"\d{4}", told["version"])
        assert (told["batches"], told["prompts"], told["results"]) == ("1 done", "3", "3")
        assert re.fullmatch(r"[\d.]+ kB", told["size"])
        assert told["oldest batch"] == told["oldest result"]
        (batch,) = batches(url_of(run))
        assert re.search(rf"{batch.id} +done +3 +{batch.created:%Y-%m-%d}", result.out)
    assert (run / "basin.db").read_bytes() == before


def test_an_empty_store_has_nothing(tmp_path: Path, basin: Basin) -> None:
    """That is no error."""
    url = f"sqlite:///{tmp_path}/basin.db"
    connect(url).dispose()
    result = basin("store", "info", "--store", url)
    assert result.code == 0
    assert result.out.count("none") == 3


def test_the_store_may_be_named_by_the_environment(
    run: Path, basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where passwords are seen by nobody; a run folder that is named wins over it, and a flag over that."""
    other = make_up(tmp_path / "other", 1, plain_report(), lambda report, position: None)
    monkeypatch.setenv("BASIN_STORE", url_of(other))
    for chosen, prompts in (((), "1"), (("--run", run), "3"), (("--run", run, "--store", url_of(other)), "1")):
        result = basin("store", "info", *chosen)
        assert re.search(rf"prompts +{prompts} *\n", result.out), result


# Deleting.


def test_a_prompt_is_deleted_from_store_and_files(run: Path, basin: Basin) -> None:
    """The others' results and pages are as they were."""
    assert len(files_with(run, "prompt 1")) >= 4
    result = basin("store", "delete", "--run", run, "--prompt", "prompt 1", "--yes")
    assert (result.code, result.out) == (0, "deleted batches: 0, prompts: 1, results: 1\n")
    assert files_with(run, "prompt 1") == []
    assert [name for name in files(run) if name in FILES] == FILES
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts_of(run) == ["prompt 0", "prompt 2"]
    assert json.loads((run / "report.json").read_text())["batch"]["prompts"] == 2
    assert is_one_error(basin("store", "delete", "--run", run, "--prompt", "prompt 1", "--yes"), "no batch has this")


def test_cards_beside_a_page_go_too(tmp_path: Path, basin: Basin) -> None:
    """Also those of a page that needs fewer of them than before."""
    run = make_up(tmp_path / "run", 1001, plain_report(), lambda report, position: None)
    assert basin("report", run).code == 0
    assert [name.partition("-")[0] for name in files_with(run, "prompt 1000")] == [
        "basin.db", "report.html", "report/050",
    ]  # fmt: skip
    assert basin("store", "delete", "--run", run, "--prompt", "prompt 1000", "-y").code == 0
    assert files_with(run, "prompt 1000") == []
    assert not (run / "report").exists()
    assert "prompt 999" in (run / "report.html").read_text()


def test_a_batch_is_deleted_with_its_files(run: Path, basin: Basin) -> None:
    """What the run wrote down goes with it; the store stays."""
    (batch,) = batches(url_of(run))
    result = basin("store", "delete", "--run", run, "--batch", batch.id, "--yes")
    assert (result.code, result.out) == (0, "deleted batches: 1, prompts: 3, results: 3\n")
    assert not set(files(run)) & set(FILES)
    assert files_with(run, "prompt 1") == []
    assert batches(url_of(run)) == []
    assert is_one_error(basin("store", "delete", "--run", run, "--batch", batch.id, "--yes"), "no batch", batch.id)


def test_a_deletion_that_was_interrupted_is_repeated(run: Path, basin: Basin) -> None:
    """The store has it no more, and the files of the run still do: they are written anew, though nothing is found."""
    (batch,) = batches(url_of(run))
    engine = connect(url_of(run))
    delete_prompt(engine, "prompt 1")
    assert len(files_with(run, "prompt 1")) >= 3
    assert is_one_error(basin("store", "delete", "--run", run, "--prompt", "prompt 1", "-y"), "no batch has this")
    assert files_with(run, "prompt 1") == []
    assert prompts_of(run) == ["prompt 0", "prompt 2"]
    delete_batch(engine, batch.id)
    engine.dispose()
    assert is_one_error(basin("store", "delete", "--run", run, "--batch", batch.id, "-y"), "no batch", batch.id)
    assert not set(files(run)) & set(FILES)


@pytest.fixture
def reader(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Who reads a run's store until it is closed, so that SQLite's log cannot be emptied; nobody waits for it."""
    monkeypatch.setattr("service.store.engine.PATIENCE", 0.1)
    engine = connect(url_of(run))
    with ExitStack() as reading:
        connection = reading.enter_context(engine.execution_options(basin_reads=True).connect())
        connection.exec_driver_sql("SELECT * FROM items").all()
        yield reading
    engine.dispose()


def test_a_deletion_that_left_something_is_repeated(run: Path, basin: Basin, reader: ExitStack) -> None:
    """What it left goes then, though nothing is found."""
    command = ("store", "delete", "--run", run, "--prompt", "prompt 1", "-y")
    result = basin(*command)
    assert (result.code, "run this again" in result.err) == (2, True)
    assert [name for name in files_with(run, "prompt 1") if not name.startswith("basin.db")] == []
    assert files_with(run, "prompt 1") != []
    reader.close()
    assert is_one_error(basin(*command), "no batch has this prompt")
    assert files_with(run, "prompt 1") == []


def test_a_run_of_which_something_is_left_stays_one(run: Path, basin: Basin, reader: ExitStack) -> None:
    """So that its deletion can be repeated until nothing is."""
    assert is_one_error(basin("batch", "delete", run, "-y"), "run this again")
    assert {"run.json", "basin.db"} <= set(files(run))
    assert not set(files(run)) & set(FILES)
    assert files_with(run, "prompt 1") != []
    reader.close()
    assert basin("batch", "delete", run, "-y").code == 0
    assert not run.exists()


def test_what_is_old_is_deleted(run: Path, basin: Basin) -> None:
    """And nothing else."""
    for older_than, count in (("41d", 0), ("6w", 0), ("959h", 1)):
        result = basin("store", "delete", "--store", url_of(run), "--older-than", older_than, "-y")
        assert (result.code, result.out.partition(",")[0]) == (0, f"deleted batches: {count}")


def test_nothing_is_deleted_without_asking(run: Path, basin: Basin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question says what; no answer, and any but yes, deletes nothing."""
    (batch,) = batches(url_of(run))
    for flags, what in (
        (("--batch", batch.id), f"the batch {batch.id} (done, 3 prompts)"),
        (("--prompt", "prompt 1"), "this prompt, which stands 1 time in the store"),
        (("--prompt", "prompt 9"), "what files may still hold of it (no batch has this prompt)"),
        (("--older-than", "30d"), ", 1 of them"),
    ):
        for answer in ("", "n\n", "\n"):
            monkeypatch.setattr("sys.stdin", io.StringIO(answer))
            result = basin("store", "delete", "--store", url_of(run), *flags)
            assert (result.code, result.out) == (2, "")
            question, refusal = result.err.split("? [y/N] ")
            assert question.startswith("Delete ")
            assert what in " ".join(question.split())
            assert refusal.splitlines()[-1].startswith("error: nothing was deleted")
    assert batches(url_of(run)) == [batch]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert basin("store", "delete", "--store", url_of(run), "--batch", batch.id).code == 0
    assert batches(url_of(run)) == []


def test_a_run_is_deleted_whole(run: Path, basin: Basin) -> None:
    """The folder is gone."""
    result = basin("batch", "delete", run, "--yes")
    assert (result.code, result.out, result.err.splitlines()[-1]) == (0, "", "deleted")
    assert not run.exists()
    assert is_one_error(basin("batch", "delete", run, "--yes"), "no folder")


def test_what_else_is_in_a_run_folder_is_left_alone(run: Path, basin: Basin) -> None:
    """Whatever its name and place."""
    others = {"prompts.txt": "prompt 1", "report/notes.js": "mine", "report.pdf": "mine", "more/results.jsonl": "mine"}
    for name, text in others.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    result = basin("batch", "delete", run, "--yes")
    assert result.code == 0
    assert "what else is in" in result.err
    assert files(run) == sorted([*others, "more", "report"])
    assert {name: (run / name).read_text() for name in others} == others


def test_a_store_that_others_share_stays(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Only the run's own batch goes out of it, whether it is in the folder or elsewhere."""
    engine = connect(url_of(run))
    with closing(Store(engine)) as store:
        shared = store.create([], {"checkpoints": {}}, request_id="another").id
    assert basin("batch", "delete", run, "--yes").code == 0
    assert files(run) == ["basin.db"]
    assert [one.id for one in batches(url_of(run))] == [shared]


def test_a_run_whose_store_is_elsewhere(run: Path, basin: Basin, tmp_path: Path) -> None:
    """It must be there: otherwise the prompts would seem deleted and be kept."""
    (run / "basin.db").rename(tmp_path / "moved.db")
    url = f"sqlite:///{tmp_path}/moved.db"
    (run / "run.json").write_text(read_run(run).model_copy(update={"store": url}).model_dump_json())
    (tmp_path / "moved.db").rename(tmp_path / "away.db")
    before = files(run)
    assert is_one_error(basin("batch", "delete", run, "--yes"), "no store", "moved.db")
    assert files(run) == sorted({*before, ".lock"})
    assert basin("batch", "delete", run, "--yes", "--store", f"sqlite:///{tmp_path}/away.db").code == 0
    assert not run.exists()
    assert batches(f"sqlite:///{tmp_path}/away.db") == []


def test_what_was_deleted_halfway_is_deleted(run: Path, basin: Basin) -> None:
    """The store's file, or the batch in it, may be gone already."""
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    (run / "basin.db").unlink()
    (batch,) = batches(url_of(copy))
    with closing(Store(connect(url_of(copy)))) as store:
        store.delete(batch.id)
    for folder in (run, copy):
        assert basin("batch", "delete", folder, "--yes").code == 0
        assert not folder.exists()


def test_a_run_at_work_is_left_alone(run: Path, basin: Basin, tmp_path: Path) -> None:
    """By everything that would change it."""
    basin("store", "backup", tmp_path / "backup", "--run", run)
    before = {name: (run / name).read_bytes() for name in files(run) if name != ".lock"}
    with claim(run):
        for command in (
            ("batch", "delete", run, "-y"),
            ("store", "delete", "--run", run, "--prompt", "prompt 1", "-y"),
            ("store", "expire", "--run", run, "--prompts", "1d"),
            ("store", "restore", tmp_path / "backup", "--run", run, "--replace"),
        ):
            assert is_one_error(basin(*command), "another process is at work")
        assert basin("store", "info", "--run", run).code == 0
    assert {name: (run / name).read_bytes() for name in before} == before


# Expiring.


def test_what_is_too_old_is_removed(run: Path, basin: Basin) -> None:
    """Prompts from every file of the run, while its figures stay; pictures; in the end all of it."""
    assert len(files_with(run, "FACE")) == 1
    figures = json.loads((run / "report.json").read_text())["checkpoints"]
    kept = basin("store", "expire", "--run", run, "--prompts", "41d", "--samples", "41d", "--results", "41d")
    assert kept.out == "removed prompts: 0, pictures of results: 0; deleted batches: 0, results: 0\n"
    assert len(files_with(run, "prompt 1")) >= 4
    result = basin("store", "expire", "--run", run, "--prompts", "30d", "--samples", "41d")
    assert (result.code, result.out) == (
        0, "removed prompts: 3, pictures of results: 0; deleted batches: 0, results: 0\n",
    )  # fmt: skip
    assert files_with(run, "prompt 1") == []
    assert [name for name in files(run) if name in FILES] == FILES
    assert json.loads((run / "report.json").read_text())["checkpoints"] == figures
    assert "(removed)" in (run / "report.html").read_text()
    assert "(removed)" in (run / "report.md").read_text()
    repeats = json.loads((run / "report.json").read_text())["repeats"]
    assert (repeats["line"], repeats["exact_copies"], repeats["near_duplicates"]) == ("", 0, [])
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["first_verdict"]) for row in rows] == [(None, "generalized")] * 3
    assert prompts_of(run) == [None] * 3
    assert "removed from 1" in basin("store", "info", "--run", run).out
    assert basin("store", "expire", "--run", run, "--samples", "960h").out.startswith(
        "removed prompts: 0, pictures of results: 3"
    )
    assert files_with(run, "FACE") == []
    assert "deleted batches: 1, results: 3" in basin("store", "expire", "--run", run, "--results", "5w").out
    assert not set(files(run)) & set(FILES)


def test_a_run_that_goes_on_is_not_too_old(run: Path, basin: Basin) -> None:
    """However long ago it was begun."""
    (batch,) = batches(url_of(run))
    with closing(Store(connect(url_of(run)))) as store:
        store.set_state(batch.id, RUNNING)
    result = basin("store", "expire", "--run", run, "--prompts", "0d", "--samples", "0d", "--results", "0d")
    assert result.out == "removed prompts: 0, pictures of results: 0; deleted batches: 0, results: 0\n"


# Backups.


def test_a_run_is_restored_though_all_of_it_was_lost(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Its report says the same as before."""
    backup = tmp_path / "backup.db"
    result = basin("store", "backup", backup, "--run", run)
    assert (result.code, result.out.startswith(f"{backup}: ")) == (0, True)
    before = json.loads((run / "report.json").read_text())
    shutil.rmtree(run)
    assert basin("store", "restore", backup, "--run", run).code == 0
    assert basin("report", run).code == 0
    assert json.loads((run / "report.json").read_text()) == before


def test_a_run_that_is_restored_says_what_its_store_does(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Files that are there are written anew."""
    backup = tmp_path / "backup.db"
    basin("store", "backup", backup, "--run", run)
    basin("store", "delete", "--run", run, "--prompt", "prompt 1", "--yes")
    assert is_one_error(basin("store", "restore", backup, "--run", run), "already", "--replace")
    assert files_with(run, "prompt 1") == []
    assert basin("store", "restore", backup, "--run", run, "--replace").code == 0
    assert len(files_with(run, "prompt 1")) >= 4
    assert prompts_of(run) == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_restore_that_fails_leaves_no_folder(run: Path, basin: Basin, tmp_path: Path) -> None:
    """Nor anything in one that is there."""
    (tmp_path / "text").write_text("no backup")
    assert is_one_error(basin("store", "restore", tmp_path / "text", "--run", tmp_path / "new"), "no store")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "mine" / ".lock").write_text("mine")
    basin("store", "backup", tmp_path / "backup", "--run", run)
    assert is_one_error(basin("store", "restore", tmp_path / "backup", "--run", tmp_path / "mine"), "holds no batch")
    assert files(tmp_path / "mine") == [".lock", "file"]


def test_backups_without_a_run(run: Path, basin: Basin, tmp_path: Path) -> None:
    """By URLs alone."""
    backup, target = tmp_path / "to" / "backup.db", f"sqlite:///{tmp_path}/there/basin.db"
    assert basin("store", "backup", backup, "--store", url_of(run)).code == 0
    assert is_one_error(basin("store", "backup", backup, "--store", url_of(run)), "already", "--replace")
    assert basin("store", "backup", backup, "--store", url_of(run), "--replace").code == 0
    assert basin("store", "restore", backup, "--store", target).code == 0
    assert batches(target) == batches(url_of(run))


# Bad input.


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing may be made."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


COMMANDS = [
    ("info",),
    ("delete", "--batch", "a", "-y"),
    ("delete", "--prompt", "a", "-y"),
    ("delete", "--older-than", "1d", "-y"),
    ("expire", "--prompts", "1d"),
    ("backup", "BACKUP"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_stores_that_are_none(command: tuple[str, ...], basin: Basin, empty: Path, tmp_path: Path) -> None:
    """Each is told in one line, by every command, and nothing is made or changed."""
    (tmp_path / "text").write_text("a red shirt\n" * 1000)
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as connection:
        connection.execute("CREATE TABLE prompts (prompt TEXT)")
    newer = connect(f"sqlite:///{tmp_path}/newer.db")
    with newer.begin() as changing:
        changing.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    newer.dispose()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    arguments = ["store", *(part.replace("BACKUP", f"{empty}/backup") for part in command)]
    for chosen, word in (
        ((), "--store or a --run"),
        (("--store", "nonsense"), "no database URL"),
        (("--store", "mysql://a:secret@b/c"), "must be an SQLite file or PostgreSQL"),
        (("--store", f"sqlite:///{empty}/basin.db"), "there is no store"),
        (("--store", f"sqlite:///{tmp_path}/text"), "is no store"),
        (("--store", f"sqlite:///{tmp_path}/foreign.db"), "is no store"),
        (("--store", f"sqlite:///{tmp_path}/newer.db"), "newer version"),
        (("--store", "postgresql://a:secret@127.0.0.1:1/b"), "127.0.0.1"),
        (("--run", tmp_path / "missing"), "no folder"),
        (("--run", empty), "holds no batch"),
    ):
        result = basin(*arguments, *chosen)
        assert is_one_error(result, word)
        assert "secret" not in result.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    "age", ["30", "d", "-1d", "1y", "1e3d", "\uff11d", "nan", "36501d", "9999999h", "1d 2h", "∞", "P30D"]
)
def test_ages_that_are_none(run: Path, basin: Basin, age: str) -> None:
    """Are refused, and nothing is removed."""
    assert is_one_error(basin("store", "delete", "--run", run, f"--older-than={age}", "-y"), "--older-than", "30d")
    for name in ("prompts", "samples", "results"):
        assert is_one_error(basin("store", "expire", "--run", run, f"--{name}={age}"), f"--{name} takes an age")
    assert len(batches(url_of(run))) == 1


@pytest.mark.parametrize(
    ("age", "hours"), [("12h", 12), ("30d", 720), ("8w", 1344), ("0d", 0), ("1.5d", 36), (" 36500d ", 876_000)]
)
def test_ages(age: str, hours: float) -> None:
    """Hours, days and weeks."""
    assert parse_age(age, "prompts") == timedelta(hours=hours)
    with pytest.raises(InvalidInput):
        parse_age(f"{age}{age}", "prompts")


def test_what_is_to_be_deleted_must_be_said(run: Path, basin: Basin) -> None:
    """One thing at a time; an empty text is nothing."""
    for flags in ((), ("--batch", ""), ("--prompt", ""), ("--batch", "a", "--prompt", "b")):
        assert is_one_error(basin("store", "delete", "--run", run, "-y", *flags), "one of --batch")
    assert is_one_error(basin("store", "expire", "--run", run), "--prompts, --samples or --results")
    assert [one.state for one in batches(url_of(run))] == [DONE]
