"""What a sweep over training-set sizes is made of: its configuration, its presets, the names of its networks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from audit.evidence.basin import BasinSettings
from audit.model.denoiser import PredictionType
from audit.phase.architectures import Architecture
from audit.phase.data import DataSet

#: What the ℓ2 distance of two images is taken between: their pixels, CLIP embeddings or LPIPS features.
Distance = Literal["pixel", "clip", "lpips"]
#: Of a network; small enough for the seeds that are derived from it.
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Series(_Model):
    """Networks that differ in their training set and seed alone.

    Attributes:
        architecture: see `audit.phase.architectures.build_network`.
        width: of its hidden layers.
        space: whether they denoise images or the latents of an autoencoder.
        learning_rate: peak of the cosine schedule.
    """

    architecture: Architecture
    width: PositiveInt
    space: Literal["pixel", "latent"] = "pixel"
    learning_rate: PositiveFloat

    @property
    def name(self) -> str:
        """What files, figures and tables call it."""
        return f"{self.architecture}-{self.width}" + ("-latent" if self.space == "latent" else "")


class Network(_Model):
    """One network of a sweep.

    Attributes:
        series: name of its series.
        size: K, its number of training images.
        seed: decides its training images, initial weights and draws.
    """

    series: str
    size: PositiveInt
    seed: Seed

    @property
    def name(self) -> str:
        """Unique in a sweep; the stem of its files."""
        return f"{self.series}/K{self.size:05d}-seed{self.seed}"


class Sweep(_Model):
    """Everything that decides what `basin phase run` trains and measures.

    Attributes:
        data: where the images come from.
        sizes: K, ascending; the first K images of a seed's own permutation, so that sets are nested.
        series: all networks of one space are judged by the same thresholds.
        seeds: every size of every series is trained once for each.
        steps: optimizer steps of every network.
        batch_size: images a step.
        ema_decay: of the exponential moving average that is sampled.
        weight_decay: of AdamW.
        prediction_type: what networks predict.
        beta_schedule: noise schedule, as diffusers names it, of 1,000 timesteps.
        autoencoder_widths: of the autoencoder's levels, for series in latent space; multiples of 8.
        autoencoder_steps: its optimizer steps.
        samples: N, drawn from every network; recurrence depends on it.
        sampler_steps: DDIM steps.
        distance: what nearest neighbours and thresholds are in.
        points: samples of each class, and training images, of each network at which evidence is taken.
        basin: how basins are measured.
        noise_level: σ at which curvature and relative energy are taken.
    """

    data: DataSet
    sizes: tuple[PositiveInt, ...] = Field(min_length=3)
    series: tuple[Series, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    steps: PositiveInt
    batch_size: PositiveInt = 128
    ema_decay: float = Field(0.999, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    prediction_type: PredictionType = "sample"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    autoencoder_widths: tuple[Annotated[int, Field(gt=0, multiple_of=8)], ...] = Field((16, 32, 64), min_length=1)
    autoencoder_steps: PositiveInt = 2000
    samples: int = Field(2048, ge=8)
    sampler_steps: int = Field(50, ge=2, le=1000)
    distance: Distance = "pixel"
    points: PositiveInt = 16
    basin: BasinSettings = BasinSettings()
    noise_level: float = Field(0.15, gt=0, lt=1)

    @field_validator("sizes", "seeds")
    @classmethod
    def _ascending(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError("they must ascend, each once")
        return values

    @field_validator("basin")
    @classmethod
    def _measurable(cls, basin: BasinSettings) -> BasinSettings:
        if basin.trials < 1 or basin.stride < 1 or not 0 <= basin.share <= 1:
            raise ValueError("trials and stride are at least 1, share is in [0, 1]")
        return basin

    @model_validator(mode="after")
    def _named_apart(self) -> Sweep:
        if len({series.name for series in self.series}) < len(self.series):
            raise ValueError("two series have the same architecture, width and space")
        return self

    @property
    def networks(self) -> tuple[Network, ...]:
        """All of them, series by series, then by seed, then by size."""
        return tuple(
            Network(series=series.name, size=size, seed=seed)
            for series in self.series
            for seed in self.seeds
            for size in self.sizes
        )

    def series_named(self, name: str) -> Series:
        """The series of that name."""
        return next(series for series in self.series if series.name == name)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """Of the diffusers scheduler that networks are trained and sampled with."""
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 1000,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction_type,
            "clip_sample": False,
            "set_alpha_to_one": True,
        }


#: `minutes` is for a coffee break on two cores, `evening` for an evening on them. `paper` has the sizes of
#: networks and training sets, steps, batches and rates of Pham et al. 2025 and its published configurations, for a
#: GPU.
PRESETS: dict[str, Sweep] = {
    "minutes": Sweep(
        data="digits",
        sizes=(8, 32, 64, 128, 256, 512, 1024, 1797),
        series=(
            Series(architecture="mlp", width=64, learning_rate=3e-3),
            Series(architecture="mlp", width=128, learning_rate=3e-3),
        ),
        seeds=(0, 1),
        steps=4000,
    ),
    "evening": Sweep(
        data="fashion-mnist",
        sizes=(16, 32, 64, 128, 256, 512, 2048, 60000),
        series=(
            Series(architecture="mlp", width=128, learning_rate=2e-3),
            Series(architecture="mlp", width=512, learning_rate=2e-3),
            Series(architecture="unet", width=16, space="latent", learning_rate=1e-3),
            Series(architecture="transformer", width=64, space="latent", learning_rate=1e-3),
        ),
        steps=4000,
        points=8,
    ),
    "paper": Sweep(
        data="cifar10",
        sizes=(2, 500, 1000, 2000, 4000, 6000, 8000, 12000, 16000, 20000, 30000, 40000, 50000),
        series=tuple(Series(architecture="ddpm", width=width, learning_rate=2e-4) for width in (64, 96, 128)),
        steps=500_000,
        ema_decay=0.9999,
        weight_decay=0.0,
        prediction_type="epsilon",
        beta_schedule="linear",
        samples=51_200,
        points=64,
    ),
}
