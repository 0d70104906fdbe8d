"""Enough of PromQL to tell which series an expression reads and which labels it names.

promtool says whether an expression is one; it does not say what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
    | (?P<range>\[[^\]]*\])
    | (?P<number>(?:\d|\.\d)[\w.]*)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>==|!=|=~|!~|<=|>=|[-+*/%^<>=(){},@])
    """,
    re.VERBOSE,
)
#: What lists labels in parentheses.
_CLAUSES = frozenset(("by", "without", "on", "ignoring", "group_left", "group_right"))
_WORDS = _CLAUSES | {"and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Selector:
    """One place where an expression reads series: their name, and matchers as (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def allows(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects a series of its name with these labels."""
        return all(_matches(operator, value, labels.get(label, "")) for label, operator, value in self.matchers)

    def alternatives(self) -> Iterator[Selector]:
        """One for each word of each `a|b|c` in it, so that each can be looked for."""
        for label, operator, value in self.matchers:
            if operator in ("=~", "!~"):
                others = tuple(matcher for matcher in self.matchers if matcher[0] != label)
                for word in _split(value):
                    yield Selector(self.name, (*others, (label, "=~", word)))


@dataclass(frozen=True)
class Clause:
    """Labels that an expression groups, matches or carries over by, and what is read where they have to be."""

    labels: tuple[str, ...]
    selectors: tuple[Selector, ...]


@dataclass(frozen=True)
class Expression:
    """What is in one."""

    selectors: tuple[Selector, ...]
    clauses: tuple[Clause, ...]


def read(text: str) -> Expression:
    """Take an expression apart that promtool takes for one.

    Raises:
        ValueError: it selects series by something else than a name, or is none.
    """
    tokens = list(_tokens(text))
    selectors: list[tuple[int, Selector]] = []
    clauses: list[tuple[int, tuple[str, ...]]] = []
    position = 0
    while position < len(tokens):
        kind, word = tokens[position]
        after = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        if word == "{":
            raise ValueError(f"no name before {{ in {text!r}")
        if kind == "name" and word in _CLAUSES and after == "(":
            end = _closing(tokens, position + 1)
            clauses.append((position, tuple(label for what, label in tokens[position + 2 : end] if what == "name")))
            position = end
        elif kind == "name" and word.lower() not in _WORDS and after not in ("(", "by", "without"):
            begin = position
            matchers: tuple[tuple[str, str, str], ...] = ()
            if after == "{":
                end = _closing(tokens, position + 1)
                matchers = _matchers(tokens[position + 2 : end])
                position = end
            selectors.append((begin, Selector(word, matchers)))
        position += 1
    return Expression(
        tuple(selector for _, selector in selectors),
        tuple(Clause(labels, _within(tokens, at, selectors)) for at, labels in clauses),
    )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"what is {text[position : position + 20]!r} in {text!r}?")
        position = found.end()
        assert found.lastgroup is not None
        if found.lastgroup != "space":
            yield found.lastgroup, found[0]


def _closing(tokens: list[tuple[str, str]], opening: int) -> int:
    """Where the bracket closes that opens there."""
    depth = 0
    for position in range(opening, len(tokens)):
        kind, word = tokens[position]
        if kind == "sign":
            depth += (word in "({") - (word in ")}")
        if not depth:
            return position
    raise ValueError("a bracket is not closed")


def _matchers(tokens: list[tuple[str, str]]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for position in range(0, len(tokens), 4):  # a label, an operator, a text, a comma
        (_, label), (_, operator), (_, value) = tokens[position : position + 3]
        found.append((label, operator, value[1:-1]))
    return tuple(found)


def _within(tokens: list[tuple[str, str]], clause: int, selectors: list[tuple[int, Selector]]) -> tuple[Selector, ...]:
    """What a clause is about: what an aggregation aggregates, else everything."""
    begin, end = 0, len(tokens)
    if tokens[clause][1] in ("by", "without"):
        after = _closing(tokens, clause + 1) + 1
        if after < len(tokens) and tokens[after][1] == "(":  # sum by (label) (...)
            begin, end = after, _closing(tokens, after)
        else:  # sum(...) by (label)
            end = clause
            begin = next(at for at in range(clause) if tokens[at][1] == "(" and _closing(tokens, at) == clause - 1)
    return tuple(selector for at, selector in selectors if begin <= at < end)


def _matches(operator: str, expected: str, value: str) -> bool:
    if operator in ("=~", "!~"):
        return (re.fullmatch(expected, value) is not None) == (operator == "=~")
    return (expected == value) == (operator == "=")


def _split(expression: str) -> Iterator[str]:
    """Words of `a|b(c|d)`: a, bc, bd. Deeper ones stay together."""
    inner = re.fullmatch(r"(.*?)\(([^()]*)\)(.*)", expression)
    depth, word = 0, ""
    words = []
    for letter in expression:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and not depth:
            words.append(word)
            word = ""
        else:
            word += letter
    words.append(word)
    if len(words) == 1:
        if inner is None:
            yield expression
        else:
            for choice in inner[2].split("|"):
                yield inner[1] + choice + inner[3]
        return
    for each in words:
        yield from _split(each)
