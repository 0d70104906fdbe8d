"""Batches on a Ray cluster."""

from __future__ import annotations

import pytest

from tests.deploy.chart import container, find, pod, pods, render, selects, server, settings


@pytest.mark.parametrize(
    ("name", "address"),
    [("ray-address", "ray-head.ray.svc:6379"), ("ray-cluster", "basin-ray-head-svc.audits.svc:6379")],
)
def test_a_server_joins_the_ray_cluster(name: str, address: str) -> None:
    """A Ray process beside the server makes the pod a machine of the cluster, and shares Ray's folders with it."""
    objects = render(name)
    assert settings(objects)["batches"]["runner"] == "ray"
    assert settings(objects)["batches"]["ray"]["address"] == address
    ray, one = container(server(objects), "ray"), container(server(objects))
    assert f"--address={address}" in ray["command"]
    assert "--num-cpus=0" in ray["command"]
    assert ray["restartPolicy"] == "Always"
    assert pod(server(objects))["shareProcessNamespace"] is True  # where the driver looks for Ray's processes
    shared = {(mount["name"], mount["mountPath"]) for mount in ray["volumeMounts"]}
    assert shared == {("tmp", "/tmp"), ("shm", "/dev/shm")}
    assert shared <= {(mount["name"], mount["mountPath"]) for mount in one["volumeMounts"]}


def test_ray_settings_of_the_user_stay() -> None:
    """The chart adds the address to them."""
    ray = settings(render("ray-cluster"))["batches"]["ray"]
    assert ray == {"address": "basin-ray-head-svc.audits.svc:6379", "workers": 8, "cpus": 2, "gpus": 0.5}


def test_the_ray_cluster_is_made_of_the_same_image() -> None:
    """Workers have the servers' version, models and GPUs; the head does no audits."""
    objects = render("ray-cluster")
    spec = find(objects, "RayCluster")["spec"]
    (workers,) = spec["workerGroupSpecs"]
    images = {
        one["image"] for group in (spec["headGroupSpec"], workers) for one in group["template"]["spec"]["containers"]
    }
    assert images == {container(server(objects))["image"]}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    worker = workers["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in worker["volumeMounts"]
    for group in (spec["headGroupSpec"], workers):
        probed = group["template"]["spec"]["containers"][0]["livenessProbe"]["tcpSocket"]["port"]
        assert group["rayStartParams"]["node-manager-port"] == str(probed)


def test_nobody_else_reaches_ray() -> None:
    """Ray runs whatever it is sent: only its own pods and the servers may talk to it."""
    objects = render("ray-cluster")
    policy = find(objects, "NetworkPolicy", "basin-ray")["spec"]
    ray = [pod for where, pod in pods(objects) if where.startswith("RayCluster")]
    assert all(selects(policy["podSelector"], pod) for pod in ray)
    (rule,) = policy["ingress"]
    peers = [peer["podSelector"] for peer in rule["from"]]
    allowed = {where for where, pod in pods(objects) if any(selects(peer, pod) for peer in peers)}
    assert allowed == {"RayCluster basin-ray", "Deployment basin"}
    servers = find(objects, "NetworkPolicy", "basin")["spec"]
    assert {"to": [{"podSelector": policy["podSelector"]}]} in servers["egress"]
    assert {"from": [{"podSelector": policy["podSelector"]}]} in servers["ingress"]
