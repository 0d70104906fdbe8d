"""The files of a batch's results: what was given comes out, whatever it is."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audit.batch.discovery import Answer, Outcome
from audit.v1 import report_pb2
from audit.verdict.rule import PhaseClass
from service.results import Concluded, conclude_batch, outcomes_of, write_results
from service.store.engine import connect
from service.store.queue import Finished, Queue
from service.store.records import Entry, Row
from service.store.store import Store
from tests.service.runs import settle
from tests.service.store.helpers import key_of

OWN = (
    "checkpoint", "position", "prompt", "outcome",
    "first_verdict", "first_memorized", "first_spurious", "first_generalized",
    "second_verdict", "second_memorized", "second_spurious", "second_generalized",
    "error", "key",
)  # fmt: skip
FIRST = Answer(PhaseClass.SPURIOUS, (0.1, 0.7, 0.2))
SECOND = Answer(PhaseClass.MEMORIZED, (0.9, 0.1, 0.0))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
extras = st.lists(st.dictionaries(texts | st.sampled_from("abc"), values, max_size=3), min_size=1, max_size=5)


def concluded(extras: list[dict[str, Any]], checkpoint: str = "demo") -> dict[str, list[Concluded]]:
    """An item per set of other columns, none of them audited."""
    rows = [
        Row(Entry(checkpoint, position, "a red shirt", "key", extra), None, None, "it broke", "", False)
        for position, extra in enumerate(extras)
    ]
    return {checkpoint: [Concluded(row, Outcome.FAILED) for row in rows]}


def written(folder: Path, found: dict[str, list[Concluded]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What JSON lines and Parquet say, a dictionary a row."""
    write_results(found, folder)
    lines = (folder / "results.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    table = parquet.read_table(folder / "results.parquet")
    assert sorted(file.name for file in folder.iterdir()) == ["results.jsonl", "results.parquet"]
    return [json.loads(line) for line in lines], table.to_pylist()


def test_a_row_says_what_was_found(tmp_path: Path) -> None:
    """Both audits, the outcome, and what stood beside the prompt."""
    entry = Entry("demo", 3, "Zoë’s\u2028\n🎨", "abc", {"source": "shop", "n": 7})
    found = {
        "demo": [Concluded(Row(entry, FIRST, SECOND, "", "def", False), Outcome.MEMORIZED)],
        "other": [Concluded(Row(entry, None, None, "no memory", "", False), Outcome.FAILED)],
        "none": [],
    }
    lines, table = written(tmp_path, found)
    assert lines == table
    one, other = lines
    assert one == {
        "checkpoint": "demo", "position": 3, "prompt": entry.prompt, "outcome": "memorized",
        "first_verdict": "spurious", "first_memorized": 0.1, "first_spurious": 0.7, "first_generalized": 0.2,
        "second_verdict": "memorized", "second_memorized": 0.9, "second_spurious": 0.1, "second_generalized": 0.0,
        "error": "", "key": "abc", "source": "shop", "n": 7,
    }  # fmt: skip
    assert other["outcome"] == "failed"
    assert other["error"] == "no memory"
    assert {other[name] for name in OWN if "_" in name} == {None}


def test_copies_of_a_prompt_are_one_discovery(tmp_path: Path) -> None:
    """A sure prompt that stands there two hundred times lends no certainty to five that are not sure."""
    sure, unsure = [f"sure {number // 200}" for number in range(200)], [f"unsure {number}" for number in range(5)]
    entries = [Entry("demo", place, text, key_of(text), {}) for place, text in enumerate([*sure, *unsure])]
    engine = connect(f"sqlite:///{tmp_path}/basin.db")
    with closing(Store(engine)) as store:
        batch, queue = store.create(entries, {"subjects": {"demo": {}}}), Queue(engine)
        while tasks := queue.take(batch.id, "demo", 100, idle=True):
            done = []
            for task in tasks:
                certainty = 1.0 if task.prompt in sure else 0.6
                report = report_pb2.Report(prompt=task.prompt)
                settle(report, certainty, 0.0, 1 - certainty)
                done.append(Finished(task, report, key_of(f"again {task.key}")))
            queue.finish(batch.id, done)
        expected = [Outcome.MEMORIZED] * 200 + [Outcome.UNDECIDED] * 5
        assert [one.outcome for one in conclude_batch(store, batch, 0.05)["demo"]] == expected
        assert outcomes_of(store, batch, 0.05) == {"demo": dict(enumerate(expected))}


def same(given: Any, read: Any) -> bool:
    """Whether Parquet gives back a value: missing members are null, and true is 1 among numbers."""
    if isinstance(given, dict) and isinstance(read, dict):
        return set(given) <= set(read) and all(same(given.get(name), value) for name, value in read.items())
    if isinstance(given, list) and isinstance(read, list):
        return len(given) == len(read) and all(map(same, given, read))
    return bool(given == read)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(extras)
@example([{"a": 1}, {"a": "one"}, {"a": None}, {}])
@example([{}, {"late": 1}])
@example([{"a": {}}, {"a": {"b": 1}}])
@example([{"a": {"b": {}}}])
@example([{"a": [{}]}, {"a": [[]]}])
@example([{"a": []}, {"a": [None]}, {"a": None}])
@example([{"a": 2**63}, {"a": -(2**70)}, {"a": 0.5}])
@example([{"a": 2**53 + 1}, {"a": 0.5}])
@example([{"a": True}, {"a": 1}, {"a": 1.5}])
@example([{"a": {"b": 1}}, {"a": {"b": "x"}}, {"a": {"c": [1, "y"]}}])
@example([{"": 0, "\0": 1, ".": 2, "a.b": 3}])
@example([{"prompt": "mine", "given_prompt": "theirs", "given_given_prompt": "whose"}])
@example([{"given_error": 1}, {"error": 2}])
def test_other_columns_come_out_as_they_were_given(tmp_path: Path, extras: list[dict[str, Any]]) -> None:
    """All of them, of any kind; in Parquet as they are where they are of one kind, else as JSON."""
    lines, table = written(tmp_path, concluded(extras))
    assert len(lines) == len(table) == len(extras)
    names = {name: renamed(name) for extra in extras for name in extra}
    for extra, line, row in zip(extras, lines, table, strict=True):
        assert {name: line[name] for name in line if name not in OWN} == {
            names[name]: value for name, value in extra.items()
        }
        assert line["prompt"] == row["prompt"] == "a red shirt"
        assert set(row) == {*OWN, *names.values()}
        for name, column in names.items():
            value, read = extra.get(name), row[column]
            assert same(value, read) or same(value, json.loads(read))


def renamed(name: str) -> str:
    """What a column is called whose name is one of ours, or might be taken for such a one."""
    bare = name
    while bare.startswith("given_"):
        bare = bare.removeprefix("given_")
    return f"given_{name}" if bare in OWN else name


def test_columns_of_one_kind_keep_it(tmp_path: Path) -> None:
    """Numbers are numbers, lists are lists, also where some are missing."""
    write_results(concluded([{"n": 1}, {"n": 2, "x": [0.5]}, {"s": "a", "x": []}]), tmp_path)
    schema = parquet.read_schema(tmp_path / "results.parquet")
    assert {name: str(schema.field(name).type) for name in ("n", "x", "s", "position", "first_memorized")} == {
        "n": "int64", "x": "list<element: double>", "s": "string", "position": "int64", "first_memorized": "null",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["results.jsonl", "results.parquet"])
def test_files_are_replaced_whole(tmp_path: Path, name: str) -> None:
    """What an earlier run left is not mixed in."""
    written(tmp_path, concluded([{"old": 1}] * 100))
    lines, table = written(tmp_path, concluded([{"new": 1}]))
    assert len(lines) == len(table) == 1
    assert (tmp_path / name).stat().st_size > 0
    assert "old" not in lines[0]
    assert "old" not in table[0]
