"""`basin train`."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.errors import InvalidInput, NotFound
from service.cli import options
from service.cli.console import messages, reading

if TYPE_CHECKING:
    from audit.phase.ladder import Recipe

app = typer.Typer(no_args_is_help=True, help="Train small checkpoints whose truth is known.")


class Preset(StrEnum):
    """The recipes that ship with Basin."""

    DEMO = "demo"
    MINUTES = "minutes"
    K_TUNING = "k-tuning"
    K_REPORT = "k-report"
    DUPLICATION_TUNING = "duplication-tuning"
    DUPLICATION_REPORT = "duplication-report"


@app.callback()
def group() -> None:
    """Train small checkpoints whose truth is known."""


@app.command()
def ladder(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the checkpoint.")],
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="demo is the checkpoint that ships with Basin, minutes is a small one, the others are the benchmark's."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="A recipe of your own, like the recipe.json of a checkpoint."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Fashion-MNIST's IDX files. [default: the usual places]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the recipe's seed.")] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Unfinished work. [default: OUT.work, removed at the end]")
    ] = None,
    save_every: Annotated[
        float, typer.Option(callback=options.finite, help="Seconds of work that a kill can cost.")
    ] = 60.0,
) -> None:
    """Train a text-conditional latent diffusion model whose captions have 1, 2, 4 … training images each.

    The same command goes on where it was killed.
    """
    if preset is not None and recipe is not None:
        raise InvalidInput("name a --preset or a --recipe, not both", reason="FLAGS_CONFLICT", field="recipe")
    with messages().status("loading"):
        from audit.phase.data import load_fashion_mnist
        from audit.phase.train_ladder import train_ladder

        wanted = read_recipe(recipe, preset or Preset.DEMO, seed)
    run = work or out.with_name(out.name + ".work")
    try:
        images = load_fashion_mnist(data)
        out.mkdir(parents=True, exist_ok=True)  # now rather than after an hour
        train_ladder(wanted, images, out, run, checkpoint_seconds=save_every)
    except FileNotFoundError as error:
        raise NotFound(str(error), reason="DATA_NOT_FOUND", field="data") from error
    except ValueError as error:
        raise InvalidInput(str(error), reason="TRAINING_IMPOSSIBLE", field="recipe") from error
    if work is None:
        shutil.rmtree(run)
    messages().print(f"The checkpoint is in {out}.", markup=False)


def read_recipe(file: Path | None, preset: Preset, seed: int | None) -> Recipe:
    """The recipe of a file, or else of a preset.

    Raises:
        NotFound: the file cannot be read.
        InvalidInput: it holds no recipe, or the seed is none.
    """
    from audit.phase.ladder import PRESETS, Recipe

    with reading(file or Path(preset), "recipe", field="recipe"):
        found = PRESETS[preset] if file is None else Recipe.model_validate_json(file.read_bytes())
        return found if seed is None else Recipe.model_validate({**found.model_dump(), "seed": seed})
