"""The autoencoder of series in latent space, and the space that it makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from audit.phase import autoencoder
from audit.phase import space as space_module
from audit.phase.autoencoder import build_autoencoder, decode, encode, train_autoencoder
from audit.phase.data import load_data
from audit.phase.folder import RunFolder
from audit.phase.space import as_images, open_space, prepare_autoencoder
from audit.phase.sweep import Series, Sweep
from audit.phase.training import fit

WIDTHS = (8, 16)
SWEEP = Sweep(
    data="digits",
    sizes=(2, 4, 8),
    series=(Series(architecture="unet", width=8, space="latent", learning_rate=1e-3),),
    steps=2,
    autoencoder_widths=WIDTHS,
    autoencoder_steps=20,
    seeds=(3,),
)


def digits(count: int | None = None) -> Tensor:
    """The images as networks see them."""
    return as_images(load_data("digits", None).images[:count])


def train(folder: Path, pixels: Tensor, steps: int) -> AutoencoderKL:
    """A small autoencoder."""
    torch.manual_seed(0)
    return train_autoencoder(
        pixels, WIDTHS, steps=steps, batch_size=32, seed=1, fit=partial(fit, folder=folder)
    )  # fmt: skip


def error(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean square difference of images and what comes back."""
    return float((decode(vae, encode(vae, pixels)) - pixels).square().mean())


def test_training_lowers_the_error(tmp_path: Path) -> None:
    """Far below that of fresh weights and of the mean image, after a few hundred steps."""
    pixels = digits(256)
    trained = train(tmp_path, pixels, 250)
    assert error(trained, pixels) < 0.5 * float((pixels - pixels.mean(0)).square().mean())
    torch.manual_seed(0)
    assert error(trained, pixels) < 0.3 * error(build_autoencoder(WIDTHS, 1, 8), pixels)
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_have_unit_deviation_and_shapes_come_back(tmp_path: Path, channels: int) -> None:
    """Four channels at half the side; the scale is the autoencoder's own and goes with its files."""
    pixels = digits(600).expand(-1, channels, -1, -1)
    vae = train(tmp_path, pixels, 3)
    latents = encode(vae, pixels)  # more than one chunk
    assert latents.shape == (600, 4, 4, 4)
    assert float(latents.std()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(encode(vae, pixels, scale=1.0) * vae.config.scaling_factor, latents)
    images = decode(vae, latents)
    assert images.shape == pixels.shape
    assert float(images.abs().max()) <= 1
    torch.testing.assert_close(images[-3:], decode(vae, latents[-3:]), rtol=1e-4, atol=1e-5)
    vae.save_pretrained(tmp_path / "vae")
    again = AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True)
    torch.testing.assert_close(encode(again, pixels[:5]), latents[:5], rtol=1e-4, atol=1e-5)


def test_every_width_halves_the_side_once_more() -> None:
    """The first level keeps it; channels and sides are the images'."""
    for widths, side in [((8,), 32), ((8, 16), 16), ((8, 16, 32), 8)]:
        vae = build_autoencoder(widths, channels=3, side=32)
        pixels = torch.rand(2, 3, 32, 32) * 2 - 1
        assert encode(vae, pixels).shape == (2, 4, side, side)
        assert decode(vae, encode(vae, pixels)).shape == pixels.shape


def test_the_loss_is_reconstruction_and_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    """As computed by hand from the same draws, with a weight of the KL term that shows."""
    monkeypatch.setattr(autoencoder, "KL_WEIGHT", 0.1)
    pixels, seen, mse = digits(40), [], []

    def look(
        name: str, modules: nn.ModuleDict, loss: Callable[[torch.Generator], Tensor], **settings: object
    ) -> nn.ModuleDict:
        seen.append(loss(torch.Generator().manual_seed(5)).item())
        generator = torch.Generator().manual_seed(5)
        batch = pixels[torch.randint(40, (16,), generator=generator)]
        posterior = modules["vae"].encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = modules["vae"].decode(posterior.mean + posterior.std * noise).sample
        kl = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).sum((1, 2, 3)) / 2
        mse.append((decoded - batch).square().mean().item())
        seen.append(((decoded - batch).square().mean() + 0.1 * kl.mean()).item())
        return modules

    train_autoencoder(pixels, WIDTHS, steps=1, batch_size=16, seed=0, fit=look)
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert seen[0] > 1.01 * mse[0]


def test_pixel_space_is_the_images_themselves(tmp_path: Path) -> None:
    """Latents and images are one; decoding cuts off what is no grey level."""
    space = open_space(tmp_path, "pixel", "digits", None)
    assert space.autoencoder is None
    assert space.latents.shape == (1797, 1, 8, 8)
    assert torch.equal(space.latents, space.images)
    assert (float(space.images.min()), float(space.images.max())) == (-1, 1)
    assert space.decode(torch.tensor([-3.0, 0.5, 3.0])).tolist() == [-1, 0.5, 1]


def test_images_become_channels_first() -> None:
    """Grey or in colour, 0 to 255 becomes −1 to 1."""
    grey = np.asarray([[[0, 255], [51, 204]]], dtype=np.uint8)
    torch.testing.assert_close(as_images(grey), torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]]]]))
    colour = np.stack([grey, 255 - grey, grey], -1)
    torch.testing.assert_close(as_images(colour), torch.cat([as_images(grey), -as_images(grey), as_images(grey)], 1))


class Killed(Exception):
    """Stands for a kill."""


def test_latent_space_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and what comes back of every image, in unit scale; killed at the end, it takes no step again."""
    run = RunFolder(tmp_path)

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(space_module, "write_arrays", killed)
        with pytest.raises(Killed):
            prepare_autoencoder(run, SWEEP, None)
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder.F, "mse_loss", killed)
        prepare_autoencoder(run, SWEEP, None)
        files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
        prepare_autoencoder(run, SWEEP, None)
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert run.training / "autoencoder.jsonl" in files
    assert run.training / "autoencoder.state.pt" not in files
    space = open_space(tmp_path, "latent", "digits", None)
    assert space.latents.shape == (1797, 4, 4, 4)
    assert space.images.shape == (1797, 1, 8, 8)
    assert float(space.latents.std()) == pytest.approx(1, rel=2e-3)  # half precision
    torch.testing.assert_close(space.decode(space.latents[:50]), space.images[:50], rtol=0, atol=0.02)
    assert space.autoencoder is not None
    assert not space.autoencoder.training
