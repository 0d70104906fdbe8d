"""Networks that run as recorded graphs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from torch import Tensor, nn

from audit import demo
from audit.model import traced as module
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.traced import Traced


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> dict[object, object]:
    """None that other tests recorded, of as many as a process records."""
    own: dict[object, object] = {}
    monkeypatch.setattr(module, "_graphs", own)
    return own


class Network(nn.Module):
    """Counts how often Python runs it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.function = function
        self.runs = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Something of every row."""
        self.runs += 1
        return self.function(self.layer(x), t)


def plain(x: Tensor, t: Tensor) -> Tensor:
    """What can be recorded."""
    return (x * t[:, None]).view(x.shape[0], 2, -1).softmax(-1).flatten(1)


def traced(network: Network) -> Traced:
    """As checkpoints call theirs."""
    return Traced(network, "test", lambda network, x, t: network(x, t))


def inputs(rows: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Of a network."""
    return torch.randn(rows, 4), torch.arange(1, rows + 1).to(dtype)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_same_without_python(dtype: torch.dtype) -> None:
    """Any number of rows, and weights as they are now, give what the network gives; Python ran it at the first call."""
    network = Network(plain)
    fast = traced(network)
    fast(*inputs(1, dtype))
    before = network.runs
    for rows in (1, 2, 3, 17):
        given = inputs(rows, dtype)
        assert torch.equal(fast(*given), plain(network.layer(given[0]), given[1]))
    network.layer.weight.fill_(torch.nan)
    assert fast(*inputs(2, dtype)).isnan().all()
    assert network.runs == before


@torch.inference_mode()
def test_what_a_recording_would_get_wrong() -> None:
    """A network that looks at values or at the number of rows runs as it is."""
    for function in (
        lambda x, t: x if float(x.abs().sum()) > 1e-3 and len(x) == 2 else -x,
        lambda x, t: x * float(t.sum()),
    ):
        network = Network(function)
        fast = traced(network)
        for rows in (2, 1, 5):
            given = inputs(rows)
            assert torch.equal(fast(*given), function(network.layer(given[0]), given[1]))


@torch.inference_mode()
def test_what_cannot_be_recorded() -> None:
    """It runs as it is, and raises what it raises."""

    def fail(x: Tensor, t: Tensor) -> Tensor:
        if len(x) != 7:
            raise ValueError("rows")
        return x

    network = Network(fail)
    fast = traced(network)
    given = inputs(7)
    assert torch.equal(fast(*given), network.layer(given[0]))
    with pytest.raises(ValueError, match="rows"):
        fast(*inputs(3))


@torch.inference_mode()
def test_short_memory_is_not_remembered() -> None:
    """What there was no memory for is recorded the next time."""
    short = True

    def hungry(x: Tensor, t: Tensor) -> Tensor:
        if short and len(x) > 1:
            raise torch.OutOfMemoryError
        return x

    network = Network(hungry)
    fast = traced(network)
    fast(*inputs(1))
    short = False
    fast(*inputs(1))
    before = network.runs
    fast(*inputs(1))
    assert network.runs == before


def test_gradients_are_left_alone() -> None:
    """Where they are wanted, the network runs as it is."""
    network = Network(plain)
    x, t = inputs(2)
    traced(network)(x.requires_grad_(), t).sum().backward()
    assert x.grad is not None


@torch.inference_mode()
def test_graphs_are_bounded(monkeypatch: pytest.MonkeyPatch, graphs: dict[object, object]) -> None:
    """When there are as many as may be, networks run as they are."""
    monkeypatch.setattr(module, "MOST_GRAPHS", 2)
    fast = Traced(Network(plain), "test", lambda network, x: x.flip(-1))
    for width in (3, 4, 5, 3):
        x = torch.randn(2, width)
        assert torch.equal(fast(x), x.flip(-1))
    assert len(graphs) == 2


@torch.inference_mode()
def test_nothing_is_taken_for_a_network_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that do not say what they compute have no graph in common, also where one takes the other's place."""
    monkeypatch.setattr(module, "_graphs", {})
    for sign in (1, -1) * 10:
        network = Network(lambda x, t, sign=sign: sign * x)  # type: ignore[misc]
        given, gone = inputs(2), weakref.ref(network)
        assert torch.equal(traced(network)(*given), sign * network.layer(given[0]))
        del network
        gc.collect()
        assert gone() is None


def test_loading_again_costs_no_memory() -> None:
    """Checkpoints of one architecture have their graphs in common, and leave nothing behind."""

    def load() -> None:
        load_checkpoint(demo.CHECKPOINT)
        gc.collect()

    load()
    before, graphs = psutil.Process().memory_info().rss, len(module._graphs)
    for _ in range(10):
        load()
    assert len(module._graphs) == graphs
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


@torch.inference_mode()
def test_threads() -> None:
    """They may all come first."""
    network = Network(plain)
    fast = traced(network)
    given = [inputs(rows) for rows in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: torch.inference_mode()(fast)(*one), given))
    for one, (x, t) in zip(found, given, strict=True):
        assert torch.equal(one, plain(network.layer(x), t))


@torch.inference_mode()
def test_the_checkpoint_is_recorded(checkpoint: Checkpoint) -> None:
    """To the last bit."""
    denoiser = checkpoint.denoiser
    condition = checkpoint.encode_prompts(["a red wool coat"])
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    text = {"text": condition["text"].expand(3, -1, -1)}
    found = denoiser.native(x, t, text)
    fast = denoiser.inner._unet  # type: ignore[attr-defined]
    assert fast._graph((x, t, text["text"])) is not None
    assert torch.equal(found, fast._call(x, t, text["text"]))
