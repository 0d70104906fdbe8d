"""How people say which checkpoint they mean: one line, the same on every command line and in every configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from audit.errors import InvalidInput

#: What may follow the checkpoint itself, as `,KEY=VALUE`.
KEYS = ("variant", "config", "denoiser", "vae", "calibration", "lora", "embedding")
#: How the names of single files with weights end.
FILES = (".safetensors", ".gguf")
#: OWNER/NAME or OWNER/NAME@REVISION, as the hub has them.
_REPOSITORY = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w./-]*))?", re.ASCII)
#: Weight of a LoRA adapter: negative ones turn it round.
MAX_SCALE = 10.0


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter.

    Attributes:
        file: of its weights, safetensors.
        scale: that its weights are multiplied with.
    """

    file: str
    scale: float = 1.0


@dataclass(frozen=True)
class Embedding:
    """A textual inversion.

    Attributes:
        file: of its vectors, safetensors.
        token: the word of prompts that stands for them; "" for the one that the file says, or else its name.
    """

    file: str
    token: str = ""


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint comes from.

    Attributes:
        base: a diffusers folder, a .safetensors file of the original layout, or OWNER/NAME or OWNER/NAME@REVISION of a
            repository on the Hugging Face hub. A path that exists is a path.
        variant: of the weight files, such as fp16 for those in `diffusion_pytorch_model.fp16.safetensors`.
        config: of a single file: a diffusers folder, or a repository, whose configurations and tokenizers it shares.
        denoiser: a UNet or transformer instead of its own: a folder or a repository with one, a .safetensors file of
            the original layout, or a .gguf file.
        vae: an autoencoder instead of its own: a folder or a repository with one, or a .safetensors file of the
            original layout.
        calibration: file of its calibration; "" for the one in the base's folder, if nothing lies on top.
        loras: added to the weights, in this order.
        embeddings: textual inversions.
    """

    base: str
    variant: str = ""
    config: str = ""
    denoiser: str = ""
    vae: str = ""
    calibration: str = ""
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    @classmethod
    def parse(cls, text: str) -> CheckpointSource:
        """Understand a line such as BASE,variant=NAME,vae=PLACE,lora=FILE:SCALE,lora=FILE,embedding=FILE:TOKEN.

        `config`, `denoiser` and `calibration` may stand there, too. Commas that no key follows belong to what they
        stand in.

        Raises:
            InvalidInput: a key comes twice that may come once, a value is empty, or a scale is no number.
        """
        base, *pairs = re.split(rf",(?=(?:{'|'.join(KEYS)})=)", text)
        if not base.strip() or "\0" in text:
            raise _invalid(f"{text!r} names no checkpoint")
        given: dict[str, str] = {}
        loras, embeddings = [], []
        for pair in pairs:
            key, _, value = pair.partition("=")
            if not value:
                raise _invalid(f"{key} is empty")
            if key == "lora":
                loras.append(_lora(value))
            elif key == "embedding":
                embeddings.append(_embedding(value))
            elif key in given:
                raise _invalid(f"{key} is given twice")
            else:
                given[key] = value
        if not re.fullmatch(r"[\w-]*", variant := given.get("variant", ""), re.ASCII):
            raise _invalid(f"{variant!r} is no name of a variant")
        return cls(base, loras=tuple(loras), embeddings=tuple(embeddings), **given)

    def __str__(self) -> str:
        """The line that `parse` understands."""
        parts = [f"{key}={value}" for key in KEYS[:5] if (value := getattr(self, key))]
        parts += [f"lora={one.file}:{one.scale:g}" for one in self.loras]
        parts += [
            f"embedding={one.file}:{one.token}" if one.token else f"embedding={one.file}" for one in self.embeddings
        ]
        return ",".join([self.base, *parts])

    @property
    def name(self) -> str:
        """What people call it: the last part of the denoiser's or else the base's name, and what lies on top."""
        place = self.denoiser or self.base
        repository = find_repository(place)
        path = Path(repository[0] if repository else place)
        own = path.stem if path.suffix in FILES else path.name if repository else path.resolve().name
        on_top = [one.file for one in self.loras] + [one.file for one in self.embeddings]
        return "+".join([own, *(Path(file).stem for file in on_top)])

    @property
    def calibration_file(self) -> Path | None:
        """Where its calibration is, or may be written; None where nobody said, and it is no folder alone."""
        if self.calibration:
            return Path(self.calibration)
        # That in a folder is of the folder's own weights.
        alone = self == CheckpointSource(self.base) and not find_repository(self.base) and not Path(self.base).is_file()
        return Path(self.base) / "calibration.json" if alone else None

    def told(self) -> str:
        """The line without folders, for those who may not know where things are, and without the calibration."""

        def bare(place: str) -> str:
            return place if not place or find_repository(place) else Path(place).resolve().name

        return str(replace(self._moved(bare), calibration=""))

    def absolute(self) -> CheckpointSource:
        """The same with absolute paths, for processes at work elsewhere."""

        def there(place: str) -> str:
            return place if not place or find_repository(place) else str(Path(place).absolute())

        return self._moved(there)

    def _moved(self, move: Callable[[str], str]) -> CheckpointSource:
        return CheckpointSource(
            move(self.base),
            self.variant,
            move(self.config),
            move(self.denoiser),
            move(self.vae),
            move(self.calibration),
            tuple(Lora(move(one.file), one.scale) for one in self.loras),
            tuple(Embedding(move(one.file), one.token) for one in self.embeddings),
        )


def find_repository(place: str) -> tuple[str, str] | None:
    """OWNER/NAME and REVISION ("" for none) of a repository on the hub; None for what is a path."""
    found = _REPOSITORY.fullmatch(place)
    if found is None or Path(place).exists() or place.endswith(FILES):
        return None
    return found["name"], found["revision"] or ""


def _lora(value: str) -> Lora:
    file, colon, scale = value.rpartition(":")
    if not colon:
        return Lora(value)
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not file or not abs(number) <= MAX_SCALE:
        raise _invalid(f"lora takes FILE or FILE:SCALE, a number up to {MAX_SCALE:g}, not {value!r}")
    return Lora(file, number)


def _embedding(value: str) -> Embedding:
    file, colon, token = value.rpartition(":")
    if not colon:
        return Embedding(value)
    if not file or not token or token.split() != [token] or len(token) > 64:
        raise _invalid(f"embedding takes FILE or FILE:TOKEN, a single word, not {value!r}")
    return Embedding(file, token)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, reason="CHECKPOINT_SOURCE_INVALID", field="checkpoint")
