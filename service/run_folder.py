"""The folder of a batch's run: which batch of which store it is, and who may work in it.

run.json                        which batch it is, and of which store
basin.db                        the store, unless that is elsewhere
results.jsonl, results.parquet  what was found
report.html, report/            the page, and the cards beside it where there are many
report.json, report.md          its summary
compare.html, compare/, …       the same of a comparison
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import URL

from audit.batch.discovery import FALSE_DISCOVERY_RATE
from audit.errors import InvalidInput, NotFound
from audit.phase.folder import PARTIAL, write_whole
from service.store.engine import files_of, parse_url, show, sqlite_file, without_password

RUN = "run.json"
LOCK = ".lock"
STORE = "basin.db"
#: Files that hold what a batch found: they are made from the store, and can be made again.
_FOUND = (
    "results.jsonl", "results.parquet", "report.html", "report.json", "report.md", "report/[0-9]*.js",
    "compare.html", "compare.json", "compare.md", "compare/[0-9]*.js",
    ".partial-*", "report/.partial-*", "compare/.partial-*",
)  # fmt: skip


class Run(BaseModel, frozen=True, extra="forbid"):
    """What run.json says.

    Attributes:
        format: of the folder.
        request_id: of the batch.
        store: URL of its store without a password; "" for basin.db in the folder.
        false_discoveries: expected share of errors among the prompts that count as found.
    """

    format: Literal[1] = 1
    request_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    store: str = ""
    false_discoveries: float = FALSE_DISCOVERY_RATE


@contextmanager
def claim(path: Path, begun: Run | None = None) -> Iterator[Run]:
    """Make a folder a run's, or find that it is one's, and keep other processes out of it.

    Where something is raised inside, a folder that was none before is left as it was.

    Args:
        path: the folder.
        begun: what run.json says where there is none yet.

    Raises:
        InvalidInput: it holds something else, or another process is at work in it.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    before = set(path.iterdir()) if path.is_dir() else set()
    taken = any(map(_in_use, before)) if path.is_dir() else path.exists()
    # run.json is looked for last: another process may be making a run of the folder at this moment.
    if taken and not (path / RUN).exists():
        raise InvalidInput(
            f"{path} is in use and holds no batch; name another --out folder", reason="FOLDER_IN_USE", field="out"
        )
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InvalidInput(f"another process is at work in {path}", reason="FOLDER_LOCKED", field="out") from error
    new = not (path / RUN).exists()
    try:
        if new:
            write_run(path, begun or Run())
        yield read_run(path, field="out")
    except (Exception, KeyboardInterrupt):  # not GeneratorExit: who is done may forget to say so
        if new:
            for file in {*files_of(path / STORE), path / RUN, path / LOCK} - before:
                file.unlink(missing_ok=True)
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
        raise
    finally:
        lock.release()


def _in_use(file: Path) -> bool:
    """Whether a file is more than what a run leaves that was killed in its first moment."""
    return file.name != LOCK and not file.name.startswith(PARTIAL)


def read_run(path: Path, *, field: str = "run") -> Run:
    """What a folder's run.json says.

    Args:
        path: the folder.
        field: who named it.

    Raises:
        NotFound: there is no such folder.
        InvalidInput: it is no run, or one of another version.
    """
    if not path.exists():
        raise NotFound(f"there is no folder {path}", reason="RUN_NOT_FOUND", field=field)
    try:
        return Run.model_validate_json((path / RUN).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInput(f"{path} holds no batch", reason="NOT_A_RUN", field=field) from error
    except ValidationError as error:
        raise InvalidInput(
            f"{path} holds a batch of another version", reason="RUN_OF_ANOTHER_VERSION", field=field
        ) from error


def write_run(path: Path, run: Run) -> None:
    """Write run.json."""
    write_whole(path / RUN, run.model_dump_json() + "\n")


def found_files(path: Path) -> list[Path]:
    """Files in which a run wrote down what it found; whatever else is in the folder is not its own."""
    return sorted(file for pattern in _FOUND for file in path.glob(pattern) if file.is_file())


def store_url(path: Path, store: str) -> str:
    """URL of a run's store; "" stands for the file in its folder."""
    return store or URL.create("sqlite", database=str(path / STORE)).render_as_string()


def kept_store(path: Path, run: Run, store: str) -> str:
    """URL of the store that a run goes on with.

    Args:
        path: the folder.
        run: what its run.json says.
        store: as it was named this time; "" where it was not.

    Raises:
        InvalidInput: it is another one.
    """
    if store and writable_url(store) != writable_url(store_url(path, run.store)):
        raise InvalidInput(
            f"{path} keeps its results in {show(parse_url(store_url(path, run.store)))}; leave --store out, or name "
            "another --out folder",
            reason="RUN_OF_ANOTHER_STORE",
            field="store",
        )
    return store_url(path, store or run.store)


def writable_url(store: str) -> str:
    """A store's URL as it may be written down: without a password, and true wherever it is read from."""
    if not store:
        return ""
    url = parse_url(store)
    if file := sqlite_file(url):
        url = url.set(database=str(file.resolve()))
    return without_password(url).render_as_string(hide_password=False)
