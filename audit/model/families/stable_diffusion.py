"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a cross-attention UNet, an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from audit.errors import BrokenCheckpoint, InvalidInput
from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.families.family import Family
from audit.model.sampling import SamplerSettings
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


def adapt(pipeline: StableDiffusionPipeline) -> Model:
    """See a Stable Diffusion pipeline as a model."""
    unet, vae, text_encoder, tokenizer = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    if unet.device.type == "cpu":
        # Small convolutions run a fifth faster in this layout on CPUs.
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    device, dtype, scheduler = unet.device, unet.dtype, pipeline.scheduler
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

    return Model(
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
        parameters=sum(weight.numel() for network in (unet, vae, text_encoder) for weight in network.parameters()),
    )


STABLE_DIFFUSION = Family(
    pipeline=StableDiffusionPipeline,
    parts={
        "unet": (UNet2DConditionModel,),
        "vae": (AutoencoderKL,),
        "text_encoder": (CLIPTextModel,),
        "tokenizer": (CLIPTokenizer,),
        "scheduler": (SchedulerMixin,),
    },
    adapt=adapt,
)
