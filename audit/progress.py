"""Progress bars, for everything that takes longer than a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

#: Seconds over which speed is measured: one step may take minutes.
SPEED_SECONDS = 600.0


class RateColumn(ProgressColumn):
    """How many a second, or a minute where they are slow."""

    def render(self, task: Task) -> Text:
        """See rich."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min")


def progress_bar() -> Progress:
    """A bar on standard error with count, rate, time taken, time left and a note; tasks are added with `note=""`.

    Descriptions and notes are shown as they are: they may hold what users typed.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        speed_estimate_period=SPEED_SECONDS,
    )


@contextmanager
def stage_bars(prefix: str = "", total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar for each stage of some work, from when it first gets on: a call that takes the name of a stage.

    Args:
        prefix: before the names of stages.
        total: calls of each stage, where they are known.
    """
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(prefix + stage, total=total, note="")
            bar.advance(tasks[stage])

        yield advance
