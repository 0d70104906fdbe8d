"""What the chart makes, for every file of values and every version of Kubernetes."""

from __future__ import annotations

import copy

import pytest

from tests.deploy.chart import CHART, VALUES, container, find, helm, pod, pods, render, selects, server, settings
from tests.deploy.schemas import VERSIONS, problems


@pytest.mark.parametrize("name", VALUES)
def test_lints(name: str) -> None:
    """Helm has nothing to say against the chart, warnings included."""
    done = helm("lint", "--strict", CHART, "--values", VALUES[name])
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    """The strict schemas of Kubernetes, and those written down for custom resources, hold for every object."""
    found = {f"{one['kind']} {one['metadata']['name']}": problems(one, version) for one in render(name)}
    assert {where: why for where, why in found.items() if why} == {}


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    """The check above finds what the API server would refuse."""
    for change, why in (
        (lambda pod: pod.update(replicas=1), "'replicas' was unexpected"),
        (lambda pod: pod["containers"][0]["livenessProbe"]["grpc"].update(port="health"), "is not of type 'integer'"),
        (lambda pod: pod["containers"][0]["resources"]["limits"].update(memory="4GB"), "'4GB'"),
        (lambda pod: pod["volumes"][0].update(name="no name"), "'no name'"),
    ):
        broken = copy.deepcopy(server(render()))
        change(pod(broken))
        assert any(why in problem for problem in problems(broken, VERSIONS[-1]))
    broken = copy.deepcopy(find(render("ray-cluster"), "RayCluster"))
    broken["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["img"] = "basin"
    assert "'img' was unexpected" in problems(broken, VERSIONS[0])[0]


def test_older_kubernetes_is_refused() -> None:
    """Before 1.30, sidecars or sleeping in preStop were off."""
    done = helm("template", CHART, "--kube-version", "1.29.9")
    assert done.returncode != 0
    assert "incompatible with Kubernetes v1.29.9" in done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_restricted(name: str) -> None:
    """No pod asks for more than the standard `restricted` lets it have, and no root file system can be written."""
    objects = render(name)
    assert len(pods(objects)) >= 2
    for where, template in pods(objects):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), where
        for one in [*spec.get("initContainers", []), *spec["containers"]]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }, where
            assert "memory" in one["resources"]["limits"], where
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), where


@pytest.mark.parametrize("name", VALUES)
def test_every_mount_has_its_volume(name: str) -> None:
    """Containers mount volumes that their pod has, and no volume is there for nobody."""
    for where, template in pods(render(name)):
        spec = template["spec"]
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        mounted = {mount["name"] for one in containers for mount in one.get("volumeMounts", [])}
        volumes = [volume["name"] for volume in spec.get("volumes", [])]
        if where.startswith("StatefulSet"):
            claims = server(render(name))["spec"].get("volumeClaimTemplates", [])
            volumes += [claim["metadata"]["name"] for claim in claims]
        assert sorted(mounted) == sorted(volumes), where


@pytest.mark.parametrize("name", VALUES)
def test_selectors_select_the_servers_alone(name: str) -> None:
    """Services, budget, policy and workload mean the servers' pods, and neither those of jobs nor of Ray."""
    objects = render(name)
    made = {where: pod for where, pod in pods(objects) if not where.startswith("RayCluster")}
    (servers,) = [where for where in made if where.startswith(("Deployment", "StatefulSet"))]
    selectors = [
        one["spec"]["podSelector"] if one["kind"] == "NetworkPolicy" else one["spec"]["selector"]
        for one in objects
        if one["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet")
        and not one["metadata"]["name"].endswith("-ray")
    ]
    assert len(selectors) >= 3
    for selector in selectors:
        assert [where for where, pod in made.items() if selects(selector, pod)] == [servers]


@pytest.mark.parametrize("name", VALUES)
def test_services_lead_to_ports_of_the_container(name: str) -> None:
    """Every port of a Service is one that the server's container names, and listens on by its settings."""
    objects = render(name)
    ports = {port["name"]: port["containerPort"] for port in container(server(objects))["ports"]}
    config = settings(objects)
    assert config["listen"] == f"0.0.0.0:{ports['grpc']}"
    assert config["health"] == f"0.0.0.0:{ports['health']}"
    assert config["metrics"] == f"0.0.0.0:{ports['metrics']}"
    for service in (one for one in objects if one["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
            if service["spec"].get("clusterIP") == "None":  # there is no mapping
                assert port["port"] == ports[port["targetPort"]]


@pytest.mark.parametrize("name", VALUES)
def test_probes_ask_the_plaintext_port(name: str) -> None:
    """Each probe asks for a health service of its own, on the port without TLS and tokens."""
    one = container(server(render(name)))
    health = next(port["containerPort"] for port in one["ports"] if port["name"] == "health")
    for probe in ("startup", "readiness", "liveness"):
        assert one[f"{probe}Probe"]["grpc"] == {"port": health, "service": probe}
    # Checkpoints have time to load before anybody asks whether the server lives.
    startup = one["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800
