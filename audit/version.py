"""Which Basin this is. Imports nothing heavy."""

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
