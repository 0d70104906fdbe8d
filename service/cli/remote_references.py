"""`basin reference create`, `delete` and `list`, and `add` and `search` on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.errors import InvalidInput, NotFound
from audit.progress import progress_bar
from service.cli import options
from service.cli.console import messages, results
from service.cli.options import parse_size

if TYPE_CHECKING:
    from audit.reference.sources import Item
    from audit.v1 import reference_pb2

Server = Annotated[str, typer.Option(metavar="HOST:PORT", envvar="BASIN_SERVER", help="Who keeps the sets.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the reference set.", show_default=False)]
#: Images that were left out which are listed at most.
MOST_LISTED = 20


def create(
    name: Name,
    server: Server = options.DEFAULT_SERVER,
    size: Annotated[str, typer.Option(metavar="N|HxW", help="Images are brought to this size.")] = "",
    embedder: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One of the server's embedders; repeat it.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep-images/--no-images", help="Keep images, or embeddings alone.")] = True,
    thumbnails: Annotated[int, typer.Option(metavar="N", help="Keep thumbnails of N pixels.")] = 0,
) -> None:
    """Make a reference set on a server, without images yet."""
    from audit.v1 import reference_pb2

    sides = parse_size(size) or (0, 0)
    try:
        request = reference_pb2.CreateReferenceRequest(
            reference=name,
            embedders=embedder or [],
            height=sides[0],
            width=sides[1],
            without_images=not keep,
            thumbnail_side=thumbnails,
        )
    except ValueError as error:
        raise InvalidInput(f"a number is out of range: {error}", reason="VALUE_INVALID", field="size") from error
    with closing(options.client(server)) as client:
        print_references([client.create_reference(request)], options.Format.TABLE)


def delete(name: Name, server: Server = options.DEFAULT_SERVER) -> None:
    """Delete a reference set that a caller made, from a server. Audits that use it finish."""
    with closing(options.client(server)) as client:
        client.delete_reference(name)


def list_(
    server: Server = options.DEFAULT_SERVER,
    output: Annotated[options.Format, typer.Option("--format", help="A table, or JSON.")] = options.Format.TABLE,
) -> None:
    """List a server's reference sets."""
    with closing(options.client(server)) as client:
        print_references(client.references(), output)


def add_to(server: str, name: str, source: Path, *, complete: bool | None) -> None:
    """Send images to a server's set, and say what became of them.

    Raises:
        InvalidInput: the source holds embeddings.
    """
    from audit.reference.sources import open_source

    opened = open_source(source)
    if opened.embedded:
        raise InvalidInput(
            f"{source.name} holds embeddings; a server takes images", reason="SOURCE_UNFIT", field="images"
        )
    with closing(options.client(server)) as client, progress_bar() as bar:
        bar.live.transient = True
        bar.disable = not bar.console.is_terminal
        task = bar.add_task("sending", total=None, note="")

        def images() -> Iterator[reference_pb2.NewImage]:
            for part in range(len(opened.parts)):
                for item in opened.items(part):
                    yield _message(item)
                    bar.advance(task)

        answer = client.add_images(name, images(), complete=complete)
    extent = "complete" if answer.reference.complete else "partial"
    said = [f"{answer.added:,} added"]
    for count, word in (
        (answer.duplicates, "duplicates"), (answer.repeated_images, "there already"),
        (answer.unreadable, "could not be read"),
    ):  # fmt: skip
        if count:
            said.append(f"{count:,} {word}")
    results().print(
        f"{name}: {', '.join(said)}; {answer.reference.size:,} images, {extent}, {answer.reference.digest}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for one in answer.left_out[:MOST_LISTED]:
        messages().print(f"{one.key}: {one.reason}", markup=False, soft_wrap=True)


def search_in(server: str, name: str, image: Path | None, prompt: str, limit: int) -> list[dict[str, object]]:
    """What a server finds, row by row.

    Raises:
        NotFound: there is no image file.
    """
    if image is not None and not image.is_file():
        raise NotFound(f"no image at {image}", reason="IMAGE_NOT_FOUND", field="image")
    with closing(options.client(server)) as client:
        content = b"" if image is None else image.read_bytes()
        found = client.search_reference(name, content, prompt=prompt, limit=limit)
    rows: list[dict[str, object]] = [
        {"by": "pixels", "index": hit.index, "distance": round(hit.original_distance, 4), "key": hit.key,
         "caption": hit.caption, "url": hit.url, "copies": hit.copies} for hit in found.pixel
    ]  # fmt: skip
    rows += [
        {"by": "clip", "index": hit.index, "similarity": round(hit.similarity, 4), "key": hit.key,
         "caption": hit.caption, "url": hit.url} for hit in found.clip
    ]  # fmt: skip
    return rows


def print_references(found: list[reference_pb2.ReferenceInfo], output: options.Format) -> None:
    """As a table, or one JSON object a line."""
    if output is options.Format.JSON:
        for one in found:
            facts = {field.name: getattr(one, field.name) for field in one.DESCRIPTOR.fields}
            print(json.dumps({**facts, "embedders": list(one.embedders)}))
        return
    table = Table("reference", "images", "extent", "size", "embedders", "whose", "digest", box=None)
    for one in found:
        table.add_row(
            one.name,
            f"{one.size:,}",
            "complete" if one.complete else "partial",
            f"{one.height}×{one.width}" if one.height else "",
            Text(", ".join(one.embedders)),
            "callers'" if one.created else "operator's",
            one.digest,
        )
    results().print(table)


def _message(item: Item) -> reference_pb2.NewImage:
    """An item as a server takes it: in one of the formats that it reads."""
    import io

    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from audit.reference.images import UPLOAD_FORMATS, encode_png, read_image
    from audit.v1 import reference_pb2

    content = b""
    try:
        if isinstance(item.content, np.ndarray):
            content = encode_png(np.atleast_3d(item.content))
        elif item.content is not None:
            content = item.content.read_bytes() if isinstance(item.content, Path) else item.content
            try:
                with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS):
                    pass
            except UnidentifiedImageError:
                content = encode_png(np.atleast_3d(read_image(content)))
    except (InvalidInput, OSError):  # the server says so of all images that cannot be read
        pass
    return reference_pb2.NewImage(image=content, key=item.key, caption=item.caption, url=item.url)
