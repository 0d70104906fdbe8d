"""A checkpoint folder is hostile until shown otherwise: what is looked at before any library sees it.

The libraries below run code that a folder names, follow links and paths out of it, and make what a configuration says
before they look whether the weights are there. So all of that is read here first, in time and memory that do not depend
on what the folder claims:

- every entry is a folder, a file, or a link to a file inside the folder, or of the same repository in a hub's cache;
- every JSON file is small, and names no code and no other model;
- every index of shards names files beside itself, and they hold the tensors that it says;
- every header of weights describes its file (`audit.model.headers`);
- every network is made without memory first, and takes hardly more than its weight files hold.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from audit.errors import BrokenCheckpoint
from audit.model.files import PICKLES, broken, parse_json, read_json, shown, walk_json
from audit.model.headers import Entry, elements, read_header

#: Entries of a folder, and levels of folders in it.
MAX_ENTRIES, MAX_LEVELS = 4096, 4
#: Numbers in configurations: sizes, counts and vocabularies of networks, steps of schedulers.
MAX_NUMBER = 2**20
#: Levels of an autoencoder or UNet, each of which halves the resolution.
MAX_LEVELS_OF_RESOLUTION = 8
#: Bytes of a file of a tokenizer and values in it. The largest vocabularies in use, of 256,000 words and 580,000
#: merges, take 34 MB and two million values.
MAX_TOKENIZER_BYTES, MAX_TOKENIZER_VALUES = 2**26, 2**22
#: Times that a tokenizer may lengthen a text before it splits it; and bytes of its table of characters.
MAX_EXPANSION, MAX_CHARACTER_TABLE = 64, 2**20
#: What networks may hold beside their weights: tables of positions.
MAX_BUFFER_ELEMENTS = 2**26
#: Where the classes of components may come from; the third has Stable Diffusion's safety checker, which is not loaded.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
#: Keys with which configurations ask for code.
CODE = ("auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_revision")
#: Files with which a folder asks for another model on top of, or below, its own.
REDIRECTIONS = ("adapter_config.json",)


def vet_folder(folder: Path) -> None:
    """Look through the parts of a pipeline's folder: links, paths, sizes, and what its configurations ask for.

    What is no part of it, by its model_index.json, is not looked at: nobody reads it.

    Raises:
        BrokenCheckpoint: with the reason CHECKPOINT_UNSAFE, CHECKPOINT_PICKLED, CHECKPOINT_TOO_LARGE,
            CHECKPOINT_DAMAGED or CHECKPOINT_INCOMPLETE.
    """
    for name in ("model_index.json", "calibration.json"):
        if os.path.lexists(folder / name):
            _vet_entry(folder / name, folder, _roots(folder))
    for part in vet_components(read_json(folder / "model_index.json")):
        vet_part(folder / part, folder)


def vet_part(part: Path, folder: Path) -> None:
    """Look through the folder of one component, if it is there.

    Args:
        part: `folder` itself, or a folder in it.
        folder: that links may not leave.

    Raises:
        BrokenCheckpoint: see `vet_folder`.
    """
    for path in _files(part, folder):
        inside = path.relative_to(folder).as_posix()
        if path.name in REDIRECTIONS:
            raise broken(f"{inside} names another model", "CHECKPOINT_UNSAFE")
        if part.name.startswith("tokenizer"):
            _vet_tokenizer_file(path, inside)
        elif ".safetensors.index." in path.name:
            vet_index(path)
        elif path.suffix == ".json":
            vet_config(path, inside)


def vet_components(index: Mapping[str, Any]) -> list[str]:
    """Refuse classes of components that are neither diffusers' nor transformers'.

    Args:
        index: the contents of model_index.json.

    Returns:
        The names of the components.

    Raises:
        BrokenCheckpoint: there are some, or a name is no name.
    """
    names = []
    for name, value in index.items():
        _refuse_code("model_index.json", name, value)
        if not isinstance(value, list):
            continue
        if not (name.isidentifier() and name.isascii()) or len(value) != 2 or value[0] not in (None, *LIBRARIES):
            raise broken(
                f"model_index.json takes its {shown(name)} from {shown(value[0] if value else value)}: only classes of "
                "diffusers and transformers are loaded",
                "CHECKPOINT_UNSAFE",
            )
        names.append(name)
    return names


def vet_config(path: Path, name: str) -> None:
    """Refuse a configuration with absurd numbers, or with code.

    Args:
        path: of a JSON file.
        name: what it is called in messages.

    Raises:
        BrokenCheckpoint: it is one of these, or no JSON object.
    """
    for key, value, _ in walk_json(read_json(path)):
        _refuse_code(name, key, value)
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER and value not in (float("inf"), -float("inf")):
            raise broken(f"{name} gives {shown(key)} the absurd value {shown(value)}", "CHECKPOINT_TOO_LARGE")
        if key == "block_out_channels" and isinstance(value, list) and len(value) > MAX_LEVELS_OF_RESOLUTION:
            raise broken(f"{name} has {len(value)} levels of resolution", "CHECKPOINT_TOO_LARGE")


def vet_index(path: Path) -> None:
    """Refuse an index of shards that names other files than those beside it, or tensors that they do not hold.

    Raises:
        BrokenCheckpoint: it does, or is no index.
    """
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise broken(f"{path.name} is no index of shards", "CHECKPOINT_DAMAGED")
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise broken(f"{path.name} names {shown(shard)}, which is no file beside it", "CHECKPOINT_UNSAFE")
        if not (path.parent / shard).is_file():
            raise broken(f"{path.name} names {shown(shard)}, which is missing", "CHECKPOINT_INCOMPLETE")
    held = {(name, shard) for shard in shards for name in read_header(path.parent / shard)}
    if wrong := held ^ set(places.items()):
        name, shard = min(wrong)
        raise broken(f"{path.name} and {shown(shard)} do not agree on where {shown(name)} is", "CHECKPOINT_DAMAGED")


def vet_network(build: Callable[[], nn.Module], entries: Mapping[str, Entry], name: str) -> nn.Module:
    """Make a network without memory, and refuse one that takes more than its weight files hold.

    It is given up as soon as it has more: a configuration of a billion layers is as fast as one of a few.

    Args:
        build: makes the network; called where tensors take no memory.
        entries: of its weight files.
        name: of the component, for messages.

    Returns:
        The network, whose tensors have shapes alone.

    Raises:
        BrokenCheckpoint: the configuration describes a larger network than the files do, or none.
    """
    with torch.device("meta"), _at_most(elements(entries), len(entries), name):
        try:
            return build()
        except BrokenCheckpoint:
            raise
        except Exception as error:  # the libraries below raise anything at all for impossible configurations
            text = str(error).strip() or type(error).__name__
            raise broken(
                f"{name}/config.json describes no network: {text.splitlines()[0]}", "CHECKPOINT_DAMAGED"
            ) from error


@contextmanager
def _at_most(numbers: int, tensors: int, name: str) -> Iterator[None]:
    """In here, this thread's networks have not many more weights than that in all, nor many more modules."""
    thread = threading.get_ident()
    # Twice as much, for four-bit numbers and for tensors that stand for two; and some small parts have no weights.
    left = {
        "weights": 2 * numbers + 2**16,
        "tensors": 2 * tensors + 64,
        "modules": 50 * tensors + 1000,
        "buffers": MAX_BUFFER_ELEMENTS,
    }

    def take(kind: str, amount: int) -> None:
        if threading.get_ident() == thread:
            left[kind] -= amount
            if left[kind] < 0:
                raise broken(
                    f"{name}/config.json describes a larger network than its {tensors} tensors of {numbers} numbers",
                    "CHECKPOINT_DAMAGED",
                )

    def on_parameter(module: nn.Module, key: str, value: nn.Parameter | None) -> None:
        if value is not None:
            take("weights", value.numel())
            take("tensors", 1)

    def on_buffer(module: nn.Module, key: str, value: torch.Tensor | None) -> None:
        if value is not None:
            take("buffers", value.numel())

    hooks = [
        registration.register_module_parameter_registration_hook(on_parameter),
        registration.register_module_buffer_registration_hook(on_buffer),
        registration.register_module_module_registration_hook(lambda module, key, value: take("modules", 1)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _files(part: Path, folder: Path) -> Iterator[Path]:
    """The files of one part of a folder, without those in hidden folders; none where it is not there.

    Raises:
        BrokenCheckpoint: there are too many, or something else than files, folders and links to files within.
    """
    roots, waiting, count = _roots(folder), [(part, 0)] if os.path.lexists(part) else [], 0
    while waiting:
        place, level = waiting.pop()
        if place != folder:  # the operator may well have made a link of that
            _vet_entry(place, folder, roots)
        if place.is_file():
            yield place
            continue
        with os.scandir(place) as scan:
            for entry in scan:
                count += 1
                if count > MAX_ENTRIES or level > MAX_LEVELS:
                    raise broken(
                        f"{part.name} has more than {MAX_ENTRIES} files or {MAX_LEVELS} levels of folders",
                        "CHECKPOINT_TOO_LARGE",
                    )
                if not entry.name.startswith("."):
                    waiting.append((Path(entry.path), level + 1))


def _vet_entry(path: Path, folder: Path, roots: tuple[Path, ...]) -> None:
    """Raises BrokenCheckpoint for what is neither a folder, nor a file, nor a link to a file below one of the roots."""
    inside = path.relative_to(folder).as_posix()
    if path.is_symlink():
        if not _leads_within(path, roots):
            raise broken(f"{inside} is a link to no file of the checkpoint", "CHECKPOINT_UNSAFE")
    elif not (path.is_dir() or path.is_file()):  # a pipe would keep its reader waiting
        raise broken(f"{inside} is no file", "CHECKPOINT_UNSAFE")


def _roots(folder: Path) -> tuple[Path, ...]:
    """Folders that links may lead into: the checkpoint's own, and the files of its repository in a hub's cache.

    There, REPOSITORY/snapshots/REVISION/FILE is a link to REPOSITORY/blobs/DIGEST
    (huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    own = folder.resolve()
    repository = own.parent.parent
    if own.parent.name == "snapshots" and repository.name.startswith("models--"):
        return own, repository / "blobs"
    return (own,)


def _leads_within(path: Path, roots: tuple[Path, ...]) -> bool:
    """Whether a link leads to a file below one of the folders."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # nowhere, or in a circle
        return False
    return target.is_file() and any(target.is_relative_to(root) for root in roots)


def _refuse_code(name: str, key: str, value: Any) -> None:
    if key in CODE and value not in (None, False):
        raise broken(f"{name} asks for code of its own ({shown(key)}), which is never run", "CHECKPOINT_UNSAFE")
    if key == "_class_name" and isinstance(value, list):
        raise broken(f"{name} asks for a class of its own, which is never loaded", "CHECKPOINT_UNSAFE")
    # transformers fetches an attention kernel of a name like a hub's.
    if key.strip("_").startswith("attn_implementation") and isinstance(value, str) and "/" in value:
        raise broken(f"{name} asks for an attention kernel from elsewhere, which is never loaded", "CHECKPOINT_UNSAFE")


def _vet_tokenizer_file(path: Path, name: str) -> None:
    if path.suffix in PICKLES:
        raise broken(f"{name} is a pickled tokenizer, which can run code when it is read", "CHECKPOINT_PICKLED")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise broken(f"{name} has more than {MAX_TOKENIZER_BYTES} bytes", "CHECKPOINT_TOO_LARGE")
    if path.name == "tokenizer.json" or path.name == "vocab.json":
        content = parse_json(path.read_bytes(), name, most_bytes=MAX_TOKENIZER_BYTES, most_values=MAX_TOKENIZER_VALUES)
        if path.name == "tokenizer.json":
            _vet_expansion(content, name)
    elif path.suffix == ".json":
        for key, value, _ in walk_json(read_json(path)):
            _refuse_code(name, key, value)
    elif path.suffix == ".txt" and path.read_bytes().count(b"\n") > MAX_TOKENIZER_VALUES:
        raise broken(f"{name} has more than {MAX_TOKENIZER_VALUES} lines", "CHECKPOINT_TOO_LARGE")


def _vet_expansion(tokenizer: Mapping[str, Any], name: str) -> None:
    """Refuse a tokenizer that makes a short prompt long: replacements of replacements grow like their product."""
    expansion = 1
    for part in ("normalizer", "pre_tokenizer"):
        for key, value, _ in walk_json(tokenizer.get(part)):
            if key in ("content", "prepend", "replacement") and isinstance(value, str):
                expansion *= max(1, len(value))
            if key == "precompiled_charsmap" and isinstance(value, str) and len(value) > MAX_CHARACTER_TABLE:
                expansion = MAX_EXPANSION + 1
    if expansion > MAX_EXPANSION:
        raise broken(f"{name} lengthens what it reads beyond measure", "CHECKPOINT_TOO_LARGE")
