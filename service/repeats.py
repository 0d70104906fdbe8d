"""Prompts that stand in a list twice, or nearly: what `basin prompts` and reports say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit.batch.duplicates import SIMILARITY, near_duplicates


@dataclass(frozen=True)
class Repeats:
    """Of a list of prompts.

    Attributes:
        prompts: how many there are.
        distinct: how many different ones; an exact copy is audited with the first one.
        groups: different prompts that are nearly the same, each by the position of its first copy.
    """

    prompts: int
    distinct: int
    groups: list[dict[int, str]]

    @classmethod
    def of(cls, prompts: Mapping[int, str]) -> Repeats:
        """Compare prompts.

        Args:
            prompts: by position, in order.
        """
        positions, texts = list(prompts), list(prompts.values())
        groups = [{positions[index]: texts[index] for index in group} for group in near_duplicates(texts)]
        return cls(len(texts), len(set(texts)), groups)

    @property
    def copies(self) -> int:
        """Prompts that stood there before."""
        return self.prompts - self.distinct

    @property
    def alike(self) -> int:
        """Different prompts that are nearly the same as another."""
        return sum(map(len, self.groups))

    def line(self) -> str:
        """What a summary says; "" where nothing repeats."""
        said = []
        if self.copies:
            said.append(f"{self.copies:,} word for word, audited with the first")
        if self.groups:
            said.append(f"{self.alike:,} nearly the same as another")
        return f"Repeated prompts: {'; '.join(said)}." if said else ""

    def plain(self) -> dict[str, Any]:
        """What report.json says."""
        return {
            "line": self.line(),
            "exact_copies": self.copies,
            "similarity": float(SIMILARITY),
            "near_duplicates": [
                [{"position": position, "prompt": prompt} for position, prompt in group.items()]
                for group in self.groups
            ],
        }
