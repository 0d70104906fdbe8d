"""`basin store`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from audit.errors import InvalidInput, NotFound
from service.cli.console import fail, messages, results

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.store.deletion import Deleted

#: Batches that `info` lists.
NEWEST = 20
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
#: Oldest age that can be told, some millions of days.
_MOST_HOURS = 36_500 * 24

app = typer.Typer(no_args_is_help=True, help="Look after the database of results.")

StoreUrl = Annotated[
    str, typer.Option("--store", metavar="URL", envvar="BASIN_STORE", help="Database of results, SQLite or PostgreSQL.")
]
RunFolder = Annotated[
    Path | None, typer.Option("--run", metavar="RUN", help="Folder of a run, in place of --store: the database of it.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")]
Rewrite = Annotated[
    bool,
    typer.Option(
        help="PostgreSQL: write the tables anew, so that no deleted byte stays in their files; nobody can use them "
        "meanwhile."
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Write over what is there.")]


@app.callback()
def group() -> None:
    """Look after the database of results."""


@app.command()
def info(context: typer.Context, store: StoreUrl = "", run: RunFolder = None) -> None:
    """Print how much the store holds, how old it is, and its newest batches."""
    with messages().status("reading"), _opened(context, store, run, claim=False) as engine:
        from service.pages.text import moment
        from service.store.info import store_info
        from service.store.store import Store

        found = store_info(engine)
        batches = Store(engine).batches(limit=NEWEST)
    table = Table(box=None, show_header=False)
    states = ", ".join(f"{count:,} {state}" for state, count in found.batches.items())
    for name, value in (
        ("store", found.url),
        ("version", found.version),
        ("size", decimal(found.size)),
        ("batches", states or "none"),
        ("prompts", f"{found.prompts:,}" + (f", removed from {found.removed:,} batches" if found.removed else "")),
        ("results", f"{found.results:,}"),
        ("oldest batch", moment(found.oldest_batch) if found.oldest_batch else "none"),
        ("oldest result", moment(found.oldest_result) if found.oldest_result else "none"),
    ):
        table.add_row(name, Text(value))
    results().print(table)
    if batches:
        table = Table("batch", "state", "prompts", "begun", "ended", box=None)
        for one in batches:
            ended = moment(one.finished) if one.finished else ""
            table.add_row(one.id, one.state, f"{one.prompts:,}", moment(one.created), ended)
        results().print()
        results().print(table)


@app.command()
def migrate(
    store: StoreUrl = "",
    to: Annotated[str, typer.Option(metavar="VERSION", help="Of the tables, older ones too. [default: newest]")] = "",
) -> None:
    """Bring a store's tables up to date, or back to an older version, before another version of Basin works on them.

    A server does the first by itself when it starts. The second has to be done by the newer version, while no server is
    at work; what only its tables can hold is lost.
    """
    if not store:
        raise InvalidInput("name the store: --store URL or BASIN_STORE", reason="STORE_MISSING", field="store")
    from service.store.engine import migrate

    before, after = migrate(store, to or "head")
    print(f"{before or 'none'} -> {after}" if before != after else f"{after}, as before")


@app.command()
def delete(
    context: typer.Context,
    store: StoreUrl = "",
    run: RunFolder = None,
    batch: Annotated[str, typer.Option(metavar="ID", help="Delete a batch, with results that no other one has.")] = "",
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Delete a prompt, with its results, everywhere.")] = "",
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Delete batches that ended so long ago: 12h, 30d, 8w.")
    ] = "",
    yes: Yes = False,
    rewrite: Rewrite = True,
) -> None:
    """Delete a batch, a prompt, or what is old, for good.

    With --run, the files of that run are written anew without it.
    """
    if sum(map(bool, (batch, prompt, older_than))) != 1:
        raise InvalidInput("name one of --batch, --prompt and --older-than", reason="FLAGS_CONFLICT", field="batch")
    age = parse_age(older_than, "older-than") if older_than else timedelta()
    missing: NotFound | None = None
    with _opened(context, store, run) as engine:
        from service.store.deletion import Deleted, forget

        try:
            what, delete_it = _to_delete(engine, batch, prompt, datetime.now(UTC) - age)
        except NotFound as error:  # the files may still hold what was deleted before
            missing, what, delete_it = error, f"what files may still hold of it ({error})", Deleted
        confirm(what, yes)
        with messages().status("deleting"):
            deleted, left = delete_it(), forget(engine, rewrite=rewrite)
        if missing is None:
            results().print(
                f"deleted batches: {deleted.batches:,}, prompts: {deleted.prompts:,}, results: {deleted.results:,}"
            )
    tell_left(left)
    if missing is not None:
        raise missing


@app.command()
def expire(
    context: typer.Context,
    store: StoreUrl = "",
    run: RunFolder = None,
    prompts: Annotated[
        str, typer.Option(metavar="AGE", help="Remove prompts of batches that ended so long ago: 12h, 30d, 8w.")
    ] = "",
    samples: Annotated[str, typer.Option(metavar="AGE", help="Remove pictures of audits so long ago.")] = "",
    results_: Annotated[
        str, typer.Option("--results", metavar="AGE", help="Delete batches that ended so long ago, with their results.")
    ] = "",
    rewrite: Rewrite = False,
) -> None:
    """Remove what is too old, once; for cron. A batch that runs or pauses is left alone.

    With --run, the files of that run are written anew without it.
    """
    ages = {"prompts": prompts, "samples": samples, "results": results_}
    if not any(ages.values()):
        raise InvalidInput("name --prompts, --samples or --results", reason="FLAGS_MISSING", field="prompts")
    days = {name: parse_age(age, name) / timedelta(days=1) for name, age in ages.items() if age}
    with messages().status("expiring"), _opened(context, store, run) as engine:
        from service.store import retention

        kept = retention.Retention.model_validate(days)
        found = retention.expire(engine, kept, datetime.now(UTC), rewrite=rewrite)
    results().print(
        f"removed prompts: {found.prompts:,}, pictures of results: {found.pictures:,}; "
        f"deleted batches: {found.batches:,}, results: {found.results:,}"
    )
    tell_left(found.left)


@app.command()
def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write.", show_default=False)],
    store: StoreUrl = "",
    run: RunFolder = None,
    replace: Replace = False,
) -> None:
    """Write all of the store to a file, as it is at this moment, while others go on working on it.

    Of SQLite the file is a store itself; of PostgreSQL it is an archive of pg_dump, which must be installed.
    """
    with messages().status("backing up"), _located(context, store, run, claim=False) as url:
        from service.store.backup import back_up

        back_up(url, file, replace=replace)
    results().print(f"{file}: {decimal(file.stat().st_size)}", markup=False, soft_wrap=True)


@app.command()
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="That `backup` wrote.", show_default=False)],
    store: StoreUrl = "",
    run: RunFolder = None,
    replace: Replace = False,
) -> None:
    """Make a store of a backup, whole or not at all. Nobody may work on one that is replaced."""
    url = _chosen(context, store, run)
    with messages().status("restoring"):
        if run is None:
            from service.store import backup as backups

            backups.restore(file, url, replace=replace)
        else:
            from service.run_upkeep import restore_run

            restore_run(file, run, url, replace=replace)
    messages().print("restored", markup=False)


def parse_age(text: str, field: str) -> timedelta:
    """An age such as 12h, 30d or 8w.

    Raises:
        InvalidInput: it is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([hdw])", text.strip(), re.ASCII)
    hours = float(found[1]) * _HOURS[found[2]] if found else _MOST_HOURS + 1
    if hours > _MOST_HOURS:
        raise InvalidInput(
            f"--{field} takes an age of at most 100 years, such as 12h, 30d or 8w, not {text!r}",
            reason="AGE_INVALID",
            field=field,
        )
    return timedelta(hours=hours)


def confirm(what: str, yes: bool) -> None:
    """Ask whether to delete something, unless that was said.

    Raises:
        typer.Exit: no, or nobody is there to ask.
    """
    if not yes:
        try:
            answer = messages().input(f"Delete {what}? [y/N] ", markup=False)
        except EOFError:
            messages().print()
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            fail("nothing was deleted; --yes deletes without asking")


def tell_left(left: Sequence[str]) -> None:
    """Fail with what could not be done after a deletion."""
    if left:
        fail("deleted, but " + "; ".join(left))


def _to_delete(engine: Engine, batch: str, prompt: str, before: datetime) -> tuple[str, Callable[[], Deleted]]:
    """What is to be deleted, in words, and the deletion of it.

    Raises:
        NotFound: the store does not have it.
    """
    from service.pages.text import count, moment
    from service.store.deletion import count_older, count_prompt, delete_batch, delete_older, delete_prompt
    from service.store.store import Store

    if batch:
        found = Store(engine).batch(batch)
        what = f"the batch {found.id} ({found.state}, {count(found.prompts, 'prompt')}) with its results"
        return what, partial(delete_batch, engine, batch)
    if prompt:
        items = count_prompt(engine, prompt)
        if not items:
            raise NotFound("no batch has this prompt", reason="PROMPT_NOT_FOUND", field="prompt")
        what = f"this prompt, which stands {count(items, 'time')} in the store, with its results"
        return what, partial(delete_prompt, engine, prompt)
    what = f"the batches that ended before {moment(before)}, {count_older(engine, before):,} of them"
    return what, partial(delete_older, engine, before)


def _chosen(context: typer.Context, store: str, run: Path | None) -> str:
    """The URL that the user chose; "" for that of the run folder.

    Raises:
        InvalidInput: there is neither.
    """
    source = context.get_parameter_source("store")
    if run is not None and source is not None and source.name == "ENVIRONMENT":
        return ""
    if run is None and not store:
        raise InvalidInput("name a --store or a --run", reason="STORE_MISSING", field="store")
    return store


@contextmanager
def _located(context: typer.Context, store: str, run: Path | None, *, claim: bool = True) -> Iterator[str]:
    """URL of the store that the user chose. A run folder that is claimed has its files written anew at the end."""
    url = _chosen(context, store, run)
    if run is None:
        yield url
        return
    from service.run_folder import read_run, store_url

    if not claim:
        yield store_url(run, url or read_run(run).store)
        return
    from service.run_upkeep import claimed_store, rewrite_found

    with claimed_store(run, url) as found:
        yield found
        rewrite_found(run, url)


@contextmanager
def _opened(context: typer.Context, store: str, run: Path | None, *, claim: bool = True) -> Iterator[Engine]:
    """The store that the user chose; see `_located`."""
    with _located(context, store, run, claim=claim) as url:
        from service.store.engine import connect
        from service.store.store import Store

        engine = connect(url, make=False)
        with closing(Store(engine)):
            yield engine
