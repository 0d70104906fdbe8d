"""Repositories of the Hugging Face hub: what a checkpoint needs of them, through the library's own cache.

HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean everywhere
(huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from audit.errors import InvalidInput, NotFound
from audit.model.checkpoint_source import find_repository
from audit.model.families import find_family
from audit.model.files import read_json
from audit.model.networks import is_network, weights_stem

#: Files of tokenizers and schedulers.
TEXT = ("*.json", "*.txt", "*.model")


def locate(place: str, variant: str = "", *, weights: bool = True, replaced: Container[str] = ()) -> Path:
    """A path, or the folder of a repository's files in the cache, named after their commit. Fetches what is missing.

    Args:
        place: a path, OWNER/NAME or OWNER/NAME@REVISION.
        variant: of the weight files.
        weights: whether they are needed.
        replaced: names of parts whose weights are not.

    Raises:
        NotFound: the repository, the revision or a file is not there, or not in the cache and the hub cannot be asked.
        InvalidInput: the hub has no such names.
        BrokenCheckpoint: what the repository holds is of no supported family.
    """
    found = find_repository(place)
    if found is None:
        return Path(place)
    name, revision = found
    folder = _fetch(name, revision, ("model_index.json", "config.json"))
    return _fetch(name, folder.name, _needed(folder, variant, weights, replaced))


def _needed(folder: Path, variant: str, weights: bool, replaced: Container[str]) -> list[str]:
    """Patterns of the files of a pipeline, or of a network that has a repository of its own."""
    if not (folder / "model_index.json").is_file():
        return ["config.json", *_weight_patterns("diffusion_pytorch_model", variant)]
    family = find_family(read_json(folder / "model_index.json").get("_class_name"))
    patterns = ["model_index.json"]
    for part, kinds in family.parts.items():
        own = list(TEXT)
        if is_network(kinds[0]):
            own = ["config.json"]
            if weights and part not in replaced:
                own += _weight_patterns(weights_stem(kinds[0]), variant)
        patterns += [f"{part}/{pattern}" for pattern in own]
    return patterns


def _weight_patterns(stem: str, variant: str) -> list[str]:
    dotted = f".{variant}" if variant else ""
    return [
        f"{stem}{dotted}.safetensors",
        f"{stem}{dotted}-*.safetensors",
        f"{stem}.safetensors.index{dotted}.json",
    ]


def _fetch(name: str, revision: str, patterns: Iterable[str]) -> Path:
    label = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise InvalidInput(
            f"{label} is no name of a repository", reason="CHECKPOINT_SOURCE_INVALID", field="checkpoint"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise _not_found(f"{label} is no folder here and not in the hub's cache, and {why}") from error
    except HfHubHTTPError as error:  # no such repository or revision, or nobody may read it
        raise _not_found(f"the hub does not give {label}: {str(error).splitlines()[-1]}") from error
    except OSError as error:
        raise _not_found(f"{label} cannot be fetched from the hub: {type(error).__name__}") from error


def _not_found(message: str) -> NotFound:
    return NotFound(message, reason="CHECKPOINT_NOT_FOUND", field="checkpoint")
