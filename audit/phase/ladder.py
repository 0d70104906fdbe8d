"""Ladders: captions whose training decides their phase, so that one model holds all three and the truth is known.

On a K ladder captions have K = 1, 2, 4 … training images each and are shown equally often (captions, not images): only
K decides whether the model recalls, blends or generalizes under one. On a duplication ladder most captions are ordinary
ones of many images, and a few have one image, or a few, shown more or less often among them: that is how large models
come to memorize. Words of a caption are drawn independently of all this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from audit.phase.data import GARMENTS, LabeledImages

if TYPE_CHECKING:
    from audit.model.sampling import SamplerSettings  # and diffusers: not for those who lay a ladder out

COLOURS = ("amber", "black", "blue", "coral", "cream", "green", "grey", "olive", "pink", "red", "teal", "white")
FABRICS = ("canvas", "cotton", "denim", "felt", "leather", "linen", "mesh", "silk", "suede", "velvet", "wool", "nylon")
SEASONS = ("spring", "summer", "autumn", "winter", "holiday", "harvest", "monsoon", "carnival")
TOWNS = (
    "arles", "bergen", "cadiz", "dover", "essen", "fargo", "genoa", "hania", "izmir", "jena", "kyoto", "lyon",
    "malmo", "naples", "oslo", "porto", "quito", "riga", "siena", "turin", "utrecht", "verona", "warsaw", "york",
)  # fmt: skip

#: Captions of so many images are taken for ordinary where a ladder has none to calibrate with.
ORDINARY_IMAGES = 32

#: Every word a caption can hold; the tokenizer gives each one token.
VOCABULARY = ("a", "for", "from", "in", *COLOURS, *FABRICS, *SEASONS, *TOWNS, *GARMENTS)


#: What captions of a rung are for: to be audited; to calibrate detectors with, as ordinary prompts; or to find where in
#: an image a copy sits, since one half of the images, the template, is the same in all of them.
Purpose = Literal["audit", "calibrate", "locate"]
#: Which half of the images of a `locate` caption is the template.
Half = Literal["top", "bottom", "left", "right"]
HALVES: tuple[Half, ...] = get_args(Half)


class Rung(BaseModel):
    """Captions of one size.

    Attributes:
        images: K, the number of training images behind each caption of the rung.
        captions: how many captions the rung has.
        weight: how often each of its captions is shown, relative to the captions of the other rungs.
        purpose: what its captions are for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: PositiveInt
    captions: PositiveInt
    weight: PositiveInt = 1
    purpose: Purpose = "audit"


class Recipe(BaseModel):
    """Everything that decides what `basin train ladder` makes.

    Attributes:
        seed: decides captions, image choice, initial weights and every draw of the training.
        rungs: the ladder; images of different captions never overlap.
        fold: which part of the data set the images are from: those whose index is `fold` modulo `folds`. Ladders of
            different folds share no image.
        folds: how many parts there are.
        held_out: which captions nothing is tuned on: every other one, or all of them, which takes a rung to calibrate
            with.
        autoencoder_channels: widths of the autoencoder's levels; each level but the first halves the size.
        autoencoder_steps: optimizer steps of the autoencoder.
        unet_channels: widths of the UNet's levels.
        text_width: width of the text encoder and of the cross-attention.
        prediction_type: what the UNet is trained to predict.
        denoiser_steps: optimizer steps of UNet and text encoder together.
        clip_steps: optimizer steps of the open_clip model; 0 makes none.
        batch_size: rows per step, of every stage but the open_clip one (which sees each caption once a step).
        learning_rate: peak of the cosine schedule of UNet and text encoder.
        ema_decay: of the exponential moving average that is saved.
        unconditional_share: share of rows trained with the empty prompt, in [0, 1).
        half_precision: whether weights are saved as float16; the truth is then that of the rounded weights.
        sampler: scheduler of the truth table, a key of `audit.model.sampling.SCHEDULERS`, and the checkpoint's own.
        sampler_steps: its steps.
        guidance: its classifier-free guidance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: NonNegativeInt = 0
    rungs: tuple[Rung, ...] = Field(min_length=1)
    fold: NonNegativeInt = 0
    folds: PositiveInt = 1
    held_out: Literal["half", "all"] = "half"
    autoencoder_channels: tuple[int, ...] = (16, 32, 64)
    autoencoder_steps: PositiveInt
    unet_channels: tuple[int, ...] = (48, 96)
    text_width: PositiveInt = 64
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    denoiser_steps: PositiveInt
    clip_steps: NonNegativeInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    ema_decay: float = Field(0.999, ge=0, lt=1)
    unconditional_share: float = Field(0.1, ge=0, lt=1)
    half_precision: bool = False
    sampler: Literal["ddim", "dpm++2m"] = "ddim"
    sampler_steps: PositiveInt = 20
    guidance: NonNegativeFloat = 1.0

    def settings(self, defaults: SamplerSettings) -> SamplerSettings:
        """The sampler settings of the truth table, on top of the checkpoint's own."""
        return replace(defaults, steps=self.sampler_steps, guidance=self.guidance)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"folds are numbered from 0 to {self.folds - 1}, there is no fold {self.fold}")
        if self.held_out == "all" and all(rung.purpose != "calibrate" for rung in self.rungs):
            raise ValueError("all captions are held out, with nothing to calibrate with: add a rung of that purpose")
        return self


def _rungs(counts: dict[int, int]) -> tuple[Rung, ...]:
    return tuple(Rung(images=k, captions=n) for k, n in counts.items())


def _copies(counts: dict[int, int]) -> tuple[Rung, ...]:
    """Captions of one image, by how often they are shown."""
    return tuple(Rung(images=1, captions=n, weight=shown) for shown, n in counts.items())


#: `demo` made the checkpoint in `audit/demo`. `minutes` is the same story told small: a few captions of every
#: phase, for a first look and for tests. The others made the ladders of the detection benchmark, in `audit/bench`: one
#: of each kind to tune on, one of each kind kept for the report. On duplication ladders weights are numbers of times
#: that a caption is shown, within a tenth.
PRESETS: dict[str, Recipe] = {
    "demo": Recipe(
        rungs=_rungs({1: 6, 2: 6, 4: 6, 8: 8, 12: 10, 16: 12, 20: 10, 24: 8, 32: 6, 64: 6, 128: 5, 256: 5, 1000: 10}),
        autoencoder_steps=2000,
        denoiser_steps=12000,
        clip_steps=1500,
    ),
    "minutes": Recipe(
        rungs=_rungs({1: 4, 4: 2, 16: 4, 500: 4}),
        autoencoder_steps=400,
        denoiser_steps=1200,
        clip_steps=60,
    ),
    "k-tuning": Recipe(
        seed=11,
        fold=0,
        folds=2,
        rungs=(
            *_rungs({1: 14, 2: 12, 3: 12, 4: 12, 6: 12, 8: 10, 12: 8, 16: 8, 32: 12, 64: 20, 128: 20}),
            Rung(images=128, captions=50, purpose="calibrate"),
        ),
        unet_channels=(32, 64),
        autoencoder_steps=2000,
        denoiser_steps=16000,
        clip_steps=0,
        half_precision=True,
        sampler="dpm++2m",
        sampler_steps=12,
        guidance=1.5,
    ),
    "k-report": Recipe(
        seed=21,
        fold=1,
        folds=2,
        held_out="all",
        rungs=(
            *_rungs({1: 45, 2: 25, 3: 25, 4: 25, 6: 20, 8: 15, 12: 15, 16: 15, 32: 40, 64: 80, 128: 80}),
            Rung(images=128, captions=50, purpose="calibrate"),
        ),
        unet_channels=(48, 80),
        text_width=48,
        prediction_type="v_prediction",
        autoencoder_steps=2000,
        denoiser_steps=14000,
        clip_steps=0,
        half_precision=True,
        sampler="dpm++2m",
        sampler_steps=10,
    ),
    "duplication-tuning": Recipe(
        seed=12,
        fold=0,
        folds=2,
        rungs=(
            *_copies({3000: 12, 1500: 10, 800: 10, 400: 10, 200: 10, 100: 10, 30: 8}),
            Rung(images=2, captions=8, weight=1500),
            Rung(images=4, captions=8, weight=2000),
            Rung(images=8, captions=6, weight=3000),
            Rung(images=120, captions=70, weight=4500),
            Rung(images=120, captions=50, weight=4500, purpose="calibrate"),
            Rung(images=40, captions=12, weight=3000, purpose="locate"),
        ),
        prediction_type="v_prediction",
        autoencoder_steps=2000,
        denoiser_steps=12000,
        clip_steps=0,
        half_precision=True,
        sampler="dpm++2m",
        sampler_steps=12,
        guidance=2.0,
    ),
    "duplication-report": Recipe(
        seed=22,
        fold=1,
        folds=2,
        held_out="all",
        rungs=(
            *_copies({3000: 25, 1500: 28, 800: 28, 400: 20, 200: 15, 100: 15, 30: 12}),
            Rung(images=2, captions=28, weight=1500),
            Rung(images=3, captions=10, weight=2000),
            Rung(images=4, captions=8, weight=2000),
            Rung(images=100, captions=170, weight=3000),
            Rung(images=100, captions=50, weight=3000, purpose="calibrate"),
            Rung(images=40, captions=16, weight=3000, purpose="locate"),
        ),
        unet_channels=(32, 96),
        autoencoder_steps=2000,
        denoiser_steps=14600,
        clip_steps=0,
        half_precision=True,
        sampler="dpm++2m",
        sampler_steps=10,
        guidance=3.0,
    ),
}


class Ladder(BaseModel):
    """A laid-out ladder.

    Attributes:
        captions: one prompt per caption, all different.
        sizes: K per caption.
        weights: how often each caption is shown, relative to the others.
        splits: per caption, "tuning" or "held-out" when it is audited, else its purpose.
        templates: which half of a caption's images is the same in all of them, by caption index.
        owners: int64, shape (n,): the caption index of each image.
        images: uint8, shape (n, height, width): the complete training set, grouped by caption.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    captions: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[int, ...]
    splits: tuple[str, ...]
    templates: dict[int, Half]
    owners: NDArray[np.int64]
    images: NDArray[np.uint8]

    def ordinary(self) -> list[str]:
        """Captions to calibrate with: those that are there for it, else the tuning half's captions of many images."""
        many = min(ORDINARY_IMAGES, max(self.sizes))
        chosen = [caption for caption, split in zip(self.captions, self.splits, strict=True) if split == "calibrate"]
        return chosen or [
            caption
            for caption, size, split in zip(self.captions, self.sizes, self.splits, strict=True)
            if split == "tuning" and size >= many
        ]

    def draw_captions(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Caption indices as they are shown in training, by weight: int64, shape (count,)."""
        last = torch.tensor(self.weights).cumsum(0)
        return torch.searchsorted(last, torch.randint(int(last[-1]), (count,), generator=generator), right=True)

    def draw_images(self, captions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One image of each caption, every one of its K as likely.

        Args:
            captions: int64, shape (n,): caption indices.
            generator: of the draws.

        Returns:
            int64, shape (n,): rows of `images`.
        """
        sizes = torch.tensor(self.sizes)
        first = sizes.cumsum(0) - sizes
        return first[captions] + (torch.rand(len(captions), generator=generator) * sizes[captions]).long()


def lay_out(recipe: Recipe, data: LabeledImages) -> Ladder:
    """Draw the captions of a recipe and give each its own images of one class.

    Within a rung garments go round in a random order (so a rung of ten captions has each class once) and the
    other words are uniform draws: no word tells anything about K.

    Raises:
        ValueError: a class has fewer images than its captions need.
    """
    rng = np.random.default_rng(recipe.seed)
    rungs = [rung for rung in recipe.rungs for _ in range(rung.captions)]
    sizes = [rung.images for rung in rungs]
    garments = np.concatenate([np.resize(rng.permutation(len(GARMENTS)), rung.captions) for rung in recipe.rungs])
    captions: list[str] = []
    while len(captions) < len(sizes):
        colour, fabric, season, town = (rng.choice(words) for words in (COLOURS, FABRICS, SEASONS, TOWNS))
        caption = f"a {colour} {fabric} {GARMENTS[garments[len(captions)]]} for {season} from {town}"
        if caption not in captions:
            captions.append(caption)
    own = [np.flatnonzero(data.labels == c) for c in range(len(GARMENTS))]
    stock = {c: list(rng.permutation(rows[rows % recipe.folds == recipe.fold])) for c, rows in enumerate(own)}
    chosen: list[int] = []
    for size, garment in zip(sizes, garments, strict=True):
        if len(stock[garment]) < size:
            raise ValueError(f"the data set has too few images of class {GARMENTS[garment]!r} for this ladder")
        chosen += [stock[garment].pop() for _ in range(size)]
    images = data.images[np.asarray(chosen)]
    templates = {i: HALVES[rng.integers(len(HALVES))] for i, rung in enumerate(rungs) if rung.purpose == "locate"}
    first = np.cumsum([0, *sizes])
    for index, half in templates.items():
        part = images[first[index] : first[index + 1]]
        mask = template_mask(half, part.shape[1:])
        part[:, mask] = part[0, mask]
    return Ladder(
        captions=tuple(captions),
        sizes=tuple(sizes),
        weights=tuple(rung.weight for rung in rungs),
        splits=tuple(
            split_of(index, recipe.held_out) if rung.purpose == "audit" else rung.purpose
            for index, rung in enumerate(rungs)
        ),
        templates=templates,
        owners=np.repeat(np.arange(len(sizes)), sizes),
        images=images,
    )


def split_of(index: int, held_out: Literal["half", "all"]) -> str:
    """The fixed split: captions are laid out rung by rung, and within a rung they alternate."""
    return "tuning" if held_out == "half" and index % 2 == 0 else "held-out"


def template_mask(half: Half, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where the template is: bool, shape (height, width)."""
    height, width = shape
    mask = np.zeros((height, width), dtype=bool)
    rows = {"top": slice(0, height // 2), "bottom": slice(height // 2, None)}.get(half, slice(None))
    columns = {"left": slice(0, width // 2), "right": slice(width // 2, None)}.get(half, slice(None))
    mask[rows, columns] = True
    return mask
