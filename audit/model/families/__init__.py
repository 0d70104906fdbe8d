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
}


def find_family(pipeline: object) -> Family:
    """The family of a class of pipelines.

    Args:
        pipeline: the name of the class, as the `_class_name` of model_index.json has it.

    Raises:
        BrokenCheckpoint: there is none.
    """
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        raise BrokenCheckpoint(
            f"the checkpoint is a {pipeline!r}; supported: {', '.join(FAMILIES)}",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    family: Family = resolve_name(f"{__name__}.{FAMILIES[pipeline]}")
    return family
