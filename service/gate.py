"""Conditions that stop a release: `memorized > 0`, `recurring_rate > 0.01 and prompts >= 100`.

Comparisons, sums and products of numbers, `and`, `or`, `not` and parentheses, over the names of `NAMES` for a batch,
and of `COMPARED_NAMES` for two that are compared.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from simpleeval import SimpleEval

from audit.batch.comparison import Change
from audit.batch.discovery import Outcome
from audit.errors import InvalidInput

#: Counts, each with a `_rate` over all prompts that could be audited.
COUNTS = ("memorized", "spurious", "generalized", "undecided", "recurring")
NAMES = ("prompts", "failed", *COUNTS, *(f"{name}_rate" for name in COUNTS))
#: And of a comparison, over all prompts that could be audited on both sides.
COMPARED_COUNTS = tuple(map(str, Change))
COMPARED_NAMES = (
    "prompts", "failed", "only_before", "only_after", *COMPARED_COUNTS, *(f"{name}_rate" for name in COMPARED_COUNTS),
)  # fmt: skip
MOST_CHARACTERS = 500
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Not: operator.not_,
}  # fmt: skip
#: All that a condition consists of. Whatever else Python knows is refused before anything is evaluated.
_READ = (
    ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.BinOp, ast.Constant, ast.Name, ast.Load, *_OPERATORS,
)  # fmt: skip


def gate_values(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """What the names mean for the outcomes of one checkpoint. Rates of nothing are 0."""
    found = Counter(map(str, outcomes))
    prompts = found.total()
    found["recurring"] += found["memorized"] + found["spurious"]
    counts = {name: found[name] for name in COUNTS}
    return {"prompts": prompts, "failed": found["failed"], **counts, **rates(counts, prompts - found["failed"])}


def rates(counts: Mapping[str, int], audited: int) -> dict[str, float]:
    """Counts as shares of what could be audited, by names that say so. Rates of nothing are 0."""
    return {f"{name}_rate": count / max(1, audited) for name, count in counts.items()}


def tripped(condition: str, values: Mapping[str, float]) -> bool:
    """Whether a condition holds.

    Args:
        condition: of a user.
        values: of all names that it may use.

    Raises:
        InvalidInput: it is no condition, or asks for a name that is not there.
    """
    tree = _parse(condition, values.keys())
    names = {name: float(value) for name, value in values.items()}
    try:
        return bool(SimpleEval(operators=_OPERATORS, functions={}, names=names).eval(condition, tree))
    except RecursionError as error:
        raise _unreadable(condition, "it is nested too deeply") from error


def check_condition(condition: str, names: Collection[str] = NAMES) -> None:
    """Refuse what is no condition, before hours of work.

    Args:
        condition: of a user.
        names: that it may use.

    Raises:
        InvalidInput: as `tripped`, whatever the values.
    """
    tripped(condition, dict.fromkeys(names, 1.0))


def _parse(condition: str, names: Collection[str]) -> ast.expr:
    """A condition in which every name is known and every number is a float, so that no value makes it fail."""
    if len(condition) > MOST_CHARACTERS:
        raise InvalidInput(
            f"a condition has at most {MOST_CHARACTERS} characters", reason="CONDITION_INVALID", field="fail_on"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # `1and 2`
            tree = ast.parse(condition.strip(), mode="eval").body
        for node in ast.walk(tree):
            if not isinstance(node, _READ):
                raise _unreadable(condition, f"{type(node).__name__} has no meaning in it")
            if isinstance(node, ast.Name) and node.id not in names:
                raise _unreadable(condition, f"there is no {node.id}; names: {', '.join(names)}")
            if isinstance(node, ast.Constant):
                if not isinstance(node.value, int | float):
                    raise _unreadable(condition, f"{node.value!r} is no number")
                node.value = float(node.value)
        if not _is_condition(tree):
            raise _unreadable(condition, "it is a value; compare it with a number")
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise _unreadable(condition, "it is no expression") from error
    return tree


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(map(_is_condition, node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _is_condition(node.operand)
    return isinstance(node, ast.Compare)


def _unreadable(condition: str, why: str) -> InvalidInput:
    return InvalidInput(f"cannot read the condition {condition!r}: {why}", reason="CONDITION_INVALID", field="fail_on")
