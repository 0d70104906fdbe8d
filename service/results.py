"""What a batch found, for its runner and for those who read its run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from audit.batch.discovery import Answer, Outcome, conclude
from audit.errors import InvalidInput, NotFound
from audit.phase.folder import whole, write_whole
from audit.v1 import report_pb2
from audit.verdict.rule import CLASSES
from service.run_folder import read_run, store_url
from service.store.engine import connect, parse_url, sqlite_file
from service.store.records import Batch, Row
from service.store.store import Store

#: Of an item that is still to be audited.
OPEN = "open"

#: The first and the second audit of a prompt.
Answers = tuple[Answer | None, Answer | None]


@dataclass(frozen=True)
class Concluded:
    """An item with what the batch says of it."""

    row: Row
    outcome: Outcome


def conclude_batch(store: Store, batch: Batch, rate: float) -> dict[str, list[Concluded]]:
    """What a batch says, by checkpoint, in the order of the prompts.

    Args:
        store: that the batch is in.
        batch: done or not; what was not audited counts as failed.
        rate: false discovery rate.
    """
    rows: dict[str, list[Row]] = {name: [] for name in batch.settings["subjects"]}
    for row in store.every_row(batch.id):
        rows[row.entry.checkpoint].append(row)
    return {name: _concluded(own, rate) for name, own in rows.items()}


def outcomes_of(store: Store, batch: Batch, rate: float) -> dict[str, dict[int, Outcome]]:
    """As `conclude_batch`, the outcomes alone, by position: of a million prompts, all else would be a gigabyte."""
    keys: dict[str, dict[int, str]] = {name: {} for name in batch.settings["subjects"]}
    answers: dict[str, dict[str, Answers]] = {name: {} for name in keys}
    for row in store.every_row(batch.id):
        keys[row.entry.checkpoint][row.entry.position] = row.entry.key
        answers[row.entry.checkpoint][row.entry.key] = row.first, row.second
    found = {name: _conclude(own, rate) for name, own in answers.items()}
    return {name: {position: found[name][key] for position, key in own.items()} for name, own in keys.items()}


def _conclude(answers: Mapping[str, Answers], rate: float) -> dict[str, Outcome]:
    """By key: copies of a prompt share their audits, which are one discovery."""
    first, second = [one for one, _ in answers.values()], [other for _, other in answers.values()]
    return dict(zip(answers, conclude(first, second, rate), strict=True))


def _concluded(rows: list[Row], rate: float) -> list[Concluded]:
    said = _conclude({row.entry.key: (row.first, row.second) for row in rows}, rate)
    return [Concluded(row, said[row.entry.key]) for row in rows]


class OpenedRun:
    """A run folder's batch, for reading. It may be at work meanwhile.

    Args:
        path: the folder.
        store: where the batch is.
        request_id: of its batch.
        rate: false discovery rate.

    Attributes:
        path: the folder.
        batch: how it stands.
        rate: false discovery rate.
        digests: of the checkpoints, by name.
        concluded: what it says so far, by checkpoint.

    Raises:
        InvalidInput: the batch was never taken in, or was deleted.
    """

    def __init__(self, path: Path, store: Store, request_id: str, rate: float) -> None:
        batch = store.batch_of(request_id)
        if batch is None:
            raise InvalidInput(
                f"the batch of {path} is not in its store: it never began, or was deleted",
                reason="BATCH_NOT_IN_STORE",
                field="run",
            )
        self._store = store
        self.path = path
        self.rate = rate
        self.batch = batch
        subjects = batch.settings["subjects"].items()
        self.digests: dict[str, str] = {name: subject["checkpoint_digest"] for name, subject in subjects}
        self.concluded = conclude_batch(store, batch, rate)

    def reports(self, row: Row) -> tuple[report_pb2.Report | None, report_pb2.Report | None]:
        """The first and the second audit of an item; None where there is none."""
        return self._store.reports(row)


@contextmanager
def open_run(path: Path, store: str = "") -> Iterator[OpenedRun]:
    """Open a run folder for reading.

    Args:
        path: the folder.
        store: URL of its store, where that takes a password or was moved; "" for the one that the run used.

    Raises:
        NotFound: there is no such folder, or its store is gone or cannot be reached.
        InvalidInput: it is no run, one of another version, or one whose batch is not in the store.
    """
    run = read_run(path)
    url = store_url(path, store or run.store)
    file = sqlite_file(parse_url(url))
    if file is not None and not file.exists():  # connecting would make it
        raise NotFound(f"the store of {path} is gone: {file}", reason="STORE_NOT_FOUND", field="store")
    with closing(Store(connect(url))) as opened:
        yield OpenedRun(path, opened, run.request_id, run.false_discoveries)


def write_results(concluded: dict[str, list[Concluded]], out: Path) -> None:
    """Write results.jsonl and results.parquet, a row per checkpoint and prompt.

    A prompt that was removed is null. In Parquet, a column whose values are not all of one type holds them as JSON.
    """
    rows = [plain(one) for own in concluded.values() for one in own]
    write_whole(out / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    columns = {name: None for row in rows for name in row}
    table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in columns})
    with whole(out / "results.parquet") as partial:
        parquet.write_table(table, partial)


def _column(values: list[Any]) -> pyarrow.Array:
    try:
        found = pyarrow.array(values)
        if _is_known(found.type):
            return found
    except (pyarrow.ArrowException, TypeError, OverflowError):
        pass
    return pyarrow.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def _is_known(kind: pyarrow.DataType) -> bool:
    """Whether Parquet has such a type: it knows no object without members."""
    if pyarrow.types.is_list(kind):
        return _is_known(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_known(field.type) for field in kind)
    return True


def plain(one: Concluded) -> dict[str, Any]:
    """An item as results.jsonl has it. A column whose name we use ourselves is called given_NAME."""
    entry = one.row.entry
    found: dict[str, Any] = {}
    for part, answer in (("first", one.row.first), ("second", one.row.second)):
        found[f"{part}_verdict"] = None if answer is None else str(answer.verdict)
        for index, kind in enumerate(CLASSES):
            found[f"{part}_{kind}"] = None if answer is None else answer.probabilities[index]
    own = {
        "checkpoint": entry.checkpoint, "position": entry.position, "prompt": entry.prompt or None,
        "outcome": OPEN if one.row.open else str(one.outcome),
        **found, "error": one.row.error, "key": entry.key,
    }  # fmt: skip
    # One more "given_" wherever one could be ours, so that no two columns become the same.
    taken = re.compile(rf"(given_)*({'|'.join(own)})")
    return own | {
        f"given_{column}" if taken.fullmatch(column) else column: value for column, value in entry.extra.items()
    }
