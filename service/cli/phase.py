"""`basin phase`."""

from __future__ import annotations

import errno
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from audit.errors import InvalidInput
from service.cli import options
from service.cli.console import MARKS, messages, reading, results

if TYPE_CHECKING:
    from audit.phase.story import Story
    from audit.phase.sweep import Sweep

#: Errors of a disk that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(no_args_is_help=True, help="Reproduce the transition from memorization to generalization.")


class Preset(StrEnum):
    """The sweeps that ship with Basin."""

    MINUTES = "minutes"
    EVENING = "evening"
    PAPER = "paper"


@app.callback()
def group() -> None:
    """Reproduce the transition from memorization to generalization."""


@app.command()
def run(
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="minutes: 8×8 digits, under ten minutes on two cores. evening: Fashion-MNIST, in pixel and in latent "
            "space. paper: CIFAR-10 at the paper's sizes, for a GPU.  [default: minutes]",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A sweep of your own, like `sweep` in a run's config.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The run folder.  [default: runs/PRESET]")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where the data set's files are.  [default: the usual places]"),
    ] = None,
    delta_m: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=options.finite, help="Distance to a training image up to which a sample is memorized."
        ),
    ] = None,
    delta_s: Annotated[
        float | None,
        typer.Option(min=0.0, callback=options.finite, help="Distance to another sample up to which a sample recurs."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread each.  [default: one per GPU, else per core]")
    ] = None,
) -> None:
    """Train networks on growing numbers of images, measure what they recall, and write a page that tells the story.

    The same command goes on where it was killed; with other thresholds it only measures again.
    """
    if preset is not None and config is not None:
        raise InvalidInput("name a --preset or a --config, not both", reason="FLAGS_CONFLICT", field="config")
    with messages().status("loading"):
        from audit.phase.run import run_phase
        from audit.phase.workers import default_devices

        sweep = read_sweep(config, preset or Preset.MINUTES)
    devices = default_devices()
    if workers is not None:
        devices = tuple(devices[index % len(devices)] for index in range(workers))
    folder = out or Path("runs") / (config.stem if config else str(preset or Preset.MINUTES))
    try:
        story = run_phase(sweep, folder, source=data, delta_m=delta_m, delta_s=delta_s, devices=devices)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InvalidInput(
            f"{error.strerror}: {folder}; make room there and run the same command again, nothing is done twice",
            reason="DISK_FULL",
            field="out",
        ) from error
    print_story(story)


def read_sweep(file: Path | None, preset: Preset) -> Sweep:
    """The sweep of a file, or else of a preset.

    Raises:
        NotFound: the file cannot be read.
        InvalidInput: it holds no sweep.
    """
    from audit.phase.sweep import PRESETS, Sweep

    if file is None:
        return PRESETS[preset]
    with reading(file, "sweep", field="config"):
        return Sweep.model_validate_json(file.read_bytes())


def print_story(story: Story) -> None:
    """The capacities and the orderings, and where the page is."""
    from audit.phase.page import show_capacity, show_estimate, show_number

    out = results()
    table = Table("network", "memorization", "spurious peak", "at the peak", "generalization", box=None)
    for name, found in story.transitions.items():
        table.add_row(
            name,
            *(show_capacity(capacity, story.sweep.sizes) for capacity in (found.memorization, found.spurious)),
            f"{found.spurious_peak:.0%}",
            show_capacity(found.generalization, story.sweep.sizes),
        )
    out.print("Capacities, in training images:")
    out.print(table)
    table = Table("", "", *story.orderings, box=None)
    for row in zip(*story.orderings.values(), strict=True):
        shape, colour = MARKS[row[0].larger]
        # Intervals of more than two series are too wide for a terminal; the page has them.
        shown = (show_estimate(one.judged) if len(row) <= 2 else show_number(one.judged.value) for one in row)
        cells = (f"{ordering.shown}, {text}" for ordering, text in zip(row, shown, strict=True))
        table.add_row(row[0].quantity, f"[{colour}]{shape} {row[0].larger}[/]", *cells)
    out.print("\nLarger than in generalized samples:")
    out.print(table)
    messages().print(f"The page is {story.run.path / 'index.html'}.", markup=False, soft_wrap=True)
