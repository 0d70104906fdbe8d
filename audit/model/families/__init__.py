"""Families of checkpoints, one module each: it sees a loaded diffusers pipeline as a `Model`.

A new family is a module with a `Family` in it, and a line in `FAMILIES`.
"""

from __future__ import annotations

from pkgutil import resolve_name

from audit.errors import BrokenCheckpoint
from audit.model.families.family import Family

#: Where each family is, by the class of its pipelines. Only that of the checkpoint at hand is imported.
FAMILIES: dict[str, str] = {
    "StableDiffusionPipeline": "stable_diffusion:STABLE_DIFFUSION",
    "LatentConsistencyModelPipeline": "stable_diffusion:LATENT_CONSISTENCY",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:STABLE_DIFFUSION_XL",
    "StableDiffusion3Pipeline": "stable_diffusion_3:STABLE_DIFFUSION_3",
    "FluxPipeline": "flux:FLUX",
    "PixArtAlphaPipeline": "pixart:PIXART_ALPHA",
    "PixArtSigmaPipeline": "pixart:PIXART_SIGMA",
    "DiTPipeline": "dit:DIT",
    "DDPMPipeline": "unconditional:DDPM",
    "DDIMPipeline": "unconditional:DDIM",
    "LDMPipeline": "unconditional:LDM",
}


#: Why pipelines of other kinds are none, by what the names of their classes hold. The first that fits is told.
UNSUPPORTED: dict[str, str] = {
    "Inpaint": "which completes a given image",
    "Fill": "which completes a given image",
    "ControlNet": "which follows a given image",
    "Control": "which follows a given image",
    "Adapter": "which follows a given image",
    "Img2Img": "which goes on from a given image, as a refiner does",
    "Upscale": "which goes on from a given image",
    "InstructPix2Pix": "which changes a given image",
    "Kontext": "which changes a given image",
    "Edit": "which changes a given image",
    "Redux": "which varies a given image",
    "ImageVariation": "which varies a given image",
    "Video": "which makes videos",
    "Audio": "which makes sounds",
}


def find_family(pipeline: object) -> Family:
    """The family of a class of pipelines.

    Args:
        pipeline: the name of the class, as the `_class_name` of model_index.json has it.

    Raises:
        BrokenCheckpoint: there is none.
    """
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        why = next((f", {said}" for part, said in UNSUPPORTED.items() if part in str(pipeline)), "")
        raise BrokenCheckpoint(
            f"the checkpoint is a {pipeline!r}{why}; supported: {', '.join(FAMILIES)}",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    family: Family = resolve_name(f"{__name__}.{FAMILIES[pipeline]}")
    return family
