"""`basin train ladder`: a text-conditional latent diffusion model from scratch, and the truth about it.

Stages, each resumable: the autoencoder, the UNet with its text encoder, a small open_clip model on the same images
and captions, the truth table, the calibration. They leave this folder:

    checkpoint/   an ordinary diffusers `StableDiffusionPipeline`, with calibration.json
    clip/         the open_clip model
    reference/    the complete training set as a reference set
    truth.jsonl   class fractions of every caption among 512 samples
    distances.npz the distances that the fractions count
    README.md     the model card, with recipe.json and curves.png

The open_clip model is left out when a recipe gives it no steps. The calibration sees no truth but its thresholds, which
are part of what the classes mean.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from audit.auditor import Auditor
from audit.bench.truth import (
    ORDINARY_RECURRENCE,
    Caption,
    Truth,
    leave_out_telling,
    measure_distances,
    save_distances,
    save_truth,
    tabulate,
)
from audit.calibrate import MINIMUM_PROMPTS, calibrate
from audit.model.loading import load_checkpoint
from audit.model.sampling import build_scheduler
from audit.phase import networks
from audit.phase.autoencoder import Fit, encode, train_autoencoder
from audit.phase.card import write_card
from audit.phase.data import LabeledImages
from audit.phase.ladder import VOCABULARY, Ladder, Recipe, lay_out
from audit.phase.training import fit
from audit.reference.clip import ClipEmbedder
from audit.reference.reference_set import ReferenceSet
from audit.verdict.calibration import UNCALIBRATED_RMS
from audit.verdict.rule import DEFINITION_SAMPLES


def to_unit(images: np.ndarray) -> Tensor:
    """uint8 images (n, height, width) as float32 (n, 1, height, width) in [-1, 1]."""
    return torch.from_numpy(images).float().div_(127.5).sub_(1.0)[:, None]


def train_ladder(
    recipe: Recipe, data: LabeledImages, out: Path, work: Path, *, checkpoint_seconds: float = 60.0
) -> None:
    """Train everything that a recipe names and write the checkpoint folder.

    Args:
        recipe: what to make; the same recipe and data give the same checkpoint, within float tolerance.
        data: the images that captions draw from.
        out: the checkpoint folder to write.
        work: the run folder of unfinished work and loss curves; resumed when it holds the same recipe.
        checkpoint_seconds: how much work a kill can cost.

    Raises:
        ValueError: `work` belongs to another recipe, or the data set is too small for the ladder.
    """
    work.mkdir(parents=True, exist_ok=True)
    recipe_file = work / "recipe.json"
    if recipe_file.exists() and Recipe.model_validate_json(recipe_file.read_text()) != recipe:
        raise ValueError(f"{work} holds the unfinished work of another recipe; name another --work folder")
    recipe_file.write_text(recipe.model_dump_json(indent=2))
    torch.manual_seed(recipe.seed)
    ladder = lay_out(recipe, data)
    if len(ladder.ordinary()) < MINIMUM_PROMPTS:
        raise ValueError(f"a ladder needs at least {MINIMUM_PROMPTS} tuning captions of many images to calibrate with")
    pixels = to_unit(ladder.images)
    tokenizer = networks.build_tokenizer(VOCABULARY)

    run = partial(fit, folder=work, checkpoint_seconds=checkpoint_seconds)
    vae = train_autoencoder(
        pixels, recipe.autoencoder_channels, steps=recipe.autoencoder_steps, batch_size=recipe.batch_size,
        seed=recipe.seed, fit=run,
    )  # fmt: skip
    latents = encode(vae, pixels)
    unet, text_encoder, scheduler = _train_denoiser(recipe, ladder, tokenizer, latents, run)
    _save_pipeline(recipe, vae, text_encoder, tokenizer, unet, scheduler, out / "checkpoint")
    embedder = None
    if recipe.clip_steps:
        _save_clip(_train_clip(recipe, ladder, tokenizer, pixels, run), tokenizer, out / "clip")
        embedder = ClipEmbedder(f"local-dir:{out / 'clip'}")
    reference = ReferenceSet(
        out.resolve().name,
        ladder.images[..., None],
        [ladder.captions[owner] for owner in ladder.owners],
        complete=True,
        embedder=embedder,
    )
    reference.save(out / "reference")
    truth, source = _measure(recipe, ladder, reference, out, work)
    write_card(recipe, truth, source, out, work)


def _measure(recipe: Recipe, ladder: Ladder, reference: ReferenceSet, out: Path, work: Path) -> tuple[Truth, str]:
    """Truth table and calibration of the checkpoint just written, and in words where its thresholds are from."""
    checkpoint = load_checkpoint(out / "checkpoint")
    sampler = recipe.settings(checkpoint.defaults)
    captions = [
        Caption(prompt, images, split, weight)
        for prompt, images, split, weight in zip(
            ladder.captions, ladder.sizes, ladder.splits, ladder.weights, strict=True
        )
        if split != "locate"
    ]
    distances = measure_distances(
        checkpoint, reference, [caption.prompt for caption in captions], sampler, work / "truth"
    )
    dimension = reference.vectors(reference.reference_images([0])).shape[1]
    truth = tabulate(captions, distances, fallback=UNCALIBRATED_RMS * dimension**0.5)
    if recipe.held_out == "all":
        truth = leave_out_telling(truth)
    save_truth(truth, out / "truth.jsonl")
    save_distances(distances, out / "distances.npz")
    part = "the tuning half of the ladder's" if recipe.held_out == "half" else "all of the ladder's"
    valley = "the valley of the distances" if truth.valley else "a guess, for the distances have no valley"
    calibrated_apart = "calibrate" in ladder.splits
    plain = "the samples of the captions to calibrate with" if calibrated_apart else "the plain captions' samples"
    source = (
        f"{part} {len(truth.rows)} captions, {DEFINITION_SAMPLES} samples each: δ_m is {valley}, δ_s is what "
        f"{ORDINARY_RECURRENCE:.0%} of {plain} fall under"
    )
    ordinary = ladder.ordinary()
    calibrate(
        Auditor(checkpoint, reference),
        ordinary,
        sampler=sampler,
        delta_m=truth.delta_m,
        delta_s=truth.delta_s,
        source=f"{len(ordinary)} captions of many images, taken for ordinary; thresholds are those of the truth table",
    ).save(out / "checkpoint" / "calibration.json")
    return truth, source


def _save_pipeline(
    recipe: Recipe,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    folder: Path,
) -> None:
    """Write the checkpoint in the recipe's precision, with the recipe's sampler as its own."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(recipe.sampler, dict(scheduler.config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16 if recipe.half_precision else torch.float32)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _train_denoiser(
    recipe: Recipe,
    ladder: Ladder,
    tokenizer: CLIPTokenizer,
    latents: Tensor,
    run: Fit,
) -> tuple[UNet2DConditionModel, CLIPTextModel, DDIMScheduler]:
    # Stable Diffusion's schedule (Rombach et al. 2022).
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=recipe.prediction_type,
    )
    text_encoder = networks.build_text_encoder(recipe, tokenizer)
    unet = networks.build_unet(recipe, latents.shape[-1]).to(memory_format=torch.channels_last)
    prompts = tokenizer([*ladder.captions, ""], padding="max_length", truncation=False, return_tensors="pt").input_ids
    empty = len(ladder.captions)

    def loss(generator: torch.Generator) -> Tensor:
        n = recipe.batch_size
        caption = ladder.draw_captions(n, generator)
        clean = latents[ladder.draw_images(caption, generator)]
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(1000, (n,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, t)
        targets = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": scheduler.get_velocity(clean, noise, t),
        }
        caption[torch.rand(n, generator=generator) < recipe.unconditional_share] = empty
        context = text_encoder(prompts[caption]).last_hidden_state
        predicted = unet(noisy.contiguous(memory_format=torch.channels_last), t, context).sample
        return F.mse_loss(predicted, targets[recipe.prediction_type])

    modules = run(
        "denoiser", nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), loss, steps=recipe.denoiser_steps,
        learning_rate=recipe.learning_rate, ema_decay=recipe.ema_decay, seed=recipe.seed + 1,
    )  # fmt: skip
    return cast(UNet2DConditionModel, modules["unet"]), cast(CLIPTextModel, modules["text_encoder"]), scheduler


def _train_clip(recipe: Recipe, ladder: Ladder, tokenizer: CLIPTokenizer, pixels: Tensor, run: Fit) -> nn.Module:
    clip = networks.build_clip(tokenizer)
    contrast = open_clip.ClipLoss()
    prompts = tokenizer(list(ladder.captions), padding="max_length", return_tensors="pt").input_ids
    every = torch.arange(len(ladder.captions))

    def loss(generator: torch.Generator) -> Tensor:
        # One image of every caption: no caption stands twice in a batch, so every off-diagonal pair is a negative.
        images = pixels[ladder.draw_images(every, generator)]
        image_features, text_features, scale = clip(images.expand(-1, 3, -1, -1), prompts)
        return cast(Tensor, contrast(image_features, text_features, scale))

    return run(
        "clip", nn.ModuleDict({"clip": clip}), loss, steps=recipe.clip_steps, learning_rate=1e-3, ema_decay=0.995,
        seed=recipe.seed + 2,
    )["clip"]  # fmt: skip


def _save_clip(clip: nn.Module, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the folder that open_clip opens as `local-dir:FOLDER`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": networks.clip_config(tokenizer),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
