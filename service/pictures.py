"""Which results of a batch keep the images of samples and of their nearest references."""

from __future__ import annotations

from enum import StrEnum


class Pictures(StrEnum):
    """Which results keep their pictures."""

    FLAGGED = "flagged"
    ALL = "all"
    NONE = "none"
