"""A denoiser that does with less memory what did not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit.auditor import Auditor
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser
from audit.model.pieces import InPieces
from tests.audit.makers import stable_diffusion_schedule


class Scarce(Denoiser):
    """Has memory for so many rows."""

    prediction_type = "epsilon"

    def __init__(self, most: int, error: type[BaseException] = torch.OutOfMemoryError, inner: Denoiser | None = None):
        self.most, self.error, self.inner = most, error, inner
        self.schedule = stable_diffusion_schedule() if inner is None else inner.schedule
        self.calls: list[int] = []

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Twice the rows, plus their timesteps."""
        self.calls.append(len(x))
        if len(x) > self.most:
            raise self.error("no memory")
        if self.inner is not None:
            return self.inner.native(x, t, condition)
        return 2 * x + t[:, None] + condition["c"]


def rows(count: int) -> tuple[Tensor, Tensor, Condition]:
    """Different ones."""
    return torch.randn(count, 3), torch.arange(count), {"c": torch.randn(count, 3)}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize(("count", "most"), [(1, 1), (8, 8), (9, 4), (7, 1), (0, 1), (5, 100)])
def test_rows_are_halved_until_memory_suffices(count: int, most: int, error: type[BaseException]) -> None:
    """The outputs are those of all rows at once, in their order."""
    scarce = Scarce(most, error)
    x, t, condition = rows(count)
    found = InPieces(scarce).native(x, t, condition)
    torch.testing.assert_close(found, 2 * x + t[:, None] + condition["c"])


def test_what_fits_is_remembered() -> None:
    """Nothing is tried again that did not fit."""
    scarce = Scarce(3)
    pieces = InPieces(scarce)
    pieces.native(*rows(8))
    assert scarce.calls == [8, 4, 2, 2, 2, 2]
    pieces.native(*rows(5))
    assert scarce.calls[6:] == [2, 2, 1]


def test_other_errors_and_single_rows_are_told() -> None:
    """What is no want of memory, or a row that does not fit, is raised as it is."""
    with pytest.raises(ZeroDivisionError):
        InPieces(Scarce(0, ZeroDivisionError)).native(*rows(4))
    scarce = Scarce(0)
    with pytest.raises(torch.OutOfMemoryError):
        InPieces(scarce).native(*rows(4))
    assert scarce.calls == [4, 2, 1]


def test_an_audit_goes_on_with_less_memory(checkpoint: Checkpoint) -> None:
    """An audit in one process has the same verdict and numbers where only two rows fit."""
    budget = Budget(seeds=4, minimum_seeds=4, curvature=CurvatureSettings(method="off"))
    plain, scarce = Auditor(checkpoint), Auditor(checkpoint)
    scarce.denoiser = InPieces(Scarce(2, inner=checkpoint.denoiser))
    one, other = (
        auditor.audit("a red wool coat", sampler=auditor.resolve_sampler(steps=2), budget=budget)
        for auditor in (plain, scarce)
    )
    assert scarce.denoiser.max_rows == 2
    assert one.decision.verdict == other.decision.verdict
    assert one.evidence.smoothed.values == pytest.approx(other.evidence.smoothed.values, abs=1e-4)
