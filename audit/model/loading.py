"""Files become a `Checkpoint`, or a clear error."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from audit.errors import AuditError, BrokenCheckpoint
from audit.model.checkpoint import Checkpoint
from audit.model.checkpoint_source import CheckpointSource
from audit.model.pieces import in_pieces
from audit.model.sources import Source, open_source

#: Side of the latents of the image that is drawn when a checkpoint was loaded, and its steps.
TRIAL_CELLS, TRIAL_STEPS = 8, 5
#: The folders of an absolute path.
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":,]+/)*")


def load_checkpoint(
    source: CheckpointSource | Path | str,
    *,
    name: str = "",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
) -> Checkpoint:
    """Load a checkpoint. Only safetensors weights are read; no code that comes with them is ever run.

    Args:
        source: where it is; a string is what `CheckpointSource.parse` understands.
        name: what people call it; the source's own name when "".
        device: a torch device.
        dtype: the weights' precision.
        offload: whether text encoders and autoencoder are on the device only while they are used.

    Raises:
        NotFound: there is no such folder, file or repository.
        InvalidInput: the string names no source, or the device is the CPU, from which nothing is offloaded.
        BrokenCheckpoint: it is no checkpoint, of an unsupported family, damaged, unsafe, its weights are pickled, or
            its parts do not fit together.
    """
    if not isinstance(source, CheckpointSource):
        source = CheckpointSource.parse(source) if isinstance(source, str) else CheckpointSource(str(source))
    name = name or source.name
    try:
        checkpoint = see(open_source(source, torch.device(device), dtype, offload=offload), name)
        _try_out(checkpoint)
        return checkpoint
    except BrokenCheckpoint as error:
        raise BrokenCheckpoint(f"{name} cannot be loaded: {error}", reason=error.reason, field=error.field) from error
    except AuditError:
        raise
    except Exception as error:  # the libraries below raise anything at all for a damaged file
        text = str(error).replace(str(Path(source.base)), name).strip() or type(error).__name__
        # Clients read this: it tells nothing of where files are.
        cause = _FOLDERS.sub("", text.splitlines()[0])
        raise BrokenCheckpoint(
            f"{name} cannot be loaded: {cause}", reason="CHECKPOINT_DAMAGED", field="checkpoint"
        ) from error


def see(source: Source, name: str) -> Checkpoint:
    """A loaded pipeline as a checkpoint.

    Raises:
        BrokenCheckpoint: its parts do not fit together.
    """
    model = in_pieces(source.family.adapt(source.pipeline))
    if source.offloaded is not None:
        model = source.offloaded.bring(model)
    return Checkpoint(
        **vars(model),
        name=name,
        digest=source.digest,
        autoencoder=source.autoencoder_digest,
        source=source.source.told(),
    )


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
