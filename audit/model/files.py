"""Reading a checkpoint folder that nobody vouches for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from audit.errors import BrokenCheckpoint

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder.

    Raises:
        BrokenCheckpoint: the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        value = f"{path.name} is missing"
    except (OSError, UnicodeDecodeError, ValueError):
        value = f"{path.name} is not valid JSON"
    if isinstance(value, dict):
        return value
    message = value if isinstance(value, str) else f"{path.name} is not a JSON object"
    raise BrokenCheckpoint(message, reason="CHECKPOINT_INCOMPLETE", field="checkpoint")


def weight_files(component: Path) -> list[Path]:
    """The safetensors files of one component.

    Raises:
        BrokenCheckpoint: there are none; pickled weights get a reason of their own.
    """
    safe = sorted(component.glob("*.safetensors"))
    if safe:
        return safe
    pickled = [path.name for path in sorted(component.glob("*")) if path.suffix in PICKLES]
    if pickled:
        raise BrokenCheckpoint(
            f"{component.name}/{pickled[0]} is a pickled weight file, which can run code when it is read; "
            "convert the checkpoint to safetensors",
            reason="CHECKPOINT_PICKLED",
            field="checkpoint",
        )
    raise BrokenCheckpoint(f"{component.name} has no weights", reason="CHECKPOINT_INCOMPLETE", field="checkpoint")


def weights_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of a pipeline take in memory, from the headers of its safetensors files.

    Args:
        folder: of the pipeline. Files that cannot be read count nothing: loading says what is wrong with them.
        dtype: that the weights will have.
    """
    total = 0
    for component in (path for path in folder.glob("*") if path.is_dir()):
        for file in component.glob("*.safetensors"):
            with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="pt") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total * dtype.itemsize


def digest_files(files: Sequence[Path], root: Path) -> str:
    """SHA-256, as "sha256:…", over names and contents, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"
