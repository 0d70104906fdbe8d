"""What "near" means: every distance of a sweep is ℓ2 between vectors, so that FAISS can search all of them.

*Pixels* as they are. *CLIP*: unit vectors of the small open_clip model that ships with Basin; ℓ2² = 2 − 2 cos. *LPIPS*
(Zhang et al. 2018, equation 1) is, for weights w ≥ 0, a squared ℓ2 distance itself: of the channel-normalized features
of AlexNet's five stages, each scaled by √(w/(height × width)).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit import demo
from audit.errors import NotFound
from audit.phase.sweep import Distance
from audit.reference.clip import ClipEmbedder
from audit.reference.images import in_chunks, with_channels
from audit.reference.index import nearest_rows

#: Images (n, channels, height, width) in [-1, 1] to vectors (n, d), float32.
Embedder = Callable[[Tensor], Tensor]

#: torchvision's file of AlexNet's weights, in torch's hub folder.
ALEXNET = "alexnet-owt-7be5be79.pth"
#: Images that are embedded side by side.
_ROWS = 256


@lru_cache(maxsize=1)
def embedder(distance: Distance) -> Embedder:
    """What turns images into the vectors of a distance; kept for the next call of the process.

    Raises:
        NotFound: LPIPS is asked for and the package `lpips` or AlexNet's weights are not here.
    """
    if distance == "pixel":
        return lambda images: images.float().flatten(1)
    if distance == "clip":
        return ClipEmbedder(f"local-dir:{demo.CLIP}")
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if find_spec("lpips") is None or not weights.is_file():
        raise NotFound(
            f"LPIPS needs the package lpips (pip install 'basin-audit[lpips]') and AlexNet's weights, {weights}",
            reason="LPIPS_NOT_FOUND",
            field="distance",
        )
    return LpipsEmbedder(weights)


class LpipsEmbedder:
    """Images to vectors whose squared ℓ2 distance is LPIPS (AlexNet, version 0.1).

    Args:
        weights: a state dict of torchvision's AlexNet.
    """

    def __init__(self, weights: Path) -> None:
        import lpips  # an extra
        from torchvision.models import alexnet

        self._metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
        backbone = alexnet()
        backbone.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # lpips cuts AlexNet's feature layers into stages and keeps their numbers as names.
        for stage in range(1, 6):
            own = getattr(self._metric.net, f"slice{stage}")
            for name, layer in own.named_children():
                layer.load_state_dict(backbone.features[int(name)].state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images (n, 1 or 3, height, width) in [-1, 1] of at least 32 pixels a side."""
        metric, parts = self._metric, []
        stages = metric.net(metric.scaling_layer(with_channels(images.float(), 3)))
        for features, layer in zip(stages, metric.lins, strict=True):
            normal = features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
            weight = next(layer.parameters()).clamp_min(0)  # (1, channels, 1, 1)
            parts.append((normal * (weight / features[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(parts, 1)


def embed(images: Tensor, distance: Distance) -> NDArray[np.float32]:
    """Vectors (n, d) of images (n, channels, height, width) in [-1, 1]."""
    model = embedder(distance)
    return np.concatenate([model(images[part]).numpy() for part in in_chunks(len(images), _ROWS)])


def nearest(
    vectors: NDArray[np.float32], among: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Exhaustive nearest neighbours.

    Args:
        vectors: (n, d).
        among: what is searched, (m, d); the other rows of `vectors` when None.

    Returns:
        ℓ2 distance and row number of the nearest, each (n,).
    """
    index = faiss.IndexFlatL2(vectors.shape[1])
    if among is not None:
        index.add(np.ascontiguousarray(among))
        distances, rows = nearest_rows(index, vectors, 1)
        return distances[:, 0].astype(np.float64), rows[:, 0]
    index.add(vectors)
    distances, rows = nearest_rows(index, vectors, 2)
    # The row itself is at distance 0, as may be others: whichever of the two is not itself.
    other = np.where(rows[:, 0] == np.arange(len(vectors)), 1, 0)
    each = np.arange(len(vectors))
    return distances[each, other].astype(np.float64), rows[each, other]
