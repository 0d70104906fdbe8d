"""`basin prompts`, and sets in `basin batch run`."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from audit import demo
from service.imported_prompts import FOLDER_VARIABLE
from tests.cli.conftest import CHEAP, Basin, is_one_error

CAT, CATS = "a cat asleep on a windowsill", "A cat asleep on a windowsill!"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where imports are kept; it is made when the first one is."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "kept" / "sets"))
    monkeypatch.setenv("COLUMNS", "400")  # tables hold paths, and those of tests are long
    return tmp_path / "kept" / "sets"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file: another column, a copy, a near-duplicate, a byte-order mark, a blank line, no last end of line."""
    file = tmp_path / "table.csv"
    file.write_bytes(f"\ufeffprompt,topic\r\n{CAT},pets\r\nsoup,food\r\n{CATS},pets\r\n\r\n{CAT},again".encode())
    return file


def kept(folder: Path) -> list[str]:
    """Names of the files of a folder, hidden ones aside; no half of anything is among those."""
    files = list(folder.iterdir()) if folder.exists() else []
    assert {file.name for file in files if file.name.startswith(".")} <= {".lock"}
    return sorted(file.name for file in files if not file.name.startswith("."))


def words(text: str) -> list[list[str]]:
    """Printed tables as words."""
    return [line.split() for line in text.splitlines()]


def test_shipped_sets_are_listed(basin: Basin) -> None:
    """Also before anything was imported; nothing is made by looking."""
    result = basin("prompts", "list")
    assert (result.code, result.err) == (0, "")
    header, *rows = words(result.out)
    assert header == ["name", "prompts", "origin", "description"]
    assert [row[:3] for row in rows] == [["demo", "98", "shipped"], ["ordinary", "208", "shipped"]]


def test_an_import_is_kept_byte_for_byte(basin: Basin, table: Path, folder: Path) -> None:
    """With its suffix; what is in it is said at once, listed afterwards, and its source may go."""
    content = table.read_bytes()
    result = basin("prompts", "import", table, "--name", "my.pets-1")
    assert (result.code, result.err) == (0, "")
    assert words(result.out) == [
        ["my.pets-1"],
        ["prompts", "4"],
        ["exact", "copies", "1", "of", "1", "prompts"],
        ["near-duplicates", "2", "in", "1", "groups"],
        ["longest", "29", "characters,", "prompt", "3"],
        ["other", "columns", "topic"],
        [],
        ["group", "prompt", "text"],
        ["1", "1", *CAT.split()],
        ["3", *CATS.split()],
    ]
    table.unlink()
    assert kept(folder) == ["my.pets-1.csv"]
    assert (folder / "my.pets-1.csv").read_bytes() == content
    assert basin("prompts", "list").out.splitlines()[2].split() == [
        "my.pets-1", "4", "imported", str(folder / "my.pets-1.csv"),
    ]  # fmt: skip
    assert basin("prompts", "check", "my.pets-1").out == result.out
    assert basin("prompts", "show", "my.pets-1").out.splitlines() == [CAT, "soup", CATS, CAT]


@pytest.mark.parametrize(
    ("source", "stored"),
    [("a.txt", "a.txt"), ("a", "a.txt"), (".csv", "a.txt"), ("x.MD", "a.MD"), ("v1.2.jsonl", "a.jsonl")],
)
def test_suffixes(basin: Basin, tmp_path: Path, folder: Path, source: str, stored: str) -> None:
    """A file reads the same as a set, whatever it was called."""
    file = tmp_path / source
    file.write_text('"prompt"\n')
    before = basin("prompts", "show", file).out
    assert basin("prompts", "import", file, "--name", "a").code == 0
    assert kept(folder) == [stored]
    assert basin("prompts", "show", "a").out == before


def test_names_with_dots(basin: Basin, tmp_path: Path, folder: Path) -> None:
    """What looks like a suffix in a name is none."""
    file = tmp_path / "plain"
    file.write_text("prompt,n\na,1\n")
    assert basin("prompts", "import", file, "--name", "release.csv").code == 0
    assert kept(folder) == ["release.csv.txt"]
    assert basin("prompts", "show", "release.csv").out.splitlines() == ["prompt,n", "a,1"]


def test_parquet(basin: Basin, tmp_path: Path) -> None:
    """And its columns, which may be called anything."""
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a"], "[bold]x": [1], "\x1b[2J": [None]}), file)
    result = basin("prompts", "import", file, "--name", "p")
    assert (result.code, result.err) == (0, "")
    assert "other columns    [bold]x, ⟨U+001B⟩[2J" in result.out


def test_a_set_is_replaced_only_when_that_is_wanted(basin: Basin, table: Path, tmp_path: Path, folder: Path) -> None:
    """And then as a whole, under whichever suffix; a bad file leaves the old one."""
    other, bad = tmp_path / "other.txt", tmp_path / "bad.jsonl"
    other.write_text("another\n")
    bad.write_text('"one"\n{"text": "two"}\n')
    assert basin("prompts", "import", table, "--name", "mine").code == 0
    assert is_one_error(basin("prompts", "import", other, "--name", "mine"), "'mine' already", "--replace")
    refused = basin("prompts", "import", bad, "--name", "mine", "--replace")
    assert is_one_error(refused, "bad.jsonl, line 2: no text under 'prompt'")
    assert (folder / "mine.csv").read_bytes() == table.read_bytes()
    assert kept(folder) == ["mine.csv"]
    assert basin("prompts", "import", other, "--name", "mine", "--replace").code == 0
    assert kept(folder) == ["mine.txt"]
    assert basin("prompts", "show", "mine").out == "another\n"
    assert basin("prompts", "import", folder / "mine.txt", "--name", "mine", "--replace").code == 0
    assert basin("prompts", "show", "mine").out == "another\n"


def test_a_set_is_removed(basin: Basin, table: Path, folder: Path) -> None:
    """Once; shipped ones stay."""
    assert basin("prompts", "import", table, "--name", "mine").code == 0
    result = basin("prompts", "remove", "mine")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert kept(folder) == []
    assert is_one_error(basin("prompts", "remove", "mine"), "no imported prompt set 'mine'")
    assert is_one_error(basin("prompts", "remove", "ordinary"), "'ordinary' comes with Basin")
    assert basin("prompts", "check", "ordinary").code == 0


@pytest.mark.parametrize("name", ["", "a b", "../a", "/etc/a", ".a", "-", "ä", "a" * 64, "a\n", "demo", "ordinary"])
def test_names_that_no_set_may_have(basin: Basin, table: Path, folder: Path, name: str) -> None:
    """Those that are none, and those of the shipped sets, --replace or not."""
    for more in ((), ("--replace",)):
        assert is_one_error(basin("prompts", "import", table, f"--name={name}", *more), "the name")
    assert not folder.exists()


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that are no prompts, and what is said of them."""
    for name, content, what in (
        ("empty.txt", b"", "empty.txt holds no prompts"),
        ("blank.csv", b"prompt,n\n\n", "blank.csv holds no prompts"),
        ("column.csv", b"text,n\na,1\n", "line 1: no column 'prompt'"),
        ("header.csv", b"prompt,n,n\na,1,2\n", "line 1: a name stands there twice"),
        ("latin.txt", "a café\n".encode("latin-1"), "no UTF-8 text"),
        ("cut.parquet", b"PAR1", "cut.parquet: "),
    ):
        (folder / name).write_bytes(content)
        yield folder / name, what
    with (folder / "gigabyte.txt").open("wb") as stream:
        stream.truncate(1 << 30)
    yield folder / "gigabyte.txt", "line 1: longer than 1,000,000 characters"


def test_bad_files_are_one_line(basin: Basin, tmp_path: Path, folder: Path) -> None:
    """For every command that reads; nothing of them is kept."""
    for file, what in bad_files(tmp_path):
        assert is_one_error(basin("prompts", "check", file), what)
        assert is_one_error(basin("prompts", "import", file, "--name", "bad"), what)
        shown = basin("prompts", "show", file)
        assert (shown.code, what in shown.err, len(shown.err.splitlines())) == (2, True, 1)
    missing = tmp_path / "missing.txt"
    assert is_one_error(basin("prompts", "import", missing, "--name", "bad"), f"there is no file {missing}")
    for other in (tmp_path, Path(os.devnull)):
        assert is_one_error(basin("prompts", "import", other, "--name", "bad"), f"{other} is no regular file")
    assert kept(folder) == []


@pytest.mark.parametrize("command", ["check", "show"])
def test_neither_a_file_nor_a_set(basin: Basin, table: Path, tmp_path: Path, command: str) -> None:
    """The sets that there are, are named; a folder is no file."""
    basin("prompts", "import", table, "--name", "mine")
    for given in ("nothing", tmp_path, "Demo"):
        assert is_one_error(basin("prompts", command, given), f"no file {given}", "demo, mine, ordinary")


def test_a_file_wins_over_a_set(basin: Basin, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the set's name does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("from the file\n")
    (tmp_path / "ordinary").mkdir()
    assert basin("prompts", "show", "demo").out == "from the file\n"
    assert len(basin("prompts", "show", "ordinary").out.splitlines()) == 208


def test_a_few_prompts(basin: Basin) -> None:
    """As many as are asked for."""
    assert basin("prompts", "show", "demo", "--limit", 3).out.splitlines() == demo.prompts()[:3]
    assert basin("prompts", "show", "demo").out.splitlines() == demo.prompts()
    assert basin("prompts", "show", "demo", "--limit", 0).code == 2


def test_what_cannot_be_seen_is_spelled_out(basin: Basin, tmp_path: Path) -> None:
    """Prompts take no hold of the terminal, and stay on their line."""
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps("a\n\x1b[2J [bold]b[/bold]"))
    assert basin("prompts", "show", file).out == "a⟨U+000A⟩⟨U+001B⟩[2J [bold]b[/bold]\n"


def test_groups_are_listed_as_far_as_wanted(basin: Basin, tmp_path: Path) -> None:
    """The others are counted."""
    file = tmp_path / "p.txt"
    file.write_text("".join(f"{text}\n{text.upper()}\n" for text in ("cat [red]", "dog", "bird")))
    result = basin("prompts", "check", file, "--groups", 2)
    assert words(result.out)[-5:] == [
        ["group", "prompt", "text"], ["1", "1", "cat", "[red]"], ["2", "CAT", "[RED]"], ["2", "3", "dog"], ["4", "DOG"],
    ]  # fmt: skip
    assert "near-duplicates  6 in 3 groups" in result.out
    assert result.err == "2 of 3 groups are listed: --groups lists more\n"
    assert "group  prompt" not in basin("prompts", "check", file, "--groups", 0).out


def test_a_damaged_set_hides_no_other(basin: Basin, table: Path, folder: Path) -> None:
    """The list goes on, and says what is wrong with it; so does whoever wants to read it."""
    basin("prompts", "import", table, "--name", "mine")
    (folder / "mine.csv").write_text("text\na\n")
    result = basin("prompts", "list")
    assert (result.code, [row[:2] for row in words(result.out)[1:]]) == (
        0, [["demo", "98"], ["mine", "–"], ["ordinary", "208"]],
    )  # fmt: skip
    assert result.err == "the prompt set 'mine': mine.csv, line 1: no column 'prompt'\n"
    assert is_one_error(basin("prompts", "check", "mine"), "mine.csv, line 1: no column 'prompt'")


def test_what_a_kill_left_is_no_set(basin: Basin, table: Path, folder: Path) -> None:
    """Nor is anything else in the folder; of two files of a name the newer one is the set."""
    basin("prompts", "import", table, "--name", "mine")
    (folder / ".partial-x").mkdir()
    (folder / ".partial-x" / "mine.txt").write_text("half")
    (folder / "my notes.txt").write_text("no name of a set")
    (folder / "deeper.csv").mkdir()
    (folder / "demo.txt").write_text("not the shipped one")
    (folder / "mine.txt").write_text("newer\n")
    os.utime(folder / "mine.csv", (0, 0))
    assert [row[:2] for row in words(basin("prompts", "list").out)[1:]] == [
        ["demo", "98"], ["mine", "1"], ["ordinary", "208"],
    ]  # fmt: skip
    assert basin("prompts", "show", "mine").out == "newer\n"
    assert basin("prompts", "remove", "mine").code == 0
    assert basin("prompts", "show", "mine").code == 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The disk is full: no file may grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_copy_that_cannot_be_finished_leaves_nothing(basin: Basin, table: Path, tmp_path: Path, folder: Path) -> None:
    """The set that was there is whole."""
    basin("prompts", "import", table, "--name", "mine")
    large = tmp_path / "large.csv"
    large.write_text("prompt\n" + "a cat\n" * 20_000)
    with files_of_at_most(10_000):
        refused = basin("prompts", "import", large, "--name", "mine", "--replace")
    assert is_one_error(refused, "File too large")
    assert kept(folder) == ["mine.csv"]
    assert (folder / "mine.csv").read_bytes() == table.read_bytes()


def test_a_folder_that_cannot_be_used_is_one_line(basin: Basin, table: Path, folder: Path) -> None:
    """Files are read all the same."""
    folder.parent.write_text("in the way")
    assert is_one_error(basin("prompts", "import", table, "--name", "mine"), str(folder.parent))
    assert basin("prompts", "check", table).code == 0


def test_the_folder_is_the_users_own(
    basin: Basin, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a variable names another."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert basin("prompts", "import", table, "--name", "mine").code == 0
    assert (tmp_path / "data" / "basin" / "prompts" / "mine.csv").exists()
    monkeypatch.setenv(FOLDER_VARIABLE, "~/elsewhere")
    assert basin("prompts", "import", table, "--name", "mine").code == 0
    assert (tmp_path / "home" / "elsewhere" / "mine.csv").exists()


# In `basin batch run`.


def test_a_batch_of_a_set(basin: Basin, tmp_path: Path) -> None:
    """Its columns come with the results; copies share an audit, which is said; the report tells them, too."""
    chosen = demo.prompts()[:2]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "images": 1}) + "\n" for text in (*chosen, chosen[0])))
    basin("prompts", "import", file, "--name", "mine")
    run = tmp_path / "run"
    result = basin("batch", "run", "--prompts", "mine", "--checkpoint", "demo", "--out", run, *CHEAP)
    assert result.code == 0
    assert [line for line in result.err.splitlines() if "distinct" in line] == [
        "3 prompts, 2 of them distinct: exact copies share their audits"
    ]
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["images"]) for row in rows] == [(chosen[0], 1), (chosen[1], 1), (chosen[0], 1)]
    assert rows[0]["key"] == rows[2]["key"] != rows[1]["key"]
    line = "Repeated prompts: 1 word for word, audited with the first."
    assert json.loads((run / "report.json").read_text())["repeats"] == {
        "line": line, "exact_copies": 1, "similarity": 0.7, "near_duplicates": [],
    }  # fmt: skip
    assert f"\n{line}\n" in (run / "report.md").read_text()
    file.write_text("".join(json.dumps({"prompt": text, "images": 1}) + "\n" for text in chosen))
    basin("prompts", "import", file, "--name", "mine", "--replace")
    again = basin("batch", "run", "--prompts", "mine", "--checkpoint", "demo", "--out", run, *CHEAP)
    assert is_one_error(again, "other prompts")


def test_a_batch_of_nothing(basin: Basin, table: Path, tmp_path: Path) -> None:
    """Neither a file nor a set: one line that names the sets, and no run folder."""
    basin("prompts", "import", table, "--name", "mine")
    run = tmp_path / "run"
    result = basin("batch", "run", "--prompts", "none", "--checkpoint", "demo", "--out", run, *CHEAP)
    assert is_one_error(result, "no file none", "demo, mine, ordinary")
    assert not run.exists()
    assert "set of that name" in " ".join(basin("batch", "run", "--help").out.replace("│", " ").split())
