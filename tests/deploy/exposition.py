"""The series that Prometheus has of a server, and what promtool makes of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promql import Selector

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
#: What Prometheus says of where it scraped.
TARGET = {"job": "basin", "instance": "basin:9464"}
#: As much as the windows that look back an hour or further need.
_MINUTES = 150


@dataclass(frozen=True)
class Series:
    """One series of a metric.

    Attributes:
        name: of the series: that of its metric, with what histograms append.
        labels: its own and its target's.
        family: name of its metric.
        values: in promtool's notation, such that everything that can grow does.
    """

    name: str
    labels: Mapping[str, str]
    family: str
    values: str

    def __str__(self) -> str:
        return self.name + "{" + ", ".join(f"{label}={json.dumps(value)}" for label, value in self.labels.items()) + "}"


class Exposition:
    """What is known of series by their names.

    Args:
        series: all of them.
    """

    def __init__(self, series: Iterable[Series]) -> None:
        self.series = tuple(series)
        self._labels: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        for each in self.series:
            self._labels[each.name].append(each.labels)

    def has(self, selector: Selector) -> bool:
        """Whether something is selected."""
        return any(selector.allows(labels) for labels in self._labels.get(selector.name, ()))

    def labels(self, name: str) -> frozenset[str]:
        """Labels of the series of a name."""
        return frozenset(label for labels in self._labels.get(name, ()) for label in labels)

    def values(self, name: str, label: str) -> frozenset[str]:
        """What a label can be."""
        return frozenset(labels.get(label, "") for labels in self._labels.get(name, ()))


def scraped(text: str) -> list[Series]:
    """The series of a scrape, as if something of every kind happened once a minute."""
    found = []
    for family in text_string_to_metric_families(text):
        buckets: dict[tuple[tuple[str, str], ...], int] = defaultdict(int)
        for sample in family.samples:
            rest = tuple(pair for pair in sample.labels.items() if pair[0] != "le")
            slope = 1
            if family.type == "histogram":  # one more in every bucket; `_count` and `_sum` come last
                buckets[rest] += sample.name.endswith("_bucket")
                slope = buckets[rest]
            grows = family.type in ("counter", "histogram")
            values = f"0+{slope}x{_MINUTES}" if grows else f"{sample.value or 1}x{_MINUTES}"
            found.append(Series(sample.name, {**TARGET, **sample.labels}, family.name, values))
    return found


def elsewhere() -> list[Series]:
    """Series that the servers of the tests do not have: what Prometheus adds, and what needs a GPU."""
    constant = f"1x{_MINUTES}"
    alert = {"alertname": "BasinDown", "alertstate": "firing", "severity": "page"}
    gpu = "basin_gpu_memory_bytes"
    return [
        Series("up", TARGET, "up", constant),
        Series("ALERTS", {**TARGET, **alert}, "ALERTS", constant),
        *(Series(gpu, {**TARGET, "device": "cuda:0", "kind": kind}, gpu, constant) for kind in ("used", "total")),
    ]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def evaluate(expressions: Iterable[str], series: Iterable[Series], folder: Path) -> dict[str, list[dict[str, str]]]:
    """Labels of what each expression gives, as Prometheus works it out, with the recording rules loaded.

    promtool prints results only where they are not what was expected; so something impossible is expected, that also
    tells which expression it is.
    """
    numbered = dict(enumerate(expressions))
    impossible = [
        {
            # NaN is at least as large as nothing: what is undefined counts as no result.
            "expr": f"({expression}\n) >= -Inf",
            "eval_time": f"{_MINUTES - 10}m",
            "exp_samples": [{"labels": f'{{number="{number}"}}', "value": 0}],
        }
        for number, expression in numbered.items()
    ]
    inputs = [{"series": str(each), "values": each.values} for each in series]
    case = {"interval": "1m", "input_series": inputs, "promql_expr_test": impossible}
    file = folder / "evaluate.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": [case]}))
    done = promtool("test", "rules", file)
    answers = re.findall(r'exp: \{number="(\d+)"\} 0E\+00\n\s*got: (.*)', done.stdout + done.stderr)
    assert len(answers) == len(numbered), done.stdout + done.stderr
    results: dict[str, list[dict[str, str]]] = {}
    for number, answer in answers:
        sets = re.findall(r'\{((?:\w+="(?:[^"\\]|\\.)*"(?:, )?)*)\}', answer)
        results[numbered[int(number)]] = [
            {label: json.loads(value) for label, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', found)}
            for found in sets
        ]
    return results
