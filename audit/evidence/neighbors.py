"""Nearest reference images of each sample, in pixels and in CLIP space.

Every image that a latent diffusion model makes has been through its decoder, so even an exact copy of a training
image stands a whole reconstruction error away from it: the decoder's floor. Reference images are therefore compared
after the same trip, y ↦ D(E(y)). The k nearest originals (FAISS, exhaustive) are re-ranked by the distance to their
reconstruction; an exact copy then has distance 0 and the distance to the original is reported beside it. Only
candidates are reconstructed, so this costs the same for a thousand references as for a million.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.reconstructions import Reconstructions
from audit.model.checkpoint import Checkpoint
from audit.model.memory import in_halves
from audit.reference.images import in_chunks, with_channels
from audit.reference.reference_set import ReferenceSet

#: Originals that are re-ranked per sample.
CANDIDATES = 8


@dataclass(frozen=True)
class Neighbors:
    """Nearest reference image of each of n samples.

    Attributes:
        index: in the reference set, by pixel distance after reconstruction, (n,).
        distance: ℓ2 in [-1, 1] pixels to the reconstructed reference, (n,): what δ_m is compared with.
        original_distance: to the same reference as it is stored, (n,).
        clip_index: nearest by CLIP, (n,); None without an embedder.
        clip_similarity: its cosine, (n,); None without an embedder.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    original_distance: NDArray[np.float64]
    clip_index: NDArray[np.int64] | None
    clip_similarity: NDArray[np.float64] | None


class NeighborFinder:
    """Nearest neighbours of a checkpoint's samples in one reference set. Reconstructions are remembered between runs.

    Args:
        reference: the set to search.
        checkpoint: whose autoencoder reconstructs.
    """

    def __init__(self, reference: ReferenceSet, checkpoint: Checkpoint) -> None:
        self.reference = reference
        self.checkpoint = checkpoint
        self._side = checkpoint.defaults.height, checkpoint.defaults.width
        self._remembered = Reconstructions(
            f"{checkpoint.autoencoder} {checkpoint.device.type} {checkpoint.dtype} {self._side} {reference.digest}",
            len(reference),
            reference.images[0].size,
        )

    def reconstruct(self, indices: list[int]) -> Tensor:
        """D(E(y)) of reference images as pixel vectors, (len(indices), d)."""
        remembered = {index: self._remembered.get(index) for index in set(indices)}
        found = {index: vector for index, vector in remembered.items() if vector is not None}
        missing = sorted(remembered.keys() - found.keys())
        for part in in_chunks(len(missing), 64):
            images = self.reference.reference_images(missing[part])
            if images.shape[-2:] != self._side:
                images = torch.nn.functional.interpolate(images, size=self._side, mode="bilinear", antialias=True)
            images = with_channels(images, self.checkpoint.image_channels)
            vectors = self.reference.vectors(in_halves(self._trip, images)).numpy()
            found.update(zip(missing[part], vectors, strict=True))
        for index in missing:
            self._remembered.put(index, found[index])
        return torch.from_numpy(np.stack([found[index] for index in indices]))

    def _trip(self, images: Tensor) -> Tensor:
        return self.checkpoint.decode(self.checkpoint.encode(images)).cpu()

    def find(self, images: Tensor) -> Neighbors:
        """Nearest reference of each sample.

        Args:
            images: samples (n, channels, height, width) in [-1, 1].
        """
        n = len(images)
        original, candidates = self.reference.search_pixels(images, CANDIDATES)
        k = candidates.shape[1]
        vectors = self.reference.vectors(images)
        rebuilt = self.reconstruct([int(i) for i in candidates.flatten()]).reshape(n, k, -1)
        distances = (rebuilt - vectors[:, None]).double().norm(dim=2).numpy()
        best, rows = distances.argmin(1), np.arange(n)
        clip = self.reference.search_clip(images, 1)
        return Neighbors(
            index=candidates[rows, best],
            distance=distances[rows, best],
            original_distance=original[rows, best].astype(np.float64),
            clip_index=None if clip is None else clip[1][:, 0],
            clip_similarity=None if clip is None else clip[0][:, 0].astype(np.float64),
        )
