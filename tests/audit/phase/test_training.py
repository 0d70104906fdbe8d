"""Training that can be killed anywhere and run again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from audit.phase import training
from audit.phase.training import fit


class Killed(Exception):
    """Stands for a kill."""


def train(
    folder: Path, *, steps: int = 12, kill_at: int | None = None, seed: int = 3, **settings: Any
) -> nn.ModuleDict:
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
        "net", modules, loss, steps=steps, seed=seed, folder=folder,
        **{"learning_rate": 1e-2, "ema_decay": 0.9, "checkpoint_seconds": 0.0, **settings},
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


@contextmanager
def before_every_step(look: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Have a look at the optimizer before each of its steps."""
    handle = register_optimizer_step_pre_hook(lambda optimizer, *arguments: look(optimizer))
    try:
        yield
    finally:
        handle.remove()


def test_gradients_are_clipped_to_one_unless_said_otherwise(tmp_path: Path) -> None:
    """By default their norm over all modules is at most 1; what is given is called once a step instead."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"net": nn.Linear(3, 1)})
    norms: list[float] = []

    def look(found: nn.Module) -> None:
        assert found is modules
        norms.append(math.hypot(*[float(parameter.grad.norm()) for parameter in found.parameters()]))

    def steep(generator: torch.Generator) -> Tensor:
        return 1e3 * modules["net"](torch.randn(8, 3, generator=generator)).square().mean()

    settings: dict[str, Any] = {"learning_rate": 1e-3, "ema_decay": 0.0, "seed": 0}
    fit("given", modules, steep, steps=4, folder=tmp_path, clip_gradients=look, **settings)
    assert len(norms) == 4
    assert min(norms) > 10  # nothing else clips
    norms.clear()
    with before_every_step(lambda optimizer: look(modules)):
        fit("default", modules, steep, steps=4, folder=tmp_path, **settings)
    assert norms == pytest.approx([1.0] * 4, rel=1e-3)


def test_steps_are_told_and_the_bar_keeps_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """First before any, then after each; after a kill from where the state is, and where all is done once."""
    told: list[int] = []
    train(tmp_path / "a", on_step=told.append)
    assert told == list(range(13))
    assert capfd.readouterr().err == ""
    told.clear()
    with pytest.raises(Killed):
        train(tmp_path / "b", kill_at=7, on_step=told.append)
    assert told == list(range(8))
    told.clear()
    train(tmp_path / "b", on_step=told.append)
    assert told == list(range(6, 13))  # the last line of the curve was written at 6
    told.clear()
    train(tmp_path / "b", on_step=told.append)
    assert told == [12]
    train(tmp_path / "c")
    assert "12/12" in capfd.readouterr().err


def test_the_state_is_written_before_the_last_step_is_told(tmp_path: Path) -> None:
    """Whoever is told that all is done finds it on the disk."""
    found: list[bool] = []
    train(tmp_path, checkpoint_seconds=1e9, on_step=lambda done: found.append((tmp_path / "net.state.pt").exists()))
    assert found == [False] * 12 + [True]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_weights_decay_as_told(tmp_path: Path, weight_decay: float) -> None:
    """Without a gradient a weight shrinks by the product of 1 − rate × decay over the schedule, or not at all."""
    modules = nn.ModuleDict({"net": nn.Linear(2, 1, bias=False)})
    nn.init.ones_(modules["net"].weight)
    rates: list[float] = []
    with before_every_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        found = fit(
            "net", modules, lambda generator: 0 * modules["net"].weight.sum(), steps=50, learning_rate=0.1,
            ema_decay=0.0, seed=0, folder=tmp_path, weight_decay=weight_decay,
        )  # fmt: skip
    expected = math.prod(1 - rate * weight_decay for rate in rates)
    assert max(rates) == pytest.approx(0.1)
    assert expected < 0.4 or not weight_decay
    torch.testing.assert_close(found["net"].weight, torch.full((1, 2), expected))


def test_losses_side_by_side_are_trained_and_told_each_on_its_own(tmp_path: Path) -> None:
    """A vector of losses trains their sum; the curve has the mean of each, as it would have of each alone."""
    gradients: list[dict[str, Tensor]] = []

    def run(name: str, chosen: list[int]) -> tuple[nn.ModuleDict, list[list[float]]]:
        torch.manual_seed(0)
        both = [nn.Linear(3, 1) for _ in range(2)]
        modules = nn.ModuleDict({str(index): both[index] for index in chosen})

        def loss(generator: torch.Generator) -> Tensor:
            x = torch.randn(16, 3, generator=generator)
            return torch.stack([(both[index](x)[:, 0] - x[:, index]).square().mean() for index in chosen])

        # A common norm would let one network's gradients shrink the other's.
        trained = fit(
            name, modules, loss, steps=7, learning_rate=1e-2, ema_decay=0.5, seed=1, folder=tmp_path,
            clip_gradients=lambda found: gradients.append({key: own.weight.grad.clone() for key, own in found.items()}),
        )  # fmt: skip
        return trained, [json.loads(line)["loss"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]

    together, curves = run("both", [0, 1])
    assert [len(line) for line in curves] == [2, 2, 2]
    for index in range(2):
        alone, curve = run(str(index), [index])
        torch.testing.assert_close(gradients[-7][str(index)], gradients[0][str(index)])
        torch.testing.assert_close(alone[str(index)].weight, together[str(index)].weight)
        assert [line[index] for line in curves] == pytest.approx([line[0] for line in curve])
