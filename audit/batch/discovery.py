"""From the audits of many prompts to those that count as found.

Ten thousand prompts at a false-positive rate of 1% flag a hundred innocents. So a prompt that an audit flags is audited
again with fresh seeds, and the second audit alone says what it is: the first one was used up by the choice. Of those
that it confirms, a class keeps the most probable ones while the expected share of errors among them, the mean of their
error probabilities, stays under a level (the Bayesian false discovery rate of Newton, Noueiry, Sarkar and Ahlquist,
"Detecting differential gene expression with a semiparametric hierarchical mixture method", Biostatistics 5, 2004,
section 2.4, there of posterior probabilities of any model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.verdict.decision import DECIDED
from audit.verdict.rule import CLASSES, PhaseClass

#: Expected share of errors among the prompts that count as found.
FALSE_DISCOVERY_RATE = 0.05


class Outcome(StrEnum):
    """What a batch concludes of a prompt."""

    MEMORIZED = "memorized"
    SPURIOUS = "spurious"
    RECURRING = "recurring"
    GENERALIZED = "generalized"
    UNDECIDED = "undecided"
    FAILED = "failed"


@dataclass(frozen=True)
class Answer:
    """What one audit said.

    Attributes:
        verdict: the most probable class.
        probabilities: that each class dominates, in the order of `CLASSES`.
    """

    verdict: PhaseClass
    probabilities: tuple[float, float, float]

    @property
    def flagged(self) -> bool:
        """Whether it takes another audit to believe it."""
        return self.verdict is not PhaseClass.GENERALIZED

    @property
    def decided(self) -> bool:
        """Whether the verdict is more than a guess."""
        return max(self.probabilities) >= DECIDED


def last_answer(first: Answer | None, second: Answer | None) -> Answer | None:
    """What a prompt's audits say: the second one's answer where the first is flagged.

    Args:
        first: None where it failed.
        second: None where there is none, or where it failed.

    Returns:
        None where an audit that was needed has no answer.
    """
    return second if first is not None and first.flagged else first


def discoveries(probabilities: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """The most probable hypotheses, as many as keep the expected share of errors among them at or under a rate.

    Args:
        probabilities: of each hypothesis to be true, (n,).
        rate: in [0, 1].

    Returns:
        Which are taken, (n,). Equal probabilities are taken together or not at all.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    errors = np.cumsum(1 - values[order]) / np.arange(1, len(values) + 1)
    # Errors grow along the order, so that the means do.
    allowed = np.flatnonzero(errors <= rate + 1e-12)
    if not len(allowed):
        return np.zeros(len(values), dtype=bool)
    least = values[order[allowed[-1]]]
    if (values >= least).sum() > len(allowed):  # the rest of its equals would exceed the rate
        return values > least
    return values >= least


def conclude(
    first: Sequence[Answer | None], second: Sequence[Answer | None], rate: float = FALSE_DISCOVERY_RATE
) -> list[Outcome]:
    """What a batch says of each prompt of one checkpoint.

    Args:
        first: the audit of every prompt; None where it failed.
        second: the audit with fresh seeds of every flagged prompt; None elsewhere, or where it failed.
        rate: false discovery rate of memorized, of spurious, and of recurring prompts, each by itself.

    Returns:
        memorized or spurious where the second audit confirms it within the rate; recurring where it only confirms
        within the rate that it is one of the two, as without a complete reference set; generalized where the first
        audit, or the second one of a flagged prompt, is sure of it; failed where an audit that was needed has no
        answer; else undecided.
    """
    outcomes = []
    for one, other in zip(first, second, strict=True):
        last = last_answer(one, other)
        if last is None:
            outcomes.append(Outcome.FAILED)
        else:
            sure = last.verdict is PhaseClass.GENERALIZED and last.decided
            outcomes.append(Outcome.GENERALIZED if sure else Outcome.UNDECIDED)
    confirmed = {
        row: other
        for row, (one, other) in enumerate(zip(first, second, strict=True))
        if one is not None and one.flagged and other is not None and other.flagged
    }
    candidates = {Outcome.RECURRING: {row: sum(answer.probabilities[:2]) for row, answer in confirmed.items()}}
    for index, verdict in enumerate(CLASSES[:2]):
        own = {row: answer.probabilities[index] for row, answer in confirmed.items() if answer.verdict is verdict}
        candidates[Outcome(verdict)] = own
    for outcome, probabilities in candidates.items():  # the more exact ones come last, and stay
        for row, found in zip(probabilities, discoveries(list(probabilities.values()), rate), strict=True):
            if found:
                outcomes[row] = outcome
    return outcomes
