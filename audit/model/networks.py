"""Networks from the weight files of a folder, which have every weight and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from audit.model.files import PICKLES, broken, read_json, shown
from audit.model.headers import read_headers
from audit.model.vetting import vet_network


def is_network(kind: type[Any]) -> bool:
    """Whether a component of a class has weights."""
    return issubclass(kind, ModelMixin | PreTrainedModel)


def weights_stem(kind: type[Any]) -> str:
    """How the names of a network's weight files begin."""
    return "diffusion_pytorch_model" if issubclass(kind, ModelMixin) else "model"


def weight_files(component: Path, kind: type[Any], variant: str = "") -> list[Path]:
    """The safetensors files that the libraries load, and the index of shards where there is one.

    Args:
        component: its folder.
        kind: class of the network.
        variant: such as fp16; "" for none.

    Raises:
        BrokenCheckpoint: there are none; pickled weights get a reason of their own.
    """
    stem = weights_stem(kind)
    dotted = f".{variant}" if variant else ""
    index = component / f"{stem}.safetensors.index{dotted}.json"
    single = component / f"{stem}{dotted}.safetensors"
    if index.is_file():
        return [index, *(component / shard for shard in sorted(set(read_json(index)["weight_map"].values())))]
    if single.is_file():
        return [single]
    pickled = [path.name for path in sorted(component.glob("*")) if path.suffix in PICKLES]
    if pickled:
        raise broken(
            f"{component.name}/{pickled[0]} is a pickled weight file, which can run code when it is read; "
            "convert the checkpoint to safetensors",
            "CHECKPOINT_PICKLED",
        )
    which = f" of the variant {variant}" if variant else ""
    raise broken(f"{component.name} has no weights{which}: {single.name} is missing", "CHECKPOINT_INCOMPLETE")


def vet_weights(kind: type[Any], folder: Path, variant: str = "") -> None:
    """Refuse a network whose files do not fit together, before memory is taken for it.

    Args:
        kind: its class.
        folder: of a component, looked through before.
        variant: of the weight files.

    Raises:
        BrokenCheckpoint: there are no weights, the configuration describes a larger network, or they are quantized.
    """
    files = [file for file in weight_files(folder, kind, variant) if file.suffix == ".safetensors"]
    _refuse_quantized(read_json(folder / "config.json"), folder.name)
    vet_network(lambda: bare_network(kind, folder), read_headers(files), folder.name)


def load_network(kind: type[Any], folder: Path, dtype: torch.dtype, variant: str = "") -> Any:
    """A network with the weights of a folder.

    Args:
        kind: its class.
        folder: of a component that `vet_weights` has passed.
        dtype: of its weights.
        variant: of the weight files.

    Raises:
        BrokenCheckpoint: a weight is missing, which the libraries would draw at random, or has no place.
    """
    network, found = kind.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        variant=variant or None,
        **{"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype},
    )
    require_every_weight(folder.name, found["missing_keys"], found["unexpected_keys"])
    return network


def require_every_weight(name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raises BrokenCheckpoint unless weights of a name are all there, and have their places."""
    for keys, what in ((missing, "lacks"), (unexpected, "has no place for")):
        if keys:
            raise broken(f"{name} {what} {len(keys)} weights, {shown(min(keys))} among them", "CHECKPOINT_INCOMPLETE")


def bare_network(kind: type[Any], folder: Path) -> nn.Module:
    """A network as its configuration describes it, with whatever weights a new one has."""
    if issubclass(kind, ModelMixin):
        network: nn.Module = kind.from_config(kind.load_config(folder, local_files_only=True))
        return network
    return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def networks_of(pipeline: Any) -> list[nn.Module]:
    """The networks of a diffusers pipeline."""
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def _refuse_quantized(config: Mapping[str, Any], name: str) -> None:
    """Folders of quantized weights need a backend each: docs/sources.md says what is wrong with which."""
    found = config.get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise broken(
            f"{name} is quantized by {shown(method)}, which is not supported: take the weights that it was made of, "
            "or a GGUF file of the denoiser",
            "CHECKPOINT_QUANTIZATION_UNSUPPORTED",
        )
