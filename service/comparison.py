"""Two checkpoints side by side: of which runs they are, which prompts both audited, and what became of those."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from audit.batch.comparison import CLAIMS, Change, Shift, find_changes, find_shifts
from audit.batch.discovery import Answer, Outcome, last_answer
from audit.errors import InvalidInput
from service.gate import COMPARED_COUNTS, rates
from service.results import Concluded, OpenedRun


@dataclass(frozen=True)
class Side:
    """One checkpoint of a run.

    Attributes:
        run: that audited it.
        checkpoint: by the name that the run uses.
    """

    run: OpenedRun
    checkpoint: str

    @cached_property
    def prompts(self) -> dict[str, Concluded]:
        """Every prompt, once: what is the same to the letter was audited once."""
        found: dict[str, Concluded] = {}
        for item in self.run.concluded[self.checkpoint]:
            found.setdefault(item.row.entry.prompt, item)
        return found


@dataclass(frozen=True)
class Pair:
    """A prompt on both sides.

    Attributes:
        before: with what its batch says of it.
        after: the same of the other side.
        answers: of the last audits; None where one of them is still to be done or failed.
        said: what became of it; None where it cannot be compared.
        claims: all that is claimed of it, the gravest first.
        probabilities: of each claim to be true; empty where it cannot be compared.
        is_open: whether it cannot be compared yet.
    """

    before: Concluded
    after: Concluded
    answers: tuple[Answer, Answer] | None
    said: Change | None
    claims: tuple[Change, ...]
    probabilities: dict[Change, float]
    is_open: bool

    @property
    def prompt(self) -> str:
        """As it was given."""
        return self.after.row.entry.prompt

    @property
    def same(self) -> bool:
        """Whether both sides are one and the same audit."""
        return _same_audit(self.before, self.after)

    @property
    def rank(self) -> tuple[int, float, int]:
        """What pairs are sorted by: new memorizations, other changes, the rest; in each the most probable first."""
        if self.said is None:
            return 3, 0, self.after.row.entry.position
        group = 0 if self.said is Change.NEW_MEMORIZED else 1 if self.claims else 2
        sorted_by = Change.NEW_MEMORIZED if group == 0 else Change.CHANGED
        return group, -self.probabilities[sorted_by], self.after.row.entry.position


class Comparison:
    """What became of the prompts that two checkpoints share.

    Args:
        before: one of them.
        after: the other one.
        rate: false discovery rate of every claim; see `audit.batch.comparison`.

    Attributes:
        before: as given.
        after: as given.
        rate: as given.
        pairs: the prompts of both, by rank.
        only_before: prompts of the first one alone, in its order.
        only_after: prompts of the second one alone.
        shifts: how many prompts are of each class on both sides.
        kept: the share of prompts that is taken to have kept its class; see `audit.batch.comparison`.

    Raises:
        InvalidInput: both sides are the same one, or share no prompt; or the prompts of one were removed.
    """

    def __init__(self, before: Side, after: Side, rate: float) -> None:
        if before.run.batch.id == after.run.batch.id and before.checkpoint == after.checkpoint:
            raise InvalidInput(
                f"both sides are {before.checkpoint!r} of {before.run.path}", reason="SAME_SIDE_TWICE", field="after"
            )
        for side in (before, after):
            if "" in side.prompts:
                raise InvalidInput(
                    f"the prompts of {side.run.path} were removed; the command that made the run puts them back",
                    reason="PROMPTS_REMOVED",
                    field="run",
                )
        shared = [(item, after.prompts[prompt]) for prompt, item in before.prompts.items() if prompt in after.prompts]
        if not shared:
            raise InvalidInput(
                f"{before.checkpoint!r} of {before.run.path} and {after.checkpoint!r} of {after.run.path} have no "
                "prompt in common",
                reason="NO_COMMON_PROMPT",
                field="run",
            )
        self.before, self.after, self.rate = before, after, rate
        self.only_before = [prompt for prompt in before.prompts if prompt not in after.prompts]
        self.only_after = [prompt for prompt in after.prompts if prompt not in before.prompts]
        self._compare(shared)

    def _compare(self, shared: list[tuple[Concluded, Concluded]]) -> None:
        compared: list[tuple[Concluded, Concluded, Answer, Answer]] = []
        pairs: list[Pair] = []
        for one, other in shared:
            before, after = _answer(one), _answer(other)
            if before is not None and after is not None:
                compared.append((one, other, before, after))
            else:
                failed = any(item.outcome is Outcome.FAILED and not item.row.open for item in (one, other))
                pairs.append(Pair(one, other, None, None, (), {}, is_open=not failed))
        p = [before.probabilities for *_, before, _ in compared]
        q = [after.probabilities for *_, after in compared]
        same = [_same_audit(one, other) for one, other, *_ in compared]
        changes = find_changes(p, q, same, self.rate)
        self.kept = changes.kept
        self.shifts: dict[str, Shift] = find_shifts(p, q, same)
        for row, (one, other, before, after) in enumerate(compared):
            claims = tuple(claim for claim in CLAIMS if changes.claimed[claim][row])
            probabilities = {claim: float(changes.probabilities[claim][row]) for claim in CLAIMS}
            pairs.append(Pair(one, other, (before, after), changes.said[row], claims, probabilities, is_open=False))
        self.pairs = sorted(pairs, key=lambda pair: pair.rank)

    @cached_property
    def values(self) -> dict[str, float]:
        """Of `service.gate.COMPARED_NAMES`: each claim counts where it is made, also beside a graver one."""
        found = Counter(str(claim) for pair in self.pairs for claim in pair.claims)
        found.update(str(pair.said) for pair in self.pairs if pair.said and not pair.claims)
        counts = {name: found[name] for name in COMPARED_COUNTS}
        compared = sum(pair.said is not None for pair in self.pairs)
        return {
            "prompts": len(self.pairs),
            "failed": len(self.pairs) - compared,
            "only_before": len(self.only_before),
            "only_after": len(self.only_after),
            **counts,
            **rates(counts, compared),
        }


def choose_sides(one: OpenedRun, other: OpenedRun, before: str = "", after: str = "") -> tuple[Side, Side]:
    """Which checkpoints to compare.

    Args:
        one: the run of the first.
        other: the run of the second; may be the same.
        before: name of the first; "" for the only one of its run, the first of two where there is but one run, or the
            one that both runs have.
        after: name of the second; "" likewise.

    Raises:
        InvalidInput: a run holds no checkpoint of that name, or it is not clear which one is meant.
    """
    for run, name, field in ((one, before, "before"), (other, after, "after")):
        if name and name not in run.concluded:
            raise InvalidInput(
                f"{run.path} holds no checkpoint {name!r}; it holds {_listed(run.concluded)}",
                reason="CHECKPOINT_NOT_IN_RUN",
                field=field,
            )
    if one.batch.id == other.batch.id:
        if len(one.concluded) == 1 and not (before and after):
            raise InvalidInput(
                f"{one.path} holds one checkpoint, {_listed(one.concluded)}; name a second run to compare it with",
                reason="CHECKPOINT_UNCLEAR",
                field="run",
            )
        left = [name for name in one.concluded if name not in (before, after)]
        if len(left) == (not before) + (not after):  # what is not named is what is left, in its order
            before = before or left.pop(0)
            after = after or left.pop(0)
    else:
        names = [[before] if before else [*one.concluded], [after] if after else [*other.concluded]]
        shared = [name for name in names[0] if name in names[1]]
        before, after = (own[0] if len(own) == 1 else shared[0] if len(shared) == 1 else "" for own in names)
    for run, name, field in ((one, before, "before"), (other, after, "after")):
        if not name:
            raise InvalidInput(
                f"name one of the checkpoints of {run.path} with --{field}: it holds {_listed(run.concluded)}",
                reason="CHECKPOINT_UNCLEAR",
                field=field,
            )
    return Side(one, before), Side(other, after)


def _answer(item: Concluded) -> Answer | None:
    """Of the last audit of a prompt; None where one is still to be done or failed."""
    return None if item.row.open else last_answer(item.row.first, item.row.second)


def _same_audit(one: Concluded, other: Concluded) -> bool:
    """The key is a digest of everything that decides an audit."""
    return one.row.entry.key == other.row.entry.key


def _listed(names: dict[str, list[Concluded]]) -> str:
    return ", ".join(map(repr, names))
