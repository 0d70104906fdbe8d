"""Run folders whose store loses something or comes back: their files say no more than the store does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from audit.errors import InvalidInput
from service.run_folder import LOCK, RUN, Run, claim, found_files, read_run, store_url, writable_url, write_run
from service.store.backup import restore
from service.store.deletion import delete_batch, forget
from service.store.engine import connect, files_of, parse_url, sqlite_file
from service.store.schema import BatchRow
from service.store.store import Store


@contextmanager
def claimed_store(path: Path, store: str = "") -> Iterator[str]:
    """URL of the store of a run folder, in which nobody else is at work meanwhile.

    Args:
        path: the folder.
        store: URL of its store, where that takes a password or was moved; "" for the one that the run used.

    Raises:
        NotFound: there is no such folder.
        InvalidInput: it is no run, or a process is at work in it.
    """
    read_run(path)  # claiming would make it one
    with claim(path) as run:
        yield store_url(path, store or run.store)


def delete_run(path: Path, store: str = "", *, rewrite: bool = False) -> list[str]:
    """Delete a run: its batch, with all results that no other batch of the store has, and every file of its own.

    What knows the batch goes last, so that a deletion that was interrupted, or that left something, can be repeated.

    Args:
        path: the folder, which goes, too, unless it holds something else.
        store: as in `claimed_store`.
        rewrite: see `service.store.deletion.forget`.

    Returns:
        What could not be done, each in words; see `service.store.deletion.forget`.

    Raises:
        NotFound: as `claimed_store`; or the store is gone, or cannot be reached.
        InvalidInput: as `claimed_store`.
    """
    left: list[str] = []
    with claimed_store(path, store) as url:
        file = sqlite_file(parse_url(url))
        inside = file is not None and file.resolve().parent == path.resolve()
        if file is None or not inside or file.exists():  # one inside may be gone already
            engine = connect(url, make=False)
            with closing(Store(engine)) as opened:
                batch = opened.batch_of(read_run(path).request_id)
                if batch is not None:
                    delete_batch(engine, batch.id)
                left, empty = forget(engine, rewrite=rewrite), not opened.batches(limit=1)
            if file is not None and inside and empty and not left:
                for part in files_of(file):
                    part.unlink(missing_ok=True)
        _delete_found(path)
        if left:
            return left
        (path / RUN).unlink()
    (path / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
    return left


def rewrite_found(path: Path, store: str = "") -> None:
    """Write what is in the files of a run anew, as its store has it now; delete them where its batch is gone.

    Args:
        path: the folder.
        store: as in `claimed_store`.
    """
    from service.pages.report import write_report
    from service.results import open_run, write_results

    names = _delete_found(path)
    try:
        with open_run(path, store) as opened:
            if "results.jsonl" in names:
                write_results(opened.concluded, path)
            if "report.html" in names:
                write_report(opened)
    except InvalidInput as error:
        if error.reason != "BATCH_NOT_IN_STORE":
            raise


def restore_run(file: Path, path: Path, store: str = "", *, replace: bool = False) -> None:
    """Restore the store of a run folder, which may be gone as a whole, and write its files anew.

    Args:
        file: see `service.store.backup.restore`.
        path: the folder.
        store: as in `claimed_store`.
        replace: see `service.store.backup.restore`.

    Raises:
        InvalidInput: as `restore`; or the folder holds something else, or a process is at work in it.
        NotFound: as `restore`.
        StoreFailed: as `restore`.
    """
    new = not (path / RUN).exists()
    with claim(path, Run(store=writable_url(store))) as run:
        url = store_url(path, store or run.store)
        restore(file, url, replace=replace)
        if new and (only := _only_request(url)):
            write_run(path, run.model_copy(update={"request_id": only}))
        rewrite_found(path, store)


def _only_request(url: str) -> str | None:
    """Request id of the only batch of a store."""
    engine = connect(url)
    with closing(Store(engine)), engine.connect() as connection:
        ids = list(connection.scalars(select(BatchRow.request_id).limit(2)))
    return ids[0] if len(ids) == 1 else None


def _delete_found(path: Path) -> set[str]:
    """Delete what a run wrote down; the names of the files."""
    found = found_files(path)
    for file in found:
        file.unlink()
    for folder in ("report", "compare"):
        with suppress(OSError):
            (path / folder).rmdir()
    return {file.name for file in found}
