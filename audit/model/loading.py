"""A folder on disk becomes a `Checkpoint`, or a clear error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from audit.errors import BrokenCheckpoint, NotFound
from audit.model.checkpoint import Checkpoint
from audit.model.sources import Source, open_folder

#: Side of the latents of the image that is drawn when a checkpoint was loaded, and its steps.
TRIAL_CELLS, TRIAL_STEPS = 8, 5


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
        BrokenCheckpoint: it is no checkpoint, of an unsupported family, damaged, its weights are pickled, or its
            parts do not fit together.
    """
    if not folder.is_dir():
        raise NotFound(f"no checkpoint folder {folder.name!r}", reason="CHECKPOINT_NOT_FOUND", field="checkpoint")
    try:
        checkpoint = see(open_folder(folder, torch.device(device), dtype), name or folder.name)
        _try_out(checkpoint)
        return checkpoint
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


def see(source: Source, name: str) -> Checkpoint:
    """A loaded pipeline as a checkpoint.

    Raises:
        BrokenCheckpoint: its parts do not fit together.
    """
    model = source.family.adapt(source.pipeline)
    return Checkpoint(**vars(model), name=name, digest=source.digest, autoencoder=source.autoencoder_digest)


def _try_out(checkpoint: Checkpoint) -> None:
    """Draw one small image: parts that do not fit together fail here, and the first audit finds everything warm."""
    side = TRIAL_CELLS * checkpoint.size_factor
    steps = min(TRIAL_STEPS, len(checkpoint.denoiser.schedule))
    settings = replace(checkpoint.defaults, steps=steps)
    if not checkpoint.fixed_size:
        settings = replace(settings, height=side, width=side)
    if not settings.embedded:
        settings = replace(settings, guidance=1.0)
    condition = checkpoint.encode_prompts([""])
    drawn = checkpoint.sample(settings, condition, condition, [0])
    image = checkpoint.decode(drawn.latents)
    shape = (1, checkpoint.image_channels, settings.height, settings.width)
    if image.shape != shape or image.shape[1] not in (1, 3):
        raise ValueError(f"the autoencoder decodes to {tuple(image.shape[1:])}")
    if checkpoint.encode(image).shape != drawn.latents.shape:
        raise ValueError("the autoencoder encodes to other latents than it decodes")
