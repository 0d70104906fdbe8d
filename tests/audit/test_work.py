"""What an audit counts and tells while it is under way."""

from __future__ import annotations

import pytest
import torch

from audit.errors import Stopped
from audit.model.denoiser import Condition, MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.work import Progress, Work
from tests.audit.makers import clusters, exact_denoiser


@pytest.fixture
def exact() -> EmpiricalDenoiser:
    """Six points in 16 dimensions."""
    return exact_denoiser(clusters(2, 3, 0.2).reshape(-1, 4, 2, 2))


def call(work: Work, rows: int, condition: Condition) -> None:
    """One call of the denoiser."""
    work.denoiser(
        torch.zeros(rows, 4, 2, 2, dtype=torch.float64),
        torch.full((rows,), 500),
        {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in condition.items()},
    )


def test_evaluations_are_counted_by_stage(exact: EmpiricalDenoiser) -> None:
    """Rows, not calls; a stage that comes twice goes on counting, and one without calls counts none."""
    work, condition = Work(exact), exact.condition(0)
    for stage, rows in (("sampling", (3, 2)), ("decoding", ()), ("sampling", (4,)), ("curvature", (1,))):
        with work.stage(stage):
            for count in rows:
                call(work, count, condition)
    assert dict(work.evaluations) == {"sampling": 9, "decoding": 0, "curvature": 1}
    assert work.denoiser.evaluations == 10
    assert work.evaluations["screening"] == 0
    assert work.seconds.keys() == {"sampling", "decoding", "curvature"}


def test_seconds_of_a_stage_add_up(exact: EmpiricalDenoiser) -> None:
    """What a stage took before is kept."""
    work = Work(exact)
    with work.stage("sampling"):
        call(work, 1, exact.condition(0))
    before = work.seconds["sampling"]
    assert before > 0
    with work.stage("sampling"):
        call(work, 1, exact.condition(0))
    assert work.seconds["sampling"] > before


def test_progress_is_told_at_every_stage_and_before_every_call(exact: EmpiricalDenoiser) -> None:
    """The stage, the evaluations that are done, and those planned."""
    told: list[Progress] = []
    work = Work(exact, planned=20, on_progress=told.append)
    with work.stage("sampling"):
        call(work, 3, exact.condition(0))
        call(work, 2, exact.condition(0))
    work.enter("concluding")
    assert told == [
        Progress("sampling", 0, 20), Progress("sampling", 0, 20), Progress("sampling", 3, 20),
        Progress("concluding", 5, 20),
    ]  # fmt: skip


def test_the_check_has_its_say_before_every_call(exact: EmpiricalDenoiser) -> None:
    """Where it raises, the call is not made, and what the stage had done by then is counted."""
    meter, asked = MeteredDenoiser(exact), 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Stopped("the deadline has passed", reason="TEST")

    work = Work(meter, check=check)

    def run() -> None:
        with work.stage("sampling"):
            for _ in range(5):
                call(work, 2, exact.condition(0))

    with pytest.raises(Stopped):
        run()
    assert asked == 3
    assert meter.evaluations == work.denoiser.evaluations == 4
    assert work.evaluations["sampling"] == 4
    assert "sampling" in work.seconds
