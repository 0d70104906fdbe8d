"""What progress bars say of speed."""

from __future__ import annotations

import pytest

from audit.progress import RateColumn, progress_bar


@pytest.mark.parametrize(
    ("steps", "seconds", "said"),
    [
        (10, 2.0, "5.0/s"),
        (2, 2.0, "1.0/s"),
        (1, 2.0, "30.0/min"),
        (1, 600.0, "0.1/min"),
        (3000, 1.0, "3000.0/s"),
        (0, 5.0, ""),
    ],
)
def test_rates_are_per_second_or_per_minute(steps: int, seconds: float, said: str) -> None:
    """Whichever reads better, while it goes on and when it is over; nothing before there is one."""
    now = 0.0
    bar, column = progress_bar(), RateColumn()
    bar.get_time = lambda: now
    number = bar.add_task("audits", total=2 * steps, note="")
    (task,) = bar.tasks
    assert column.render(task).plain == ""
    bar.advance(number, 0)  # its clock begins with the first step that it hears of
    for _ in range(2):
        now += seconds
        bar.advance(number, steps)
    assert column.render(task).plain == said
    bar.stop_task(number)
    assert column.render(task).plain == said


def test_a_bar_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Count, time and the note of a task, on standard error, so that results can be piped."""
    with progress_bar() as bar:
        task = bar.add_task("audits", total=4, note="1 failed")
        bar.advance(task, 3)
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("audits", "3/4", "left", "1 failed"):
        assert part in err


def test_nothing_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts and paths are shown as they are."""
    with progress_bar() as bar:
        bar.add_task("a [bold] prompt[/red]", total=1, note="paused: runs/[rc1]/x[/tmp] \\")
    err = capsys.readouterr().err
    assert "a [bold] prompt[/red]" in err
    assert "paused: runs/[rc1]/x[/tmp] \\" in err
