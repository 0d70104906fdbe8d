"""Run folders: who may work in them, and what they remember of their store."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from filelock import FileLock

from audit.errors import InvalidInput
from service.run_folder import Run, claim, kept_store, read_run, store_url, writable_url, write_run
from service.store.engine import connect


def test_a_folder_keeps_its_batch(tmp_path: Path) -> None:
    """Claimed again, it is the same run's; meanwhile nobody else gets it."""
    folder = tmp_path / "new" / "run"
    with claim(folder) as run:
        assert read_run(folder) == run
        with pytest.raises(InvalidInput, match="another process is at work") as refused, claim(folder):
            pass
        assert refused.value.reason == "FOLDER_LOCKED"
    with claim(folder) as again:
        assert again == run


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """All of it, and what an older folder does not say has its default."""
    run = Run(request_id="a", store="postgresql://host/name", false_discoveries=0.2)
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    (tmp_path / "run.json").write_text('{"format": 1, "request_id": "a"}')
    assert read_run(tmp_path) == Run(request_id="a")
    assert store_url(tmp_path, "") == f"sqlite:///{tmp_path}/basin.db"


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written into it."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="holds no batch") as refused, claim(tmp_path):
        pass
    assert refused.value.field == "out"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_what_a_killed_start_left_is_no_hindrance(tmp_path: Path) -> None:
    """Neither afterwards nor while another one is in its first moment."""
    (tmp_path / ".partial-run.json").write_text('{"form')
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(InvalidInput) as refused, claim(tmp_path):
            pass
        assert refused.value.reason == "FOLDER_LOCKED"
    with claim(tmp_path) as run:
        assert read_run(tmp_path) == run


def test_a_folder_that_became_no_run_is_as_it_was(tmp_path: Path) -> None:
    """What was made goes, with the store; what was there stays, and a run stays one."""
    there, run = tmp_path / "there", tmp_path / "run"
    there.mkdir()
    (there / ".partial-basin.db").write_text("half a store")
    with claim(run) as begun:
        pass

    def stop_inside(folder: Path) -> None:
        with claim(folder):
            connect(store_url(folder, ""))
            raise KeyboardInterrupt

    for folder in (tmp_path / "a" / "new", there, run):
        with pytest.raises(KeyboardInterrupt):
            stop_inside(folder)
    assert sorted(tmp_path.iterdir()) == [run, there]
    assert [file.name for file in there.iterdir()] == [".partial-basin.db"]
    assert read_run(run) == begun
    assert (run / "basin.db").exists()


def test_who_forgets_to_let_go_loses_nothing(tmp_path: Path) -> None:
    """A folder that became a run's stays one, though nobody says when the work ends."""
    claimed = claim(tmp_path)
    run = claimed.__enter__()
    del claimed
    gc.collect()
    assert read_run(tmp_path) == run


@pytest.mark.parametrize("name", ["what?", "what?uri=true", "no#1", "100%", "a%41", "à la carte"])
def test_any_folder_holds_its_store(tmp_path: Path, name: str) -> None:
    """Whatever its name means in URLs."""
    connect(store_url(tmp_path / name, "")).dispose()
    assert [file.name for file in (tmp_path / name).iterdir()] == ["basin.db"]
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_run_keeps_its_store(tmp_path: Path) -> None:
    """Named again, in whatever way, or not; another one is refused."""
    folder, url = tmp_path / "run", "postgresql://me:secret@host/name"
    away = Run(store=writable_url(url))
    assert kept_store(folder, away, "") == "postgresql://me@host/name"
    assert kept_store(folder, away, url) == url
    assert kept_store(folder, Run(), "") == store_url(folder, "")
    assert kept_store(folder, Run(), f"sqlite:///{folder}/../run/basin.db")
    for run, store in ((away, "postgresql://host/other"), (away, f"sqlite:///{folder}/basin.db"), (Run(), url)):
        with pytest.raises(InvalidInput, match="keeps its results in") as refused:
            kept_store(folder, run, store)
        assert (refused.value.reason, refused.value.field) == ("RUN_OF_ANOTHER_STORE", "store")
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("store", "written"),
    [
        ("", ""),
        ("postgresql://me:secret@host:5433/name?sslmode=require", "postgresql://me@host:5433/name?sslmode=require"),
        ("postgresql://host/name?user=me&password=secret", "postgresql://host/name?user=me"),
        ("sqlite:////there/basin.db", "sqlite:////there/basin.db"),
    ],
)
def test_passwords_are_not_written_down(store: str, written: str) -> None:
    """Everything else of the URL is."""
    assert writable_url(store) == written


def test_a_store_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file is written down as an absolute one."""
    monkeypatch.chdir(tmp_path)
    assert writable_url("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"
