"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a cross-attention UNet, an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from audit.errors import BrokenCheckpoint, InvalidInput
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.files import digest_files, read_json, weight_files
from audit.model.sampling import SamplerSettings, build_scheduler

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")


class UNetDenoiser(Denoiser):
    """A `UNet2DConditionModel` behind the denoiser interface; timesteps may differ between rows."""

    def __init__(self, unet: UNet2DConditionModel, schedule: Schedule, prediction_type: PredictionType) -> None:
        self.unet = unet
        self.schedule = schedule
        self.prediction_type = prediction_type

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's output."""
        output: Tensor = self.unet(x, t.to(x.device), condition["text"], return_dict=False)[0]
        return output


def load(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load the folder of a `StableDiffusionPipeline`; see `audit.model.loading.load_checkpoint`."""
    parts = {part: folder / part for part in ("unet", "vae", "text_encoder")}
    files = [file for part in parts.values() for file in (*weight_files(part), part / "config.json")]
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    files.append(folder / "scheduler" / "scheduler_config.json")
    files += [file for file in (folder / "tokenizer").iterdir() if file.is_file()]

    options = {"use_safetensors": True, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(parts["unet"], torch_dtype=dtype, **options)
    vae = AutoencoderKL.from_pretrained(parts["vae"], torch_dtype=dtype, **options)
    text_encoder = CLIPTextModel.from_pretrained(parts["text_encoder"], dtype=dtype, **options)
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
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = unet.config.sample_size * factor
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0

    @torch.inference_mode()
    def encode_prompts(prompts: Sequence[str]) -> Condition:
        tokens = tokenizer(list(prompts), padding="max_length", truncation=False, return_tensors="pt").input_ids
        limit = tokenizer.model_max_length
        if tokens.shape[1] > limit:
            raise InvalidInput(
                f"the prompt has {tokens.shape[1] - 2} tokens, the checkpoint reads {limit - 2}",
                reason="PROMPT_TOO_LONG",
                field="prompt",
            )
        return {"text": text_encoder(tokens.to(device)).last_hidden_state}

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae.decode(latents.to(device, dtype) / scale + shift, return_dict=False)[0]
        return images.float().clamp(-1, 1)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        latents: Tensor = vae.encode(images.to(device, dtype)).latent_dist.mode()
        return (latents - shift) * scale

    return Checkpoint(
        name=name,
        digest=digest_files(files, folder),
        family="StableDiffusionPipeline",
        denoiser=UNetDenoiser(unet, Schedule.from_alphas_cumprod(scheduler.alphas_cumprod), prediction_type),
        scheduler_config={"_class_name": scheduler.__class__.__name__, **dict(scheduler.config)},
        defaults=SamplerSettings(height=side, width=side),
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
