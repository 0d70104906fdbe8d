"""Nearest reference images of each sample, in pixels and in CLIP space.

Every image that a latent diffusion model makes has been through its decoder, so even an exact copy of a training
image stands a whole reconstruction error away from it: the decoder's floor. Reference images are therefore compared
after the same trip, y ↦ D(E(y)). The k nearest originals (FAISS) are re-ranked by the distance to their reconstruction;
an exact copy then has distance 0 and the distance to the original is reported beside it. Only candidates are
reconstructed, so this costs the same for a thousand references as for a million. A set that keeps no images is searched
by embedding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.evidence.reconstructions import Reconstructions
from audit.model.checkpoint import Checkpoint
from audit.reference.images import in_chunks, with_channels
from audit.reference.reference_set import ReferenceSet

#: Originals that are re-ranked per sample.
CANDIDATES = 8


@dataclass(frozen=True)
class Neighbors:
    """Nearest reference image of each of n samples.

    Attributes:
        index: in the reference set, by pixel distance after reconstruction, (n,); -1 where the set keeps no images.
        distance: ℓ2 in [-1, 1] pixels to the reconstructed reference, (n,): what δ_m is compared with; infinite
            where the set keeps no images.
        original_distance: to the same reference as it is stored, (n,); likewise.
        clip_index: nearest by the set's first embedder, (n,); None without one.
        clip_similarity: its cosine, (n,); None without an embedder.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    original_distance: NDArray[np.float64]
    clip_index: NDArray[np.int64] | None
    clip_similarity: NDArray[np.float64] | None

    @property
    def compared(self) -> bool:
        """Whether pixels were compared, which takes a set that keeps its images."""
        return bool((self.index >= 0).all())

    @staticmethod
    def concatenate(groups: Sequence[Neighbors]) -> Neighbors:
        """Groups of samples searched in the same reference set, one after the other."""
        clip = [g.clip_index for g in groups if g.clip_index is not None]
        similarity = [g.clip_similarity for g in groups if g.clip_similarity is not None]
        return Neighbors(
            index=np.concatenate([g.index for g in groups]),
            distance=np.concatenate([g.distance for g in groups]),
            original_distance=np.concatenate([g.original_distance for g in groups]),
            clip_index=np.concatenate(clip) if clip else None,
            clip_similarity=np.concatenate(similarity) if similarity else None,
        )

    def first(self, n: int) -> Neighbors:
        """Those of the first n samples."""
        return Neighbors(
            index=self.index[:n],
            distance=self.distance[:n],
            original_distance=self.original_distance[:n],
            clip_index=None if self.clip_index is None else self.clip_index[:n],
            clip_similarity=None if self.clip_similarity is None else self.clip_similarity[:n],
        )


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
            reference.vectors(torch.zeros(1, checkpoint.image_channels, *self._side)).shape[1],
        )

    def reconstruct(self, indices: list[int]) -> Tensor:
        """D(E(y)) of reference images as pixel vectors, (len(indices), d)."""
        remembered = {index: self._remembered.get(index) for index in set(indices)}
        found = {index: vector for index, vector in remembered.items() if vector is not None}
        missing = sorted(remembered.keys() - found.keys())
        for part in in_chunks(len(missing), 64):
            vectors = self.reference.vectors(self._trip(self._loaded(missing[part]))).numpy()
            found.update(zip(missing[part], vectors, strict=True))
        for index in missing:
            self._remembered.put(index, found[index])
        return torch.from_numpy(np.stack([found[index] for index in indices]))

    def _loaded(self, indices: list[int]) -> Tensor:
        """Reference images as the autoencoder takes them."""
        images = self.reference.reference_images(indices)
        if images.shape[-2:] != self._side:
            images = torch.nn.functional.interpolate(images, size=self._side, mode="bilinear", antialias=True)
        return with_channels(images, self.checkpoint.image_channels)

    def _trip(self, images: Tensor) -> Tensor:
        return self.checkpoint.decode(self.checkpoint.encode(images)).cpu()

    def find(self, images: Tensor) -> Neighbors:
        """Nearest reference of each sample.

        Args:
            images: samples (n, channels, height, width) in [-1, 1].
        """
        clip = self.reference.search_embedded(images, 1)
        if not self.reference.has_images:
            return self._by_embedding(len(images), clip)
        original, candidates, distances = self._rank(images, CANDIDATES)
        best, rows = distances.argmin(1), np.arange(len(images))
        return Neighbors(
            index=candidates[rows, best],
            distance=distances[rows, best],
            original_distance=original[rows, best].astype(np.float64),
            clip_index=None if clip is None else clip[1][:, 0],
            clip_similarity=None if clip is None else clip[0][:, 0].astype(np.float64),
        )

    def find_existing(self, images: Tensor, rebuilt: Tensor) -> Neighbors:
        """Nearest reference of images that need not be samples.

        An image that is a sample is compared as it is; any other one after the trip, as references are: whichever is
        nearer counts. `original_distance` is from the image as it is. Candidates are those near to either.

        Args:
            images: (n, channels, height, width) in [-1, 1].
            rebuilt: D(E(images)), likewise.
        """
        clip = self.reference.search_embedded(images, 1)
        if not self.reference.has_images:
            return self._by_embedding(len(images), clip)
        own = self.reference.vectors(images)
        candidates = np.concatenate(
            [self.reference.search_pixels(each, CANDIDATES)[1] for each in (images, rebuilt)], 1
        )
        references = self.reconstruct([int(i) for i in candidates.flatten()]).reshape(*candidates.shape, -1)
        vectors = torch.stack([own, self.reference.vectors(rebuilt)])[:, :, None]
        distances = (references - vectors).double().norm(dim=3).amin(0).numpy()
        best, rows = distances.argmin(1), np.arange(len(images))
        index = candidates[rows, best]
        stored = self.reference.vectors(self.reference.reference_images(index.tolist()))
        return Neighbors(
            index=index,
            distance=distances[rows, best],
            original_distance=(stored - own).double().norm(dim=1).numpy(),
            clip_index=None if clip is None else clip[1][:, 0],
            clip_similarity=None if clip is None else clip[0][:, 0].astype(np.float64),
        )

    def between_references(self, indices: Sequence[int]) -> NDArray[np.float64]:
        """Distance of reference images, after reconstruction, to the nearest other one, (len(indices),).

        It is what `find` would measure for a real image that is not in the set, if those in it are a fair sample.

        Raises:
            InvalidInput: the set keeps no images.
        """
        found = []
        for part in in_chunks(len(indices), 64):
            own = list(indices[part])
            images = self._trip(self._loaded(own))
            _, candidates, distances = self._rank(images, CANDIDATES + 1)
            found.append(np.where(candidates == np.asarray(own)[:, None], np.inf, distances).min(1))
        return np.concatenate(found)

    @staticmethod
    def _by_embedding(count: int, found: tuple[NDArray[np.float32], NDArray[np.int64]] | None) -> Neighbors:
        """Neighbours of samples where there are no pixels to compare."""
        nowhere = np.full(count, np.inf)
        return Neighbors(
            index=np.full(count, -1, np.int64),
            distance=nowhere,
            original_distance=nowhere,
            clip_index=None if found is None else found[1][:, 0],
            clip_similarity=None if found is None else found[0][:, 0].astype(np.float64),
        )

    def _rank(self, images: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
        """Of the nearest originals: distance, index, and distance after reconstruction, each (n, count)."""
        original, candidates = self.reference.search_pixels(images, count)
        vectors = self.reference.vectors(images)
        rebuilt = self.reconstruct([int(i) for i in candidates.flatten()]).reshape(*candidates.shape, -1)
        return original, candidates, (rebuilt - vectors[:, None]).double().norm(dim=2).numpy()
