"""Where the networks of a series live: among the images themselves, or among the latents of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from audit.phase.autoencoder import decode, encode, train_autoencoder
from audit.phase.data import DataSet, load_data
from audit.phase.folder import RunFolder, read_arrays, write_arrays, write_whole
from audit.phase.sweep import Sweep
from audit.phase.training import fit
from audit.reference.images import to_float

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class Space:
    """A training set as networks see it.

    Attributes:
        latents: of every training image, float32, (n, *latent shape); the images themselves in pixel space.
        images: the same through the autoencoder and back, float32 (n, channels, height, width) in [-1, 1]: what a
            perfect copy looks like.
        autoencoder: None in pixel space.
    """

    latents: Tensor
    images: Tensor
    autoencoder: AutoencoderKL | None

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images in [-1, 1]."""
        return latents.clamp(-1, 1) if self.autoencoder is None else decode(self.autoencoder, latents)


def as_images(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, height, width) or (n, height, width, 3) as float32 (n, channels, height, width) in [-1, 1]."""
    return to_float(images[..., None] if images.ndim == 3 else images)


@lru_cache(maxsize=2)
def open_space(run: Path, kind: str, data: DataSet, source: Path | None) -> Space:
    """The training set in pixel or latent space; kept for the next call of the process.

    Args:
        run: the run folder, with a trained autoencoder where `kind` is "latent".
        kind: "pixel" or "latent".
        data: which data set.
        source: where its files are; the usual places when None.
    """
    if kind == "pixel":
        images = as_images(load_data(data, source).images)
        return Space(images, images, None)
    from diffusers import AutoencoderKL  # takes as long as torch, and pixel space does without

    folder = RunFolder(run).autoencoder
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    encoded = read_arrays(folder / "encoded.npz")
    return Space(torch.from_numpy(encoded["latents"]).float(), torch.from_numpy(encoded["images"]).float(), vae)


def prepare_autoencoder(run: RunFolder, sweep: Sweep, source: Path | None) -> None:
    """Train the autoencoder of the series in latent space, once; it can be killed and goes on.

    All images are used, whatever K is: it is the denoiser whose memory is under study.
    """
    if (run.autoencoder / "encoded.npz").is_file():
        return
    pixels = as_images(load_data(sweep.data, source).images)
    torch.manual_seed(sweep.seeds[0])
    vae = train_autoencoder(
        pixels,
        sweep.autoencoder_widths,
        steps=sweep.autoencoder_steps,
        batch_size=64,
        seed=sweep.seeds[0],
        fit=partial(fit, folder=run.training),
    )
    run.autoencoder.mkdir(exist_ok=True)
    vae.save_config(run.autoencoder)
    # The writer of safetensors has an error of its own for a full disk.
    weights = save({name: value.contiguous() for name, value in vae.state_dict().items()}, {"format": "pt"})
    write_whole(run.autoencoder / SAFETENSORS_WEIGHTS_NAME, weights)
    latents = encode(vae, pixels)
    images = decode(vae, latents)
    # Half precision is a tenth of a grey level.
    write_arrays(run.autoencoder / "encoded.npz", {"latents": latents.half().numpy(), "images": images.half().numpy()})
    (run.training / "autoencoder.state.pt").unlink(missing_ok=True)
