"""`basin batch run`: what is refused, in one line, with nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command

from service.cli import app
from service.run_folder import claim, read_run
from service.store.engine import connect
from service.store.store import Store
from tests.cli.batch_runs import RUN, some
from tests.cli.conftest import CHEAP, Basin, is_one_error


def test_bad_input_is_one_line(basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is said in one line, with exit code 2, and leaves what was there as it was."""
    monkeypatch.chdir(tmp_path)
    good = some(tmp_path, 1)
    for name, content in (
        ("empty.txt", "\n \n"), ("nothing.csv", ""), ("no-column.csv", "text,n\nx,1\n"), ("broken.jsonl", "{"),
        ("file", "a file"), ("utf16.txt", "a red shirt\n".encode("utf-16")), ("no.parquet", "not one"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "run.json").write_text('{"format": 2, "request_id": "a", "novelty": 1}')
    (tmp_path / "newer-store").mkdir()
    with closing(Store(connect(f"sqlite:///{tmp_path}/newer.db"))) as store, store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = sorted(tmp_path.iterdir())
    for flags, words in (
        (("--prompts", "missing.txt"), ["missing.txt", "no file"]),
        (("--prompts", "notes"), ["notes"]),
        (("--prompts", "empty.txt"), ["empty.txt", "no prompts"]),
        (("--prompts", "nothing.csv"), ["nothing.csv", "no prompts"]),
        (("--prompts", "no-column.csv"), ["no-column.csv", "line 1", "'prompt'"]),
        (("--prompts", "broken.jsonl"), ["broken.jsonl", "line 1", "JSON"]),
        (("--prompts", "utf16.txt"), ["utf16.txt", "UTF"]),
        (("--prompts", "no.parquet"), ["no.parquet"]),
        (("--checkpoint", "missing"), ["missing"]),
        (("--checkpoint", "notes"), ["model_index.json"]),
        (("--reference", "missing"), ["missing"]),
        (("--store", "nonsense"), ["database URL"]),
        (("--store", "mysql://me:secret@host/name"), ["SQLite", "PostgreSQL"]),
        (("--store", "postgresql://me:secret@127.0.0.1:1/name"), ["postgresql://me:***@127.0.0.1:1/name"]),
        (("--store", f"sqlite:///{tmp_path}/file"), ["file", "not a database"]),
        (("--store", f"sqlite:///{tmp_path}/newer.db"), ["newer.db", "newer version"]),
        (("--out", "notes"), ["notes", "--out"]),
        (("--out", "file"), ["file", "--out"]),
        (("--out", "file/run"), ["file"]),
        (("--out", "/proc/basin/run"), ["/proc/basin"]),
        (("--out", "newer"), ["newer", "another version"]),
        (("--fail-on", "memorised > 0"), ["memorised > 0", "names:", "memorized"]),
        (("--fail-on", "memorized"), ["memorized", "compare"]),
        (("--fail-on", "memorized >"), ["memorized >"]),
        (("--fail-on", "__import__('os')"), ["no meaning"]),
        (("--size", "33"), ["height", "33"]),
        (("--scheduler", "bogus"), ["scheduler", "bogus"]),
        (("--curvature", "bogus"), ["curvature", "bogus"]),
        (("--seeds", "0"), ["seeds"]),
        (("--dtype", "float7"), ["float7"]),
        (("--device", "bogus"), ["bogus"]),
    ):
        command = {"--prompts": good, "--out": "new/run", **dict([flags])}
        result = basin(*RUN, *(part for pair in command.items() for part in pair))
        assert is_one_error(result, *words), flags
        assert "secret" not in result.err
        assert sorted(tmp_path.iterdir()) == before, flags
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "newer" / "run.json").read_text() == '{"format": 2, "request_id": "a", "novelty": 1}'


def float_options() -> Iterator[tuple[str, ...]]:
    """All options of all commands that take a float, each after the names of its command."""

    def walk(command: Any, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*names, name))
        hints = get_type_hints(command.callback) if command.callback else {}
        for option in command.params:
            hint = hints.get(option.name)
            if float in (hint, *get_args(hint)):
                yield (*names, option.opts[0])

    return walk(get_command(app), ())


@pytest.mark.parametrize("option", list(float_options()), ids=" ".join)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_floats_are_finite(basin: Basin, option: tuple[str, ...], value: str) -> None:
    """A run folder that held NaN could never be read again. Some versions of typer refuse it themselves in a range."""
    result = basin(*option[:-1], f"{option[-1]}={value}")
    assert (result.code, result.out) == (2, "")
    assert f"error: {option[-1]} must be finite" in result.err or f"Invalid value for '{option[-1]}'" in result.err


def test_a_pipe_is_refused(basin: Basin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of one are there only once."""
    monkeypatch.chdir(tmp_path)
    end, begin = os.pipe()
    os.write(begin, b"a red shirt\n")
    os.close(begin)
    try:
        for command in (("batch", "run", "--checkpoint", "demo"), ("batch", "submit")):
            assert is_one_error(basin(*command, "--prompts", f"/dev/fd/{end}"), f"/dev/fd/{end} is no regular file")
    finally:
        os.close(end)


def test_a_folder_holds_one_batch(basin: Basin, tmp_path: Path) -> None:
    """Other prompts or settings are refused and change nothing; so is a second process; a mended command is not."""
    out, file = tmp_path / "run", some(tmp_path, 2)
    (tmp_path / "broken.jsonl").write_text(file.read_text() + "{")
    assert is_one_error(basin(*RUN, "--prompts", tmp_path / "broken.jsonl", "--out", out), "broken.jsonl", "line 3")
    command = (*RUN, "--prompts", file, "--out", out)
    assert basin(*command).code == 0
    before = (out / "results.jsonl").read_text()
    (tmp_path / "more.jsonl").write_text(file.read_text() + '{"prompt": "a green bag"}\n')
    for change in (
        ("--prompts", tmp_path / "more.jsonl"),
        ("--steps", "3"),
        ("--reference", "demo"),
        ("--dtype", "bfloat16"),
    ):
        assert is_one_error(basin(*command, *change), str(out), "other prompts or settings", "--out")
    with claim(out):
        assert is_one_error(basin(*command), str(out), "another process")
    assert (out / "results.jsonl").read_text() == before
    # What is said of results may change: the audits are the same.
    assert basin(*command, "--false-discoveries", "1").code == 0
    assert read_run(out).false_discoveries == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--runner", "dask"), ("'dask'", "local, ray")),
        (("--runner", "ray", "--ray-address", "127.0.0.1:1"), ("127.0.0.1:1",)),
        (("--runner", "ray", "--ray-address", "ray://127.0.0.1:10001"), ("Ray clients",)),
        (("--runner", "ray", "--device", "cuda"), ("--ray-gpus",)),
    ],
)
def test_a_runner_that_is_not_there(
    basin: Basin, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """One line, and nothing is written."""
    (tmp_path / "prompts.txt").write_text("a red shirt")
    own = ("--prompts", tmp_path / "prompts.txt", "--checkpoint", "demo", "--out", tmp_path / "run")
    assert is_one_error(basin("batch", "run", *own, *CHEAP, *flags), *words)
    assert not (tmp_path / "run").exists()
