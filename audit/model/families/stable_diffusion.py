"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a cross-attention UNet, an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from audit.errors import BrokenCheckpoint, InvalidInput
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.files import digest_files, read_json, weight_files
from audit.model.sampling import SamplerSettings, build_scheduler
from audit.model.traced import Traced

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")


class UNetDenoiser(Denoiser):
    """A `UNet2DConditionModel` behind the denoiser interface; timesteps may differ between rows."""

    def __init__(self, unet: UNet2DConditionModel, schedule: Schedule, prediction_type: PredictionType) -> None:
        self._unet = Traced(unet, "noise", lambda unet, x, t, text: unet(x, t, text, return_dict=False)[0])
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's output."""
        return self._unet(x, t.to(x.device), condition["text"])


def load(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load the folder of a `StableDiffusionPipeline`; see `audit.model.loading.load_checkpoint`."""
    parts = {part: folder / part for part in ("unet", "vae", "text_encoder")}
    networks_files = {name: [*weight_files(part), part / "config.json"] for name, part in parts.items()}
    files = [file for part in networks_files.values() for file in part]
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    files.append(folder / "scheduler" / "scheduler_config.json")
    if not (folder / "tokenizer").is_dir():
        raise BrokenCheckpoint("tokenizer is missing", reason="CHECKPOINT_INCOMPLETE", field="checkpoint")
    files += [file for file in (folder / "tokenizer").iterdir() if file.is_file()]

    unet = _load_network(UNet2DConditionModel, parts["unet"], torch_dtype=dtype)
    vae = _load_network(AutoencoderKL, parts["vae"], torch_dtype=dtype)
    text_encoder = _load_network(CLIPTextModel, parts["text_encoder"], dtype=dtype)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    networks = (unet, vae, text_encoder)
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        # Small convolutions run a fifth faster in this layout on CPUs.
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)

    scheduler = build_scheduler("", scheduler_config)
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES or not hasattr(scheduler, "alphas_cumprod"):
        raise BrokenCheckpoint(
            f"{scheduler.__class__.__name__} with {prediction_type} prediction is not supported for this family",
            reason="CHECKPOINT_SCHEDULER_UNSUPPORTED",
            field="checkpoint",
        )
    channels = {unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels}
    if len(channels) > 1 or unet.config.time_cond_proj_dim is not None:
        # A UNet that is also told of a mask, of its own variance or of the guidance is another kind of model.
        raise BrokenCheckpoint(
            "the UNet does not predict the autoencoder's latents from these and a prompt alone",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    limit = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        tokens = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=False).input_ids
        longest = max(map(len, tokens))
        if longest > limit:
            raise InvalidInput(
                f"the prompt has {longest - 2} tokens, the checkpoint reads {limit - 2}",
                reason="PROMPT_TOO_LONG",
                field="prompt",
            )
        return {"text": text_encoder(torch.tensor(tokens, device=device)).last_hidden_state}

    decoder = Traced(vae, "decode", lambda vae, latents: vae.decode(latents, return_dict=False)[0])

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        return decoder(latents.to(device, dtype) / scale + shift).float().clamp(-1, 1)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        latents: Tensor = vae.encode(images.to(device, dtype)).latent_dist.mode()
        return (latents - shift) * scale

    return Checkpoint(
        name=name,
        digest=digest_files(files, folder),
        autoencoder=digest_files(networks_files["vae"], folder),
        family="StableDiffusionPipeline",
        denoiser=UNetDenoiser(unet, Schedule.from_alphas_cumprod(scheduler.alphas_cumprod), prediction_type),
        scheduler_config={"_class_name": scheduler.__class__.__name__, **dict(scheduler.config)},
        defaults=SamplerSettings(height=height * factor, width=width * factor),
        size_factor=factor,
        latent_channels=unet.config.in_channels,
        image_channels=vae.config.out_channels,
        device=device,
        dtype=dtype,
        encode_prompts=encode_prompts,
        decode=decode,
        encode=encode,
        parameters=sum(weight.numel() for network in networks for weight in network.parameters()),
    )


def _load_network(kind: Any, folder: Path, **precision: torch.dtype) -> Any:
    """A network whose every weight is in the folder: the libraries would draw missing ones at random."""
    network, found = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **precision
    )
    if missing := sorted(found["missing_keys"]):
        raise BrokenCheckpoint(
            f"{folder.name} lacks {len(missing)} weights, {missing[0]} among them",
            reason="CHECKPOINT_INCOMPLETE",
            field="checkpoint",
        )
    return network
