"""Run benchmarks by name (all of them without one) and write their tables."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import service  # noqa: F401 - first of all, for the OpenMP settings that a server has

NAMES = (
    "verdicts",
    "detection",
    "curvature",
    "attribution",
    "copied_regions",
    "overhead",
    "concurrency",
    "memory",
    "scale",
    "training",
    "batch",
    "batch_memory",
    "store",
    "pages",
    "kills",
    "replicas",
    "ray",
    "overload",
    "service",
    "cold_start",
    "inspections",
    "load",
    "references",
    "vector_databases",
)
OUT = Path(__file__).parents[2] / "docs" / "benchmarks"


def main() -> None:
    """Print each table and write it to docs/benchmarks/NAME.md."""
    names = sys.argv[1:] or list(NAMES)
    if unknown := set(names) - set(NAMES):
        sys.exit(f"error: unknown benchmarks {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = import_module(f"tests.benchmarks.{name}").run()
        print(f"\n{text}")
        (OUT / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
