"""What stands around the servers: network, scaling, monitoring and the hooks of a release."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.chart import ROOT, VALUES, container, find, kinds, pod, render, selects, server


def test_only_grpc_is_open_to_the_outside() -> None:
    """The Service that may be a load balancer serves neither metrics nor the plaintext health port."""
    service = find(render("secured"), "Service", "basin")["spec"]
    assert service["type"] == "LoadBalancer"
    assert [(port["name"], port["port"], port["targetPort"]) for port in service["ports"]] == [("grpc", 443, "grpc")]


@pytest.mark.parametrize(("name", "there"), [("defaults", False), ("postgresql", True), ("hpa", True), ("keda", True)])
def test_the_budget_is_for_more_than_one_server(name: str, there: bool) -> None:
    """A budget for one server would keep its node from ever being drained."""
    assert ("PodDisruptionBudget" in kinds(render(name))) is there


@pytest.mark.parametrize(
    ("name", "kind"), [("postgresql", None), ("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")]
)
def test_one_scaler_at_most(name: str, kind: str | None) -> None:
    """Who scales decides about the number of servers, and the chart does not set it then."""
    objects = render(name)
    assert kinds(objects) & {"HorizontalPodAutoscaler", "ScaledObject"} == ({kind} if kind else set())
    assert ("replicas" in server(objects)["spec"]) is (kind is None)
    if kind:
        target = find(objects, kind)["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", server(objects)["metadata"]["name"])


def test_scalers_look_at_waiting_work() -> None:
    """Both take the evaluations that wait or are at work, per server."""
    (metric,) = find(render("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "basin_queue_evaluations"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "15000"}
    (trigger,) = find(render("keda"), "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'sum(basin_queue_evaluations{namespace="audits", pod=~"basin-[^-]+-[^-]+"})'
    assert (trigger["metadata"]["threshold"], trigger["metricType"]) == ("20000", "AverageValue")


def test_the_policy_admits_grpc_probes_and_metrics_alone() -> None:
    """By default three ports can be reached, and only names and the database be asked."""
    policy = find(render("postgresql"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["grpc", "health", "metrics"]
    assert [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]] == [
        ("UDP", 53), ("TCP", 53), ("TCP", 6432),
    ]  # fmt: skip
    assert len(find(render(), "NetworkPolicy")["spec"]["egress"]) == 1


def test_the_policy_narrows_who_may_call() -> None:
    """Callers and Prometheus may be named; probes come from nodes, which cannot be."""
    values = yaml.safe_load(VALUES["secured"].read_text())["networkPolicy"]
    policy = find(render("secured"), "NetworkPolicy")["spec"]
    sources = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert sources == {"grpc": values["grpcFrom"], "health": None, "metrics": values["metricsFrom"]}


def test_the_policy_can_be_left_out() -> None:
    """Where another one is there."""
    assert "NetworkPolicy" not in kinds(render("sqlite-ephemeral"))


def test_monitoring_is_off_unless_asked_for() -> None:
    """A cluster without the operator's types takes the defaults."""
    assert kinds(render()) & {"ServiceMonitor", "PrometheusRule"} == set()
    assert [one["metadata"]["name"] for one in render() if one["kind"] == "ConfigMap"] == ["basin"]


def test_the_monitor_finds_the_metrics() -> None:
    """It selects one Service, by labels and port, and names the job as rules and dashboard know it."""
    objects = render("monitoring")
    monitor = find(objects, "ServiceMonitor")["spec"]
    services = [one for one in objects if one["kind"] == "Service" and selects(monitor["selector"], one)]
    assert [one["metadata"]["name"] for one in services] == ["basin-headless"]
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in services[0]["spec"]["ports"]]
    assert monitor["endpoints"][0]["relabelings"] == [{"targetLabel": "job", "replacement": "basin/audits/basin"}]


def test_rules_and_dashboard_are_those_of_the_repository() -> None:
    """What Prometheus and Grafana get in the cluster is what they get elsewhere."""
    objects = render("monitoring")
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())
    assert find(objects, "PrometheusRule")["spec"] == rules
    dashboard = find(objects, "ConfigMap", "basin-dashboard")
    assert dashboard["data"]["basin.json"].rstrip() == (ROOT / "deploy/grafana/basin.json").read_text().rstrip()
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(("name", "claim"), [("step-back", None), ("step-back-sqlite", "data-basin-0")])
def test_stepping_back_has_no_servers(name: str, claim: str | None) -> None:
    """All servers are gone, however many there were to be, before the job undoes the newest tables."""
    objects = render(name)
    assert server(objects)["spec"]["replicas"] == 0
    assert kinds(objects) & {"PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"} == set()
    job = find(objects, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-upgrade"
    assert container(job, "migrate")["args"] == ["store", "migrate", "--to", "0001"]
    grace = pod(server(objects))["terminationGracePeriodSeconds"]
    command, seconds = container(job, "wait-for-servers")["command"]
    assert (command, int(seconds) > grace) == ("sleep", True)
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod(job)["volumes"] if volume["name"] == "data"
    ]
    assert claims == ([claim] if claim else [])


def test_stepping_back_stops_the_scaler() -> None:
    """It would start servers again."""
    objects = render("keda", store={"migrations": {"to": "0001"}})
    assert "ScaledObject" not in kinds(objects)
    assert server(objects)["spec"]["replicas"] == 0


def test_the_hook_needs_nothing_of_the_release() -> None:
    """Before an installation there is no ConfigMap, service account or claim of it."""
    spec = pod(find(render("postgresql"), "Job"))
    assert "serviceAccountName" not in spec
    assert [list(volume) for volume in spec["volumes"]] == [["name", "emptyDir"]]
    assert find(render("postgresql"), "Job")["metadata"]["annotations"]["helm.sh/hook"].split(",") == [
        "pre-install", "pre-upgrade", "pre-rollback",
    ]  # fmt: skip
