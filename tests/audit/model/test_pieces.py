"""Rows in pieces: as many as free memory holds, fewer of what did not fit, and results that do not depend on it."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.model import memory
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser
from audit.model.loading import load_checkpoint
from audit.model.memory import SHARE, Pieces, Watch, available_bytes, container_bytes
from audit.model.pieces import InPieces
from tests.audit.makers import stable_diffusion_schedule

CPU = torch.device("cpu")


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
    assert scarce.denoiser.pieces.max_rows == 2
    assert one.decision.verdict == other.decision.verdict
    assert one.evidence.smoothed.values == pytest.approx(other.evidence.smoothed.values, abs=1e-4)


# What is free.


def test_what_tensors_take_is_seen() -> None:
    """The most at a time: what was freed before counts no more, views and inputs count nothing."""
    given = torch.ones(1000)
    with Watch() as watch:
        one = given + 1
        assert watch.peak == 4000
        one += 1
        other = one[:10].view(2, 5)
        assert watch.peak == 4000
        del one, other
        (given * 2).sum()
        assert watch.peak < 8000
        kept = [given * factor for factor in range(3)]
    assert 12000 <= watch.peak < 16000
    assert len(kept) == 3
    given * 2
    assert watch.peak < 16000


@given(rows=st.integers(0, 40), fit=st.integers(0, 50))
def test_as_many_rows_come_at_once_as_are_free(rows: int, fit: int) -> None:
    """One alone and watched, then what the share of free memory holds, at least one."""
    x = torch.arange(4.0 * rows).reshape(rows, 4)
    cost = x[:1].nbytes
    pieces, calls = Pieces(CPU, lambda device: fit * cost / SHARE), []

    def double(part: slice) -> Tensor:
        calls.append(len(x[part]))
        return x[part] * 2

    with patch.object(memory, "SMALL", 0):
        assert torch.equal(pieces.run(double, rows, "kind"), x * 2)
    assert max(calls) <= max(1, fit)
    assert calls[0] == min(1, rows)
    assert all(count == max(1, fit) for count in calls[1:-1])


def test_kinds_of_rows_are_watched_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger rows come in smaller pieces, and what one takes is found out once."""
    monkeypatch.setattr(memory, "SMALL", 0)
    pieces, calls = Pieces(CPU, lambda device: 64 / SHARE), []

    def count(x: Tensor) -> Tensor:
        return pieces.run(lambda part: calls.append(len(x[part])) or x[part] + 1, len(x), x.shape[1:])

    small, large = torch.ones(9, 2), torch.ones(9, 8)
    for x in (small, large, small):
        torch.testing.assert_close(count(x), x + 1)
    assert calls == [1, 8, 1, 2, 2, 2, 2, 8, 1]


def test_few_bytes_are_not_asked_for() -> None:
    """Where all rows take little, nobody looks how much is free."""
    pieces, x = Pieces(CPU, lambda device: 1 // 0), torch.ones(9, 2)
    for _ in range(2):
        assert torch.equal(pieces.run(lambda part: x[part] + 1, 9), x + 1)


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    """Its bound, less what it uses and would not drop; without a bound the machine's."""
    for name, text in (("max", "5000"), ("current", "3000"), ("stat", "anon 2000\ninactive_file 700\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert container_bytes(tmp_path) == 2700
    (tmp_path / "memory.current").write_text("9000")
    assert container_bytes(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max")
    assert container_bytes(tmp_path) == container_bytes(tmp_path / "none") == float("inf")
    assert 0 < available_bytes(CPU) < 2**50


@pytest.mark.parametrize("fit", [1, 3])
def test_results_do_not_depend_on_what_is_free(
    checkpoint: Checkpoint, fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit with so many rows at a time gives the numbers of one that has all of them at once."""
    short = load_checkpoint(demo.CHECKPOINT)
    inner, rows = short.denoiser.inner.native, []  # type: ignore[attr-defined]
    monkeypatch.setattr(short.denoiser.inner, "native", lambda x, *rest: rows.append(len(x)) or inner(x, *rest))  # type: ignore[attr-defined]
    budget = Budget(seeds=4, minimum_seeds=4, curvature=CurvatureSettings(method="off"))
    found = []
    for one in (checkpoint, short):
        if one is short:
            monkeypatch.setattr(Pieces, "_most", lambda pieces, kind, rows: min(fit, rows))
        auditor = Auditor(one)
        found.append(auditor.audit("a red wool coat", sampler=auditor.resolve_sampler(steps=2), budget=budget))
    whole, parts = found
    assert max(rows) == fit
    assert whole.decision.verdict == parts.decision.verdict
    assert whole.evidence.smoothed.values == pytest.approx(parts.evidence.smoothed.values, abs=1e-4)
