"""Writes basin.json, Grafana's dashboard of Basin, beside itself: `python deploy/grafana/dashboard.py`.

Grafana wants some thirty lines for a panel; what tells one from another is here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).with_name("basin.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Grafana's grid has so many columns.
COLUMNS = 24
#: Share that the availability objective leaves to failures.
BUDGET = 0.005

JOB = 'job="$job"'
SERVER = 'job="$job", instance=~"$instance"'
CHECKPOINT = f'{SERVER}, checkpoint=~"$checkpoint"'
#: Reasons of calls that were refused before any work.
REFUSALS = (
    'reason=~"QUEUE_FULL|DEADLINE_BEHIND_QUEUE|DEADLINE_TOO_SHORT|SEARCHES_FULL|BATCHES_FULL|TOO_MANY_INTAKES'
    '|QUOTA_EXCEEDED|TOKEN_.*|SCOPE_MISSING|SHUTTING_DOWN"'
)
GREEN, ORANGE, RED = "green", "orange", "red"
#: An expression, and the legend of what it gives.
Query = tuple[str, str]
Thresholds = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: shown above it.
        description: shown on its mark.
        queries: what it shows.
        unit: Grafana's name of it.
        kind: Grafana's name of the panel.
        width: columns.
        thresholds: values from which on a colour holds.
        base: the colour below the first threshold.
        stacked: whether series are drawn one on the other.
        most: upper end of the axis; None leaves it to the data.
        least: lower end of the axis.
        decimals: None leaves them to Grafana.
        names: words for values.
        nothing: shown where there is no result; "" leaves it to Grafana.
        hidden: labels that a table does not show.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    thresholds: Thresholds = ()
    base: str = GREEN
    stacked: bool = False
    most: float | None = None
    least: float | None = 0
    decimals: int | None = None
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    nothing: str = ""
    hidden: Sequence[str] = ()


def quantiles(metric: str, matchers: str, by: str = "", levels: Sequence[float] = (0.5, 0.95, 0.99)) -> list[Query]:
    """Queries for quantiles of a histogram, of all servers together."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    rate = f"sum by ({labels}) (rate({metric}_bucket{{{matchers}}}[$__rate_interval]))"
    return [(f"histogram_quantile({level}, {rate})", f"{legend}{level:.0%}") for level in levels]


def mean(metric: str, matchers: str, by: str, legend: str) -> Query:
    """A query for the mean of what a histogram has seen."""
    total, count = (
        f"sum by ({by}) (rate({metric}_{part}{{{matchers}}}[$__rate_interval]))" for part in ("sum", "count")
    )
    return f"{total} / ({count} > 0)", legend


def heatmap(metric: str, matchers: str) -> list[Query]:
    """The query for a heatmap of a histogram."""
    return [(f"sum by (le) (increase({metric}_bucket{{{matchers}}}[$__rate_interval]))", "{{le}}")]


def rate(metric: str, matchers: str, by: str) -> Query:
    """A query for how often something happens a second. What does not happen is not drawn: there are many reasons."""
    labels = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__rate_interval])) > 0", labels


def count(metric: str, matchers: str, by: str) -> Query:
    """A query for how often something rare happened."""
    labels = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return f"sum by ({by}) (increase({metric}{{{matchers}}}[$__rate_interval]))", labels


ROWS: dict[str, list[Panel]] = {
    "Objective": [
        Panel(
            "Availability, 30 days",
            "Share of the calls that did not fail through the server's fault. The objective is 99.5%; "
            "docs/operations.md has what counts.",
            [(f"1 - basin:rpcs_failed:ratio30d{{{JOB}}}", "availability")],
            "percentunit",
            "stat",
            width=4,
            base=RED,
            thresholds=[(1 - BUDGET, GREEN)],
            decimals=3,
            least=None,
        ),
        Panel(
            "Error budget left",
            "What is left of the failures that the objective allows in 30 days. Below zero the objective was missed.",
            [(f"1 - basin:rpcs_failed:ratio30d{{{JOB}}} / {BUDGET}", "left")],
            "percentunit",
            "stat",
            width=4,
            base=RED,
            thresholds=[(0, ORANGE), (0.25, GREEN)],
            decimals=1,
            least=None,
        ),
        Panel(
            "Alerts that fire",
            "By severity. Prometheus has the list; docs/operations.md says of each what to do.",
            [(f'count by (severity) (ALERTS{{{JOB}, alertname=~"Basin.*", alertstate="firing"}})', "{{severity}}")],
            kind="stat",
            width=4,
            thresholds=[(1, RED)],
            nothing="none",
        ),
        Panel(
            "Servers that answer Prometheus",
            "All that are known, and those that answered the last scrape.",
            [(f"count(up{{{JOB}}})", "known"), (f"sum(up{{{JOB}}})", "answer")],
            kind="stat",
            width=4,
            base=RED,
            thresholds=[(1, GREEN)],
        ),
        Panel(
            "Servers that take calls",
            "Ready: calls are accepted and all that is loaded at the start is there. Draining: about to stop.",
            [
                (f"sum(basin_ready{{{SERVER}}})", "ready"),
                (f"sum(basin_draining{{{SERVER}}})", "draining"),
            ],
            kind="stat",
            width=4,
        ),
        Panel(
            "Checkpoints loaded",
            "Over all servers.",
            [(f"sum(basin_checkpoints_loaded{{{SERVER}}})", "loaded")],
            kind="stat",
            width=4,
        ),
        Panel(
            "Burn rate",
            "How many times faster than the objective allows the error budget is spent. A page comes above 14.4 in an "
            "hour or 6 in six hours, a ticket above 3 in a day or 1 in three days, as long as it goes on.",
            [
                (f"basin:rpcs_failed:ratio{window}{{{JOB}}} / {BUDGET}", window)
                for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
            ],
            width=12,
            thresholds=[(1, ORANGE), (14.4, RED)],
        ),
        Panel(
            "Good and failed calls",
            "What the objective counts, averaged over five minutes. Calls that are refused for the caller's fault, its "
            "quota or a drain are neither.",
            [
                (f"basin:rpcs_good:increase5m{{{JOB}}} / 300", "good"),
                (f"basin:rpcs_failed:increase5m{{{JOB}}} / 300", "failed"),
            ],
            "reqps",
            width=6,
        ),
        Panel(
            "Audits that begin within 10 seconds",
            "The objective is 95% of an hour's audits.",
            [
                (f"basin:queue_wait_within_10s:ratio_rate5m{{{JOB}}}", "5 minutes"),
                (f"basin:queue_wait_within_10s:ratio_rate1h{{{JOB}}}", "an hour"),
            ],
            "percentunit",
            width=6,
            base=RED,
            thresholds=[(0.95, GREEN)],
            most=1,
        ),
    ],
    "Traffic and errors": [
        Panel(
            "Calls by method",
            "Calls that ended, a second. Health checks and reflection are not counted.",
            [rate("basin_rpcs_total", SERVER, "method")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Calls by code",
            "Canonical codes of the calls that ended.",
            [rate("basin_rpcs_total", SERVER, "code")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Errors by reason",
            "The reasons of docs/wire.md. OTHER: faults of the request itself.",
            [rate("basin_errors_total", SERVER, "reason")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Duration of calls, 95%",
            "Nineteen of twenty calls of a method end sooner. Streams last as long as their audits.",
            quantiles("basin_rpc_seconds", SERVER, "method", (0.95,)),
            "s",
        ),
        Panel(
            "Audits without a verdict",
            "Audits that ended in an error, by checkpoint and code. No checkpoint: the request named none.",
            [rate("basin_audits_total", f'{CHECKPOINT}, code!="OK"', "checkpoint, code")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Refused for want of room",
            "Share of what callers asked for in 15 minutes that was refused because too much waits.",
            [(f"basin:rpcs_shed:ratio_increase15m{{{JOB}}}", "refused")],
            "percentunit",
            thresholds=[(0.05, RED)],
            most=1,
        ),
    ],
    "Duration of audits": [
        Panel(
            "Duration",
            "Seconds that audits took, without waiting.",
            quantiles("basin_audit_seconds", SERVER),
            "s",
        ),
        Panel(
            "Duration, how many",
            "Audits by the seconds that they took.",
            heatmap("basin_audit_seconds", SERVER),
            "s",
            "heatmap",
        ),
        Panel(
            "Mean by stage",
            "Where an audit's time goes.",
            [mean("basin_audit_stage_seconds", SERVER, "stage", "{{stage}}")],
            "s",
            stacked=True,
        ),
        Panel(
            "Slow stages, 95%",
            "Nineteen of twenty audits spend less time in a stage.",
            quantiles("basin_audit_stage_seconds", SERVER, "stage", (0.95,)),
            "s",
            width=12,
        ),
        Panel(
            "Audits",
            "Audits that ended in a verdict, a second.",
            [rate("basin_audits_total", f'{CHECKPOINT}, code="OK"', "checkpoint")],
            "reqps",
            width=12,
        ),
    ],
    "Queue and admission": [
        Panel(
            "Evaluations that wait or are at work",
            "Denoiser evaluations planned by audits that are there. More than the limit is refused.",
            [
                (f"basin_queue_evaluations{{{SERVER}}}", "{{instance}}"),
                (f"max(basin_queue_evaluations_limit{{{SERVER}}})", "limit of a server"),
            ],
        ),
        Panel(
            "Queue in use",
            "Share of the limit that is taken.",
            [
                (
                    f"basin_queue_evaluations{{{SERVER}}} / (basin_queue_evaluations_limit{{{SERVER}}} > 0)",
                    "{{instance}}",
                )
            ],
            "percentunit",
            thresholds=[(0.9, RED)],
            most=1,
        ),
        Panel(
            "Audits that wait and are at work",
            "Over all servers.",
            [
                (f"sum(basin_queue_depth{{{SERVER}}})", "wait"),
                (f"sum(basin_audits_in_flight{{{SERVER}}})", "at work"),
            ],
            stacked=True,
        ),
        Panel(
            "Wait",
            "Seconds between an audit's arrival and its begin.",
            quantiles("basin_queue_wait_seconds", SERVER),
            "s",
            width=12,
            thresholds=[(10, RED)],
        ),
        Panel(
            "Refusals",
            "Calls that were refused for load, quotas or who made them.",
            [
                rate(
                    "basin_errors_total",
                    f"{SERVER}, {REFUSALS}",
                    "reason",
                )
            ],
            "reqps",
            width=12,
            stacked=True,
        ),
    ],
    "Forward passes": [
        Panel(
            "Rows in a forward pass",
            "Evaluations of several audits and batches are merged. The more rows, the better a device is used.",
            [mean("basin_forward_pass_rows", SERVER, "instance", "{{instance}}")],
        ),
        Panel(
            "Rows, how many passes",
            "Forward passes by their rows.",
            heatmap("basin_forward_pass_rows", SERVER),
            kind="heatmap",
        ),
        Panel(
            "Seconds of a forward pass",
            "Of whatever size it is.",
            quantiles("basin_forward_pass_seconds", SERVER),
            "s",
        ),
        Panel(
            "Denoiser evaluations",
            "Rows a second, for callers' audits and for batches; and those saved where an answer was settled before.",
            [
                rate("basin_denoiser_evaluations_total", CHECKPOINT, "checkpoint, work"),
                (
                    f"-sum by (checkpoint) (rate(basin_denoiser_evaluations_saved_total{{{CHECKPOINT}}}"
                    "[$__rate_interval]))",
                    "{{checkpoint}} saved",
                ),
            ],
            "ops",
            stacked=True,
        ),
        Panel(
            "Seconds for a row",
            "What one evaluation costs. It falls as more rows share a forward pass.",
            [
                (
                    f"sum by (instance) (rate(basin_forward_pass_seconds_sum{{{SERVER}}}[$__rate_interval])) / "
                    f"(sum by (instance) (rate(basin_forward_pass_rows_sum{{{SERVER}}}[$__rate_interval])) > 0)",
                    "{{instance}}",
                )
            ],
            "s",
        ),
        Panel(
            "Failures of models",
            "Audits that ended because a model gave values that are not finite, or ran out of memory.",
            [count("basin_model_failures_total", CHECKPOINT, "checkpoint, kind")],
            thresholds=[(1, RED)],
        ),
    ],
    "Verdicts, confidence and drift": [
        Panel(
            "Verdicts",
            "Of callers' audits, a second.",
            [rate("basin_audits_total", f'{CHECKPOINT}, code="OK"', "checkpoint, verdict")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Screened prompts",
            "Prompts screened on pure noise, a second, and which of them were flagged.",
            [rate("basin_screened_prompts_total", CHECKPOINT, "checkpoint, flagged")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Inspected images",
            "Images inspected as samples of a checkpoint, a second, by verdict; none where nothing told.",
            [rate("basin_inspected_images_total", CHECKPOINT, "checkpoint, verdict")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Shares of verdicts in an hour",
            "The last hour of each checkpoint, and the day before it.",
            [
                (f'basin:verdicts:share1h{{{JOB}, checkpoint=~"$checkpoint"}}', "{{checkpoint}} {{verdict}}"),
                (
                    f'basin:verdicts:share1d_before{{{JOB}, checkpoint=~"$checkpoint"}}',
                    "{{checkpoint}} {{verdict}}, the day before",
                ),
            ],
            "percentunit",
            most=1,
        ),
        Panel(
            "Drift",
            "How far the shares of the last hour are from those of the day before. With enough audits, 20 points make "
            "a ticket.",
            [
                (
                    f'basin:verdicts:share1h{{{JOB}, checkpoint=~"$checkpoint"}} - '
                    f'basin:verdicts:share1d_before{{{JOB}, checkpoint=~"$checkpoint"}}',
                    "{{checkpoint}} {{verdict}}",
                )
            ],
            "percentunit",
            least=None,
            base=RED,
            thresholds=[(-0.2, GREEN), (0.2, RED)],
        ),
        Panel(
            "Mean confidence by verdict",
            "From 1/3, which is none, to 1.",
            [mean("basin_confidence", SERVER, "verdict", "{{verdict}}")],
            "percentunit",
            most=1,
        ),
        Panel(
            "Low confidence",
            "One verdict of ten is less sure than this.",
            quantiles("basin_confidence", SERVER, "verdict", (0.1,)),
            "percentunit",
            most=1,
        ),
        Panel(
            "Mean confidence against the day before",
            "Over all verdicts. A fall by 15 points makes a ticket.",
            [
                (f"basin:confidence:mean1h{{{JOB}}}", "the last hour"),
                (f"basin:confidence:mean1d_before{{{JOB}}}", "the day before"),
            ],
            "percentunit",
            most=1,
        ),
    ],
    "Checkpoints and reference sets": [
        Panel(
            "Checkpoints in memory",
            "Of each server, over time.",
            [(f"basin_checkpoint_loaded{{{CHECKPOINT}}}", "{{checkpoint}} on {{instance}}")],
            kind="state-timeline",
            width=12,
            names={"0": ("not loaded", "text"), "1": ("loaded", GREEN)},
        ),
        Panel(
            "Memory of checkpoints",
            "Bytes of their weights, of each server.",
            [(f"basin_checkpoint_memory_bytes{{{CHECKPOINT}}}", "{{checkpoint}} on {{instance}}")],
            "bytes",
            width=12,
            stacked=True,
        ),
        Panel(
            "Last loading",
            "Seconds that it took.",
            [(f"basin_checkpoint_load_seconds{{{CHECKPOINT}}}", "{{checkpoint}} on {{instance}}")],
            "s",
            "bargauge",
        ),
        Panel(
            "Age of calibrations",
            "Since each was made, by its digest. A checkpoint without one of its own is judged by built-in defaults.",
            [
                (
                    f"(time() - max by (checkpoint) (basin_calibration_timestamp_seconds{{{CHECKPOINT}}} > 0)) * "
                    f"on (checkpoint) group_left (digest) group by (checkpoint, digest) "
                    f"(basin_calibration_info{{{CHECKPOINT}}})",
                    "{{checkpoint}} {{digest}}",
                )
            ],
            "s",
            "bargauge",
        ),
        Panel(
            "Loads and evictions",
            "Checkpoints loaded, not loaded, and unloaded to make room.",
            [
                count("basin_checkpoint_loads_total", CHECKPOINT, "checkpoint, result"),
                (f"sum(increase(basin_checkpoint_evictions_total{{{SERVER}}}[$__rate_interval]))", "evicted"),
            ],
        ),
        Panel(
            "Reference images",
            "In each loaded reference set.",
            [(f"max by (reference) (basin_reference_images{{{SERVER}}})", "{{reference}}")],
            kind="bargauge",
            width=4,
        ),
        Panel(
            "Search with an image or words",
            "Seconds of SearchReference.",
            quantiles("basin_reference_search_seconds", SERVER, levels=(0.5, 0.95)),
            "s",
            width=4,
        ),
        Panel(
            "Images that callers send",
            "For reference sets, by what became of them.",
            [count("basin_received_images_total", SERVER, "result")],
            width=8,
        ),
        Panel(
            "Reference sets of callers",
            "On each server that has them.",
            [(f"max(basin_created_references{{{SERVER}}})", "sets")],
            kind="stat",
            width=4,
        ),
        Panel(
            "Bytes of callers' sets",
            "That reference sets of callers take.",
            [(f"max(basin_created_reference_bytes{{{SERVER}}})", "bytes")],
            "bytes",
            width=4,
        ),
    ],
    "Batches and their store": [
        Panel(
            "Batches by state",
            "In the store. Every server on it says the same.",
            [(f"max by (state) (basin_batches{{{SERVER}}})", "{{state}}")],
            width=6,
        ),
        Panel(
            "Items of running batches",
            "An item is a prompt for a checkpoint.",
            [(f"max by (state) (basin_batch_items{{{SERVER}}})", "{{state}}")],
            width=6,
            stacked=True,
        ),
        Panel(
            "Open items",
            "Items of running batches that wait or are worked on: what BasinBatchStalled watches.",
            [(f"basin:batch_items_open:sum{{{JOB}}}", "open")],
            width=6,
        ),
        Panel(
            "Last batch that was done",
            "Time since then. Empty before the first one since a server's start.",
            [
                (
                    f"time() - max(basin_batch_last_success_timestamp_seconds{{{SERVER}}} > 0)",
                    "ago",
                )
            ],
            "s",
            "stat",
            width=6,
        ),
        Panel(
            "Audits of batches",
            "Those that ended, by verdict; without one they failed.",
            [rate("basin_batch_audits_total", CHECKPOINT, "checkpoint, verdict, result")],
            "ops",
            stacked=True,
        ),
        Panel(
            "Statements of the store, 95%",
            "Nineteen of twenty take less time.",
            quantiles("basin_store_seconds", SERVER, "operation", (0.95,)),
            "s",
            thresholds=[(1, RED)],
        ),
        Panel(
            "Errors of the store",
            "Times that it could not do its work.",
            [count("basin_store_errors_total", SERVER, "instance")],
            thresholds=[(5, RED)],
        ),
    ],
    "Processes and GPUs": [
        Panel(
            "Memory",
            "Resident bytes.",
            [(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}")],
            "bytes",
        ),
        Panel(
            "CPU",
            "Cores in use.",
            [(f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])", "{{instance}}")],
        ),
        Panel(
            "File descriptors",
            "Share of those that a process may have open.",
            [(f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}")],
            "percentunit",
            thresholds=[(0.8, RED)],
            most=1,
        ),
        Panel(
            "GPU memory",
            "Used by whomever, and all. Empty without a GPU.",
            [(f"basin_gpu_memory_bytes{{{SERVER}}}", "{{instance}} {{device}} {{kind}}")],
            "bytes",
        ),
        Panel(
            "GPU memory in use",
            "Share of each GPU. Empty without one.",
            [
                (
                    f'basin_gpu_memory_bytes{{{SERVER}, kind="used"}} / ignoring (kind) '
                    f'(basin_gpu_memory_bytes{{{SERVER}, kind="total"}} > 0)',
                    "{{instance}} {{device}}",
                )
            ],
            "percentunit",
            thresholds=[(0.95, RED)],
            most=1,
        ),
        Panel(
            "Running for",
            "Time since each server started.",
            [(f"time() - process_start_time_seconds{{{SERVER}}}", "{{instance}}")],
            "s",
            "bargauge",
            width=4,
        ),
        Panel(
            "Certificate expires in",
            "Empty without TLS.",
            [(f"(basin_certificate_expiry_timestamp_seconds{{{SERVER}}} > 0) - time()", "{{instance}}")],
            "s",
            "stat",
            width=4,
            base=RED,
            thresholds=[(2 * 86400, ORANGE), (14 * 86400, GREEN)],
            least=None,
        ),
        Panel(
            "Versions",
            "Of Basin and of the libraries that decide numbers, on each server.",
            [(f"basin_build_info{{{SERVER}}}", "")],
            kind="table",
            width=24,
            hidden=("Time", "Value", "__name__", "job"),
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            tall = 4 if panel.kind == "stat" else 8
            height = max(height, tall)
            panels.append({**_panel(panel), "gridPos": {"x": left, "y": top, "w": panel.width, "h": tall}})
            left += panel.width
        top += height
    for number, drawn in enumerate(panels, 1):
        drawn["id"] = number
    return {
        "uid": "basin",
        "title": "Basin",
        "description": "Audits of prompts against latent diffusion checkpoints: docs/operations.md explains it.",
        "tags": ["basin"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, label: str, query: str, *, everything: str = "") -> dict[str, Any]:
        shown, value = ("All", "$__all") if everything else ("basin", "basin")
        return {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": SOURCE,
            "definition": query,
            "query": {"qryType": 1, "query": query, "refId": "variables"},
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "hide": 0,
            "regex": "",
            "skipUrlSync": False,
            "multi": bool(everything),
            "includeAll": bool(everything),
            "allValue": everything or None,
            "current": {"text": shown, "value": value},
            "options": [],
        }

    return [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "current": {},
            "refresh": 1,
            "hide": 0,
            "regex": "",
            "skipUrlSync": False,
            "multi": False,
            "includeAll": False,
            "options": [],
        },
        labels("job", "Job", "label_values(basin_build_info, job)"),
        labels("instance", "Server", f"label_values(basin_build_info{{{JOB}}}, instance)", everything=".+"),
        # Also those of requests that name no checkpoint that is there.
        labels(
            "checkpoint", "Checkpoint", f"label_values(basin_checkpoint_loaded{{{JOB}}}, checkpoint)", everything=".*"
        ),
    ]


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind in ("table", "bargauge")
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
            "instant": instant,
            "range": not instant,
        }
        for number, (expression, legend) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [
                {"color": panel.base, "value": None},
                *({"color": color, "value": value} for value, color in panel.thresholds),
            ],
        },
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "custom": _custom(panel),
        "mappings": _mappings(panel),
    }
    optional = (
        ("min", panel.least),
        ("max", panel.most),
        ("decimals", panel.decimals),
        ("noValue", panel.nothing or None),
    )
    for key, value in optional:
        if value is not None:
            defaults[key] = value
    drawn = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    }
    if panel.kind == "table":
        hidden = dict.fromkeys(panel.hidden, True)
        drawn["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return drawn


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
        }
    if panel.kind == "state-timeline":
        return {"fillOpacity": 70, "lineWidth": 0}
    return {}


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    words = {value: {"text": word, "color": color} for value, (word, color) in panel.names.items()}
    return [{"type": "value", "options": words}] if words else []


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    options: dict[str, dict[str, Any]] = {
        "timeseries": {
            "legend": {**legend, "displayMode": "table", "calcs": ["mean", "lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {
            "reduceOptions": last,
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "wideLayout": True,
        },
        "bargauge": {
            "reduceOptions": last,
            "displayMode": "basic",
            "orientation": "horizontal",
            "showUnfilled": True,
            "valueMode": "color",
        },
        "heatmap": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        },
        "state-timeline": {
            "alignValue": "left",
            "legend": legend,
            "mergeValues": True,
            "rowHeight": 0.9,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        "table": {"cellHeight": "sm", "showHeader": True, "footer": {"show": False, "reducer": ["sum"], "fields": ""}},
    }
    return options[panel.kind]


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
