"""The servers: their pods, settings, volumes and secrets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.chart import Object, container, find, kinds, pod, render, selects, server, settings


def test_a_label_of_the_user_changes_no_selector() -> None:
    """Pods bear labels of the user, which no selector asks for."""
    objects = render("extras")
    assert server(objects)["spec"]["template"]["metadata"]["labels"]["team"] == "trust"
    assert server(objects)["spec"]["selector"] == server(render())["spec"]["selector"]


@pytest.mark.parametrize(
    ("values", "pre_stop", "grace"),
    [
        ({}, 5, 45),
        ({"config": {"grace_seconds": 120.5}}, 5, 136),
        ({"preStopSeconds": 0, "config": {"grace_seconds": 0}}, None, 10),
        ({"terminationGracePeriodSeconds": 35}, 5, 35),
    ],
)
def test_the_grace_period_covers_the_drain(values: Object, pre_stop: int | None, grace: int) -> None:
    """A server is killed only after preStop, its drain and some time to leave."""
    workload = server(render(**values))
    assert pod(workload)["terminationGracePeriodSeconds"] == grace
    sleep = container(workload).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
    assert sleep == pre_stop


def test_the_settings_restart_servers() -> None:
    """Another setting is another checksum in the pod's template, and the same one is the same."""

    def checksum(**values: Any) -> str:
        return server(render(**values))["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(podLabels={"a": "b"}) == checksum()
    assert (
        len(
            {
                checksum(),
                checksum(config={"log_level": "debug"}),
                checksum(tls={"enabled": True, "existingSecret": "a"}),
            }
        )
        == 3
    )


def test_settings_name_files_that_are_mounted() -> None:
    """Certificates and tokens are where the settings say, from secrets that the group alone may read."""
    objects = render("secured")
    config, spec = settings(objects), pod(server(objects))
    mounts = {mount["name"]: mount["mountPath"] for mount in container(server(objects))["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert config["tls"] == {
        "certificate": f"{mounts['tls']}/tls.crt",
        "key": f"{mounts['tls']}/tls.key",
        "client_ca": f"{mounts['client-ca']}/ca.pem",
    }
    assert config["auth"]["tokens"] == f"{mounts['tokens']}/callers.yaml"
    assert config["auth"]["jwt"]["jwks"].startswith(f"{mounts['jwks']}/")
    for name, secret in (("tls", "basin-tls"), ("client-ca", "callers"), ("tokens", "basin-tokens")):
        assert volumes[name]["secret"] == {"secretName": secret, "defaultMode": 0o440}


def test_the_database_comes_from_a_secret() -> None:
    """The URL, which holds a password, is in no object of the chart: servers and the job read it from the secret."""
    objects = render("postgresql")
    assert "store" not in settings(objects)["batches"]
    for workload, name, variable in (
        (server(objects), "basin", "BASIN_BATCHES__STORE"),
        (find(objects, "Job"), "migrate", "BASIN_STORE"),
    ):
        environment = {one["name"]: one for one in container(workload, name)["env"]}
        reference = {"secretKeyRef": {"name": "basin-store", "key": "url"}}
        assert environment[variable]["valueFrom"] == reference


def test_an_sqlite_file_has_a_statefulset_of_one() -> None:
    """The file is on a claim that follows the server, or on one that is there."""
    workload = server(render())
    assert (workload["kind"], workload["spec"]["replicas"]) == ("StatefulSet", 1)
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    (mount,) = [m for m in container(workload)["volumeMounts"] if m["name"] == claim["metadata"]["name"]]
    assert settings(render())["batches"]["store"] == f"sqlite:///{mount['mountPath']}/basin.db"
    assert workload["spec"]["serviceName"] in [o["metadata"]["name"] for o in render() if o["kind"] == "Service"]
    workload = server(render("sqlite-existing-claim"))
    assert "volumeClaimTemplates" not in workload["spec"]
    claims = [volume.get("persistentVolumeClaim") for volume in pod(workload)["volumes"]]
    assert {"claimName": "batches"} in claims


def test_postgresql_has_a_deployment() -> None:
    """Servers without state are a Deployment, of as many as are wanted."""
    workload = server(render("postgresql"))
    assert (workload["kind"], workload["spec"]["replicas"]) == ("Deployment", 3)


def test_gpus_runtime_and_image_belong_together() -> None:
    """A server with GPUs asks for them and takes the CUDA image, unless a tag is given."""
    objects = render("gpu")
    one, spec = container(server(objects)), pod(server(objects))
    assert one["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert one["image"] == "basin-audit:0.1.0-cuda"
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "audits")
    assert "nvidia.com/gpu" not in container(server(render()))["resources"]["limits"]
    assert container(server(render("gpu", image={"tag": "mine"})))["image"] == "basin-audit:mine"


def test_servers_are_spread() -> None:
    """A constraint without a selector gets the servers'; one with its own keeps it."""
    (default,) = pod(server(render("postgresql")))["topologySpreadConstraints"]
    assert default["labelSelector"] == server(render("postgresql"))["spec"]["selector"]
    (own,) = pod(server(render("gpu")))["topologySpreadConstraints"]
    assert own["labelSelector"] == {"matchLabels": {"app.kubernetes.io/name": "basin"}}


def test_threads_follow_the_cpu_limit_unless_set() -> None:
    """By itself torch would count the cores of the node."""
    names = [variable["name"] for variable in container(server(render()))["env"]]
    assert "BASIN_THREADS" in names
    assert "BASIN_THREADS" not in [variable["name"] for variable in container(server(render("extras")))["env"]]


def test_models_are_mounted_read_only() -> None:
    """Servers cannot change checkpoints, and the volume is the chart's or one that is there."""
    for name, claim in (("postgresql", "models"), ("gpu", "basin-models")):
        workload = server(render(name))
        (mount,) = [m for m in container(workload)["volumeMounts"] if m["name"] == "models"]
        assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
        assert {"name": "models", "persistentVolumeClaim": {"claimName": claim}} in pod(workload)["volumes"]
    assert "PersistentVolumeClaim" not in kinds(render("postgresql"))
    claim = find(render("gpu"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_volume_of_one_node_lets_no_two_servers_overlap() -> None:
    """A Deployment whose new server could not mount the models replaces the old one first."""
    assert server(render("postgresql-without-hook"))["spec"]["strategy"] == {"type": "Recreate"}
    assert "strategy" not in server(render("postgresql"))["spec"]
    assert server(render("hpa"))["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_servers_wait_for_downloads() -> None:
    """The job writes a mark when all is there, beside the servers, which wait for that mark."""
    objects = render("downloads")
    job = find(objects, "Job")
    script = container(job, "download")["command"][-1]
    assert (
        "hf download 'studio/model' --revision '462165984030d82259a11f4367a4eed129e94a7b' --local-dir '/models/release'"
        " --include '*.json' --include '*/*.fp16.safetensors' --include 'tokenizer/*'\n" in script
    )
    mark = script.split()[-1]
    assert script.split()[-2] == "touch"
    assert mark in container(server(objects), "wait-for-downloads")["command"][-1]
    (term,) = pod(job)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert selects(term["labelSelector"], server(objects)["spec"]["template"])
    assert "hub" in str(container(job, "download")["envFrom"])


OTHER = {"repository": "studio/other", "revision": "v1", "folder": "other"}


@pytest.mark.parametrize(
    ("values", "another_job", "another_mark"),
    [
        ({"models": {"download": {"repositories": [OTHER]}}}, True, True),
        ({"models": {"download": {"extraEnv": []}}}, True, False),
        ({"models": {"download": {"resources": {"limits": {"memory": "4Gi"}}}}}, True, False),
        ({"image": {"tag": "0.2.0"}}, True, False),
        ({"nodeSelector": {"disk": "fast"}}, True, False),
        ({"config": {"grace_seconds": 60}, "podLabels": {"team": "trust"}, "preStopSeconds": 0}, False, False),
        (
            {
                "replicaCount": 2,
                "store": {"type": "postgresql", "postgresql": {"existingSecret": "store"}},
                "models": {"persistence": {"accessModes": ["ReadWriteMany"]}},
            },
            False,
            False,
        ),
    ],
)
def test_a_download_that_differs_in_anything_is_another_job(
    values: Object, another_job: bool, another_mark: bool
) -> None:
    """A job cannot be changed; servers wait only where something else is downloaded."""

    def rendered(**values: Any) -> tuple[Object, str]:
        objects = render("downloads", **values)
        (job,) = (one for one in objects if one["metadata"]["name"].startswith("basin-download-"))
        return job, container(server(objects), "wait-for-downloads")["command"][-1]

    (before, mark), (after, other) = rendered(), rendered(**values)
    assert (before["metadata"]["name"] != after["metadata"]["name"]) is (before["spec"] != after["spec"]) is another_job
    assert (mark != other) is another_mark


def test_extras_reach_the_server() -> None:
    """Variables, volumes and annotations are the pod's."""
    workload = server(render("extras"))
    one = container(workload)
    assert {"name": "OMP_WAIT_POLICY", "value": "ACTIVE"} in one["env"]
    assert {"name": "prompts", "mountPath": "/prompts", "readOnly": True} in one["volumeMounts"]
    assert workload["spec"]["template"]["metadata"]["annotations"]["example.com/scrape"] == "false"
    assert pod(workload)["serviceAccountName"] == "auditor"


def test_another_platform_may_choose_the_user() -> None:
    """Null takes a default away, as OpenShift needs it."""
    context = pod(server(render("extras")))["securityContext"]
    assert context.keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}
