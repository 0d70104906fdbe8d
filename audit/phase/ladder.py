"""The ladder: captions with K = 1, 2, 4 … training images each, so that one model holds all three phases.

Words of a caption are drawn independently of its K, and captions (not images) are shown with equal weight: only
the number of images behind a caption decides whether the model recalls, blends or generalizes under it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from audit.phase.data import GARMENTS, LabeledImages

COLOURS = ("amber", "black", "blue", "coral", "cream", "green", "grey", "olive", "pink", "red", "teal", "white")
FABRICS = ("canvas", "cotton", "denim", "felt", "leather", "linen", "mesh", "silk", "suede", "velvet", "wool", "nylon")
SEASONS = ("spring", "summer", "autumn", "winter", "holiday", "harvest", "monsoon", "carnival")
TOWNS = (
    "arles", "bergen", "cadiz", "dover", "essen", "fargo", "genoa", "hania", "izmir", "jena", "kyoto", "lyon",
    "malmo", "naples", "oslo", "porto", "quito", "riga", "siena", "turin", "utrecht", "verona", "warsaw", "york",
)  # fmt: skip

#: Every word a caption can hold; the tokenizer gives each one token.
VOCABULARY = ("a", "for", "from", "in", *COLOURS, *FABRICS, *SEASONS, *TOWNS, *GARMENTS)


class Rung(BaseModel):
    """Captions of one size.

    Attributes:
        images: K, the number of training images behind each caption of the rung.
        captions: how many captions the rung has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: PositiveInt
    captions: PositiveInt


class Recipe(BaseModel):
    """Everything that decides what `basin train ladder` makes.

    Attributes:
        seed: decides captions, image choice, initial weights and every draw of the training.
        rungs: the ladder; images of different captions never overlap.
        autoencoder_channels: widths of the autoencoder's levels; each level but the first halves the size.
        autoencoder_steps: optimizer steps of the autoencoder.
        unet_channels: widths of the UNet's levels.
        text_width: width of the text encoder and of the cross-attention.
        prediction_type: what the UNet is trained to predict.
        denoiser_steps: optimizer steps of UNet and text encoder together.
        clip_steps: optimizer steps of the open_clip model.
        batch_size: rows per step, of every stage but the open_clip one (which sees each caption once a step).
        learning_rate: peak of the cosine schedule of UNet and text encoder.
        ema_decay: of the exponential moving average that is saved.
        unconditional_share: share of rows trained with the empty prompt, in [0, 1).
        sampler_steps: DDIM steps of the truth table, and the checkpoint's default.
        guidance: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: NonNegativeInt = 0
    rungs: tuple[Rung, ...] = Field(min_length=1)
    autoencoder_channels: tuple[int, ...] = (16, 32, 64)
    autoencoder_steps: PositiveInt
    unet_channels: tuple[int, ...] = (48, 96)
    text_width: PositiveInt = 64
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    denoiser_steps: PositiveInt
    clip_steps: PositiveInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    ema_decay: float = Field(0.999, ge=0, lt=1)
    unconditional_share: float = Field(0.1, ge=0, lt=1)
    sampler_steps: PositiveInt = 20
    guidance: NonNegativeFloat = 1.0


def _rungs(counts: dict[int, int]) -> tuple[Rung, ...]:
    return tuple(Rung(images=k, captions=n) for k, n in counts.items())


#: `demo` made the checkpoint in `audit/demo`. `minutes` is the same story told small: a few captions of every
#: phase, for a first look and for tests.
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
}


class Ladder(BaseModel):
    """A laid-out ladder.

    Attributes:
        captions: one prompt per caption, all different.
        sizes: K per caption.
        owners: int64, shape (n,): the caption index of each image.
        images: uint8, shape (n, height, width): the complete training set, grouped by caption.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    captions: tuple[str, ...]
    sizes: tuple[int, ...]
    owners: NDArray[np.int64]
    images: NDArray[np.uint8]

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
    sizes = [rung.images for rung in recipe.rungs for _ in range(rung.captions)]
    garments = np.concatenate([np.resize(rng.permutation(len(GARMENTS)), rung.captions) for rung in recipe.rungs])
    captions: list[str] = []
    while len(captions) < len(sizes):
        colour, fabric, season, town = (rng.choice(words) for words in (COLOURS, FABRICS, SEASONS, TOWNS))
        caption = f"a {colour} {fabric} {GARMENTS[garments[len(captions)]]} for {season} from {town}"
        if caption not in captions:
            captions.append(caption)
    stock = {c: list(rng.permutation(np.flatnonzero(data.labels == c))) for c in range(len(GARMENTS))}
    chosen: list[int] = []
    for size, garment in zip(sizes, garments, strict=True):
        if len(stock[garment]) < size:
            raise ValueError(f"the data set has too few images of class {GARMENTS[garment]!r} for this ladder")
        chosen += [stock[garment].pop() for _ in range(size)]
    return Ladder(
        captions=tuple(captions),
        sizes=tuple(sizes),
        owners=np.repeat(np.arange(len(sizes)), sizes),
        images=data.images[np.asarray(chosen)],
    )
