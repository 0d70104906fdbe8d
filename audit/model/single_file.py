"""Networks out of one file of the original layout, as trainers other than diffusers write them.

diffusers turns the names of its tensors into its own. It takes what it does not find in the file from the folder of the
configurations, whatever kind of weights is there; so that it sees a copy of that folder without any.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline

from audit.model.files import broken, shown
from audit.model.gguf_headers import is_gguf, read_gguf_header
from audit.model.headers import read_header
from audit.model.networks import bare_network
from audit.model.quantized import gguf_options, require_own_names, settle
from audit.model.vetting import vet_network

#: What configurations and tokenizers are made of.
TEXT = (".json", ".txt", ".model")


def load_networks(
    file: Path, kind: type[Any], parts: Mapping[str, type[Any]], folder: Path, dtype: torch.dtype
) -> dict[str, Any]:
    """The networks of a single file, by part. They are vetted before memory is taken for them.

    Args:
        file: safetensors, of the original layout; or GGUF, of the one or the other, if it holds one network.
        kind: class of the pipeline, or of the one network that the file holds.
        parts: classes of the networks.
        folder: of their configurations, looked through before.
        dtype: of their weights.

    Raises:
        BrokenCheckpoint: the file lacks weights of one of them, or holds others than the configurations describe.
        Exception: whatever diffusers raises for a file that it cannot make sense of.
    """
    quantized = is_gguf(file)
    entries = read_gguf_header(file) if quantized else read_header(file)
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for path in [folder / "model_index.json", *(path for part in parts for path in (folder / part).iterdir())]:
            if path.suffix in TEXT and path.is_file():
                (copy / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy / path.relative_to(folder))
        for part, network in parts.items():
            bare = vet_network(partial(bare_network, network, copy / part), entries, part)
            if quantized:
                require_own_names(bare, entries, file)
        options = {"config": str(copy), "local_files_only": True, "torch_dtype": dtype}
        options |= gguf_options(dtype) if quantized else {}
        try:
            found = _load(str(file), kind, parts, options)
        except (KeyError, IndexError, NotImplementedError) as error:
            # diffusers asks for tensors by their names, or for blocks by their numbers; what it did not ask for, it
            # finds lacking when it moves the network.
            which = f", {shown(error.args[0])} among them" if isinstance(error, KeyError) else ""
            raise broken(
                f"{file.name} lacks weights of {' and '.join(parts)}{which}", "CHECKPOINT_INCOMPLETE"
            ) from error
    for part, network in found.items():
        if missing := sorted(name for name, value in network.state_dict().items() if value.is_meta):
            raise broken(
                f"{file.name} lacks {len(missing)} weights of {part}, {shown(missing[0])} among them",
                "CHECKPOINT_INCOMPLETE",
            )
        if quantized:
            settle(network, entries, file, dtype)
    return found


def _load(file: str, kind: type[Any], parts: Mapping[str, type[Any]], options: dict[str, Any]) -> dict[str, Any]:
    """What `load_networks` says, by diffusers and these options of its."""
    if not issubclass(kind, DiffusionPipeline):
        return {part: kind.from_single_file(file, subfolder=part, **options) for part in parts}
    # What has no weights in the file is not asked for.
    others = {name: None for name in kind._get_signature_keys(kind)[0] if name not in parts}
    pipeline = kind.from_single_file(file, **others, **options)
    return {part: getattr(pipeline, part) for part in parts}
