"""Two checkpoints under the same prompts: which prompts changed class, and how far all of them moved together.

Of a prompt, each side has a posterior over the classes, that of its last audit (`audit.batch.discovery`): p before, q
after. By themselves, and independent, they say that it went from class a to class b with probability p(a) q(b). That
takes the class after for unrelated to the one before, which is wrong: most prompts stay what they are. Where one in
fifty changes, the few unlucky audits of the other forty-nine would be a third of all findings at a rate of 5%. So a
share s of the prompts is taken to have kept its class, and of the rest both classes are unrelated, a model of two
groups (Efron, "Microarrays, empirical Bayes and the two-groups model", Statistical Science 23, 2008):

    w(a, b) = [ (1 − s) p(a) q(b) + s δ(a, b) p(a) q(a)/m(a) ] / [ 1 − s + s A ],   A = Σ_c p(c) q(c)/m(c)

Here m is the mean of all posteriors of both sides, A how much likelier both audits are if the class is the same, and s
is learnt from all prompts: it makes (1 − s) Π (1 − s + s A) the largest, as if one more prompt had changed. A prompt
that is compared alone has s = 0, and w(a, b) = p(a) q(b).

Every claim is a set of pairs of classes, and its probability the sum of w over them:

    changed          a ≠ b
    new in a set C   a ∉ C, b ∈ C, with C = {memorized}, {spurious}, or both: recurring
    gone from C      a ∈ C, b ∉ C

Where both sides are one and the same audit nothing changed, however unsure that audit is.

What is controlled: of the prompts that are said to have changed, the expected share that did not is at most the rate
(the Bayesian false discovery rate of `discoveries`); and of those among them of which a claim is made, the expected
share of which it is false is at most the rate, for each claim by itself. So a list of new memorizations keeps the rate
as a list of new memorizations. Bayesian means given the data, so that it makes no difference that the data chose the
candidates: a prompt is one only where the most probable pair of classes is of the claim, and the claim more likely true
than false. The first condition matters: two audits that know nothing disagree with probability 2/3 and say nothing of a
change.

What it rests on: posteriors that mean what they say, and audits that err independently. Both sides usually draw the
same noise seeds, and a release candidate is much like the one before, so that an unlucky draw misleads both the same
way. Two such audits disagree by chance less often than is reckoned here: what is claimed is claimed cautiously, and
some prompts are undecided that did not change. A threshold or an estimator that is off misleads both sides and all
prompts at once. That cancels in part between the sides, and not at all within one, and no interval here holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.signal import convolve

from audit.batch.discovery import FALSE_DISCOVERY_RATE, discoveries
from audit.verdict.decision import DECIDED, INTERVAL_LEVEL, Interval
from audit.verdict.rule import CLASSES

_TAIL = (1 - INTERVAL_LEVEL) / 2
#: Decimals of a probability: equals stay equals, whatever the order of their sums.
_DECIMALS = 9
_MEMORIZED, _SPURIOUS, _ = np.eye(3, dtype=bool)
#: Sets of classes, as masks over `CLASSES`, whose numbers are compared.
GROUPS = {**dict(zip(map(str, CLASSES), np.eye(3, dtype=bool), strict=True)), "recurring": _MEMORIZED | _SPURIOUS}


class Change(StrEnum):
    """What a comparison says of a prompt; claims come first, the gravest of them first."""

    NEW_MEMORIZED = "new_memorized"
    NEW_SPURIOUS = "new_spurious"
    NEW_RECURRING = "new_recurring"
    GONE_MEMORIZED = "gone_memorized"
    GONE_SPURIOUS = "gone_spurious"
    GONE_RECURRING = "gone_recurring"
    CHANGED = "changed"
    UNDECIDED = "undecided"
    UNCHANGED = "unchanged"


#: Pairs of classes, before and after, in which a claim is true.
CLAIMS: dict[Change, NDArray[np.bool_]] = {
    Change.NEW_MEMORIZED: np.outer(~_MEMORIZED, _MEMORIZED),
    Change.NEW_SPURIOUS: np.outer(~_SPURIOUS, _SPURIOUS),
    Change.NEW_RECURRING: np.outer(~GROUPS["recurring"], GROUPS["recurring"]),
    Change.GONE_MEMORIZED: np.outer(_MEMORIZED, ~_MEMORIZED),
    Change.GONE_SPURIOUS: np.outer(_SPURIOUS, ~_SPURIOUS),
    Change.GONE_RECURRING: np.outer(GROUPS["recurring"], ~GROUPS["recurring"]),
    Change.CHANGED: ~np.eye(3, dtype=bool),
}


@dataclass(frozen=True)
class Changes:
    """What became of n prompts.

    Attributes:
        probabilities: of each claim to be true, (n,).
        claimed: of which prompts each claim is made, (n,); those of any claim have changed.
        said: in one word: the gravest claim, or that nothing changed, or that this cannot be told.
        kept: the share s of prompts that is taken to have kept its class, whatever that is.
    """

    probabilities: dict[Change, NDArray[np.float64]]
    claimed: dict[Change, NDArray[np.bool_]]
    said: list[Change]
    kept: float


@dataclass(frozen=True)
class Shift:
    """How many of n prompts are of some class; intervals hold the number with probability `INTERVAL_LEVEL`.

    Attributes:
        before: number before.
        after: number after.
        difference: the second less the first.
        rise: probability that there are more after.
        fall: that there are fewer.
    """

    before: Interval
    after: Interval
    difference: Interval
    rise: float
    fall: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the difference's interval leaves zero out."""
        return self.difference.lower > 0 or self.difference.upper < 0


def find_changes(before: ArrayLike, after: ArrayLike, same: ArrayLike, rate: float = FALSE_DISCOVERY_RATE) -> Changes:
    """Which prompts changed class.

    Args:
        before: posteriors of one side, in the order of `CLASSES`, (n, 3).
        after: of the other, (n, 3).
        same: where both are one audit, (n,).
        rate: expected share of errors among the prompts that changed, and among those of each claim, in [0, 1].
    """
    p, q = (np.asarray(side, dtype=np.float64).reshape(-1, 3) for side in (before, after))
    same = np.asarray(same, dtype=bool)
    kept_as = np.zeros_like(p)
    kept_as[~same] = _agreements(p[~same], q[~same])
    kept = _kept_share(kept_as[~same].sum(1))
    pairs = (1 - kept) * p[:, :, None] * q[:, None, :] + kept * kept_as[:, :, None] * np.eye(3)
    pairs /= pairs.sum((1, 2), keepdims=True)
    pairs[same] = 0  # but for the diagonal, of which no claim speaks
    probabilities = {claim: (pairs * table).sum((1, 2)).round(_DECIMALS) for claim, table in CLAIMS.items()}
    likeliest = pairs.reshape(-1, 9).argmax(1)
    # Where staying is as likely as the likeliest change, none is named.
    named = pairs.max((1, 2), initial=0) > pairs.diagonal(axis1=1, axis2=2).max(1, initial=0)

    def found(claim: Change, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        candidates = among & CLAIMS[claim].reshape(9)[likeliest] & (probabilities[claim] > 0.5)
        taken = np.zeros(len(p), dtype=bool)
        taken[candidates] = discoveries(probabilities[claim][candidates], rate)
        return taken

    changed = found(Change.CHANGED, named)
    claimed = {claim: changed if claim is Change.CHANGED else found(claim, changed) for claim in CLAIMS}
    stayed = 1 - probabilities[Change.CHANGED] >= DECIDED
    said = [
        next((claim for claim, taken in claimed.items() if taken[row]), None)
        or (Change.UNCHANGED if stayed[row] else Change.UNDECIDED)
        for row in range(len(p))
    ]
    return Changes(probabilities, claimed, said, kept)


def find_shifts(before: ArrayLike, after: ArrayLike, same: ArrayLike) -> dict[str, Shift]:
    """How many prompts are of each of `GROUPS` on both sides.

    Numbers of prompts follow the Poisson binomial distribution, here exact: the sum of independent events, each with a
    probability of its own. They are of these prompts, not of others that might have been asked. What both sides share,
    the same audits, is in both numbers and leaves their difference alone. Noise seeds that both sides share make the
    interval of the difference rather too wide than too narrow.

    Args:
        before: posteriors of one side, in the order of `CLASSES`, (n, 3).
        after: of the other, (n, 3).
        same: where both are one audit, (n,).
    """
    p, q = (np.asarray(side, dtype=np.float64).reshape(-1, 3) for side in (before, after))
    same = np.asarray(same, dtype=bool)
    found = {}
    for name, group in GROUPS.items():
        shared, earlier, later = (_number(one @ group) for one in (p[same], p[~same], q[~same]))
        # From −n to n: the distribution of a number less that of another.
        difference = convolve(later, earlier[::-1])
        most = len(earlier) - 1
        found[name] = Shift(
            before=_interval(convolve(shared, earlier)),
            after=_interval(convolve(shared, later)),
            difference=_interval(difference, -most),
            rise=min(1.0, float(difference[most + 1 :].sum())),
            fall=min(1.0, float(difference[:most].sum())),
        )
    return found


def _agreements(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much likelier two audits are if both classes are c than if they are unrelated: p(c) q(c)/m(c), (n, 3)."""
    mean = (p.sum(0) + q.sum(0)) / max(1, 2 * len(p))
    return p * q / np.where(mean > 0, mean, 1)


def _kept_share(agreements: NDArray[np.float64]) -> float:
    """The share s of prompts that kept their class, from A of each, (n,)."""

    def slope(share: float) -> float:  # of the logarithm of what is maximised, which is concave
        return float(((agreements - 1) / (1 + share * (agreements - 1))).sum() - 1 / (1 - share))

    return float(brentq(slope, 0, 1 - 1e-9)) if slope(0) > 0 else 0.0


def _number(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distribution of how many of n independent events come true, (n + 1,)."""
    distribution = np.ones(1)
    for probability in probabilities:
        distribution = np.convolve(distribution, (1 - probability, probability))
    return distribution


def _interval(distribution: NDArray[np.float64], start: int = 0) -> Interval:
    """Mean and central interval of a number, from its distribution over the integers from `start`."""
    values = np.arange(start, start + len(distribution))
    lower, upper = values[np.searchsorted(np.cumsum(distribution), [_TAIL, 1 - _TAIL])]
    return Interval(float(values @ distribution), float(lower), float(upper))
