"""A diffusers pipeline object from wherever a checkpoint is, and which files it was made of.

The family says which classes a pipeline is made of, all of them of diffusers and transformers. What the folder says of
classes is compared with that and never looked up; code in it is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin

from audit.errors import AuditError, NotFound
from audit.model.adapters import add_adapters
from audit.model.checkpoint_source import FILES, CheckpointSource, find_repository
from audit.model.families import find_family
from audit.model.families.family import Family
from audit.model.files import PICKLES, broken, digest_files, digest_lines, read_json, shown
from audit.model.gguf_headers import is_gguf, read_gguf_header
from audit.model.headers import elements, read_header, read_headers
from audit.model.hub import locate
from audit.model.networks import is_network, load_network, vet_weights, weight_files
from audit.model.offload import Offloaded, require_offloadable
from audit.model.quantized import loaded_bytes
from audit.model.single_file import load_networks
from audit.model.vetting import vet_folder, vet_part

INDEX = "model_index.json"
#: Names that diffusers' pipelines have for the network that denoises.
DENOISING = ("unet", "transformer")
#: Names of the files of a part, as digests have them, to the files.
Files = Mapping[str, Path]


@dataclass(frozen=True)
class Source:
    """A pipeline and where it is from.

    Attributes:
        pipeline: of diffusers, its networks on their device, in evaluation mode and without gradients.
        family: its kind.
        files: that it was made of, by part; what is no part's under "".
        added: digests of the adapters on top and how they are used, in this order.
        source: where it is from, with the commit of a repository.
        offloaded: what waits on the CPU; None where everything is on the device.
    """

    pipeline: Any
    family: Family
    files: Mapping[str, Files]
    added: Sequence[str]
    source: CheckpointSource
    offloaded: Offloaded | None = None

    @property
    def digest(self) -> str:
        """Over all files and adapters, as "sha256:…"."""
        own = digest_files({name: path for files in self.files.values() for name, path in files.items()})
        return digest_lines([own, *self.added]) if self.added else own

    @property
    def autoencoder_digest(self) -> str:
        """Over the files of the autoencoder, as "sha256:…"; over none for a model of pixels."""
        return digest_files(self.files.get(self.family.autoencoder, {}))


def open_source(source: CheckpointSource, device: torch.device, dtype: torch.dtype, *, offload: bool = False) -> Source:
    """Load a pipeline. Only safetensors weights are read, and only after they were looked through.

    Args:
        source: where it is.
        device: where the networks go.
        dtype: their precision.
        offload: whether those that do not denoise wait on the CPU until they are used.

    Raises:
        InvalidInput: there is nothing to offload from.
        NotFound: there is no such folder, file or repository.
        BrokenCheckpoint: it is of no supported family, incomplete, unsafe, or its weights are pickled.
        Exception: whatever the libraries raise for a damaged file.
    """
    if offload:
        require_offloadable(device)
    base = locate(source.base, source.variant, replaced=DENOISING if source.denoiser else ())
    if find_repository(source.base):
        source = replace(source, base=f"{source.base.partition('@')[0]}@{base.name}")
    folder = _configurations(source, base)
    vet_folder(folder)
    index = read_json(folder / INDEX)
    family = find_family(index.get("_class_name"))
    kinds = {
        part: _kind(index, part, known, folder)
        for part, known in family.parts.items()
        if _is_there(family, index, part)
    }
    places = {part: folder / part for part in kinds}
    if source.denoiser:
        denoising = next(part for part in family.parts if part in DENOISING)
        places[denoising] = _replacement(source.denoiser, family, denoising, FILES)
    if source.vae:
        if not family.autoencoder:
            raise broken(f"a {family.pipeline.__name__} has no autoencoder to replace", "CHECKPOINT_FAMILY_UNSUPPORTED")
        places[family.autoencoder] = _replacement(source.vae, family, family.autoencoder, FILES[:1])
    single = []
    if base.is_file():
        single = [part for part, kind in kinds.items() if is_network(kind) and places[part] == folder / part]
    files: dict[str, Files] = {}
    parts: dict[str, Any] = {}
    for part, kind in kinds.items():  # all of them, before memory is taken for one
        if is_network(kind) and not places[part].is_file() and part not in single:
            vet_weights(kind, places[part], source.variant)
    if single:
        parts |= load_networks(base, family.pipeline, {part: kinds[part] for part in single}, folder, dtype)
        files |= {part: {f"{part}/config.json": folder / part / "config.json"} for part in single}
        files |= {part: {**files[part], "model.safetensors": base} for part in single}
    for part, kind in kinds.items():
        if part in parts:
            continue
        if is_network(kind) and places[part].is_file():  # another network of the original layout
            parts |= load_networks(places[part], kind, {part: kind}, folder, dtype)
            files[part] = {
                f"{part}/config.json": folder / part / "config.json",
                f"{part}/model{places[part].suffix}": places[part],
            }
        else:
            parts[part] = _load_part(kind, places[part], dtype, source.variant)
            files[part] = {f"{part}/{file.name}": file for file in _files(places[part], part, kind, source.variant)}
    options = {name: index[name] for name in family.options if name in index}
    if family.options:
        files[""] = {INDEX: folder / INDEX}
    pipeline = _make(family, parts, options)
    added = add_adapters(pipeline, source)
    waiting = []
    for part, kind in kinds.items():
        if is_network(kind):
            network = getattr(pipeline, part).eval().requires_grad_(False)
            if offload and part not in DENOISING:
                waiting.append(network)
            else:
                network.to(device)
    return Source(pipeline, family, files, added, source, Offloaded(waiting, device) if waiting else None)


def weights_bytes(source: CheckpointSource, dtype: torch.dtype) -> int:
    """Bytes that the weights of a checkpoint take in memory, from the headers of its files.

    Args:
        source: where it is. Files that are not there or cannot be read count nothing: loading says what is wrong.
        dtype: that the weights will have.
    """
    total = 0
    with suppress(AuditError):
        base = locate(source.base, source.variant, replaced=DENOISING if source.denoiser else ())
        if base.is_file():
            return elements(read_header(base)) * dtype.itemsize
        for part, kinds in find_family(read_json(base / INDEX).get("_class_name")).parts.items():
            if is_network(kinds[0]):
                with suppress(AuditError):
                    other = source.denoiser if part in DENOISING else ""
                    total += _bytes_of(locate(other) if other else base / part, kinds[0], source.variant, dtype)
    return total


def _bytes_of(place: Path, kind: type[Any], variant: str, dtype: torch.dtype) -> int:
    """What the weights of a network take in memory: of a folder with one, or of a single file."""
    if is_gguf(place):
        return loaded_bytes(read_gguf_header(place), dtype)
    files = [place] if place.is_file() else weight_files(place, kind, variant)
    return elements(read_headers([file for file in files if file.suffix == ".safetensors"])) * dtype.itemsize


def _configurations(source: CheckpointSource, base: Path) -> Path:
    """The folder with the configurations.

    Raises:
        NotFound: it is not there, or neither is the checkpoint.
        BrokenCheckpoint: the checkpoint is pickled, or a single file without configurations.
    """
    if base.is_dir():
        return base
    if base.is_file() and is_gguf(base):
        raise broken(
            f"{base.name} has a denoiser alone: name the pipeline that it belongs to, as in "
            f"FOLDER,denoiser={base.name}",
            "CHECKPOINT_INCOMPLETE",
        )
    if not base.is_file() or base.suffix not in (".safetensors", *PICKLES):
        raise _not_found("checkpoint folder or .safetensors file", base)
    if base.suffix in PICKLES:
        raise broken(
            f"{base.name} is a pickled weight file, which can run code when it is read; convert it to safetensors",
            "CHECKPOINT_PICKLED",
        )
    if not source.config:
        raise broken(
            f"{base.name} is a single file: say whose configurations and tokenizers it shares, as in "
            f"{base.name},config=FOLDER",
            "CHECKPOINT_INCOMPLETE",
        )
    folder = locate(source.config, weights=False)
    if not folder.is_dir():
        raise _not_found("folder of configurations", folder)
    return folder


def _replacement(place: str, family: Family, part: str, endings: Sequence[str]) -> Path:
    """The folder, or the single file, of a network that replaces a pipeline's own.

    Args:
        place: that was named.
        family: of the pipeline.
        part: which is replaced.
        endings: of single files.

    Raises:
        NotFound: it is not there.
        BrokenCheckpoint: it is of another kind than the family's.
    """
    kinds = family.parts[part]
    path = locate(place)
    if path.is_file() and path.suffix in endings:
        if not hasattr(kinds[0], "from_single_file"):
            raise broken(
                f"a {kinds[0].__name__} comes in folders, and {path.name} is a file", "CHECKPOINT_FAMILY_UNSUPPORTED"
            )
        return path
    if not path.is_dir():
        raise _not_found(part, path)
    own = path / part if (path / INDEX).exists() else path
    vet_part(own, path)
    named = read_json(own / "config.json").get("_class_name")
    if named not in [kind.__name__ for kind in kinds]:
        raise broken(
            f"{path.name} is a {shown(named)}; supported: {', '.join(kind.__name__ for kind in kinds)}",
            "CHECKPOINT_FAMILY_UNSUPPORTED",
        )
    return own


def _is_there(family: Family, index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has a part: the index says null, twice, of one that is left out."""
    absent = index.get(part, [None]) in (None, [None, None]) or (part in family.optional and part not in index)
    if absent and part not in family.optional:
        raise broken(f"{part} is left out, which a {family.pipeline.__name__} needs", "CHECKPOINT_FAMILY_UNSUPPORTED")
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
        raise broken(
            f"{part} is a {shown(named)}; supported: {', '.join(kind.__name__ for kind in kinds)}",
            "CHECKPOINT_SCHEDULER_UNSUPPORTED" if scheduler else "CHECKPOINT_FAMILY_UNSUPPORTED",
        )
    return found


def _is_scheduler(kinds: Sequence[type[Any]]) -> bool:
    return all(issubclass(kind, SchedulerMixin) for kind in kinds)


def _files(folder: Path, part: str, kind: type[Any], variant: str) -> list[Path]:
    """The files that a part is made of."""
    if is_network(kind):
        return [*weight_files(folder, kind, variant), folder / "config.json"]
    if _is_scheduler([kind]):
        return [folder / "scheduler_config.json"]
    return [file for file in folder.iterdir() if file.is_file()]


def _load_part(kind: type[Any], folder: Path, dtype: torch.dtype, variant: str) -> Any:
    if is_network(kind):
        return load_network(kind, folder, dtype, variant)
    if not folder.is_dir():
        raise broken(f"{folder.name} is missing", "CHECKPOINT_INCOMPLETE")
    if _is_scheduler([kind]):
        config = read_json(folder / "scheduler_config.json")
        return kind.from_config({name: value for name, value in config.items() if name != "_class_name"})
    return kind.from_pretrained(folder, local_files_only=True)


def _make(family: Family, parts: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The pipeline; what it must be given and Basin has no use for, such as a safety checker, is None."""
    accepted = inspect.signature(family.pipeline).parameters
    needed = {name: None for name, one in accepted.items() if one.default is one.empty}
    # diffusers says at length what it thinks of a pipeline without a safety checker.
    unwanted = {name: False for name in ("requires_safety_checker", "add_watermarker") if name in accepted}
    return family.pipeline(**{**needed, **unwanted, **options, **parts})


def _not_found(what: str, path: Path) -> NotFound:
    return NotFound(f"no {what} {path.name!r}", reason="CHECKPOINT_NOT_FOUND", field="checkpoint")
