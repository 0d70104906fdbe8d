"""CLIP embeddings through open_clip; a ladder checkpoint's small model loads by the same code as ViT-B-32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.errors import BrokenReference, NotFound
from audit.reference.images import with_channels

LOCAL = "local-dir:"


class ClipEmbedder:
    """Images to unit vectors in the joint space of a CLIP model.

    Args:
        model: an open_clip model name with a path to its weights after "@" (`ViT-B-32@FILE.safetensors`), or
            `local-dir:FOLDER` with open_clip_config.json and open_clip_model.safetensors.
        device: a torch device.

    Attributes:
        digest: "sha256:…" of the weights and the configuration.
        lock: held while the model runs; a server puts the device's here.

    Raises:
        NotFound: the named weights are not there.
        BrokenReference: open_clip cannot load them.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        import open_clip  # takes a second, and a server without CLIP neighbours never needs it

        self.model_name = model
        shown = with_path(model, lambda path: Path(path).name)  # clients of a server may read what went wrong
        if model.startswith(LOCAL):
            folder = Path(model.removeprefix(LOCAL))
            weights, name, pretrained = folder / "open_clip_model.safetensors", model, None
            settings = (folder / "open_clip_config.json").read_text() if folder.is_dir() else ""
        else:
            name, _, path = model.partition("@")
            weights, pretrained = Path(path), path
            settings = json.dumps(open_clip.get_model_config(name))
        if weights.suffix != ".safetensors" or not weights.is_file():
            raise NotFound(
                f"the CLIP model {shown!r} needs weights in a .safetensors file", reason="CLIP_NOT_FOUND", field="clip"
            )
        try:
            self._clip, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=device
            )
        except Exception as error:  # open_clip raises anything at all for a damaged file
            why = str(error).replace(str(weights.parent), weights.parent.name)
            raise BrokenReference(
                f"open_clip cannot load {shown!r}: {why}", reason="CLIP_DAMAGED", field="clip"
            ) from error
        self._clip.eval().requires_grad_(False)
        self._size: int = open_clip.get_model_preprocess_cfg(self._clip)["size"]
        normalize = preprocess.transforms[-1]
        self._mean = torch.tensor(normalize.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(normalize.std, device=device).view(1, 3, 1, 1)
        self.device = device
        #: Calls a function, e.g. in the thread of the device; every forward pass goes through it.
        self.run: Callable[[Callable[[], Tensor]], Tensor] = lambda function: function()
        with weights.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        content.update(settings.encode())
        self.digest = f"sha256:{content.hexdigest()}"

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (n, 1 or 3, height, width) in [-1, 1].

        Returns:
            float32 unit vectors, (n, embedding width).
        """
        return self.run(lambda: self._embed(images))

    @torch.inference_mode()
    def _embed(self, images: Tensor) -> Tensor:
        size = self._size if isinstance(self._size, tuple) else (self._size, self._size)
        pixels = with_channels(images.float().to(self.device), 3)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        pixels = ((pixels.clamp(-1, 1) + 1) / 2 - self._mean) / self._std
        return F.normalize(self._clip.encode_image(pixels).float(), dim=-1).cpu()


def with_path(model: str, change: Callable[[str], str]) -> str:
    """The name of a CLIP model with another path to its files."""
    if model.startswith(LOCAL):
        return LOCAL + change(model.removeprefix(LOCAL))
    name, _, path = model.partition("@")
    return f"{name}@{change(path)}"
