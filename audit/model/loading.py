"""A folder on disk becomes a `Checkpoint`, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from audit.errors import BrokenCheckpoint, NotFound
from audit.model.checkpoint import Checkpoint
from audit.model.families import stable_diffusion
from audit.model.files import read_json

#: The loader of each family, by the `_class_name` of model_index.json.
LOADERS: dict[str, Callable[[Path, str, torch.device, torch.dtype], Checkpoint]] = {
    "StableDiffusionPipeline": stable_diffusion.load,
}


def load_checkpoint(
    folder: Path, *, name: str = "", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Load a diffusers pipeline folder. Only safetensors weights are read; no code in the folder is ever run.

    Args:
        folder: holds model_index.json.
        name: the folder's name when "".
        device: a torch device.
        dtype: the weights' precision.

    Raises:
        NotFound: there is no such folder.
        BrokenCheckpoint: it is no checkpoint, of an unsupported family, damaged, or its weights are pickled.
    """
    if not folder.is_dir():
        raise NotFound(f"no checkpoint folder {folder.name!r}", reason="CHECKPOINT_NOT_FOUND", field="checkpoint")
    index = read_json(folder / "model_index.json")
    family = index.get("_class_name")
    if not isinstance(family, str) or family not in LOADERS:
        raise BrokenCheckpoint(
            f"{folder.name} is a {family!r}; supported: {', '.join(LOADERS)}",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    try:
        return LOADERS[family](folder, name or folder.name, torch.device(device), dtype)
    except BrokenCheckpoint:
        raise
    except Exception as error:  # the libraries below raise anything at all for a damaged file
        # Clients read this: it tells nothing of where the folder is.
        cause = str(error).replace(str(folder), folder.name).strip() or type(error).__name__
        raise BrokenCheckpoint(
            f"{folder.name} cannot be loaded: {cause.splitlines()[0]}",
            reason="CHECKPOINT_DAMAGED",
            field="checkpoint",
        ) from error
