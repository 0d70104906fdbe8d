"""The comparison on public prompt lists: one of prompts said to be memorized, one of ordinary ones.

What the lists say is the truth here, for want of a better one: of prompts said to be memorized many are not (on ladders
it is measured instead), and the wording alone may tell the lists apart, which the text-only control shows. Prompts that
are nearly the same are one family: they are drawn together in every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from audit.auditor import Auditor
from audit.batch.duplicates import near_duplicates
from audit.bench.comparison import Comparison, run_detectors
from audit.bench.truth import TruthRow
from audit.errors import InvalidInput

#: Ordinary prompts that calibrate, where there is no list of their own.
CALIBRATING = 50
NAN = float("nan")


def split_lists(
    memorized: Sequence[str], ordinary: Sequence[str], calibrate: Sequence[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """Lists without repeats, and without ordinary prompts that calibrate among those that are told apart.

    Args:
        memorized: prompts said to be memorized.
        ordinary: prompts said not to be.
        calibrate: ordinary prompts to calibrate with; the first `CALIBRATING` of the ordinary ones when empty.

    Returns:
        The three, in that order.

    Raises:
        InvalidInput: one of them would be too short, or the same prompt is in both lists.
    """
    first, second = list(dict.fromkeys(memorized)), list(dict.fromkeys(ordinary))
    if shared := set(first) & set(second):
        raise InvalidInput(
            f"{len(shared)} prompts are in both lists, such as {min(shared)[:60]!r}",
            reason="LISTS_OVERLAP",
            field="ordinary",
        )
    usual = list(dict.fromkeys(calibrate)) or second[:CALIBRATING]
    second = [prompt for prompt in second if prompt not in set(usual)]
    for name, prompts in (("memorized", first), ("ordinary", second), ("calibrate", usual)):
        if len(prompts) < 2:
            raise InvalidInput(
                f"the list {name} is too short: {len(prompts)} prompts are left of it",
                reason="LIST_TOO_SHORT",
                field=name,
            )
    return first, second, usual


def compare_lists(
    name: str,
    auditor: Auditor,
    memorized: Sequence[str],
    ordinary: Sequence[str],
    calibrate: Sequence[str],
    on_prompt: Callable[[str], None] = lambda stage: None,
) -> Comparison:
    """Run every detector on the lists of `split_lists`.

    Args:
        name: of the checkpoint.
        auditor: of it, calibrated; its reference set is used where it has one.
        memorized: prompts said to be memorized.
        ordinary: prompts said not to be.
        calibrate: ordinary prompts that it was calibrated with.
        on_prompt: called after every prompt with the name of what is being run.
    """
    prompts = [*memorized, *ordinary]
    blind = Auditor(auditor.checkpoint, None, auditor.calibration)
    baselines, ours = run_detectors(auditor, blind, auditor.resolve_sampler(), prompts, calibrate, on_prompt)
    rows = [
        TruthRow(
            prompt, 0, "held-out", memorized=NAN, spurious=NAN, generalized=NAN, dominant=dominant,
            reference_distance=NAN, original_distance=NAN, sample_distance=NAN,
        )
        for prompt, dominant in zip(
            prompts, ["memorized"] * len(memorized) + ["generalized"] * len(ordinary), strict=True
        )
    ]  # fmt: skip
    return Comparison(name, tuple(rows), tuple(baselines), tuple(ours), families_of(prompts))


def families_of(prompts: Sequence[str]) -> NDArray[np.int64]:
    """A number per prompt, the same for those that are nearly the same, (n,)."""
    families = np.arange(len(prompts))
    for group in near_duplicates(prompts):
        families[group] = group[0]
    return families
