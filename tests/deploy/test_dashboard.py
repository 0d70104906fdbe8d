"""Every query of the dashboard and of the rules, against what a server really exposes."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.exposition import DEPLOY, Exposition, Series, evaluate, promtool
from tests.deploy.promql import read
from tests.deploy.rules import alerts, recordings, rules

GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "basin.json").read_text())
#: What Grafana puts in place of its variables: a job, and whatever there is of the rest.
VARIABLES = {"job": "basin", "instance": ".+", "checkpoint": ".*", "__rate_interval": "5m"}
#: Metrics that a server exposes and nobody looks at here, with the reason.
UNUSED = {
    "process_virtual_memory_bytes": "address space, most of which is never touched, says nothing of memory in use",
}
_LABEL = re.compile(r"\{\{(\w+)\}\}")


def _panels() -> list[dict[str, Any]]:
    """All but the rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def _queries() -> Iterator[tuple[str, str, str]]:
    """Title of the panel, expression and legend of every query."""
    for panel in _panels():
        for target in panel["targets"]:
            yield panel["title"], _filled(target["expr"]), target["legendFormat"]


def _filled(expression: str) -> str:
    """An expression as Prometheus gets it."""
    return re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], expression)


def _lists() -> dict[str, tuple[str, str]]:
    """Selector and label that each variable of the dashboard lists the values of."""
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert query is not None
            found[variable["name"]] = (_filled(query[1]), query[2])
    return found


def _expressions() -> dict[str, str]:
    """All expressions, with where they are."""
    found = {f"panel {title!r}, {expression}": expression for title, expression, _ in _queries()}
    found |= {f"variable {name}": selector for name, (selector, _) in _lists().items()}
    return found | {f"rule {rule}": rule.expression for rule in rules()}


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    """All are PromQL, once Grafana has filled in its variables."""
    recorded = [{"record": f"a:b:c{number}", "expr": query} for number, query in enumerate(_expressions().values())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    checked = promtool("check", "rules", "--lint=none", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_queries_read_what_is_exposed(exposition: Exposition) -> None:
    """Every series that is asked for is there: its name, its labels and every word that they are compared with."""
    problems = []
    for where, expression in _expressions().items():
        for selector in read(expression).selectors:
            known = exposition.labels(selector.name)
            absent = {label for label, _, _ in selector.matchers} - known
            nothing = [each for each in (selector, *selector.alternatives()) if not exposition.has(each)]
            if not known:
                problems.append(f"{where}: nobody exposes {selector.name}")
            elif absent:
                problems.append(f"{where}: {selector.name} has no {sorted(absent)}")
            elif nothing:
                problems.append(f"{where}: nothing is {nothing[0]}")
    assert not problems, "\n".join(problems)


def test_queries_group_by_labels_that_are_there(exposition: Exposition) -> None:
    """A label that nothing has would silently put everything into one group."""
    problems = []
    for where, expression in _expressions().items():
        for clause in read(expression).clauses:
            known = {label for selector in clause.selectors for label in exposition.labels(selector.name)}
            problems += [f"{where}: nothing has {label}" for label in clause.labels if label not in known]
    assert not problems, "\n".join(problems)


def test_everything_that_is_recorded_is_there(exposition: Exposition) -> None:
    """On a server where something of every kind happens, every recording rule records."""
    assert [name for name in recordings() if not exposition.labels(name)] == []


def test_variables_list_labels_that_are_there(exposition: Exposition) -> None:
    """Each variable of the dashboard finds its values on a server."""
    for selector, label in _lists().values():
        (read_from,) = read(selector).selectors
        assert label in exposition.labels(read_from.name)


def test_every_query_has_a_result(exposition: Exposition, tmp_path: Path) -> None:
    """On a server where something of every kind happens, no panel is empty, and every legend has its labels."""
    series = [each for each in exposition.series if each.values]
    results = evaluate({expression for _, expression, _ in _queries()}, series, tmp_path)
    empty = [f"{title}: {expression}" for title, expression, _ in _queries() if not results[expression]]
    assert not empty, "\n".join(empty)
    for title, expression, legend in _queries():
        found = results[expression]
        # To Prometheus, an empty label is none: not every result has all.
        assert set(_LABEL.findall(legend)) <= {label for labels in found for label in labels}, f"{title}: {legend}"
        assert len({_legend(legend, labels) for labels in found}) == len(found), f"{title}: {legend} of {found}"


def _legend(legend: str, labels: Mapping[str, str]) -> str:
    return _LABEL.sub(lambda found: labels.get(found[1], ""), legend) if legend else str(labels)


def test_every_metric_is_looked_at(own_series: list[Series]) -> None:
    """What servers expose is in the dashboard or in a rule, or it is said why not."""
    used = {selector.name for expression in _expressions().values() for selector in read(expression).selectors}
    families: dict[str, set[str]] = {}
    for series in own_series:
        families.setdefault(series.family, set()).add(series.name)
    unused = {family for family, names in families.items() if not names & used}
    assert unused == set(UNUSED)


def test_everything_that_is_recorded_is_used() -> None:
    """A recording that no panel, no alert and no other recording reads is a burden."""
    used = {selector.name for expression in _expressions().values() for selector in read(expression).selectors}
    assert set(recordings()) <= used


def test_the_file_is_what_the_script_writes() -> None:
    """Whoever changes the one writes the other anew: python deploy/grafana/dashboard.py."""
    script = runpy.run_path(str(GRAFANA / "dashboard.py"))
    assert (GRAFANA / "basin.json").read_text() == script["text"]()


def test_panels_explain_themselves() -> None:
    """Each has a title of its own, a description, a unit, legends, and its data source from the variable."""
    panels = _panels()
    assert len({panel["title"] for panel in panels}) == len(panels)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == source
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["legendFormat"] or panel["type"] == "table", panel["title"]


def test_thresholds_ascend() -> None:
    """Grafana colours by the last step that is reached: the first has no value, and the others go up."""
    for panel in _panels():
        first, *others = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert first is None
        assert others == sorted(set(others)), panel["title"]


def test_panels_lie_side_by_side() -> None:
    """None lies on another one or out of the grid, and each has an id of its own."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_the_objective_is_the_same_everywhere() -> None:
    """What the dashboard divides by and the alerts compare with is what the objective leaves."""
    text = " ".join(rule.expression for rule in alerts() if rule.name == "BasinErrorBudgetBurn")
    budgets = set(re.findall(r"\* (0\.\d+)", text))
    drawn = {found for _, expression, _ in _queries() for found in re.findall(r"ratio\w+\{[^}]*\} / (\S+)", expression)}
    assert budgets == drawn == {"0.005"}


def test_the_document_names_panels_that_are_there() -> None:
    """What an alert's section tells to look at, in italics, is on the dashboard."""
    section = (DEPLOY.parent / "docs" / "operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    prose = re.sub(r"```.*?```|`[^`]*`", "", section, flags=re.DOTALL)
    named = {" ".join(words.split()) for words in re.findall(r"\*([^*]+)\*", prose)}
    assert len(named) > 10
    assert named <= {panel["title"] for panel in _panels()}


def test_grafana_finds_its_files() -> None:
    """The data source is the Prometheus beside it, and dashboards are where they are mounted."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/basin.yaml").read_text())["providers"]
    assert provider["options"] == {"path": "/var/lib/grafana/dashboards"}
