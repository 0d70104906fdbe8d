"""Models that turn images into vectors, by name.

| name | model |
|---|---|
| `ViT-B-32@FILE.safetensors` | open_clip, weights from a file |
| `local-dir:FOLDER` | open_clip, open_clip_config.json and open_clip_model.safetensors in a folder |
| `hf-hub:ORGANISATION/NAME` | open_clip, from the Hugging Face hub or its cache; `@REVISION` pins it |
| `timm:NAME@FILE.safetensors` | timm, features before the classifier |
| `torchscript:FILE.pt` | a TorchScript module, such as SSCD for copy detection; `?side=288` is what it is shown |

A TorchScript file is a program: load it from people that you would run a program from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.errors import BrokenReference, NotFound
from audit.reference.images import with_channels
from audit.reference.manifest import EmbedderInfo

LOCAL, HUB, TIMM, TORCHSCRIPT = "local-dir:", "hf-hub:", "timm:", "torchscript:"
#: What models trained on ImageNet are normalised with, TorchScript files too.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Pixels a side that a TorchScript file is shown unless said: as SSCD's authors do.
TORCHSCRIPT_SIDE = 288


class Embedder:
    """Images to unit vectors.

    Args:
        model: its name.
        device: a torch device.
        encode: preprocessed images (n, 3, height, width) to vectors (n, d).
        size: height and width that it takes.
        mean: that colours are normalised with, in [0, 1].
        std: likewise.
        digest: "sha256:…" of weights and configuration.

    Attributes:
        run: calls a function, e.g. in the thread of the device; every forward pass goes through it.
    """

    def __init__(
        self,
        model: str,
        device: str,
        encode: Callable[[Tensor], Tensor],
        *,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        digest: str,
    ) -> None:
        self.model_name = model
        self.device = device
        self.digest = digest
        self.run: Callable[[Callable[[], Tensor]], Tensor] = lambda function: function()
        self._encode = encode
        self.size = size
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

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
        pixels = with_channels(images.float().to(self.device), 3)
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, size=self.size, mode="bicubic", antialias=True, align_corners=False)
        pixels = ((pixels.clamp(-1, 1) + 1) / 2 - self._mean) / self._std
        return F.normalize(self._encode(pixels).float(), dim=-1).cpu()


#: Gives an embedder by its name, as `open_embedder` does.
Opener = Callable[[str], Embedder]


def open_embedder(model: str, device: str = "cpu") -> Embedder:
    """The embedder of a name, as the table above has it.

    Raises:
        NotFound: the named weights are not there.
        BrokenReference: they cannot be loaded.
    """
    if model.startswith(TIMM):
        return _timm(model, device)
    if model.startswith(TORCHSCRIPT):
        return _torchscript(model, device)
    from audit.reference.clip import ClipEmbedder

    return ClipEmbedder(model, device)


def with_path(model: str, change: Callable[[str], str]) -> str:
    """The name of a model with another path to its files."""
    if model.startswith(LOCAL):
        return LOCAL + change(model.removeprefix(LOCAL))
    if model.startswith(HUB):
        return model
    if model.startswith(TORCHSCRIPT):
        path, mark, side = model.removeprefix(TORCHSCRIPT).partition("?")
        return TORCHSCRIPT + change(path) + mark + side
    name, _, path = model.partition("@")
    return f"{name}@{change(path)}"


def relative_model(model: str, folder: Path) -> str:
    """The name of a model whose files are found from a set's folder, so that the two can move together."""
    return with_path(model, lambda path: os.path.relpath(path, folder))


def shown(model: str) -> str:
    """The name of a model without its path: clients of a server may read it."""
    return with_path(model, lambda path: Path(path).name)


def file_digest(file: Path, settings: str) -> str:
    """Digest of a file of weights and of the configuration that they are used with."""
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256")
    content.update(settings.encode())
    return f"sha256:{content.hexdigest()}"


def not_found(model: str, wanted: str) -> NotFound:
    """That a model's weights are not there."""
    return NotFound(f"the embedder {shown(model)!r} needs {wanted}", reason="EMBEDDER_NOT_FOUND", field="embedder")


def damaged(model: str, error: Exception, folder: Path) -> BrokenReference:
    """That a model cannot be loaded."""
    lines = str(error).replace(str(folder), folder.name).splitlines() or [type(error).__name__]
    return BrokenReference(
        f"the embedder {shown(model)!r} cannot be loaded: {lines[0]}", reason="EMBEDDER_DAMAGED", field="embedder"
    )


def _timm(model: str, device: str) -> Embedder:
    import timm  # takes a second
    from timm.data.config import resolve_data_config

    name, _, path = model.removeprefix(TIMM).partition("@")
    weights = Path(path)
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise not_found(model, "weights in a .safetensors file")
    try:
        network: Any = timm.create_model(name, pretrained=False, checkpoint_path=str(weights))
        network.reset_classifier(0)
    except Exception as error:  # timm raises anything at all for a damaged file
        raise damaged(model, error, weights.parent) from error
    network.eval().requires_grad_(False).to(device)
    config = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    settings = {key: config[key] for key in ("input_size", "mean", "std")}
    return Embedder(
        model,
        device,
        network,
        size=config["input_size"][1:],
        mean=config["mean"],
        std=config["std"],
        digest=file_digest(weights, f"{name} {json.dumps(settings)}"),
    )


def _torchscript(model: str, device: str) -> Embedder:
    path, _, option = model.removeprefix(TORCHSCRIPT).partition("?")
    said = re.fullmatch(r"(?:side=([1-9]\d{0,3}))?", option)
    file, side = Path(path), int((said and said[1]) or TORCHSCRIPT_SIDE)
    if not file.is_file() or said is None:
        raise not_found(model, "a TorchScript file, and nothing after it but ?side=PIXELS")
    try:
        network = torch.jit.load(str(file), map_location=device).eval()
        with torch.inference_mode():
            found = network(torch.zeros(1, 3, side, side, device=device))
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise ValueError("it does not give one vector per image")
    except Exception as error:  # torch raises anything at all for a damaged file
        raise damaged(model, error, file.parent) from error
    return Embedder(
        model,
        device,
        network,
        size=(side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        digest=file_digest(file, f"torchscript {side}"),
    )


def open_embedders(folder: Path, infos: Sequence[EmbedderInfo], opener: Opener) -> list[Embedder]:
    """The embedders of a set.

    Raises:
        ValueError: one has other weights than the set was built with.
        NotFound, BrokenReference: as `open_embedder`.
    """
    found = []
    for info in infos:
        embedder = opener(with_path(info.model, lambda path: os.path.normpath(folder / path)))
        if embedder.digest != info.digest:
            raise ValueError("its embedder has other weights than the ones it was built with")
        found.append(embedder)
    return found
