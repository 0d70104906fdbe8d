"""What a family of checkpoints is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from audit.model.checkpoint import Model


@dataclass(frozen=True)
class Family:
    """A kind of pipeline: what it is made of, and how it is seen as a denoiser.

    Attributes:
        pipeline: the diffusers class.
        parts: the classes, of diffusers and transformers, that each of its parts may have, by the part's name in
            model_index.json; the first one where that does not say.
        adapt: sees a loaded pipeline as a model; raises BrokenCheckpoint where its parts do not fit the family.
        autoencoder: the part that makes images of latents; "" for a model of pixels.
        optional: parts that a pipeline may lack.
        options: further settings in model_index.json that pipelines of this kind are made with.
    """

    pipeline: type[Any]
    parts: Mapping[str, tuple[type[Any], ...]]
    adapt: Callable[[Any], Model]
    autoencoder: str = "vae"
    optional: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
