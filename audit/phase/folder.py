"""The folder of a run: who made it, where everything is, and files that are whole or not there.

config.json       the sweep, the digest of its images, the versions of the libraries
training/         states of unfinished networks, loss curves
networks/         EMA weights of every network, one safetensors file each
autoencoder/      of series in latent space, an ordinary diffusers folder
samples/          of every network: latents and nearest distances
evidence/         of every network: basins, spectra, energies
toy/, ladder/     the circle, and the checkpoint that ships with Basin
metrics.jsonl     every number of the page
figures/          PNG and SVG
index.html        the page
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from audit.errors import InvalidInput
from audit.phase.sweep import Network, Sweep
from audit.version import library_versions

FORMAT = 1


class RunFolder:
    """Paths of a run.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def weights(self, network: Network) -> Path:
        """EMA weights of a network."""
        return self.path / "networks" / f"{network.name}.safetensors"

    def samples(self, network: Network) -> Path:
        """What was drawn from a network."""
        return self.path / "samples" / f"{network.name}.npz"

    def evidence(self, network: Network) -> Path:
        """What was measured at its samples."""
        return self.path / "evidence" / f"{network.name}.npz"

    @property
    def training(self) -> Path:
        """States and loss curves."""
        return self.path / "training"

    @property
    def autoencoder(self) -> Path:
        """A diffusers folder, with `encoded.npz` beside the weights."""
        return self.path / "autoencoder"

    def claim(self, sweep: Sweep, images: NDArray[np.uint8]) -> None:
        """Make the folder this sweep's, or find that it is.

        Args:
            sweep: what is to be run.
            images: what it is trained on.

        Raises:
            InvalidInput: the folder cannot be made, holds something else, or the run of another sweep or of other
                images.
        """
        digest = f"sha256:{hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()}"
        file = self.path / "config.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text())
                same = found["format"] == FORMAT and Sweep.model_validate(found["sweep"]) == sweep
            except (ValueError, KeyError, TypeError, ValidationError):
                same, found = False, {}
            if not same:
                raise InvalidInput(
                    f"{self.path} holds a run of another configuration; name another --out folder",
                    reason="RUN_OF_ANOTHER_CONFIGURATION",
                    field="out",
                )
            if found.get("images") != digest:
                raise InvalidInput(
                    f"{self.path} holds a run on other images; name another --out folder",
                    reason="RUN_OF_ANOTHER_CONFIGURATION",
                    field="out",
                )
            return
        if self.path.exists() and (not self.path.is_dir() or any(map(_in_use, self.path.iterdir()))):
            raise InvalidInput(
                f"{self.path} is in use and holds no run; name another --out folder",
                reason="FOLDER_IN_USE",
                field="out",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"cannot make {self.path}: {error.strerror}; name another --out folder",
                reason="FOLDER_UNUSABLE",
                field="out",
            ) from error
        content = {
            "format": FORMAT,
            "sweep": sweep.model_dump(mode="json"),
            "images": digest,
            "versions": library_versions(),
        }
        write_whole(file, json.dumps(content, indent=2) + "\n")


#: How the names of files begin while they are written.
PARTIAL = ".partial-"


def _in_use(file: Path) -> bool:
    """Whether a file is more than what a killed run left half-written."""
    return not file.name.startswith(PARTIAL)


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to, which takes a file's name at the end, unless something is raised. Its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{PARTIAL}{file.name}")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: under another name first. Its folder is made when missing."""
    with whole(file) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(file, content.getvalue())


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """What `write_arrays` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
