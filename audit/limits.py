"""Bounds on what may be asked for. Apart from the auditor, so that nobody loads torch to know them."""

from __future__ import annotations

MAX_PROMPT_CHARACTERS = 4096
MAX_SEEDS = 1024
MAX_SEED = 2**62
MAX_IMAGE_SIDE = 2048
MAX_DEFINITION_SAMPLES = 100_000
