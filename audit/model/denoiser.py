r"""The one interface that all science is written against: the denoiser ε̂(x, t, c).

A forward process x_t = α_t x₀ + σ_t ε has the score s = −ε̂/σ and, in the language of energies, E = −log p_t with
∇E = ε̂/σ. A network may predict another quantity; with α and σ at its timestep the conversions are

    v-prediction (α² + σ² = 1; Salimans & Ho 2022, appendix D)   ε̂ = αv + σx        x̂₀ = αx − σv
    sample prediction                                             ε̂ = (x − αx̂₀)/σ
    ε-prediction                                                  x̂₀ = (x − σε̂)/α
    rectified flow, α = 1 − σ, v = ε − x₀ (Liu et al. 2023)       ε̂ = x + (1 − σ)v         x̂₀ = x − σv

A noise level is the share of the noise in the standard deviation of what the network sees, σ/√(α² + σ²): σ itself where
α² + σ² = 1. Forward processes of one level differ by the scale of x alone, so that measurements at it are comparable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]

#: Least signal α/σ at which differences of ε̂ are taken as they are: less than at the last step of Stable Diffusion's
#: schedule (0.068), where the published detectors measure.
LEAST_SIGNAL = 0.06

#: What a prompt becomes: named tensors, each with one entry per row in its first dimension.
Condition = Mapping[str, Tensor]


class Schedule:
    """α and σ at every training timestep of a variance-preserving or other discrete noise schedule.

    Args:
        alphas: float64, shape (timesteps,), the signal's factor.
        sigmas: float64, shape (timesteps,), the noise's standard deviation.
    """

    def __init__(self, alphas: Tensor, sigmas: Tensor) -> None:
        self.alphas = alphas.double()
        self.sigmas = sigmas.double()

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> Schedule:
        """The variance-preserving schedule of DDPM's ᾱ (Ho et al. 2020, equation 4): α = √ᾱ, σ = √(1 − ᾱ)."""
        cumulative = alphas_cumprod.double()
        return cls(cumulative.sqrt(), (1 - cumulative).sqrt())

    @classmethod
    def rectified_flow(cls, timesteps: int = 1000) -> Schedule:
        """α = 1 − σ and σ = t/timesteps for t from 0 to `timesteps`, pure noise included (Liu et al. 2023)."""
        sigmas = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        return cls(1 - sigmas, sigmas)

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def scales(self) -> Tensor:
        """√(α² + σ²) at every timestep: the standard deviation of x_t for data of standard deviation 1."""
        return (self.alphas.square() + self.sigmas.square()).sqrt()

    def timestep(self, sigma: float) -> int:
        """The timestep whose σ is nearest."""
        return int((self.sigmas - sigma).abs().argmin())

    def timestep_at_level(self, level: float) -> int:
        """The timestep whose noise level σ/√(α² + σ²) is nearest."""
        return int((self.sigmas / self.scales - level).abs().argmin())

    def pure_noise(self, noise: Tensor, t: Tensor) -> Tensor:
        """Standard normal noise as large as what the network sees at a timestep, whatever the signal there.

        Args:
            noise: shape (n, ...).
            t: timesteps, shape (n,) or ().
        """
        alpha, sigma = self.at(
            t, noise.new_empty(len(noise), *[1] * (noise.dim() - 1), dtype=torch.float64, device="cpu")
        )
        return noise * (alpha.square() + sigma.square()).sqrt().to(noise)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of per-row timesteps, shaped to multiply `like` row by row.

        Args:
            t: timesteps, shape (n,) or (); fractional ones are interpolated between their neighbours.
            like: shape (n, ...); gives dtype, device and number of dimensions.
        """
        position = t.cpu().double().clamp(0, len(self) - 1)  # mps has no float64
        low = position.floor().long()
        high = position.ceil().long()
        weight = position - low
        shape = (-1, *([1] * (like.dim() - 1)))
        alpha, sigma = (
            torch.lerp(table[low], table[high], weight).reshape(shape).to(like.device, like.dtype)
            for table in (self.alphas, self.sigmas)
        )
        return alpha, sigma


class Denoiser(ABC):
    """ε̂(x, t, c) of something that denoises: a checkpoint, a finite set of points, or a wrapper of another one.

    Attributes:
        schedule: α and σ per timestep.
        prediction_type: what `native` returns.
    """

    schedule: Schedule
    prediction_type: PredictionType

    @abstractmethod
    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's own output, whose meaning is `prediction_type`.

        Args:
            x: noisy latents x_t = αx₀ + σε, shape (n, *latent shape).
            t: timesteps, shape (n,); rows may differ.
            condition: one entry per row.

        Returns:
            Shape and dtype of x. A row does not depend on the rows beside it, beyond float tolerance.
        """

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The noise prediction ε̂, shape and dtype of x."""
        return self.noise(x, t, self.native(x, t, condition))

    def precise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε̂ for differences of nearly equal predictions: float64, on the CPU, shape of x.

        Nothing is rounded beyond what the network itself rounds. In half precision, αv + σx would lose again as much.
        """
        native = self.native(x, t, condition)
        return self.noise(x.cpu().double(), t.cpu(), native.cpu().double())

    def noise(self, x: Tensor, t: Tensor, native: Tensor) -> Tensor:
        """ε̂ from the network's own output at (x, t)."""
        if self.prediction_type == "epsilon":
            return native
        alpha, sigma = self.schedule.at(t, x)
        if self.prediction_type == "v_prediction":
            return alpha * native + sigma * x
        if self.prediction_type == "flow":
            return x + alpha * native
        return (x - alpha * native) / sigma

    def clean(self, x: Tensor, t: Tensor, native: Tensor) -> Tensor:
        """x̂₀ from the network's own output at (x, t)."""
        if self.prediction_type == "sample":
            return native
        alpha, sigma = self.schedule.at(t, x)
        if self.prediction_type == "v_prediction":
            return alpha * x - sigma * native
        if self.prediction_type == "flow":
            return x - sigma * native
        return (x - sigma * native) / alpha

    def contrast(self, t: Tensor, wanted: Tensor, other: Tensor) -> Tensor:
        """ε_Δ, the difference of two noise predictions at the same point, from the network's own outputs.

        ε_Δ = −(α/σ) x̂₀_Δ vanishes with the signal whatever the predictions are, at the first step of a flow and of a
        schedule with zero terminal signal-to-noise ratio. There α/σ is taken to be `LEAST_SIGNAL`: what differs is x̂₀.
        """
        difference = wanted - other
        if self.prediction_type == "epsilon":
            return difference
        alpha, sigma = self.schedule.at(t, difference)
        signal = torch.maximum(alpha, LEAST_SIGNAL * sigma)
        return -signal / sigma * difference if self.prediction_type == "sample" else signal * difference


class MeteredDenoiser(Denoiser):
    """Counts single-row evaluations, and gives the caller a say before each one.

    Args:
        inner: what does the work.
        check: called before every evaluation; it raises (`audit.errors.Stopped`) to end the work there.
    """

    def __init__(self, inner: Denoiser, check: Callable[[], None] = lambda: None) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.prediction_type = inner.prediction_type
        self.check = check
        self.evaluations = 0

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As `inner`'s, after `check` had its say."""
        self.check()
        self.evaluations += len(x)
        return self.inner.native(x, t, condition)


def kind_of_rows(x: Tensor, condition: Condition) -> tuple[object, ...]:
    """What rows must have in common to be evaluated together, and take the same memory for."""
    parts = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in sorted(condition.items()))
    return (x.shape[1:], x.dtype, parts)


def repeat(condition: Condition, times: int) -> Condition:
    """A one-row condition for `times` rows, without copying."""
    return {name: tensor.expand(times, *tensor.shape[1:]) for name, tensor in condition.items()}


def select(condition: Condition, rows: Tensor) -> Condition:
    """Rows of a condition by their indices, as often as they are named."""
    return {name: tensor[rows.to(tensor.device)] for name, tensor in condition.items()}


def concatenate(conditions: list[Condition]) -> Condition:
    """Rows of several conditions of the same kind, one after the other."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}
