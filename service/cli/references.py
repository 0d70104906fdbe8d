"""`basin reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audit.progress import progress_bar
from service.cli.console import results

app = typer.Typer(no_args_is_help=True, help="Make the reference sets that samples are compared with.")


@app.callback()
def group() -> None:
    """Make the reference sets that samples are compared with."""


@app.command()
def build(
    images: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER|FILE.npz",
            help="A folder of images of one size, or a NumPy archive: `images`, uint8, N×H×W or N×H×W×3, and "
            "optionally `captions`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the reference set.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="These are not all the images that the checkpoint was trained on.")
    ] = False,
    name: Annotated[str, typer.Option(help="What reports call it. [default: the name of the source]")] = "",
    clip: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Also index by an open_clip model: NAME@FILE.safetensors, or local-dir:FOLDER.",
        ),
    ] = "",
) -> None:
    """Index training images, so that audits can tell copies.

    Say --partial unless these are all of them: only against a complete set does "not found" mean "not there".
    """
    from audit.reference.reference_set import ReferenceSet

    with progress_bar() as bar:
        bar.live.transient = True
        bar.disable = not bar.console.is_terminal
        task = bar.add_task("reading", total=None, note="")
        reference = ReferenceSet.build(
            images,
            name=name,
            complete=not partial,
            clip=clip,
            progress=lambda done, total: bar.update(task, description="embedding", completed=done, total=total),
        )
        bar.update(task, description="writing", completed=0, total=None)
        reference.save(out)
    extent = "complete" if reference.complete else "partial"
    results().print(f"{reference.name}: {len(reference):,} images, {extent}, {reference.digest}", markup=False)
