"""The rules and their cases, as the files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.deploy.exposition import DEPLOY, RULES
from tests.deploy.promql import read

CASES = sorted((DEPLOY / "prometheus" / "rules_test").glob("*.yaml"))


@dataclass(frozen=True)
class Rule:
    """A recording rule, or an alert.

    Attributes:
        name: of the series that is recorded, or of the alert.
        alert: which of the two.
        expression: in PromQL.
        labels: that it adds; they tell alerts of one name apart.
        annotations: of an alert.
    """

    name: str
    alert: bool
    expression: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join((self.name, *self.labels.values()))


@cache
def rules() -> tuple[Rule, ...]:
    """All of them."""
    return tuple(
        Rule(
            rule.get("alert") or rule["record"],
            "alert" in rule,
            rule["expr"],
            rule.get("labels", {}),
            rule.get("annotations", {}),
        )
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    )


def alerts() -> list[Rule]:
    """Those that alert."""
    return [rule for rule in rules() if rule.alert]


def recordings() -> dict[str, Rule]:
    """Those that record, by the names of what they record."""
    return {rule.name: rule for rule in rules() if not rule.alert}


@cache
def cases() -> tuple[tuple[str, dict[str, Any]], ...]:
    """What promtool tests, with where it is."""
    return tuple(
        (f"{file.name}: {case['name']}", case) for file in CASES for case in yaml.safe_load(file.read_text())["tests"]
    )


def sources(expression: str) -> set[str]:
    """Names of the series that it reads in the end, through what is recorded."""
    recorded, found = recordings(), set()
    for selector in read(expression).selectors:
        found |= sources(recorded[selector.name].expression) if selector.name in recorded else {selector.name}
    return found
