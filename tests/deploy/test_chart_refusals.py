"""Values that the chart refuses, and what it says."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.chart import CHART, VALUES, Object, helm

POSTGRESQL = {"type": "postgresql", "postgresql": {"existingSecret": "store"}}
REPOSITORY = {"repository": "studio/model", "revision": "v1", "folder": "release"}


def downloading(repository: Object) -> Object:
    """Values of a chart that downloads a repository."""
    return {"models": {"download": {"repositories": [repository]}}}


@pytest.mark.parametrize(
    ("values", "where", "why"),
    [
        ({"replicaCount": 2}, "replicaCount", "maximum: got 2, want 1"),
        ({"replicaCount": "2"}, "replicaCount", "got string, want integer"),
        ({"replicas": 2}, "", "additional properties 'replicas' not allowed"),
        ({"autoscaling": {"type": "hpa"}}, "autoscaling/type", "value must be 'none'"),
        ({"store": POSTGRESQL, "autoscaling": {"type": "hpa,keda"}}, "autoscaling/type", "value must be one of"),
        ({"store": POSTGRESQL, "autoscaling": {"type": ["hpa", "keda"]}}, "autoscaling/type", "value must be one of"),
        ({"store": POSTGRESQL, "autoscaling": {"type": "keda"}}, "autoscaling/keda/serverAddress", "minLength"),
        ({"store": {"type": "postgresql"}}, "store/postgresql/existingSecret", "minLength"),
        ({"store": {"type": "mysql"}}, "store/type", "value must be one of 'sqlite', 'postgresql'"),
        ({"tls": {"enabled": True}}, "tls/existingSecret", "minLength"),
        ({"tls": {"clientCA": {"existingSecret": "ca"}}}, "tls/clientCA/existingSecret", "maxLength"),
        ({"config": {"listen": "0.0.0.0:1"}}, "config", "additional properties 'listen' not allowed"),
        ({"config": {"batches": {"store": "sqlite:///x"}}}, "config/batches", "'store' not allowed"),
        ({"config": {"auth": {"tokens": "/x"}}}, "config/auth", "additional properties 'tokens' not allowed"),
        ({"config": {"limits": {"seedz": 1}}}, "config/limits", "additional properties 'seedz' not allowed"),
        ({"config": {"checkpoints": {"a": "models/a"}}}, "config/checkpoints/a", "does not match pattern"),
        ({"config": {"trace_ratio": 2}}, "config/trace_ratio", "maximum"),
        ({"extraEnv": [{"name": "BASIN_LISTEN", "value": "x"}]}, "extraEnv/0/name", "'not' failed"),
        ({"extraEnv": [{"name": "BASIN_GRACE_SECONDS", "value": "9"}]}, "extraEnv/0/name", "'not' failed"),
        ({"image": {"digest": "sha256:1"}}, "image/digest", "does not match pattern"),
        (downloading(REPOSITORY), "models/persistence/enabled", "value must be true"),
        (downloading({**REPOSITORY, "include": ["a' ; rm -rf '"]}), "include/0", "does not match pattern"),
        (downloading({"repository": "a/b", "folder": "c"}), "repositories/0", "missing property 'revision'"),
        ({"ray": {"address": "ray://head:10001"}}, "ray/address", "does not match pattern"),
        ({"ray": {"address": "head:6379", "cluster": {"enabled": True}}}, "ray/address", "maxLength"),
        ({"resources": {"limit": {}}}, "resources", "additional properties 'limit' not allowed"),
        ({"resources": {"limits": {"memory": "4GB"}}}, "resources/limits/memory", "does not match pattern"),
        ({"service": {"type": "ExternalName"}}, "service/type", "value must be one of"),
        ({"probes": {"liveness": {"httpGet": {}}}}, "probes/liveness", "additional properties 'httpGet' not allowed"),
        ({"fullnameOverride": "Basin"}, "fullnameOverride", "does not match pattern"),
    ],
)  # fmt: skip
def test_the_schema_refuses(values: Object, where: str, why: str) -> None:
    """Helm names the value and what is wrong with it, and renders nothing."""
    done = helm("template", "basin", CHART, values=values)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr
    assert any(f"{where}'" in line and why in line for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (
            {"terminationGracePeriodSeconds": 34},
            "terminationGracePeriodSeconds is 34, but preStopSeconds and config.grace_seconds take 35",
        ),
        (
            {"config": {"checkpoints": {"release": {"source": "/models/release", "device": "cuda:1"}}}},
            "config.checkpoints.release is on cuda:1, but gpu.count is 0",
        ),
        (
            {"store": POSTGRESQL, "autoscaling": {"type": "hpa", "minReplicas": 9}},
            "autoscaling.minReplicas is more than autoscaling.maxReplicas",
        ),
        (
            {"store": POSTGRESQL, "replicaCount": 2, "models": {"persistence": {"enabled": True}}},
            "models.persistence.accessModes must hold ReadWriteMany: more than one pod mounts the volume",
        ),
        (
            {"ray": {"cluster": {"enabled": True}}, "models": {"persistence": {"enabled": True}}},
            "models.persistence.accessModes must hold ReadWriteMany: more than one pod mounts the volume",
        ),
        (
            {"store": {"sqlite": {"persistence": {"enabled": False}}, "migrations": {"to": "0001"}}},
            "store.migrations.to has no tables to step back: store.sqlite.persistence is off",
        ),
    ],
)
def test_the_templates_refuse(values: Object, why: str) -> None:
    """What a schema cannot see is refused in one line."""
    done = helm("template", "basin", CHART, values=values)
    assert done.returncode != 0
    assert any(line.endswith(f": {why}") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_one_unknown_key_anywhere_is_refused(name: str) -> None:
    """Every mapping that the chart reads itself refuses a key that it does not know."""
    values = yaml.safe_load(VALUES[name].read_text())
    found = list(_mappings(values, ()))
    if name == "extras":
        assert len(found) > 8
    for path in found:
        broken = yaml.safe_load(VALUES[name].read_text())
        part = broken
        for key in path:
            part = part[key]
        part["unknwon"] = 1
        done = helm("template", "basin", CHART, values=broken)
        assert "'unknwon' not allowed" in done.stderr, path


#: Mappings whose keys are the user's, or Kubernetes'.
FREE = {
    ("affinity",), ("autoscaling", "keda", "authenticationRef"), ("autoscaling", "keda", "metadata"),
    ("config", "checkpoints"), ("config", "prompts"), ("config", "quotas", "clients"), ("config", "references"),
    ("deploymentStrategy",), ("monitoring", "dashboard", "annotations"), ("monitoring", "serviceMonitor", "labels"),
    ("monitoring", "prometheusRule", "labels"), ("nodeSelector",), ("podAnnotations",), ("podLabels",),
    ("podSecurityContext",), ("resources", "limits"), ("resources", "requests"), ("service", "annotations"),
    ("serviceAccount", "annotations"),
}  # fmt: skip


def _mappings(values: Object, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Paths of the mappings in values that are the chart's own."""
    found = [] if path in FREE else [path]
    if path in FREE and path[0] != "config":
        return found
    for key, value in values.items():
        if isinstance(value, dict):
            found += _mappings(value, (*path, key))
    return found
