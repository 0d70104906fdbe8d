"""Which Basin this is, and which libraries it works with. Imports nothing heavy."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def basin_version() -> str:
    """Version of Basin, or "0" where it runs without being installed."""
    try:
        return version("basin-audit")
    except PackageNotFoundError:
        return "0"


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "open_clip_torch", "faiss-cpu")}
