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
from audit.model.headers import read_header
from audit.model.networks import bare_network
from audit.model.vetting import vet_network

#: What configurations and tokenizers are made of.
TEXT = (".json", ".txt", ".model")


def load_networks(
    file: Path, kind: type[Any], parts: Mapping[str, type[Any]], folder: Path, dtype: torch.dtype
) -> dict[str, Any]:
    """The networks of a single file, by part. They are vetted before memory is taken for them.

    Args:
        file: safetensors, of the original layout.
        kind: class of the pipeline, or of the one network that the file holds.
        parts: classes of the networks.
        folder: of their configurations, looked through before.
        dtype: of their weights.

    Raises:
        BrokenCheckpoint: the file lacks weights of one of them, or holds others than the configurations describe.
        Exception: whatever diffusers raises for a file that it cannot make sense of.
    """
    entries = read_header(file)
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for path in [folder / "model_index.json", *(path for part in parts for path in (folder / part).iterdir())]:
            if path.suffix in TEXT and path.is_file():
                (copy / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy / path.relative_to(folder))
        for part, network in parts.items():
            vet_network(partial(bare_network, network, copy / part), entries, part)
        options = {"config": str(copy), "local_files_only": True, "torch_dtype": dtype}
        if issubclass(kind, DiffusionPipeline):
            # What has no weights in the file is not asked for.
            others = {name: None for name in kind._get_signature_keys(kind)[0] if name not in parts}
            pipeline = kind.from_single_file(str(file), **others, **options)
            found = {part: getattr(pipeline, part) for part in parts}
        else:
            found = {part: kind.from_single_file(str(file), subfolder=part, **options) for part in parts}
    for part, network in found.items():
        if missing := sorted(name for name, value in network.state_dict().items() if value.is_meta):
            raise broken(
                f"{file.name} lacks {len(missing)} weights of {part}, {shown(missing[0])} among them",
                "CHECKPOINT_INCOMPLETE",
            )
    return found
