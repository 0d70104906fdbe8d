"""CLIP embeddings through open_clip; a ladder checkpoint's small model loads by the same code as ViT-B-32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.reference.embedder import HUB, LOCAL, Embedder, damaged, file_digest, not_found

CONFIGURATION, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class ClipEmbedder(Embedder):
    """Images and texts to unit vectors in the joint space of a CLIP model.

    Args:
        model: an open_clip model name with a path to its weights after "@" (`ViT-B-32@FILE.safetensors`),
            `local-dir:FOLDER` with open_clip_config.json and open_clip_model.safetensors, or
            `hf-hub:ORGANISATION/NAME`, with `@REVISION` where it is to be pinned.
        device: a torch device.

    Raises:
        NotFound: the named weights are not there.
        BrokenReference: open_clip cannot load them.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        import open_clip  # takes a second, and a server without CLIP neighbours never needs it

        if model.startswith((LOCAL, HUB)):
            folder = _downloaded(model) if model.startswith(HUB) else Path(model.removeprefix(LOCAL))
            weights, name, pretrained = folder / WEIGHTS, f"{LOCAL}{folder}", None
            readable = (folder / CONFIGURATION).is_file()
            settings = (folder / CONFIGURATION).read_text() if readable else ""
        else:
            name, _, path = model.partition("@")
            weights, pretrained = Path(path), path
            settings = json.dumps(open_clip.get_model_config(name))
        if weights.suffix != ".safetensors" or not weights.is_file():
            raise not_found(model, "weights in a .safetensors file")
        try:
            clip, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
        except Exception as error:  # open_clip raises anything at all for a damaged file
            raise damaged(model, error, weights.parent) from error
        clip.eval().requires_grad_(False)
        size: int | tuple[int, int] = open_clip.get_model_preprocess_cfg(clip)["size"]
        normalize = preprocess.transforms[-1]
        super().__init__(
            model,
            device,
            clip.encode_image,
            size=size if isinstance(size, tuple) else (size, size),
            mean=tuple(normalize.mean),
            std=tuple(normalize.std),
            digest=file_digest(weights, settings),
        )
        self._clip = clip
        self._tokenizer_name = name

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Returns:
            float32 unit vectors, (n, embedding width), near the images that the texts describe.
        """
        import open_clip

        tokens = open_clip.get_tokenizer(self._tokenizer_name)(list(texts)).to(self.device)
        with torch.inference_mode():
            return self.run(lambda: F.normalize(self._clip.encode_text(tokens).float(), dim=-1).cpu())


def _downloaded(model: str) -> Path:
    """The folder of a model from the hub, or from its cache where that is all there is."""
    from huggingface_hub import snapshot_download

    repository, _, revision = model.removeprefix(HUB).partition("@")
    try:
        # Weights of other formats stay there; the tokenizer is among the rest.
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=["*.json", "*.txt", "*.model", WEIGHTS]
        )
    except Exception as error:  # not there, not allowed, no network, a name that is none
        raise not_found(model, "a model on the Hugging Face hub, or in its cache") from error
    return Path(folder)
