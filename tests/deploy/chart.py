"""The chart, rendered by Helm."""

from __future__ import annotations

import copy
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "basin"
HELM = ROOT / "build" / "tools" / "helm"
#: A file for each feature, by name.
VALUES = {file.stem: file for file in sorted((Path(__file__).parent / "values").glob("*.yaml"))}

Object = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """Refuses a key that stands in a mapping twice, where Helm and Kubernetes keep one of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands here twice: {keys}"
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Object]:
    """The objects in a stream of YAML."""
    return [document for document in yaml.load_all(text, _Loader) if document is not None]


def helm(*arguments: str | Path, values: Object | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Helm.

    Args:
        arguments: of the command.
        values: over those that the arguments name.
        options: of subprocess.run.
    """
    assert HELM.exists(), "there is no Helm: make build/tools/helm"
    if values is not None:
        arguments = (*arguments, "--values", "-")
        options["input"] = yaml.safe_dump(values)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    options.setdefault("env", environment)
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, **options)


@cache
def _rendered(name: str) -> str:
    done = helm("template", "basin", CHART, "--namespace", "audits", "--values", VALUES[name])
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(name: str = "defaults", **values: Any) -> list[Object]:
    """The objects of a release `basin` in the namespace `audits`, hooks included.

    Args:
        name: of the file of values.
        values: over those of the file.
    """
    if not values:
        return documents(_rendered(name))
    done = helm("template", "basin", CHART, "--namespace", "audits", "--values", VALUES[name], values=values)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind, or of a kind and a name."""
    found = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def kinds(objects: list[Object]) -> set[str]:
    """The kinds of objects there are."""
    return {one["kind"] for one in objects}


def server(objects: list[Object]) -> Object:
    """What makes the servers' pods: a Deployment or a StatefulSet."""
    found = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]
    assert len(found) == 1
    return found[0]


def pod(workload: Object) -> Object:
    """What a workload's pods are made of."""
    return workload["spec"]["template"]["spec"]


def settings(objects: list[Object]) -> Object:
    """The server's settings file."""
    name = server(objects)["metadata"]["name"]
    return yaml.safe_load(find(objects, "ConfigMap", name)["data"]["config.yaml"])


def container(workload: Object, name: str = "basin") -> Object:
    """A container, or init container, of a workload's pods."""
    spec = pod(workload)
    found = [one for one in [*spec.get("initContainers", []), *spec["containers"]] if one["name"] == name]
    assert len(found) == 1, f"{len(found)} containers {name}"
    return found[0]


def pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """Pods and templates of pods, labels and all, with the name of what holds them."""
    found = []
    for one in objects:
        spec, where = one.get("spec", {}), f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "Pod":
            found.append((where, one))
        elif one["kind"] == "RayCluster":
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            for group in copy.deepcopy(groups):
                # KubeRay's own label, by which its pods are found
                group["template"]["metadata"]["labels"]["ray.io/cluster"] = one["metadata"]["name"]
                found.append((where, group["template"]))
        elif isinstance(spec, dict) and "template" in spec:
            found.append((where, spec["template"]))
    return found


def selects(selector: Object, one: Object) -> bool:
    """Whether a selector of labels, in either form, selects an object."""
    wanted = selector.get("matchLabels", selector)
    return wanted.items() <= one["metadata"]["labels"].items()
