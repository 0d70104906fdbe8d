"""Prompts from files, as their writers wrote them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audit.errors import InvalidInput, NotFound
from audit.limits import MAX_PROMPT_CHARACTERS
from service.prompts import MOST_LINE, PromptEntry, read_prompts

#: Outer spaces, emoji, quotes, separators that end no line, a byte-order mark in the middle.
ODD = [
    "  a red shirt ", "\ta\tb", "Zoë 🎨", "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", 'say "hi", she said', "'", '"',  ",",
    "\\n",
    "👩\u200d🎨", "a\ufeffb", "e\u0301", "\u202eright to left", "{}", "[1", "#", "null", "-1", "\x1b[31m", "\x7f",
]  # fmt: skip
SUFFIXES = [".txt", ".jsonl", ".csv", ".parquet"]

#: Prompts that every format can hold.
prompts = (st.sampled_from(ODD) | st.text(max_size=40)).filter(lambda text: text.strip() and "\0" not in text)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=5,
)
names = st.text(max_size=9).filter(lambda name: name != "prompt")
#: Files are written over again in every example.
examples = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(folder: Path, name: str, content: str | bytes, *, mark: bool = False) -> Path:
    """A file, with a byte-order mark where that is asked for or where the content begins with one of its own."""
    file = folder / name
    if isinstance(content, str):
        content = content.encode("utf-8-sig" if mark or content.startswith("\ufeff") else "utf-8")
    file.write_bytes(content)
    return file


def read(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Prompts with what stands beside them."""
    return [(entry.prompt, entry.extra) for entry in read_prompts(file)]


def refusal(file: Path) -> InvalidInput:
    """Why a file is refused: in one line that names it."""
    with pytest.raises(InvalidInput) as refused:
        list(read_prompts(file))
    assert refused.value.field == "prompts"
    assert file.name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    return refused.value


def outcome(file: Path) -> list[tuple[str, dict[str, Any]]] | InvalidInput:
    """What is read, or why it is refused."""
    try:
        return read(file)
    except InvalidInput as error:
        return error


# What is read.


def test_lines_of_text(tmp_path: Path) -> None:
    """One prompt a line, to the last space; lines that are blank are none."""
    file = put(tmp_path, "prompts.txt", "a cat\n\n  two dogs \n \t\n\u2028\na cat\r\n\r\nlast")
    assert list(read_prompts(file)) == [PromptEntry(text) for text in ("a cat", "  two dogs ", "a cat", "last")]


@pytest.mark.parametrize("name", ["prompts", "prompts.text", "prompts.md", "jsonl", "prompts.csv.bak"])
def test_other_suffixes_are_text(tmp_path: Path, name: str) -> None:
    """Whatever the lines look like."""
    assert read(put(tmp_path, name, 'prompt,n\n{"prompt": "x"}\n')) == [("prompt,n", {}), ('{"prompt": "x"}', {})]


@examples
@given(st.lists(prompts, min_size=1), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@example(ODD, "\n", False, False)
@example(ODD, "\r\n", True, True)
def test_text_comes_back(tmp_path: Path, texts: list[str], end: str, last: bool, mark: bool) -> None:
    """With either end of line, with and without a byte-order mark or an end of the last line."""
    texts = [line for line in (text.replace("\n", " ").rstrip("\r") for text in texts) if line.strip()] or ["x"]
    file = put(tmp_path, "prompts.txt", end.join(texts) + end * last, mark=mark)
    assert read(file) == [(text, {}) for text in texts]


@examples
@given(
    st.lists(st.tuples(prompts, st.dictionaries(names, plain, max_size=3)), min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n", "\n\n \n"]),
    st.booleans(),
    st.booleans(),
)
def test_json_lines_come_back(
    tmp_path: Path, rows: list[tuple[str, dict[str, Any]]], end: str, ascii_only: bool, mark: bool
) -> None:
    """Prompts with line feeds in them, too; every other value with its type."""
    lines = [json.dumps({**extra, "prompt": text}, ensure_ascii=ascii_only) for text, extra in rows]
    found = read(put(tmp_path, "prompts.jsonl", end.join(lines), mark=mark))
    assert found == rows
    assert json.dumps([extra for _, extra in found]) == json.dumps([extra for _, extra in rows])  # 1, 1.0 and True


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_json_strings_are_prompts(tmp_path: Path, suffix: str) -> None:
    """A line may be the prompt alone."""
    assert read(put(tmp_path, f"prompts{suffix}", '"a\\ncat"\n{"prompt": "b", "n": 1}')) == [
        ("a\ncat", {}),
        ("b", {"n": 1}),
    ]


@examples
@given(
    st.data(),
    st.lists(names, unique=True, max_size=3),
    st.sampled_from([(".csv", ","), (".tsv", "\t"), (".CSV", ",")]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_csv_comes_back(
    tmp_path: Path, data: st.DataObject, others: list[str], kind: tuple[str, str], end: str, mark: bool
) -> None:
    """Quotes, separators and line ends of any kind inside of fields, and columns in any order."""
    header = data.draw(st.permutations(["prompt", *others]))
    cell = st.text(max_size=9) | st.sampled_from(ODD) | st.sampled_from(["", "a\r\nb", "a\rb", "\n\n", '"\n"'])
    row = st.fixed_dictionaries({name: prompts if name == "prompt" else cell for name in header})
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    content = io.StringIO()
    writer = csv.writer(content, delimiter=kind[1], lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([header, *([one[name] for name in header] for one in rows)])
    assert read(put(tmp_path, f"prompts{kind[0]}", content.getvalue(), mark=mark)) == [
        (one["prompt"], {name: value for name, value in one.items() if name != "prompt"}) for one in rows
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_by_hand(tmp_path: Path, end: str) -> None:
    """Unquoted fields keep their spaces; lines that are blank hold nothing; the last line needs no end."""
    lines = ["n,prompt,note", "1, a cat ,x", "", " , ,\t", '2,"two\nlines, ""quoted""",', "", "3,it's,y"]
    assert read(put(tmp_path, "prompts.csv", end.join(lines))) == [
        (" a cat ", {"n": "1", "note": "x"}),
        ('two\nlines, "quoted"', {"n": "2", "note": ""}),
        ("it's", {"n": "3", "note": "y"}),
    ]


@examples
@given(st.lists(st.tuples(prompts, st.none() | st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)), min_size=1))
def test_parquet_comes_back(tmp_path: Path, rows: list[tuple[str, int | None, str]]) -> None:
    """With the types of the other columns."""
    columns = {"n": [n for _, n, _ in rows], "prompt": [text for text, _, _ in rows], "é": [note for *_, note in rows]}
    file = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    assert read(file) == [(text, {"n": n, "é": note}) for text, n, note in rows]


def test_columns_become_what_json_has(tmp_path: Path) -> None:
    """What a database cannot keep as JSON is null or text."""
    table = pyarrow.table(
        {
            "prompt": pyarrow.array(["a", "b"]).dictionary_encode(),
            "score": [math.nan, 0.5],
            "scores": [[1.0, math.inf], [-math.inf]],
            "tags": [["x"], None],
            "nested": [{"deep": True}, {"deep": False}],
            "when": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None],
            "day": [date(2026, 1, 2), date(1, 1, 1)],
            "price": [Decimal("1.50"), None],
            "raw": [b"\xff", b""],
        }
    )
    file = tmp_path / "prompts.parquet"
    parquet.write_table(table, file)
    (_, one), (_, other) = read(file)
    assert one == {
        "score": None, "scores": [1.0, None], "tags": ["x"], "nested": {"deep": True},
        "when": "2026-01-02 03:04:05+00:00", "day": "2026-01-02", "price": "1.50", "raw": "b'\\xff'",
    }  # fmt: skip
    assert other == {
        "score": 0.5, "scores": [None], "tags": None, "nested": {"deep": False}, "when": None, "day": "0001-01-01",
        "price": None, "raw": "b''",
    }  # fmt: skip
    lines = put(tmp_path, "prompts.jsonl", '{"prompt": "a", "score": NaN, "scores": [Infinity, -Infinity, 1]}')
    assert read(lines) == [("a", {"score": None, "scores": [None, None, 1]})]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_duplicates_are_kept(tmp_path: Path, suffix: str) -> None:
    """It is not for the reader to drop what was given twice."""
    texts = ["a", "b", "a", "a"]
    assert [text for text, _ in read(write(tmp_path, suffix, texts))] == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_longest_prompt(tmp_path: Path, suffix: str) -> None:
    """Is read; one character more is refused, in characters and not in bytes."""
    longest = "🎨" * MAX_PROMPT_CHARACTERS
    assert read(write(tmp_path, suffix, [longest])) == [(longest, {})]
    assert f"{MAX_PROMPT_CHARACTERS:,}" in str(refusal(write(tmp_path, suffix, ["x", longest + "a"])))


def write(folder: Path, suffix: str, texts: list[str]) -> Path:
    """Prompts in a file of any format."""
    file = folder / f"prompts{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table({"prompt": texts}), file)
    elif suffix == ".jsonl":
        put(folder, file.name, "\n".join(json.dumps({"prompt": text}) for text in texts))
    else:
        put(folder, file.name, "\n".join(["prompt"] * (suffix == ".csv") + texts))
    return file


# What is refused.


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.csv", "p.tsv"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_files_without_prompts(tmp_path: Path, name: str, content: bytes) -> None:
    """An empty file is an error, not a batch that finds nothing."""
    assert refusal(put(tmp_path, name, content)).reason == "PROMPTS_EMPTY"


def test_tables_without_rows(tmp_path: Path) -> None:
    """Neither is a header."""
    assert refusal(put(tmp_path, "p.csv", "prompt,n\n\n,\n")).reason == "PROMPTS_EMPTY"
    assert refusal(write(tmp_path, ".parquet", pyarrow.array([], pyarrow.string()))).reason == "PROMPTS_EMPTY"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("p.csv", "text,n\na,1\n", "line 1: no column 'prompt'"),
        ("p.csv", "Prompt\na\n", "line 1: no column 'prompt'"),
        ("p.tsv", "prompt,n\na,1\n", "line 1: no column 'prompt'"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: a name stands there twice"),
        ("p.csv", "prompt,n,n\na,1,2\n", "line 1: a name stands there twice"),
        ("p.csv", "prompt,n\na,1\nb\n", "line 3: 1 columns, the header has 2"),
        ("p.csv", 'prompt,n\n"a\nb",1\n"c\n\nd",2,3\n', "line 6: 3 columns, the header has 2"),
        ("p.csv", "prompt,n\na,1\n,2\n", "line 3: no text under 'prompt'"),
        ("p.csv", 'prompt\n"a\nb', "line 3: unexpected end of data"),
        ("p.csv", 'prompt\n"a"b\n', "line 2: ',' expected after '\"'"),
        ("p.csv", "prompt\na\rb\n", "line 2: new-line character"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "line 3: no JSON"),
        ("p.json", '[\n  {"prompt": "a"}\n]\n', "line 1: no JSON"),
        ("p.jsonl", '{"prompt": "a"} {"prompt": "b"}', "line 1: no JSON"),
        ("p.jsonl", "a red shirt", "line 1: no JSON"),
        ("p.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}", "line 1: no JSON"),
        ("p.jsonl", "[" * 100_000, "line 1: no JSON"),
        ("p.jsonl", '["a"]', "line 1: neither an object nor a string"),
        ("p.jsonl", '"a"\n5', "line 2: neither an object nor a string"),
        ("p.jsonl", "null", "line 1: neither an object nor a string"),
        ("p.jsonl", '"a"\n{"text": "b"}', "line 2: no text under 'prompt'"),
        ("p.jsonl", '{"prompt": 5}', "line 1: no text under 'prompt'"),
        ("p.jsonl", '{"prompt": null}', "line 1: no text under 'prompt'"),
        ("p.jsonl", '{"prompt": " \\n"}', "line 1: no text under 'prompt'"),
        ("p.jsonl", '""', "line 1: no text under 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: a name stands there twice"),
        ("p.jsonl", '"a"\n{"prompt": "a", "n": {"m": 1, "m": 2}}', "line 2: a name stands there twice"),
        ("p.jsonl", '"a"\n{"prompt": "b\\ud800"}', "line 2: half a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "note": ["\\udfff"]}', "line 1: half a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "\\udfff": 1}', "line 1: half a surrogate pair"),
        ("p.jsonl", '"a\\u0000b"', "NUL"),
        ("p.txt", "a\0b", "NUL"),
        ("p.txt", "a cat".encode("utf-16-le"), "NUL"),
        ("p.csv", "prompt\na\0b\n", "NUL"),
        ("p.txt", "a cat".encode("utf-16"), "no UTF-8 text"),
        ("p.parquet", b"", "Parquet"),
        ("p.parquet", b"prompt\na\n" * 10, "Parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, what: str) -> None:
    """In one line, with the place where there is one."""
    refused = refusal(put(tmp_path, name, content))
    assert refused.reason == "PROMPTS_UNREADABLE"
    assert what in str(refused)


@pytest.mark.parametrize("depth", range(100, 1100, 50))
def test_deep_json_is_read_or_refused(tmp_path: Path, depth: int) -> None:
    """Wherever the interpreter's limit lies."""
    file = put(tmp_path, "p.jsonl", '{"prompt": "a", "n": ' + "[" * depth + "]" * depth + "}")
    found = outcome(file)
    if isinstance(found, InvalidInput):
        assert "line 1: no JSON" in str(found)
    else:
        assert [text for text, _ in found] == ["a"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
@pytest.mark.parametrize("place", [0, 10, (1 << 16) - 1, 1 << 16, (1 << 17) - 2])
@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xc3(", b"\xed\xa0\x80", b"\xf0\x9f\x8e", b"\xc0\xaf"])
def test_invalid_utf_8_is_refused_wherever_it_is(tmp_path: Path, name: str, place: int, broken: bytes) -> None:
    """Also on the border of what is read at once, and where a character ends with the file."""
    line = {"p.txt": b"a\n", "p.jsonl": b'"a"\n', "p.csv": b"prompt\n"}[name]
    before = (line * (place // len(line) + 1))[:place]
    for after in (b"", b"\n" + line * 10):
        refused = refusal(put(tmp_path, name, before + broken + after))
        assert refused.reason == "PROMPTS_UNREADABLE"
        assert "no UTF-8 text" in str(refused)


@pytest.mark.parametrize("shift", range(-4, 5))
def test_characters_on_the_border_of_what_is_read_at_once(tmp_path: Path, shift: int) -> None:
    """Of four bytes, of two, and a line end of two: none is torn apart."""
    texts = ["a" * ((1 << 16) // 20 - 2)] * 19
    size = sum(len(text) + 2 for text in texts)
    texts += ["b" * ((1 << 16) - size + shift) + "🎨é", "c"]
    assert read(put(tmp_path, "p.txt", "\r\n".join(texts))) == [(text, {}) for text in texts]


def test_a_byte_order_mark_belongs_to_the_start_only(tmp_path: Path) -> None:
    """There it is no part of the first prompt or name; elsewhere it is text like any other."""
    assert read(put(tmp_path, "p.txt", "a\n\ufeffb", mark=True)) == [("a", {}), ("\ufeffb", {})]
    assert read(put(tmp_path, "p.csv", "prompt\na\n", mark=True)) == [("a", {})]
    assert read(put(tmp_path, "p.jsonl", '{"prompt": "a"}', mark=True)) == [("a", {})]


@pytest.mark.parametrize("suffix", ["", ".jsonl", ".csv", ".parquet"])
def test_files_that_are_not_there(tmp_path: Path, suffix: str) -> None:
    """A missing file, a file below a file, a name that no file has: each in one line."""
    (tmp_path / "file").touch()
    for name, why in (("missing", "No such file"), ("file/below", "Not a directory")):
        with pytest.raises(NotFound, match=why) as missing:
            list(read_prompts(tmp_path / f"{name}{suffix}"))
        assert (missing.value.reason, missing.value.field) == ("PROMPTS_NOT_FOUND", "prompts")
        assert len(str(missing.value).splitlines()) == 1
    assert "null byte" in str(refusal(tmp_path / f"nothing\0{suffix}"))


@pytest.mark.parametrize("suffix", ["", ".jsonl", ".csv", ".parquet"])
def test_what_is_no_regular_file(tmp_path: Path, suffix: str) -> None:
    """A folder, a device, a pipe that waits for its writer, and one that would give its prompts once."""
    folder, pipe, device = (tmp_path / f"{name}{suffix}" for name in ("folder", "pipe", "device"))
    folder.mkdir()
    os.mkfifo(pipe)
    device.symlink_to(os.devnull)
    end, begin = os.pipe()
    os.write(begin, b"a red shirt\n")
    os.close(begin)
    try:
        for file in (folder, pipe, device, Path(f"/dev/fd/{end}")):
            refused = refusal(file)
            assert refused.reason == "PROMPTS_NOT_A_FILE"
            assert f"{file} is no regular file" in str(refused)
    finally:
        os.close(end)


def test_files_that_cannot_be_read() -> None:
    """The system's own words, when it refuses in mid-file."""
    with pytest.raises(NotFound, match="Input/output error"):
        list(read_prompts(Path("/proc/self/mem")))


def test_parquet_without_the_column(tmp_path: Path) -> None:
    """Nor with two of a name, nor with prompts that are no text."""
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"]}), file)
    assert "no column 'prompt'" in str(refusal(file))
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), file)
    assert "twice" in str(refusal(file))
    parquet.write_table(pyarrow.table({"prompt": [1]}), file)
    assert "line 1: no text under 'prompt'" in str(refusal(file))
    parquet.write_table(pyarrow.table({"prompt": ["a", None]}), file)
    assert "line 2: no text under 'prompt'" in str(refusal(file))
    parquet.write_table(pyarrow.table({"prompt": ["a\0b"]}), file)
    assert "NUL" in str(refusal(file))
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff\xfe"]).buffers())
    parquet.write_table(pyarrow.table({"prompt": broken}), file)
    assert "no UTF-8 text" in str(refusal(file))


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([1], pyarrow.timestamp("ns")),
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([10**9], pyarrow.date32()),
        pyarrow.array([2**62], pyarrow.duration("s")),
    ],
    ids=["nanoseconds", "year", "day", "duration"],
)
def test_times_that_python_has_not(tmp_path: Path, column: Any) -> None:
    """Are no reason for a traceback."""
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a"], "when": column}), file)
    assert refusal(file).reason == "PROMPTS_UNREADABLE"


def test_damaged_parquet(tmp_path: Path) -> None:
    """Cut off anywhere, it is refused; with other bytes in it, it is refused or read, and no worse."""
    whole = write(tmp_path, ".parquet", [f"prompt {index}" for index in range(300)]).read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(whole), 100):
        assert refusal(put(tmp_path, "cut.parquet", whole[:length])).reason == "PROMPTS_UNREADABLE"
    refused = []
    for _ in range(200):
        content = bytearray(whole)
        content[rng.integers(len(whole))] = rng.integers(256)
        found = outcome(put(tmp_path, "changed.parquet", bytes(content)))
        if isinstance(found, InvalidInput):
            refused.append(str(found))
    assert refused
    assert {len(text.splitlines()) for text in refused} == {1}


# Memory.


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Whatever happens in here takes no more memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
@pytest.mark.parametrize("content", [b"", b"a", b'"'], ids=["nul", "letters", "quoted"])
def test_a_line_without_an_end(tmp_path: Path, name: str, content: bytes) -> None:
    """A gigabyte that is one line, on a disk that takes holes, is refused before it is in memory."""
    file = put(tmp_path, name, content * (3 * MOST_LINE if content == b"a" else 1))
    with file.open("r+b") as stream:
        stream.truncate(1 << 30)
    with at_most(24):
        assert f"line 1: longer than {MOST_LINE:,} characters" in str(refusal(file))


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    """It does not take the rest of the file into memory."""
    file = put(tmp_path, "p.csv", 'prompt\n"a\n' + f"{'b' * 99}\n" * 200_000)
    with at_most(24):
        assert "field larger than field limit" in str(refusal(file))


def test_the_longest_line(tmp_path: Path) -> None:
    """Is read."""
    note = "é" * (MOST_LINE - len('{"prompt": "a", "note": ""}'))
    assert read(put(tmp_path, "p.jsonl", f'"x"\n{{"prompt": "a", "note": "{note}"}}\n"y"')) == [
        ("x", {}),
        ("a", {"note": note}),
        ("y", {}),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    """Ten megabytes take less than three."""
    file = write(tmp_path, suffix, [f"{index} {'x' * 190}" for index in range(50_000)])
    before = pyarrow.total_allocated_bytes()
    count = most = 0
    with at_most(3):
        for count, _ in enumerate(read_prompts(file), 1):
            if count % 500 == 0:
                most = max(most, pyarrow.total_allocated_bytes() - before)
    assert count == 50_000
    assert most < 6 * 2**20
