"""Prompt sets: files of prompts that have a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit import demo
from audit.errors import AuditError, BrokenPrompts, NotFound
from service.prompts import PromptEntry, read_prompts


@dataclass(frozen=True)
class ShippedSet:
    """A prompt set that comes with Basin.

    Attributes:
        file: that `read_prompts` reads.
        description: in a few words.
    """

    file: Path
    description: str


SHIPPED: Mapping[str, ShippedSet] = {
    "demo": ShippedSet(demo.TRUTH, "captions of the demo checkpoint, each with its number of images and its truth"),
    "ordinary": ShippedSet(
        Path(__file__).parent / "ordinary_prompts.txt", "what people type, of nothing known: to calibrate thresholds"
    ),
}


class PromptSets:
    """Prompt sets by name: the shipped ones, and others. Nothing is read before it is asked for.

    Args:
        files: of the others.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = {**files, **{name: shipped.file for name, shipped in SHIPPED.items()}}

    @property
    def names(self) -> Sequence[str]:
        """Of all sets, in order."""
        return sorted(self._files)

    def path(self, name: str) -> Path:
        """The file of a set.

        Raises:
            NotFound: no such name.
            BrokenPrompts: the file is gone.
        """
        if name not in self._files:
            raise NotFound(f"there is no prompt set {name[:64]!r}", reason="PROMPT_SET_NOT_FOUND", field="prompt_set")
        if not self._files[name].is_file():
            raise BrokenPrompts(
                f"the file of the prompt set {name!r} is gone", reason="PROMPT_SET_GONE", field="prompt_set"
            )
        return self._files[name]

    def entries(self, name: str) -> Iterator[PromptEntry]:
        """The prompts of a set, read as they are asked for.

        Raises:
            NotFound: no such name.
            BrokenPrompts: the file is gone, or, when its turn comes, cannot be read on. Where it is stays untold.
        """
        return self._read(name, self.path(name))

    def _read(self, name: str, file: Path) -> Iterator[PromptEntry]:
        try:
            yield from read_prompts(file)
        except AuditError as error:
            raise BrokenPrompts(
                f"the prompt set {name!r}: {str(error).replace(str(file), file.name)}",
                reason=error.reason,
                field="prompt_set",
            ) from error
