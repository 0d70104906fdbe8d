"""What is found in an expression."""

from __future__ import annotations

import pytest

from tests.deploy.promql import Selector, read


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("up", [("up", [])]),
        ("a:b:c5m{x=\"1\", y=~'2|3'}", [("a:b:c5m", [("x", "=", "1"), ("y", "=~", "2|3")])]),
        (
            'sum(rate(a{x!="}[5m]", y!~`(`,}[5m] offset 1h)) by (job) # b',
            [("a", [("x", "!=", "}[5m]"), ("y", "!~", "(")])],
        ),
        ("a / on (job) group_left () b > bool 1e9", [("a", []), ("b", [])]),
        ("a and on (x) b unless c or d", [("a", []), ("b", []), ("c", []), ("d", [])]),
        ("histogram_quantile(0.95, sum by (le) (rate(a_bucket[10m])))", [("a_bucket", [])]),
        ("max_over_time(a[30m:1m]) @ end() - time() < 14 * 86400 + Inf - 0x1f", [("a", [])]),
        ("count without (x) (a) * 1d", [("a", [])]),
        ("topk(3, by_something)", [("by_something", [])]),
    ],
)
def test_selectors(text: str, selectors: list[tuple[str, list[tuple[str, str, str]]]]) -> None:
    """Series are told from functions, aggregations, labels, texts, numbers and durations."""
    assert [(found.name, list(found.matchers)) for found in read(text).selectors] == selectors


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("sum by (x) (a) / sum(b) by (y)", [(("x",), ["a"]), (("y",), ["b"])]),
        ("f(sum without (x) (a + b), c)", [(("x",), ["a", "b"])]),
        ("sum by (x) (a) * ignoring (y, z) b", [(("x",), ["a"]), (("y", "z"), ["a", "b"])]),
        ("g(h(a) + min(f(a)) by (x))", [(("x",), ["a"])]),
    ],
)
def test_clauses(text: str, clauses: list[tuple[tuple[str, ...], list[str]]]) -> None:
    """An aggregation's labels are those of what it aggregates, a match's those of the whole expression."""
    found = [(clause.labels, [selector.name for selector in clause.selectors]) for clause in read(text).clauses]
    assert found == clauses


@pytest.mark.parametrize("text", ['{__name__="a"}', "a{", "a ? b"])
def test_what_cannot_be_read(text: str) -> None:
    """Nothing is passed over that could be a series."""
    with pytest.raises(ValueError, match=r"name|bracket|what is"):
        read(text)


def test_matching() -> None:
    """Matchers see a label that is not there as an empty one, and expressions match as a whole."""
    selector = Selector("a", (("x", "=~", "1|2"), ("y", "!=", "3"), ("z", "!~", "4.*")))
    assert selector.allows({"x": "1"})
    assert selector.allows({"x": "2", "y": "4", "z": "3"})
    assert not selector.allows({"x": "12"})
    assert not selector.allows({"x": "1", "y": "3"})
    assert not selector.allows({"x": "1", "z": "44"})


def test_alternatives() -> None:
    """Every word of an alternation is looked for, also those in parentheses."""
    selector = Selector("a", (("x", "=~", "A/.*|B/(C|D)E|F"), ("y", "=", "G|H")))
    others = (("y", "=", "G|H"),)
    assert list(selector.alternatives()) == [
        Selector("a", (*others, ("x", "=~", word))) for word in ("A/.*", "B/CE", "B/DE", "F")
    ]
