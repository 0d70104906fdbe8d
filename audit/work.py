"""One audit under way: how far it is, what it has spent, and whether it may go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from audit.model.denoiser import Denoiser, MeteredDenoiser
from audit.report import Cost


@dataclass(frozen=True)
class Progress:
    """How far an audit is: the stage, and denoiser evaluations done and planned at most."""

    stage: str
    evaluations: int
    planned: int


class Work:
    """Counts by stage, and lets the caller have its say before every denoiser call.

    Args:
        denoiser: what does the work.
        planned: evaluations, at most.
        on_progress: called at every stage and before every denoiser call.
        check: called before every denoiser call; raises to stop the audit there.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        planned: int = 0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.denoiser = MeteredDenoiser(denoiser, self._before_call)
        self.check = check
        #: Wall seconds by stage.
        self.seconds: dict[str, float] = {}
        #: Denoiser evaluations by stage.
        self.evaluations: Counter[str] = Counter()
        self._planned = planned
        self._on_progress = on_progress
        self._stage = ""

    def enter(self, stage: str) -> None:
        """Tell that a stage begins."""
        self._stage = stage
        self._on_progress(Progress(stage, self.denoiser.evaluations, self._planned))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done in here belongs to a stage."""
        self.enter(name)
        start, before = time.perf_counter(), self.denoiser.evaluations
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.evaluations[name] += self.denoiser.evaluations - before

    def cost(self) -> Cost:
        """What was spent, as reports say it."""
        return Cost(
            screening_evaluations=self.evaluations["screening"],
            sampling_evaluations=self.evaluations["sampling"],
            curvature_evaluations=self.evaluations["curvature"],
            explaining_evaluations=self.evaluations["explaining"],
            compute_seconds=sum(self.seconds.values()),
            stage_seconds=dict(self.seconds),
        )

    def _before_call(self) -> None:
        self.check()
        self.enter(self._stage)
