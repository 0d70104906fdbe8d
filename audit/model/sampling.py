"""Batched sampling over seeds. diffusers' scheduler objects do the stepping; none is reimplemented."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from audit.errors import InvalidInput
from audit.model.denoiser import Condition, Denoiser, concatenate, repeat

#: Short names of schedulers, as a request spells them. "" is the checkpoint's own.
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
}
#: Those that step along a rectified flow; all others along a diffusion.
FLOW_SCHEDULERS = ("flow-euler",)

MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class SamplerSettings:
    """How images are drawn under a prompt. Zero values mean the checkpoint's own, but for `eta` and `guidance`.

    Attributes:
        scheduler: a key of `SCHEDULERS`, or "" for the checkpoint's own.
        steps: denoiser steps per image.
        guidance: weight of classifier-free guidance (Ho & Salimans 2022, as diffusers counts it: 1 is none). Weights
            under 1 lean towards the unconditional branch; diffusers' pipelines take them for 1. Of a network that was
            distilled from guidance, the weight that it is told.
        negative_prompt: conditions the other branch of the guidance.
        height: of the image, in pixels.
        width: of the image, in pixels.
        eta: DDIM's stochasticity, in [0, 1].
        true_guidance: weight of classifier-free guidance on top of an embedded one; 1 is none.
        embedded: whether the network is told `guidance`, and nothing else is done with it. The checkpoint says so.
    """

    scheduler: str = ""
    steps: int = 50
    guidance: float = 7.5
    negative_prompt: str = ""
    height: int = 0
    width: int = 0
    eta: float = 0.0
    true_guidance: float = 1.0
    embedded: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidInput, naming the field, for values out of range."""
        if self.scheduler and self.scheduler not in SCHEDULERS:
            raise InvalidInput(
                f"unknown scheduler {self.scheduler!r}; known: {', '.join(SCHEDULERS)}",
                reason="SCHEDULER_UNKNOWN",
                field="sampler.scheduler",
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidInput(
                f"steps must be in [1, {MAX_STEPS}], not {self.steps}",
                reason="STEPS_OUT_OF_RANGE",
                field="sampler.steps",
            )
        for name in ("guidance", "true_guidance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= MAX_GUIDANCE):
                raise InvalidInput(
                    f"{name} must be a number in [0, {MAX_GUIDANCE:g}], not {value}",
                    reason="GUIDANCE_OUT_OF_RANGE",
                    field=f"sampler.{name}",
                )
        if not (math.isfinite(self.eta) and 0 <= self.eta <= 1):
            raise InvalidInput(f"eta must be in [0, 1], not {self.eta}", reason="ETA_OUT_OF_RANGE", field="sampler.eta")

    @property
    def unsaid(self) -> set[str]:
        """Names of later settings that are as everything was before there were any: no key or digest names them."""
        later = {"true_guidance": 1.0, "embedded": False}
        return {name for name, value in later.items() if getattr(self, name) == value}

    @property
    def weight(self) -> float:
        """Of the classifier-free guidance that is done."""
        return self.true_guidance if self.embedded else self.guidance

    @property
    def guided(self) -> bool:
        """Whether the unconditional (or negative) branch is evaluated at all."""
        return self.weight != 1.0


@dataclass(frozen=True)
class Samples:
    """What a group of seeds gave.

    Attributes:
        seeds: one per row.
        latents: the samplers' results, shape (n, *latent shape).
        displacements: ‖z_t − z_{t+1}‖ per step, shape (n, steps).
        contrasts: ‖ε_Δ‖₂ = ‖ε̂_cond − ε̂_uncond‖₂ per step, shape (n, steps), where hardly any signal is left as
            `audit.model.denoiser.Denoiser.contrast` says; empty (n, 0) without guidance.
        contrast_map: the last step's Σ_channels ε_Δ²/σ², shape (n, height, width) of the latent (Kim & Lee 2026):
            where in the image the copy sits; None without guidance.
    """

    seeds: tuple[int, ...]
    latents: Tensor
    displacements: Tensor
    contrasts: Tensor
    contrast_map: Tensor | None

    def __len__(self) -> int:
        return len(self.seeds)

    @staticmethod
    def concatenate(groups: Sequence[Samples]) -> Samples:
        """Groups of the same prompt and settings, one after the other."""
        maps = [group.contrast_map for group in groups if group.contrast_map is not None]
        return Samples(
            seeds=tuple(seed for group in groups for seed in group.seeds),
            latents=torch.cat([group.latents for group in groups]),
            displacements=torch.cat([group.displacements for group in groups]),
            contrasts=torch.cat([group.contrasts for group in groups]),
            contrast_map=torch.cat(maps) if maps else None,
        )


def build_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A fresh diffusers scheduler.

    Args:
        name: a key of `SCHEDULERS`, or "" for the class that the configuration names.
        config: the checkpoint's scheduler_config.json.
    """
    class_name = SCHEDULERS[name] if name else config.get("_class_name", "DDIMScheduler")
    return getattr(diffusers, class_name).from_config({k: v for k, v in config.items() if k != "_class_name"})


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Set the timesteps of a scheduler, unless they are set: pipelines that do so in their own way have done it."""
    if getattr(scheduler, "num_inference_steps", None) is None:
        scheduler.set_timesteps(steps)


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, step: int) -> Tensor:
    """Clean latents noised to where a trajectory stands before one of its steps, in the scheduler's coordinates."""
    if hasattr(scheduler, "set_begin_index"):  # those that count their steps
        scheduler.set_begin_index(step)
    forward = getattr(scheduler, "add_noise", None) or (lambda x, z, t: scheduler.scale_noise(x, t, z))
    found: Tensor = forward(clean, noise, scheduler.timesteps[step].expand(len(clean)))
    return found


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """Standard normal starts, one generator per seed, float32 on the CPU so that every device gets the same.

    Returns:
        noise of shape (n, *shape), and the generators, ready for the noise of stochastic schedulers.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]), generators


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    settings: SamplerSettings,
    condition: Condition,
    unconditional: Condition,
    seeds: Sequence[int],
    latent_shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int], None] = lambda step: None,
) -> Samples:
    """Draw one latent per seed, all in one batch.

    A seed's sample does not depend on the other seeds of the batch, beyond float tolerance: each seed has its own
    generator for the start and for the noise of every stochastic step.

    Args:
        denoiser: what predicts.
        scheduler: a fresh one of `build_scheduler`, with or without its timesteps; it keeps state, so it serves this
            call alone.
        settings: steps, guidance and eta are read here.
        condition: of the prompt, one row.
        unconditional: of the empty or negative prompt, one row.
        seeds: one per sample, in [0, 2⁶³).
        latent_shape: of one row.
        device: where latents live.
        dtype: of latents.
        on_step: called after every step with the number of steps done.

    Returns:
        The samples and what their trajectories gave for free.
    """
    start, generators = draw_noise(seeds, latent_shape)
    set_timesteps(scheduler, settings.steps)
    x = (start * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(device, dtype)
    return _walk(denoiser, scheduler, settings, condition, unconditional, seeds, x, generators, 0, on_step)


@torch.inference_mode()
def sample_from(
    denoiser: Denoiser,
    scheduler: Any,
    settings: SamplerSettings,
    condition: Condition,
    unconditional: Condition,
    clean: Tensor,
    first_step: int,
    seeds: Sequence[int],
) -> Tensor:
    """Noise latents to where a trajectory stands before one of its steps, and walk the rest of it.

    Args:
        denoiser: what predicts.
        scheduler: a fresh one of `build_scheduler`.
        settings: as in `sample`; `steps` is the length of the whole trajectory.
        condition: of the prompt, one row.
        unconditional: of the empty or negative prompt, one row.
        clean: latents x₀, (n, *latent shape).
        first_step: index of the first step that is taken, in [0, steps).
        seeds: of the noise, one per row.

    Returns:
        Where the trajectories end, shape of `clean`.

    Raises:
        InvalidInput: the scheduler is PNDM, whose first steps are of another kind wherever it begins.
    """
    if isinstance(scheduler, diffusers.PNDMScheduler):
        raise InvalidInput(
            "PNDM cannot begin in the middle of a trajectory; take another scheduler, such as ddim",
            reason="SCHEDULER_CANNOT_RESUME",
            field="sampler.scheduler",
        )
    noise, generators = draw_noise(seeds, clean.shape[1:])
    set_timesteps(scheduler, settings.steps)
    x = add_noise(scheduler, clean, noise.to(clean), first_step)
    return _walk(denoiser, scheduler, settings, condition, unconditional, seeds, x, generators, first_step).latents


def _walk(
    denoiser: Denoiser,
    scheduler: Any,
    settings: SamplerSettings,
    condition: Condition,
    unconditional: Condition,
    seeds: Sequence[int],
    x: Tensor,
    generators: list[torch.Generator],
    first_step: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Samples:
    """The steps of a trajectory from `first_step` on, `scheduler` ready and `x` in its coordinates."""
    n, dtype = len(x), x.dtype
    rows = repeat(condition, n)
    if settings.guided:
        rows = concatenate([repeat(unconditional, n), rows])
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if "eta" in accepted:
        extra["eta"] = settings.eta
    if "generator" in accepted:
        extra["generator"] = generators

    displacements, contrasts, contrast_map = [], [], None
    for step, t in enumerate(scheduler.timesteps[first_step:]):
        # What steps along a flow takes latents as they are.
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if settings.guided:
            other, wanted = denoiser.native(torch.cat([scaled, scaled]), t.expand(2 * n), rows).chunk(2)
            contrast = denoiser.contrast(t.expand(n), wanted, other)
            contrasts.append(contrast.flatten(1).norm(dim=1))
            _, sigma = denoiser.schedule.at(t.expand(n), x)
            contrast_map = (contrast / sigma).square().sum(1)
            native = other + settings.weight * (wanted - other)
        else:
            native = denoiser.native(scaled, t.expand(n), rows)
        moved = scheduler.step(native, t, x, **extra, return_dict=False)[0].to(dtype)
        displacements.append((moved - x).flatten(1).norm(dim=1))
        x = moved
        on_step(step + 1)
    return Samples(
        seeds=tuple(seeds),
        latents=x,
        displacements=torch.stack(displacements, 1).cpu(),
        contrasts=torch.stack(contrasts, 1).cpu() if contrasts else torch.zeros(n, 0),
        contrast_map=None if contrast_map is None else contrast_map.cpu(),
    )
