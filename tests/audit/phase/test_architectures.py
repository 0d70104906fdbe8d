"""Networks of a sweep, and many of them as one."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.phase.architectures import Architecture, Fleet, build_network, forward_flops

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap

#: Small enough for a test; the transformer needs a multiple of 32.
WIDTHS: dict[Architecture, int] = {"mlp": 16, "unet": 8, "transformer": 32, "ddpm": 8}
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
GREY, COLOUR, LATENT = (1, 8, 8), (3, 16, 16), (4, 8, 8)


def network(architecture: Architecture, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Fresh weights, in evaluation mode: without dropout."""
    torch.manual_seed(seed)
    return build_network(architecture, WIDTHS[architecture], shape).eval()


def rows(count: int, shape: tuple[int, ...], seed: int = 7) -> tuple[Tensor, Tensor]:
    """Noise and timesteps that differ from row to row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.randint(1000, (count,), generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [GREY, COLOUR, LATENT])
def test_every_architecture_keeps_the_shape_and_sees_the_time(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    """Predictions have the shape of x, depend on x and on t, and a row does not depend on the rows beside it."""
    built = network(architecture, shape)
    x, t = rows(3, shape)
    with torch.inference_mode():
        together = built(x, t)
        assert together.shape == x.shape
        assert together.dtype == x.dtype
        assert torch.isfinite(together).all()
        alone = torch.cat([built(x[row : row + 1], t[row : row + 1]) for row in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        for other in (built(x, (t + 300) % 1000), built(x.flip(-1), t)):
            assert ((other - together).flatten(1).norm(dim=1) > 1e-3 * together.flatten(1).norm(dim=1)).all()


def test_a_perceptron_takes_rows_of_any_shape() -> None:
    """Two coordinates are a row as good as an image."""
    built = network("mlp", (2,))
    x, t = rows(5, (2,))
    assert built(x, t).shape == (5, 2)


def test_operations_of_a_perceptron_are_those_counted_by_hand() -> None:
    """Two per multiplication: the time's two layers, into the width, three blocks of two layers, and out of it."""
    width, dimension = 48, 3 * 5 * 7
    counted = forward_flops(build_network("mlp", width, (3, 5, 7)), (3, 5, 7))
    assert counted == 2 * (64 * width + width**2 + dimension * width + 3 * 2 * width**2 + width * dimension)


def test_operations_of_a_transformer_are_those_counted_by_hand() -> None:
    """Attention counts as well: four products of width², two of tokens × width, and eight width² of the perceptron."""
    width, tokens, patch = 64, 16, 4
    counted = forward_flops(build_network("transformer", width, (1, 8, 8)), (1, 8, 8))
    layer = tokens * (4 * width**2 + 2 * tokens * width + 8 * width**2)
    assert counted == 2 * (64 * width + width**2 + tokens * patch * width * 2 + 4 * layer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counting_operations_leaves_the_network_alone(architecture: Architecture) -> None:
    """The weights stay where they are, and a wider network costs more."""
    built = build_network(architecture, WIDTHS[architecture], COLOUR)
    small = forward_flops(built, COLOUR)
    assert {parameter.device.type for parameter in built.parameters()} == {"cpu"}
    assert built.training
    assert small < forward_flops(build_network(architecture, 2 * WIDTHS[architecture], COLOUR), COLOUR) < 5 * small


def test_the_papers_network_is_the_published_one() -> None:
    """At width 128 it has the 35.7 million parameters of Ho et al. 2020, appendix B; at 64 a quarter of them."""
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in build_network("ddpm", width, (3, 32, 32)).parameters())
            for width in (128, 64)
        ]
    assert counts[0] == pytest.approx(35.7e6, rel=0.002)
    assert counts[1] == pytest.approx(counts[0] / 4, rel=0.01)


def test_attention_of_the_papers_network_sits_at_16_by_16() -> None:
    """On images of 32×32: two attentions down, three up, and the one in the middle."""
    built = network("ddpm", (3, 32, 32))
    seen: list[tuple[int, ...]] = []
    for module in built.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda own, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    x, t = rows(1, (3, 32, 32))
    with torch.inference_mode():
        assert built(x, t).shape == x.shape
    assert seen == [(16, 16)] * 2 + [(4, 4)] + [(16, 16)] * 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_fleet_computes_what_its_networks_compute_alone(architecture: Architecture, count: int) -> None:
    """Predictions and gradients of every network are its own, up to rounding."""
    networks = [network(architecture, COLOUR, seed) for seed in range(count)]
    fleet = Fleet(networks)
    assert len(fleet) == count
    x, t = rows(count * 2, COLOUR)
    x, t = x.reshape(count, 2, *COLOUR), t.reshape(count, 2)
    target = torch.randn_like(x)
    predicted = fleet(x, t)
    (predicted - target).square().flatten(1).mean(1).sum().backward()
    for index, own in enumerate(networks):
        alone = own(x[index], t[index])
        torch.testing.assert_close(predicted[index], alone, rtol=1e-4, atol=1e-5)
        (alone - target[index]).square().mean().backward()
        for name, parameter in own.named_parameters():
            stacked = fleet.stacked[fleet.names.index(name)].grad
            torch.testing.assert_close(stacked[index], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_of_a_fleet_load_into_a_fresh_network(architecture: Architecture) -> None:
    """What comes out is what went in, entry by entry, and is a copy."""
    networks = [network(architecture, GREY, seed) for seed in range(2)]
    fleet = Fleet(networks)
    for index, own in enumerate(networks):
        fresh = network(architecture, GREY, 99)
        fresh.load_state_dict(fleet.weights(index))
        x, t = rows(2, GREY)
        with torch.inference_mode():
            assert torch.equal(fresh(x, t), own(x, t))
    copy = fleet.weights(0)
    next(iter(copy.values())).zero_()
    assert all(torch.equal(value, networks[0].state_dict()[name]) for name, value in fleet.weights(0).items())


def test_gradients_do_not_depend_on_the_data_of_the_others() -> None:
    """With other rows for the second network, the first has the very same gradient and the second another."""
    x, t = rows(6, GREY)
    x, t = x.reshape(2, 3, *GREY), t.reshape(2, 3)
    found = []
    for shift in (0.0, 1.0):
        fleet = Fleet([network("mlp", GREY, seed) for seed in range(2)])
        moved = torch.stack([x[0], x[1] + shift])
        fleet(moved, t).square().flatten(1).mean(1).sum().backward()
        found.append([parameter.grad.clone() for parameter in fleet.stacked])
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[0], after[0])
    assert any(not torch.equal(before[1], after[1]) for before, after in zip(*found, strict=True))


@settings(max_examples=25)
@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4),
    limit=st.floats(0.1, 10.0),
    unused=st.booleans(),
)
def test_gradients_are_clipped_network_by_network(norms: list[float], limit: float, unused: bool) -> None:
    """A norm beyond the limit becomes the limit, a smaller one stays, directions stay; as torch clips each alone."""
    networks = [network("mlp", (2,), seed) for seed in range(len(norms))]
    fleet = Fleet(networks)
    generator = torch.Generator().manual_seed(1)
    for parameter in fleet.stacked:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    if unused:  # frozen parameters have no gradient
        fleet.stacked[0].grad = None
    present = [parameter.grad for parameter in fleet.stacked if parameter.grad is not None]
    for index, norm in enumerate(norms):
        own = math.sqrt(sum(float(gradient[index].square().sum()) for gradient in present))
        for gradient in present:
            gradient[index] *= norm / own
    for index, own in enumerate(networks):
        for name, parameter in own.named_parameters():
            gradient = fleet.stacked[fleet.names.index(name)].grad
            parameter.grad = None if gradient is None else gradient[index].clone()
        nn.utils.clip_grad_norm_(own.parameters(), limit)
    fleet.clip_gradients(limit)
    for index, norm in enumerate(norms):
        clipped = math.sqrt(sum(float(gradient[index].square().sum()) for gradient in present))
        assert clipped == pytest.approx(min(norm, limit), rel=1e-4)
        for name, parameter in networks[index].named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(fleet.stacked[fleet.names.index(name)].grad[index], parameter.grad)


def test_gradients_of_zero_stay_zero() -> None:
    """Nothing is divided by nothing."""
    fleet = Fleet([network("mlp", (2,), seed) for seed in range(2)])
    for parameter in fleet.stacked:
        parameter.grad = torch.zeros_like(parameter)
    fleet.clip_gradients(1.0)
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in fleet.stacked)


def test_networks_with_buffers_are_refused() -> None:
    """Running statistics would have to be stacked as well."""
    with pytest.raises(ValueError, match="buffers"):
        Fleet([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])


@pytest.mark.parametrize("count", [1, 2])
def test_dropout_follows_the_mode_of_the_fleet(count: int) -> None:
    """In training two passes differ, and so do two networks with the same weights; in evaluation nothing is random."""
    built = build_network("ddpm", 8, GREY)
    fleet = Fleet([built] * count)
    x, t = rows(1, GREY)
    x, t = x.expand(count, 1, *GREY), t.expand(count, 1)
    with torch.inference_mode():
        assert fleet.training
        both = fleet(x, t)
        assert not torch.equal(both, fleet(x, t))
        assert count == 1 or not torch.allclose(both[0], both[1])
        fleet.eval()
        first = fleet(x, t)
        assert torch.equal(first, fleet(x, t))
        torch.testing.assert_close(first[0], built.eval()(x[0], t[0]), rtol=1e-4, atol=1e-5)
        assert not Fleet([built]).training
