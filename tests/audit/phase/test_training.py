"""Training that can be killed anywhere and run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audit.phase import training
from audit.phase.training import fit


class Killed(Exception):
    """Stands for a kill."""


def train(folder: Path, *, steps: int = 12, kill_at: int | None = None, seed: int = 3) -> nn.ModuleDict:
    """A small regression, killed in its kill_at-th step."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))})
    taken = 0

    def loss(generator: torch.Generator) -> Tensor:
        nonlocal taken
        if taken == kill_at:
            raise Killed
        taken += 1
        x = torch.randn(16, 4, generator=generator)
        return (modules["net"](x) - x.prod(1, keepdim=True)).square().mean()

    return fit(
        "net", modules, loss, steps=steps, learning_rate=1e-2, ema_decay=0.9, seed=seed, folder=folder,
        checkpoint_seconds=0.0,
    )  # fmt: skip


def weights(modules: nn.ModuleDict) -> list[Tensor]:
    """All of them."""
    return list(modules.state_dict().values())


@pytest.fixture(autouse=True)
def _short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """State is written between two lines of the loss curve: every three steps here."""
    monkeypatch.setattr(training, "LOG_EVERY", 3)


@pytest.mark.parametrize("kills", [[5], [1], [3], [7, 2, 0], [11]])
def test_killed_and_resumed_is_undisturbed(tmp_path: Path, kills: list[int]) -> None:
    """However often a run is killed, its weights and its loss curve are those of a run that was not."""
    whole = train(tmp_path / "whole")
    for kill_at in kills:
        with pytest.raises(Killed):
            train(tmp_path / "killed", kill_at=kill_at)
    resumed = train(tmp_path / "killed")
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    curves = [json.loads((tmp_path / run / "net.jsonl").read_text().splitlines()[-1]) for run in ("whole", "killed")]
    assert curves[0]["step"] == curves[1]["step"] == 12
    assert curves[0]["loss"] == pytest.approx(curves[1]["loss"], rel=1e-6)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    """Running it again takes no step and gives the same weights."""
    first = train(tmp_path)
    again = train(tmp_path, kill_at=0)
    for a, b in zip(weights(first), weights(again), strict=True):
        assert torch.equal(a, b)


def test_a_kill_while_the_state_is_written_costs_nothing(tmp_path: Path) -> None:
    """A state that is half written stands beside the last whole one and is not read."""
    with pytest.raises(Killed):
        train(tmp_path, kill_at=7)
    (tmp_path / "net.state.tmp").write_bytes(b"half a state")
    resumed = train(tmp_path)
    for a, b in zip(weights(resumed), weights(train(tmp_path / "whole")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_training_lowers_the_loss_and_returns_the_average(tmp_path: Path) -> None:
    """The loss falls; what comes back is frozen, in evaluation mode, and not the last step's weights."""
    trained = train(tmp_path, steps=150)
    curve = [json.loads(line)["loss"] for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    last = torch.load(tmp_path / "net.state.pt", weights_only=True)["modules"]
    assert not torch.equal(last["net.0.weight"], trained.state_dict()["net.0.weight"])


def test_seeds_decide_the_draws(tmp_path: Path) -> None:
    """Another seed sees other batches."""
    one, other = train(tmp_path / "one", seed=1), train(tmp_path / "other", seed=2)
    assert not torch.equal(weights(one)[0], weights(other)[0])
