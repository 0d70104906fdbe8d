"""A diffusers pipeline object from the files of a folder, and which files these were.

The family says which classes a pipeline is made of, all of them of diffusers and transformers. What the folder says of
classes is compared with that and never looked up; code in it is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin, SchedulerMixin
from transformers import PreTrainedModel

from audit.errors import BrokenCheckpoint
from audit.model.families import find_family
from audit.model.families.family import Family
from audit.model.files import digest_files, read_json, weight_files

INDEX = "model_index.json"


@dataclass(frozen=True)
class Source:
    """A pipeline and where it is from.

    Attributes:
        pipeline: of diffusers, its networks on their device, in evaluation mode and without gradients.
        family: its kind.
        files: that it was made of, by part; what is no part's under "".
        root: folder that the names of the files are relative to.
    """

    pipeline: Any
    family: Family
    files: Mapping[str, Sequence[Path]]
    root: Path

    @property
    def digest(self) -> str:
        """Over all files, as "sha256:…"."""
        return digest_files([file for files in self.files.values() for file in files], self.root)

    @property
    def autoencoder_digest(self) -> str:
        """Over the files of the autoencoder, as "sha256:…"; over none for a model of pixels."""
        return digest_files(self.files.get(self.family.autoencoder, ()), self.root)


def open_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Source:
    """Load the pipeline of a diffusers folder. Only safetensors weights are read.

    Args:
        folder: holds model_index.json.
        device: where the networks go.
        dtype: their precision.

    Raises:
        BrokenCheckpoint: the folder is of no supported family, incomplete, or its weights are pickled.
        Exception: whatever the libraries raise for a damaged file.
    """
    index = read_json(folder / INDEX)
    family = find_family(index.get("_class_name"))
    kinds = {
        part: _kind(index, part, known, folder)
        for part, known in family.parts.items()
        if _is_there(family, index, part)
    }
    files = {part: _files(folder, part, kind) for part, kind in kinds.items()}
    parts = {part: _load_part(kind, folder / part, device, dtype) for part, kind in kinds.items()}
    options = {name: index[name] for name in family.options if name in index}
    if family.options:
        files[""] = [folder / INDEX]
    return Source(_make(family, parts, options), family, files, folder)


def _is_there(family: Family, index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has a part: the index says null, twice, of one that is left out."""
    absent = index.get(part, [None]) in (None, [None, None]) or (part in family.optional and part not in index)
    if absent and part not in family.optional:
        raise BrokenCheckpoint(
            f"{part} is left out, which a {family.pipeline.__name__} needs",
            reason="CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    return not absent


def _kind(index: Mapping[str, Any], part: str, kinds: Sequence[type[Any]], folder: Path) -> type[Any]:
    """The class of a part, which must be one that the family knows; of a scheduler, any of diffusers."""
    scheduler = _is_scheduler(kinds)
    if scheduler:
        named = read_json(folder / part / "scheduler_config.json").get("_class_name", "DDIMScheduler")
        found = getattr(diffusers, named, None) if isinstance(named, str) else None
        found = found if isinstance(found, type) and issubclass(found, tuple(kinds)) else None
    else:
        entry = index.get(part, [None, kinds[0].__name__])
        named = entry[-1] if isinstance(entry, list) and entry else entry
        # Fast tokenizers are named after the slow ones since transformers 5.
        found = next((kind for kind in kinds if named in (kind.__name__, f"{kind.__name__}Fast")), None)
    if found is None:
        raise BrokenCheckpoint(
            f"{part} is a {named!r}; supported: {', '.join(kind.__name__ for kind in kinds)}",
            reason="CHECKPOINT_SCHEDULER_UNSUPPORTED" if scheduler else "CHECKPOINT_FAMILY_UNSUPPORTED",
            field="checkpoint",
        )
    return found


def _is_scheduler(kinds: Sequence[type[Any]]) -> bool:
    return all(issubclass(kind, SchedulerMixin) for kind in kinds)


def _is_network(kind: type[Any]) -> bool:
    return issubclass(kind, ModelMixin | PreTrainedModel)


def _files(folder: Path, part: str, kind: type[Any]) -> list[Path]:
    """The files that a part is made of."""
    if _is_network(kind):
        return [*weight_files(folder / part), folder / part / "config.json"]
    if _is_scheduler([kind]):
        return [folder / part / "scheduler_config.json"]
    if not (folder / part).is_dir():
        raise BrokenCheckpoint(f"{part} is missing", reason="CHECKPOINT_INCOMPLETE", field="checkpoint")
    return [file for file in (folder / part).iterdir() if file.is_file()]


def _load_part(kind: type[Any], folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    if _is_scheduler([kind]):
        config = read_json(folder / "scheduler_config.json")
        return kind.from_config({name: value for name, value in config.items() if name != "_class_name"})
    if not _is_network(kind):
        return kind.from_pretrained(folder, local_files_only=True)
    precision = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
    network = load_network(kind, folder, **precision)
    network.to(device).eval().requires_grad_(False)
    return network


def load_network(kind: type[Any], folder: Path, **precision: torch.dtype) -> Any:
    """A network whose every weight is in the folder: the libraries would draw missing ones at random.

    Raises:
        BrokenCheckpoint: a weight is missing.
    """
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


def _make(family: Family, parts: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The pipeline; what it must be given and Basin has no use for, such as a safety checker, is None."""
    accepted = inspect.signature(family.pipeline).parameters
    needed = {name: None for name, one in accepted.items() if one.default is one.empty}
    # diffusers says at length what it thinks of a pipeline without a safety checker.
    unwanted = {name: False for name in ("requires_safety_checker", "add_watermarker") if name in accepted}
    return family.pipeline(**{**needed, **unwanted, **options, **parts})
