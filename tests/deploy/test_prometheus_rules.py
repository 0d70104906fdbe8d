"""Rules of Prometheus, by its own tool."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from service.config import load_settings
from tests.deploy.exposition import DEPLOY, RULES, Exposition, promtool
from tests.deploy.promql import read
from tests.deploy.rules import CASES, Rule, alerts, cases, recordings, sources

OPERATIONS = DEPLOY.parent / "docs" / "operations.md"
#: Labels whose values are made up in the cases, or that Prometheus adds.
FREE = frozenset(("job", "instance", "checkpoint", "reference", "device", "le"))


def _name(rule: Rule) -> str:
    return str(rule)


def _is_of(rule: Rule, expected: dict[str, dict[str, str]]) -> bool:
    return rule.labels.items() <= expected["exp_labels"].items()


def test_rules_are_clean() -> None:
    """There is nothing that promtool has to say about them."""
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_cases_hold(file: Path) -> None:
    """Alerts fire when they should and at no other time, and what is recorded is right."""
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", alerts(), ids=_name)
def test_every_alert_has_a_case_that_fires(rule: Rule) -> None:
    """There is a case in which the alert, and not only one of its name, is expected."""
    assert any(
        _is_of(rule, expected)
        for _, case in cases()
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == rule.name
        for expected in test.get("exp_alerts", ())
    )


@pytest.mark.parametrize("rule", alerts(), ids=_name)
def test_every_alert_has_a_case_that_does_not_fire(rule: Rule) -> None:
    """There is a case in which all that the alert reads is there, and the alert is not expected."""
    assert any(
        not any(_is_of(rule, expected) for expected in test.get("exp_alerts", ()))
        for _, case in cases()
        if sources(rule.expression) <= {read(each["series"]).selectors[0].name for each in case["input_series"]}
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == rule.name
    )


@pytest.mark.parametrize("name", recordings())
def test_every_recording_has_a_case(name: str) -> None:
    """There is a case that says what the series is."""
    expected = {
        selector.name
        for _, case in cases()
        for test in case.get("promql_expr_test", ())
        if test["exp_samples"]
        for selector in read(test["expr"]).selectors
    }
    assert name in expected


@pytest.mark.parametrize("name", recordings())
def test_names_of_recordings(name: str) -> None:
    """They are level:metric:operations, and promise no unit that is none."""
    assert re.fullmatch(r"basin:[a-z][a-z0-9_]*:[a-z][a-z0-9_]*", name)
    assert not name.endswith("_total")


@pytest.mark.parametrize("rule", alerts(), ids=_name)
def test_alerts_say_what_an_operator_needs(rule: Rule) -> None:
    """How urgent it is, what it is, with which values and for whom, and where to read on."""
    assert rule.labels["severity"] in ("page", "ticket")
    assert set(rule.annotations) == {"summary", "description", "runbook"}
    assert "{{" not in rule.annotations["summary"]
    assert "$value" in rule.annotations["description"]
    # What is not there has no labels.
    assert ("$labels." in rule.annotations["description"]) is not rule.expression.startswith("absent(")
    file, _, anchor = rule.annotations["runbook"].partition("#")
    assert (DEPLOY.parent / file).resolve() == OPERATIONS
    assert anchor == rule.name.lower()


def test_the_document_has_every_alert_and_no_other() -> None:
    """The section of each is where its annotation says."""
    headings = re.findall(r"^#### (Basin\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted({rule.name for rule in alerts()})


def test_the_document_says_what_fails() -> None:
    """The reasons that the objective counts are those that operators read about, in every window."""
    (row,) = re.findall(r"^\| failed \|(.*)\|$", OPERATIONS.read_text(), re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", row))
    for window in ("5m", "30m", "1h"):
        (selector,) = read(recordings()[f"basin:rpcs_failed:increase{window}"].expression).selectors
        ((_, _, reasons),) = selector.matchers
        assert set(reasons.split("|")) == told


def test_cases_are_about_series_of_a_server(exposition: Exposition) -> None:
    """What a case feeds the rules with is what servers expose, label by label and word by word."""
    unknown = []
    for where, case in cases():
        for each in case["input_series"]:
            (series,) = read(each["series"]).selectors
            labels = {label: value for label, _, value in series.matchers}
            told = {label: value for label, value in labels.items() if label not in FREE}
            words = all(value in exposition.values(series.name, label) for label, value in told.items())
            if labels.keys() != exposition.labels(series.name) or not words:
                unknown.append(f"{where}: {each['series']}")
    assert not unknown, "\n".join(unknown)


def test_the_scrape_configuration() -> None:
    """Prometheus takes it, with the rules; it scrapes the port that a server's metrics have by default."""
    file = DEPLOY / "prometheus" / "prometheus.yaml"
    checked = promtool("check", "config", "--lint=all", "--lint-fatal", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    content = yaml.safe_load(file.read_text())
    assert [(file.parent / name).resolve() for name in content["rule_files"]] == [RULES]
    (job,) = content["scrape_configs"]
    assert job["job_name"] == "basin"
    assert job["static_configs"] == [{"targets": [f"basin:{load_settings().metrics.rpartition(':')[2]}"]}]
