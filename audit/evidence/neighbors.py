"""Nearest reference images of each sample, in pixels and in CLIP space.

Every image that a latent diffusion model makes has been through its decoder, so even an exact copy of a training
image stands a whole reconstruction error away from it: the decoder's floor. Reference images are therefore compared
after the same trip, y ↦ D(E(y)). The k nearest originals (FAISS, exhaustive) are re-ranked by the distance to their
reconstruction; an exact copy then has distance 0 and the distance to the original is reported beside it. Only
candidates are reconstructed, so this costs the same for a thousand references as for a million.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.model.checkpoint import Checkpoint
from audit.reference.images import in_chunks, with_channels
from audit.reference.reference_set import ReferenceSet

#: Originals that are re-ranked per sample.
CANDIDATES = 8
#: Reconstructions are remembered up to this size, the oldest are forgotten first.
REMEMBERED_BYTES = 256 * 2**20


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
    """Nearest neighbours of a checkpoint's samples in one reference set; remembers the reconstructions it made.

    Args:
        reference: the set to search.
        checkpoint: whose autoencoder reconstructs.
    """

    def __init__(self, reference: ReferenceSet, checkpoint: Checkpoint) -> None:
        self.reference = reference
        self.checkpoint = checkpoint
        self._remembered: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def reconstruct(self, indices: list[int]) -> Tensor:
        """D(E(y)) of reference images as pixel vectors, (len(indices), d)."""
        with self._lock:
            found = {index: self._remembered[index] for index in indices if index in self._remembered}
        missing = sorted(set(indices) - found.keys())
        side = self.checkpoint.defaults.height, self.checkpoint.defaults.width
        for part in in_chunks(len(missing), 64):
            images = self.reference.reference_images(missing[part])
            if images.shape[-2:] != side:
                images = torch.nn.functional.interpolate(images, size=side, mode="bilinear", antialias=True)
            images = with_channels(images, self.checkpoint.image_channels)
            vectors = self.reference.vectors(self.checkpoint.decode(self.checkpoint.encode(images)).cpu())
            found.update(zip(missing[part], vectors.unbind(), strict=True))
        with self._lock:
            self._remembered.update((index, found[index]) for index in missing)
            while len(self._remembered) * found[indices[0]].nbytes > REMEMBERED_BYTES:
                self._remembered.pop(next(iter(self._remembered)))
        return torch.stack([found[index] for index in indices])

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
