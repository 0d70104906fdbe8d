"""What families have in common: schedules, autoencoders, text that is too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from audit.errors import BrokenCheckpoint, InvalidInput
from audit.model.denoiser import PredictionType, Schedule
from audit.model.networks import networks_of
from audit.model.quantized import numbers
from audit.model.traced import Traced

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
#: Steps of a checkpoint that was distilled to few of them.
FEW_STEPS = 4
#: Weights of a network whose convolutions are small.
SMALL = 2**25


def diffusion(scheduler: Any) -> tuple[Schedule, PredictionType]:
    """The noise schedule of a variance-preserving diffusion, and what its network predicts.

    Raises:
        BrokenCheckpoint: the scheduler is of another kind.
    """
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES or not hasattr(scheduler, "alphas_cumprod"):
        raise BrokenCheckpoint(
            f"{scheduler.__class__.__name__} with {prediction_type} prediction is not supported for this family",
            reason="CHECKPOINT_SCHEDULER_UNSUPPORTED",
            field="checkpoint",
        )
    return Schedule.from_alphas_cumprod(scheduler.alphas_cumprod), prediction_type


def flow(scheduler: Any) -> Schedule:
    """The noise schedule of a rectified flow.

    Raises:
        BrokenCheckpoint: the scheduler is of another kind.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise BrokenCheckpoint(
            f"{scheduler.__class__.__name__} is not supported for this family, which flows",
            reason="CHECKPOINT_SCHEDULER_UNSUPPORTED",
            field="checkpoint",
        )
    return Schedule.rectified_flow(scheduler.config.num_train_timesteps)


def shift(scheduler: Any, tokens: int, largest: float) -> float:
    """μ of the scheduler's dynamic shifting for an image of so many tokens, a line through two points.

    Args:
        scheduler: of the pipeline; its configuration has the points.
        tokens: patches of the image.
        largest: ordinate of the second point where the configuration has none.
    """
    config = scheduler.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", largest)
    slope = (high - low) / (many - few)
    return float(tokens * slope + low - slope * few)


def few_steps(scheduler: Any) -> bool:
    """Whether a scheduler is what distilled checkpoints come with: of consistency models, or ε̂ from the very end."""
    config = scheduler.config
    trailing = config.get("timestep_spacing") == "trailing" and config.get("prediction_type", "epsilon") == "epsilon"
    return isinstance(scheduler, LCMScheduler) or trailing


def sides(size: Any) -> tuple[int, int]:
    """Height and width of a sample size, which may be one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def require_same_channels(*channels: int) -> None:
    """Raises BrokenCheckpoint unless a network predicts what it reads, which is what the autoencoder makes."""
    if len(set(channels)) > 1:
        # One that is also told of a mask or a control image, or of its own variance, is another kind of model.
        raise BrokenCheckpoint(
            "the network does not predict the autoencoder's latents from these and a prompt alone",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )


@dataclass(frozen=True)
class Coder:
    """An autoencoder.

    Attributes:
        decode: latents, as the denoiser sees them, to images, float32 in [-1, 1].
        encode: images to the most probable latents.
        factor: pixels per latent cell.
        latent_channels: of the latents.
        image_channels: of the images.
    """

    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    factor: int
    latent_channels: int
    image_channels: int


def lay_out(network: Any) -> None:
    """Put a network's convolutions into the order that a CPU computes fastest with."""
    if network.device.type == "cpu" and _weights(network) <= SMALL:
        # Small convolutions run a fifth faster; large ones a fifth slower, and would need memory of their own where
        # they are still what the weight files hold.
        network.to(memory_format=torch.channels_last)


def _weights(network: Any) -> int:
    return sum(map(numbers, network.parameters()))


def coder(vae: Any, network: Any) -> Coder:
    """See an `AutoencoderKL` or `VQModel` as a pair of functions.

    Args:
        vae: scaled by its configuration's scaling_factor, shift_factor, latents_mean and latents_std.
        network: the one that denoises; where it is and computes, latents and images are.
    """
    config, device, dtype = vae.config, network.device, network.dtype
    if dtype == torch.float16 and config.get("force_upcast", False):
        vae.to(torch.float32)  # it overflows in float16
    lay_out(vae)
    own = vae.dtype
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    if means is None or deviations is None:
        means, deviations = [config.get("shift_factor") or 0.0], [1.0]
    mean, scale = (
        torch.tensor(values, dtype=torch.float64).to(own).to(device).reshape(1, -1, 1, 1)
        for values in (means, [config.scaling_factor / deviation for deviation in deviations])
    )
    decoder = Traced(vae, "decode", lambda vae, latents: vae.decode(latents, return_dict=False)[0])

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        unscaled = latents.to(device, own) / scale + mean
        return decoder(unscaled).float().clamp(-1, 1)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        found = vae.encode(images.to(device, own))
        latents: Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return ((latents - mean) * scale).to(dtype)

    return Coder(
        decode=decode,
        encode=encode,
        factor=2 ** (len(config.block_out_channels) - 1),
        latent_channels=config.latent_channels,
        image_channels=config.out_channels,
    )


def common(pipeline: Any, network: Any, coder: Coder) -> dict[str, Any]:
    """What every family says of a `Model` alike.

    Args:
        pipeline: of diffusers.
        network: the one that denoises.
        coder: its autoencoder.
    """
    return {
        "family": type(pipeline).__name__,
        "scheduler_config": {"_class_name": type(pipeline.scheduler).__name__, **dict(pipeline.scheduler.config)},
        "size_factor": coder.factor,
        "latent_channels": coder.latent_channels,
        "image_channels": coder.image_channels,
        "device": network.device,
        "dtype": network.dtype,
        "decode": coder.decode,
        "encode": coder.encode,
        "parameters": sum(map(_weights, networks_of(pipeline))),
    }


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and how much of a prompt its encoder reads.

    Attributes:
        tokenizer: of transformers.
        limit: tokens, the marks at the ends included.
    """

    tokenizer: Any
    limit: int


def clip_reader(tokenizer: Any, encoder: Any) -> Reader:
    """Of a CLIP text encoder, and the tokenizer pads no further than that."""
    limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokenizer.model_max_length = limit
    return Reader(tokenizer, limit)


def require_readable(pipeline: Any, prompts: Sequence[str], readers: Sequence[Reader]) -> None:
    """Raises InvalidInput where a prompt is cut by every reader."""
    converted = (
        [pipeline.maybe_convert_prompt(prompt, readers[0].tokenizer) for prompt in prompts]
        if hasattr(pipeline, "maybe_convert_prompt")
        else list(prompts)
    )
    for prompt in converted:
        counts = [(len(reader.tokenizer(prompt, truncation=False).input_ids), reader) for reader in readers]
        if all(count > reader.limit for count, reader in counts):
            count, reader = counts[-1]
            marks = len(reader.tokenizer("").input_ids)
            raise InvalidInput(
                f"the prompt has {count - marks} tokens, the checkpoint reads {reader.limit - marks}",
                reason="PROMPT_TOO_LONG",
                field="prompt",
            )


def keep_prompts_private(pipeline: Any) -> None:
    """Keep a pipeline from logging what an encoder leaves out of a prompt that another one reads whole."""
    logging.getLogger(type(pipeline).__module__).setLevel(logging.ERROR)
