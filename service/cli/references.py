"""`basin reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from audit.errors import InvalidInput
from audit.progress import progress_bar
from service.cli.console import results
from service.cli.options import finite, parse_size
from service.cli.remote_references import add_to, create, delete, list_, search_in

if TYPE_CHECKING:
    from audit.reference.manifest import Manifest
    from audit.reference.reference_set import ReferenceSet
    from audit.reference.settling import Progress

app = typer.Typer(no_args_is_help=True, help="Make the reference sets that samples are compared with.")

IMAGES, UPKEEP = "Images", "Search"
#: What was left out that `info` lists at most.
MOST_LISTED = 20

Source = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Images in a folder, tar shards (WebDataset), Parquet, a data set on disk (Arrow), .npz or .npy; or "
        "embeddings in Parquet or .npy.",
    ),
]
SetFolder = Annotated[Path, typer.Argument(metavar="SET", help="The reference set's folder.")]
OnServer = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="SET is a name on this server.")]
Restart = Annotated[bool, typer.Option("--restart", help="Drop unfinished work in the folder.")]


class Index(StrEnum):
    """As `audit.reference.index` has them."""

    AUTO = "auto"
    FLAT = "flat"
    IVF_FLAT = "ivf-flat"
    IVF_PQ = "ivf-pq"
    IVF_RABITQ = "ivf-rabitq"
    HNSW = "hnsw"


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


for command, called in ((create, "create"), (delete, "delete"), (list_, "list")):
    app.command(called)(command)


@app.callback()
def group() -> None:
    """Make the reference sets that samples are compared with."""


@app.command()
def build(
    images: Source,
    out: Annotated[Path, typer.Option(metavar="SET", help="Where to write the reference set.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="These are not all the images that the checkpoint was trained on.")
    ] = False,
    name: Annotated[str, typer.Option(help="What reports call it. [default: the name of the source]")] = "",
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Also index by a model: open_clip's NAME@FILE.safetensors, local-dir:FOLDER or hf-hub:NAME, "
            "timm:NAME@FILE.safetensors, torchscript:FILE.pt; repeat it.",
        ),
    ] = None,
    size: Annotated[str, typer.Option(rich_help_panel=IMAGES, metavar="N|HxW", help="Bring images to this size.")] = "",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep-images/--no-images",
            rich_help_panel=IMAGES,
            help="Without images a set is small, and copies can't be told by their pixels.",
        ),
    ] = True,
    thumbnails: Annotated[
        int, typer.Option(rich_help_panel=IMAGES, metavar="N", min=0, max=1024, help="Keep thumbnails of N pixels.")
    ] = 0,
    deduplicate: Annotated[
        bool,
        typer.Option(
            "--deduplicate/--keep-duplicates", rich_help_panel=IMAGES, help="Same images become one, and are counted."
        ),
    ] = True,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=IMAGES,
            metavar="COSINE",
            min=0.01,
            max=1.0,
            callback=finite,
            help="So do images that the first embedder finds so similar, such as 0.97.",
        ),
    ] = None,
    index: Annotated[
        Index, typer.Option(rich_help_panel=UPKEEP, help="auto goes by the number of images.")
    ] = Index.AUTO,
    restart: Restart = False,
) -> None:
    """Index training images, so that audits can tell copies.

    Say --partial unless these are all of them: only against a complete set does "not found" mean "not there". A build
    that was killed goes on when it is asked for again.
    """
    from audit.reference.build import build
    from audit.reference.manifest import MAX_SIDE, Options

    side = parse_size(size)
    if side is not None and not (min(side) >= 1 and max(side) <= MAX_SIDE):
        raise InvalidInput(f"size must be in [1, {MAX_SIDE}], not {size}", reason="SIZE_OUT_OF_RANGE", field="size")
    options = Options(
        images=keep,
        side=side,
        thumbnails=thumbnails,
        deduplicate=deduplicate,
        near_duplicates=near_duplicates,
        index=index.value,
    )
    with _progress() as progress:
        built = build(
            images, out, name=name, complete=not partial, embedders=embedder or (), options=options,
            restart=restart, progress=progress,
        )  # fmt: skip
    _print(built.manifest)


@app.command()
def add(
    set_: SetFolder,
    images: Source,
    complete: Annotated[
        bool | None,
        typer.Option(
            "--complete/--partial", help="These are the last of the images that the checkpoint was trained on."
        ),
    ] = None,
    restart: Restart = False,
    server: OnServer = "",
) -> None:
    """Add images to a set. Until all of them are in, it stays as it is; on a server, until some thousands are."""
    if server:
        if restart:
            raise InvalidInput("a server has no unfinished work", reason="FLAGS_CONFLICT", field="restart")
        add_to(server, str(set_), images, complete=complete)
        return
    from audit.reference.build import add

    with _progress() as progress:
        grown = add(set_, images, complete=complete, restart=restart, progress=progress)
    _print(grown.manifest)


@app.command()
def remove(
    set_: SetFolder,
    index: Annotated[list[int] | None, typer.Option(metavar="N", help="As searches name it; repeat it.")] = None,
    key: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Its name in the source; repeat it.")] = None,
    url: Annotated[list[str] | None, typer.Option(metavar="URL", help="Where it came from; repeat it.")] = None,
    urls: Annotated[Path | None, typer.Option(metavar="FILE", help="Such URLs, one a line.")] = None,
) -> None:
    """Take images out of a set, which is partial from then on. `compact` gives back what they take."""
    from audit.reference.reference_set import ReferenceSet
    from audit.reference.upkeep import find, remove

    wanted = [*(url or ()), *(urls.read_text("utf-8", "replace").split() if urls else ())]
    if not (index or key or wanted):
        raise InvalidInput("name images by --index, --key or --url", reason="IMAGES_MISSING", field="index")
    opened = ReferenceSet.load(set_, models=False)
    _print(remove(set_, [*(index or ()), *find(opened, keys=key or (), urls=wanted)]))


@app.command()
def merge(
    set_: SetFolder,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Sets of the same embedders and size.")],
) -> None:
    """Take the images of other sets into one, without embedding them again."""
    from audit.reference.upkeep import merge

    with _progress() as progress:
        merged = merge(set_, others, progress)
    _print(merged)


@app.command()
def compact(set_: SetFolder) -> None:
    """Give back what removed images take, and index anew what has grown."""
    from audit.reference.upkeep import compact

    with _progress() as progress:
        compacted = compact(set_, progress)
    _print(compacted)


@app.command()
def publish(
    set_: SetFolder,
    database: Annotated[
        str, typer.Argument(metavar="lancedb:URI", help="A folder, an object store (s3://, gs://, az://) or db://.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="What names it, for audits and servers.")],
    table: Annotated[str, typer.Option(help="In the database; nothing else may use it.")] = "reference",
) -> None:
    """Bring a database up to the embeddings of a set, so that many machines can search them.

    Do it again whenever the set has changed. Credentials are in the environment, as the database wants them.
    """
    from audit.reference.published import publish
    from audit.reference.reference_set import ReferenceSet

    with _progress() as progress:
        published = publish(ReferenceSet.load(set_, models=False), out, database, table, progress)
    _print(published.manifest)


@app.command()
def info(
    set_: SetFolder,
    check: Annotated[bool, typer.Option("--check", help="Read every file and compare it with its digest.")] = False,
    left_out: Annotated[bool, typer.Option("--left-out", help="List what the sources had besides.")] = False,
    output: Annotated[Output, typer.Option("--format")] = Output.TABLE,
) -> None:
    """Say what is in a set."""
    from audit.reference import folder
    from audit.reference.reference_set import ReferenceSet

    opened = ReferenceSet.load(set_, models=False)
    if check and opened.folder is not None:
        folder.check(opened.folder, opened.manifest, None)
    facts = _facts(opened)
    listed = _left_out(opened) if left_out else []
    if output is Output.JSON:
        print(json.dumps({**facts, **({"left_out": listed} if left_out else {})}, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False)
    for label, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        table.add_row(label.replace("_", " "), Text(f"{value:,}" if type(value) is int else shown))
    results().print(table)
    for entry in listed:
        same = "" if entry["same_as"] is None else f" of {entry['same_as']}"
        results().print(f"{entry['key']}: {entry['why']}{same}", markup=False, soft_wrap=True)


@app.command()
def search(
    set_: SetFolder,
    image: Annotated[Path | None, typer.Argument(help="An image file.")] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Search by words instead, with a CLIP model.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most hits of each kind.")] = 10,
    output: Annotated[Output, typer.Option("--format")] = Output.TABLE,
    server: OnServer = "",
) -> None:
    """Find the images of a set that are nearest to an image, or to words."""
    from audit.reference.images import fit, read_image, to_float
    from audit.reference.reference_set import ReferenceSet

    if (image is None) == (not prompt):
        raise InvalidInput("name an image file or a --prompt", reason="QUERY_REQUIRED", field="image")
    if server:
        _print_rows(search_in(server, str(set_), image, prompt, limit), output)
        return
    opened = ReferenceSet.load(set_)
    hits = list[tuple[str, float, int]]()
    if image is not None:
        if not image.is_file():
            raise InvalidInput(f"no image at {image}", reason="IMAGE_NOT_FOUND", field="image")
        query = to_float(fit(read_image(image), opened.manifest.side)[None].copy())
        if opened.has_images:
            hits += [("pixels", *hit) for hit in _zipped(opened.search_pixels(query, limit))]
        for number, embedder in enumerate(opened.embedders):
            if (found := opened.search_embedded(query, limit, number)) is not None:
                hits += [(embedder.model_name, *hit) for hit in _zipped(found)]
    else:
        found = opened.search_text(prompt, limit)
        hits += [(opened.embedders[opened.text_embedder or 0].model_name, *hit) for hit in _zipped(found)]
    _print_rows(_rows(opened, hits), output)


def _zipped(found: tuple[object, object]) -> Iterator[tuple[float, int]]:
    import numpy as np

    values, indices = (np.asarray(each)[0].tolist() for each in found)
    return zip(values, indices, strict=True)


def _rows(opened: ReferenceSet, hits: list[tuple[str, float, int]]) -> list[dict[str, object]]:
    from audit.reference.embedder import shown

    rows = list[dict[str, object]]()
    for (by, value, index), entry in zip(hits, opened.entries([index for *_, index in hits]), strict=True):
        measure = "distance" if by == "pixels" else "similarity"
        name = by if by == "pixels" else shown(by)
        rows.append({"by": name, "index": index, measure: round(value, 4), **vars(entry)})
    return rows


def _print_rows(rows: list[dict[str, object]], output: Output) -> None:
    if output is Output.JSON:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("by", "", "image", "copies", "key", "caption"):
        table.add_column(column)
    for row in rows:
        value = row["distance"] if "distance" in row else row["similarity"]
        table.add_row(
            *(Text(str(cell)) for cell in (
                row["by"], f"{value:.3f}", row["index"], row.get("copies", ""), row["key"],
                row["caption"] or row.get("url", ""),
            ))
        )  # fmt: skip
    results().print(table)


def _facts(opened: ReferenceSet) -> dict[str, object]:
    from audit.reference.embedder import shown

    manifest = opened.manifest
    size = "not kept" if manifest.side is None else "×".join(map(str, manifest.side))
    return {
        "name": opened.name,
        "images": len(opened),
        "extent": _extent(manifest),
        "digest": opened.digest,
        "size": size,
        "duplicates": manifest.duplicates,
        "unreadable": manifest.unreadable,
        "removed": len(opened.removed),
        "segments": len(opened.segments),
        "embedders": [{"model": shown(one.model), "digest": one.digest} for one in manifest.embedders],
        "indexes": {one.vectors.removesuffix(".npy"): one.kind for one in manifest.indexes},
        "bytes": sum(file.bytes for _, file in manifest.files()),
    }


def _left_out(opened: ReferenceSet) -> list[dict[str, object]]:
    """The first of what the sources had besides, with indices of what duplicates are the same as."""
    found, start = list[dict[str, object]](), 0
    for segment in opened.segments:
        for entry in segment.others().slice(0, MOST_LISTED - len(found)).to_pylist():
            same = entry["same_as"]
            found.append({**entry, "same_as": None if same is None else opened.index_of(start + same)})
        start += len(segment)
    return found


def _extent(manifest: Manifest) -> str:
    return "complete" if manifest.complete else "partial"


def _print(manifest: Manifest) -> None:
    notes = [f"{manifest.count:,} images", _extent(manifest), manifest.digest]
    if manifest.duplicates:
        notes.insert(1, f"{manifest.duplicates:,} duplicates")
    if manifest.unreadable:
        notes.insert(1, f"{manifest.unreadable:,} more could not be read")
    results().print(f"{manifest.name}: {', '.join(notes)}", markup=False, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Progress]:
    with progress_bar() as bar:
        bar.live.transient = True
        bar.disable = not bar.console.is_terminal
        task = bar.add_task("reading", total=None, note="")
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
