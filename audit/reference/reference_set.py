"""A reference set: images, their captions, CLIP embeddings, and whether they are all there is.

On disk a folder:

    reference.json   name, complete or partial, counts, digests
    images.npz       `images` (uint8, n × height × width × channels) and `captions`
    clip.npy         float16 unit vectors, when an embedder was named; its digest is in reference.json

Pixel vectors are the images themselves and are not stored twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import BrokenReference, InvalidInput, NotFound
from audit.model.memory import in_halves
from audit.reference.clip import ClipEmbedder, with_path
from audit.reference.images import in_chunks, pixel_vectors, read_images, to_float

FORMAT = 1
#: Files of a set beside its description.
ARRAYS = {"images.npz", "clip.npy"}


class ReferenceSet:
    """Images and exhaustive nearest-neighbour search over them.

    Args:
        name: what people call it.
        images: uint8, (n, height, width, channels).
        captions: one per image, "" where there is none.
        complete: whether this is the checkpoint's whole training set. Only then does "not found" mean "not there".
        embedder: for CLIP neighbours; None leaves them out.
        embeddings: what `embedder` gave for `images`, (n, width); made here when None.
        progress: called with (images embedded, images in all).

    Attributes:
        digest: "sha256:…" over images and completeness: the identity that reports name.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        captions: list[str],
        *,
        complete: bool,
        embedder: ClipEmbedder | None = None,
        embeddings: NDArray[np.float16] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.name = name
        self.images = images
        self.captions = captions
        self.complete = complete
        self.embedder = embedder
        content = hashlib.sha256(np.ascontiguousarray(images).data)
        content.update(f"{images.shape} complete={complete}".encode())
        self.digest = f"sha256:{content.hexdigest()}"
        self._pixels = faiss.IndexFlatL2(self.vectors(self.reference_images([0])).shape[1])
        for part in in_chunks(len(images), 1024):
            self._pixels.add(self.vectors(to_float(images[part])).numpy())
        self._embeddings, self._clip = embeddings, None
        if embedder is not None:
            if embeddings is None:
                parts = []
                for part in in_chunks(len(images), 256):
                    parts.append(embedder(to_float(images[part])).numpy().astype(np.float16))
                    progress(part.stop, len(images))
                self._embeddings = np.concatenate(parts)
            assert self._embeddings is not None
            self._clip = faiss.IndexFlatIP(self._embeddings.shape[1])
            self._clip.add(self._embeddings.astype(np.float32))

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def build(
        cls,
        source: Path,
        *,
        name: str = "",
        complete: bool = True,
        clip: str = "",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> ReferenceSet:
        """From a folder of images or an .npz file; see `audit.reference.images.read_images`.

        Args:
            source: where the images are.
            name: the source's stem when "".
            complete: False when these are only some of the training images, or none.
            clip: an embedder as `ClipEmbedder` spells it; "" for pixel neighbours only.
            progress: called with (images embedded, images in all).
        """
        images, captions = read_images(source)
        embedder = ClipEmbedder(clip) if clip else None
        return cls(name or source.stem, images, captions, complete=complete, embedder=embedder, progress=progress)

    def save(self, folder: Path) -> None:
        """Write the folder; whole or not at all.

        Raises:
            InvalidInput: something else is already there.
        """
        # Another set, also one that was cut short while it was written, is replaced; anything else is left alone.
        free = not folder.exists() or (
            folder.is_dir()
            and ((folder / "reference.json").exists() or {path.name for path in folder.iterdir()} <= ARRAYS)
        )
        if not free:
            raise InvalidInput(f"{folder} exists and is no reference set", reason="FOLDER_IN_USE", field="out")
        folder.mkdir(parents=True, exist_ok=True)
        # The description goes last: a folder that was cut short has none, and is no reference set.
        (folder / "reference.json").unlink(missing_ok=True)
        np.savez_compressed(folder / "images.npz", images=self.images, captions=np.asarray(self.captions))
        description: dict[str, object] = {
            "format": FORMAT,
            "name": self.name,
            "complete": self.complete,
            "count": len(self),
            "digest": self.digest,
        }
        if self.embedder is not None and self._embeddings is not None:
            np.save(folder / "clip.npy", self._embeddings)
            # Relative, so that the two folders can move together.
            model = with_path(self.embedder.model_name, lambda path: os.path.relpath(path, folder))
            description["clip"] = {"model": model, "digest": self.embedder.digest}
        (folder / "reference.json").write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ReferenceSet:
        """Open a folder that `save` wrote.

        Raises:
            NotFound: there is no reference set there.
            BrokenReference: it is damaged, of another format, or its embedder has other weights now.
        """
        if not (folder / "reference.json").is_file():
            raise NotFound(f"no reference set at {folder}", reason="REFERENCE_NOT_FOUND", field="reference")
        try:
            description = json.loads((folder / "reference.json").read_text())
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
            images, captions = read_images(folder / "images.npz")
            embedder = embeddings = None
            if "clip" in description:
                model = with_path(description["clip"]["model"], lambda path: os.path.normpath(folder / path))
                embedder = ClipEmbedder(model)
                if embedder.digest != description["clip"]["digest"]:
                    raise ValueError("its CLIP model has other weights than the ones it was built with")
                embeddings = np.load(folder / "clip.npy", allow_pickle=False)
                width = embedder(to_float(images[:1])).shape[1]
                if embeddings.dtype != np.float16 or embeddings.shape != (len(images), width):
                    raise ValueError("clip.npy does not match images.npz and the CLIP model")
            loaded = cls(
                description["name"],
                images,
                captions,
                complete=bool(description["complete"]),
                embedder=embedder,
                embeddings=embeddings,
            )
            if loaded.digest != description["digest"]:
                raise ValueError("images.npz has changed since it was built")
            return loaded
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, OSError, InvalidInput, NotFound) as error:
            raise BrokenReference(
                f"the reference set {folder.name} cannot be read: {error}",
                reason="REFERENCE_DAMAGED",
                field="reference",
            ) from error

    def reference_images(self, indices: list[int]) -> Tensor:
        """Images by index, float32 (n, channels, height, width) in [-1, 1]."""
        return to_float(self.images[indices])

    def vectors(self, images: Tensor) -> Tensor:
        """Any images as pixel vectors of this set's size and channels."""
        return pixel_vectors(images, self.images.shape[-1], self.images.shape[1:3])

    def search_pixels(self, images: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """ℓ2 distances to the k nearest images and their indices, each (n, k), nearest first.

        k is cut to the size of the set.
        """
        return nearest_rows(self._pixels, self.vectors(images).numpy(), k)

    def search_clip(self, images: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Cosine similarities in [-1, 1] to the k nearest images and their indices; None without an embedder."""
        if self._clip is None or self.embedder is None:
            return None
        similarities, indices = self._clip.search(in_halves(self.embedder, images).numpy(), min(k, len(self)))
        return similarities, indices


def nearest_rows(
    index: faiss.IndexFlatL2, vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Exhaustive search, with exact distances.

    Args:
        index: what is searched.
        vectors: (n, d).
        k: neighbours of each; cut to the size of the index.

    Returns:
        ℓ2 distances and row numbers, each (n, k), nearest first.
    """
    _, indices = index.search(vectors, min(k, index.ntotal))
    # FAISS expands the square, which leaves a copy at a small distance of its own; these few are taken exactly.
    found = index.reconstruct_batch(indices.ravel()).reshape(*indices.shape, -1)
    distances = np.linalg.norm(found - vectors[:, None], axis=2)
    order = distances.argsort(axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
