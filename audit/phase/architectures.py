"""The networks of a sweep: ε̂(x, t) without a prompt, in three architectures and any width, and many of them as one.

A sweep trains dozens of small networks that differ in their data and seed alone. `Fleet` holds several of one
architecture as one module whose every tensor has a leading dimension for the network: small matrix products become
batched ones, and the cost of launching an operation is paid once for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Architecture = Literal["mlp", "unet", "transformer", "ddpm"]

#: What the sides of a row are multiples of.
SIDE_MULTIPLE: dict[Architecture, int] = {"mlp": 1, "unet": 2, "transformer": 2, "ddpm": 8}
#: What widths are multiples of.
WIDTH_MULTIPLE: dict[Architecture, int] = {"mlp": 1, "unet": 8, "transformer": 32, "ddpm": 8}

#: Width of the sinusoidal features of the timestep (Ho et al. 2020, appendix B).
TIME_FEATURES = 64
MLP_BLOCKS = 3
TRANSFORMER_LAYERS = 4
#: Side of a transformer's patches, in pixels or latent cells.
PATCH = 2


def build_network(architecture: Architecture, width: int, shape: Sequence[int]) -> nn.Module:
    """A network with fresh weights.

    Args:
        architecture: "mlp" (residual, on flattened images), "unet" (two levels), "transformer" (on patches of 2×2) or
            "ddpm" (the UNet of Ho et al. 2020, appendix B, as the paper trains it).
        width: of the hidden layers, a multiple of `WIDTH_MULTIPLE`.
        shape: of one row, (channels, height, width), its sides multiples of `SIDE_MULTIPLE`.

    Returns:
        A module: x (n, *shape), timesteps (n,) to the network's prediction (n, *shape).
    """
    if architecture == "mlp":
        return ResidualMLP(width, shape)
    if architecture == "transformer":
        return PatchTransformer(width, shape)
    return UNet(width, shape, _SMALL if architecture == "unet" else _DDPM)


def forward_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of one row's forward pass, without computing it."""
    with torch.device("meta"):
        row, t = torch.empty(1, *shape), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta").eval()(row, t)
    return counter.get_total_flops()


class _Block(nn.Module):
    """One residual block: normalize, widen nothing, add the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return hidden + self.second(nn.functional.silu(self.first(self.norm(hidden)) + time))


class _TimeEmbedding(nn.Module):
    """Timesteps (n,) to (n, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = TimestepEmbedding(TIME_FEATURES, width)

    def forward(self, t: Tensor) -> Tensor:
        return self.embed(get_timestep_embedding(t, TIME_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0))


class ResidualMLP(nn.Module):
    """A residual perceptron on flattened images: the cheapest network that shows all three phases.

    Args:
        width: of the hidden layers.
        shape: of one row.
    """

    def __init__(self, width: int, shape: Sequence[int]) -> None:
        super().__init__()
        dimension = int(torch.Size(shape).numel())
        self.time = _TimeEmbedding(width)
        self.into = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(MLP_BLOCKS))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dimension)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x (n, *shape), t (n,)."""
        time = self.time(t)
        hidden = self.into(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, time)
        return self.out(self.norm(hidden)).reshape(x.shape)


@dataclass(frozen=True)
class _Levels:
    """What tells one UNet from another.

    Attributes:
        widths: of each level, as multiples of the network's.
        attention: the level that has attention.
        layers: residual blocks a level.
        dropout: in them, in [0, 1).
    """

    widths: tuple[int, ...]
    attention: int
    layers: int
    dropout: float


_SMALL = _Levels(widths=(1, 2), attention=1, layers=1, dropout=0.0)
#: As published for 32×32 images: attention at 16×16.
_DDPM = _Levels(widths=(1, 2, 2, 2), attention=1, layers=2, dropout=0.1)


class UNet(nn.Module):
    """diffusers' `UNet2DModel`.

    Args:
        width: channels of the first level.
        shape: of one row.
        levels: the rest of the architecture.
    """

    def __init__(self, width: int, shape: Sequence[int], levels: _Levels = _SMALL) -> None:
        from diffusers import UNet2DModel  # takes as long as torch, and the other architectures do without

        super().__init__()
        channels, height, side = shape
        kinds = ["Attn" if level == levels.attention else "" for level in range(len(levels.widths))]
        self.inner = UNet2DModel(
            sample_size=(height, side),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(width * factor for factor in levels.widths),
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            layers_per_block=levels.layers,
            dropout=levels.dropout,
            norm_num_groups=8,
            attention_head_dim=8,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x (n, *shape), t (n,)."""
        return self.inner(x, t, return_dict=False)[0]


class PatchTransformer(nn.Module):
    """A pre-norm transformer on patches (Dosovitskiy et al. 2021), the time added to every token.

    Args:
        width: of the tokens.
        shape: of one row; height and width even.
    """

    def __init__(self, width: int, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, side = shape
        self.time = _TimeEmbedding(width)
        self.into = nn.Conv2d(channels, width, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, height * side // PATCH**2, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, TRANSFORMER_LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, channels * PATCH**2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x (n, *shape), t (n,)."""
        patches = self.into(x)
        tokens = patches.flatten(2).transpose(1, 2) + self.position + self.time(t)[:, None]
        spread = self.out(self.encoder(tokens)).transpose(1, 2)
        return nn.functional.fold(spread, x.shape[-2:], PATCH, stride=PATCH)


class Fleet(nn.Module):
    """Several networks of one architecture as one module.

    Args:
        networks: same architecture, width and shape; their weights are copied.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        stacked, buffers = torch.func.stack_module_state(list(networks))
        if buffers:
            raise ValueError("networks with buffers cannot be stacked")
        self.names = tuple(stacked)
        self.stacked = nn.ParameterList(stacked.values())
        # In a tuple, so that it is not a submodule: it has the computation but no weights.
        self._computation = (copy.deepcopy(networks[0]).to("meta"),)
        self.train(networks[0].training)

    def train(self, mode: bool = True) -> Fleet:
        """Training or evaluation, of the computation too: it is where dropout is."""
        self._computation[0].train(mode)
        return super().train(mode)

    def __len__(self) -> int:
        return len(self.stacked[0])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Every network at its own rows.

        Args:
            x: (networks, n, *shape).
            t: (networks, n).

        Returns:
            The predictions, shape of x.
        """
        parameters = dict(zip(self.names, self.stacked, strict=True))

        def one(own: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
            return torch.func.functional_call(self._computation[0], own, (x, t))

        if len(self) == 1:  # some kernels are slower, or missing, under vmap
            return one({name: value[0] for name, value in parameters.items()}, x[0], t[0])[None]
        return torch.vmap(one, randomness="different")(parameters, x, t)

    def clip_gradients(self, norm: float) -> None:
        """Scale the gradient of every network down to a norm of at most `norm`, each on its own."""
        gradients = [parameter.grad for parameter in self.stacked if parameter.grad is not None]
        squared = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
        factors = (norm / (squared.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.reshape(-1, *[1] * (gradient.dim() - 1)))

    def weights(self, index: int) -> dict[str, Tensor]:
        """The state of one network, as its own `load_state_dict` takes it."""
        return {name: value[index].detach().clone() for name, value in zip(self.names, self.stacked, strict=True)}
