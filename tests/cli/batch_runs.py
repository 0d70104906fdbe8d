"""What tests of `basin batch run` share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from audit import demo
from service.run_folder import store_url
from service.store.engine import connect
from service.store.schema import ResultRow, TaskRow
from service.store.store import Store
from tests.cli.conftest import CHEAP

RUN = ("batch", "run", "--checkpoint", "demo", *CHEAP)
#: Long enough that a process can be stopped in the middle.
SLOW = ("batch", "run", "--checkpoint", "demo", "--seeds", "4", "--steps", "15", "--curvature", "off")


def prompt_file(folder: Path, *rows: dict[str, Any]) -> Path:
    """A file of prompts."""
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def some(folder: Path, count: int) -> Path:
    """A file of so many prompts."""
    return prompt_file(folder, *({"prompt": prompt} for prompt in demo.prompts()[:count]))


def lines(out: Path) -> list[dict[str, Any]]:
    """The rows of results.jsonl."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@contextmanager
def opened(out: Path, store: str = "") -> Iterator[Store]:
    """The store of a run."""
    with closing(Store(connect(store_url(out, store)))) as found:
        yield found


def finished(store: Store) -> dict[str, Any]:
    """When results came to be, by key."""
    with store._engine.connect() as connection:
        return {row.key: row.finished for row in connection.execute(select(ResultRow.key, ResultRow.finished))}


def states(store: Store) -> Counter[tuple[str, int]]:
    """How many tasks are in a state and were lost so often."""
    with store._engine.connect() as connection:
        found = connection.execute(
            select(TaskRow.state, TaskRow.losses, func.count()).group_by(TaskRow.state, TaskRow.losses)
        )
        return Counter({(state, losses): count for state, losses, count in found})
