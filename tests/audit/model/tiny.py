"""A tiny random pipeline of every family, made of the real classes and saved as its users have it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from audit.phase.ladder import VOCABULARY
from audit.phase.networks import CONTEXT_LENGTH, build_tokenizer
from tests.audit.makers import SCHEDULER_CONFIG

#: Widths: of text, of what CLIP pools, and of T5.
TEXT, POOLED, LONG_TEXT = 16, 12, 20
#: Cells per side of the latents, pixels per cell.
CELLS, FACTOR = 8, 2


def clip(kind: type[Any] = CLIPTextModel, width: int = TEXT, seed: int = 0) -> tuple[Any, CLIPTokenizer]:
    """A CLIP text encoder and its tokenizer."""
    tokenizer = build_tokenizer(VOCABULARY)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=POOLED,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config), tokenizer


def t5(width: int = LONG_TEXT) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder and its tokenizer, whose pieces are words and letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in VOCABULARY)]
    tokenizer = T5Tokenizer(
        vocab=[(piece, 0.0 if len(piece) < 2 else float(len(piece))) for piece in dict.fromkeys(pieces)],
        extra_ids=0,
        model_max_length=512,
    )
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config), tokenizer


def unet(text: int, **config: Any) -> UNet2DConditionModel:
    """A UNet that reads text."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=CELLS,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=text,
        **config,
    )


def vae(**config: Any) -> AutoencoderKL:
    """An autoencoder to four channels."""
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=CELLS * FACTOR,
        **config,
    )


def scheduler(kind: type[Any], **config: Any) -> Any:
    """A scheduler on Stable Diffusion's schedule."""
    return kind.from_config({**SCHEDULER_CONFIG, **config})


def stable_diffusion(own: Any = None, **config: Any) -> Any:
    """Stable Diffusion 1.x."""
    encoder, tokenizer = clip()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(TEXT, **config),
        scheduler=own or scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def latent_consistency() -> Any:
    """A latent consistency model, which is told the guidance."""
    made = stable_diffusion(scheduler(LCMScheduler), time_cond_proj_dim=10)
    return diffusers.LatentConsistencyModelPipeline(**made.components, requires_safety_checker=False)


def stable_diffusion_xl(own: Any = None, *, zeros: bool = True, **latents: Any) -> Any:
    """Stable Diffusion XL."""
    (first, tokenizer), (second, tokenizer_2) = clip(), clip(CLIPTextModelWithProjection, seed=3)
    network = unet(
        2 * TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + POOLED,
        transformer_layers_per_block=(1, 1),
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(**latents),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=network,
        scheduler=own or scheduler(EulerDiscreteScheduler),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def stable_diffusion_3(*, long: bool = True, **flow: Any) -> Any:
    """Stable Diffusion 3, with or without T5."""
    (first, tokenizer), (second, tokenizer_2) = (clip(CLIPTextModelWithProjection, seed=seed) for seed in (0, 3))
    encoder, tokenizer_3 = t5(2 * TEXT + 4) if long else (None, None)
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=CELLS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT + 4,
        caption_projection_dim=16,
        pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=12,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **flow}),
        vae=vae(shift_factor=0.06),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        text_encoder_3=encoder,
        tokenizer_3=tokenizer_3,
    )


def flux(*, told: bool = True) -> Any:
    """FLUX.1: [dev], which is told the guidance, or [schnell]."""
    (first, tokenizer), (encoder, tokenizer_2) = clip(), t5()
    torch.manual_seed(4)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=LONG_TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=told,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=told, shift=3.0 if told else 1.0),
        vae=vae(shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer_2,
    )


def pixart(kind: Any = diffusers.PixArtAlphaPipeline, *, told: bool = False) -> Any:
    """PixArt-α or -Σ; the largest α is told the size of the image."""
    encoder, tokenizer = t5()
    torch.manual_seed(4)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=128 if told else CELLS,
        caption_channels=LONG_TEXT,
        use_additional_conditions=told,
    )
    return kind(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer,
        scheduler=scheduler(DPMSolverMultistepScheduler),
    )


def dit() -> Any:
    """DiT, with names for some of its classes."""
    torch.manual_seed(4)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=CELLS
    )
    made = diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler(DDIMScheduler))
    made.register_to_config(id2label={"207": "golden retriever", "3": "white shark, man-eater"})
    return made


def plain_unet(channels: int) -> UNet2DModel:
    """A UNet without prompts."""
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=CELLS,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def pixels(kind: Any = diffusers.DDPMPipeline, own: Any = None) -> Any:
    """Unconditional diffusion of pixels."""
    return kind(unet=plain_unet(3), scheduler=own or scheduler(DDPMScheduler, clip_sample=True, steps_offset=0))


def latents() -> Any:
    """Unconditional diffusion of the latents of a vector-quantised autoencoder."""
    torch.manual_seed(2)
    vqvae = VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=32,
    )
    return diffusers.LDMPipeline(vqvae=vqvae, unet=plain_unet(3), scheduler=scheduler(DDIMScheduler))


#: Every family, in every form that is another path through its code.
PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sd-turbo": partial(stable_diffusion, scheduler(EulerDiscreteScheduler, timestep_spacing="trailing")),
    "lcm": latent_consistency,
    "sdxl": stable_diffusion_xl,
    "sdxl-no-zeros": partial(
        stable_diffusion_xl, zeros=False, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 2.0, 1.0]
    ),
    "sdxl-turbo": partial(stable_diffusion_xl, scheduler(EulerAncestralDiscreteScheduler, timestep_spacing="trailing")),
    "sd3": stable_diffusion_3,
    "sd3-without-t5": partial(stable_diffusion_3, long=False, use_dynamic_shifting=True),
    "flux-dev": flux,
    "flux-schnell": partial(flux, told=False),
    "pixart-alpha": partial(pixart, told=True),
    "pixart-sigma": partial(pixart, diffusers.PixArtSigmaPipeline),
    "dit": dit,
    "ddpm": pixels,
    "ddim": partial(pixels, diffusers.DDIMPipeline),
    "ldm": latents,
}


def save(name: str, folder: Path) -> Any:
    """Save a pipeline as safetensors, and give it back, with the scheduler that its users would read."""
    made = PIPELINES[name]()
    made.save_pretrained(folder, safe_serialization=True)
    # What a scheduler has by default, another one would have by its own; read from a file, it is given.
    made.scheduler = type(made.scheduler).from_pretrained(folder / "scheduler")
    made.set_progress_bar_config(disable=True)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return made
