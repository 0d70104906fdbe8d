"""The schemas of Kubernetes' objects, and the parts of custom resources' schemas that the chart relies on."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.deploy.chart import Object

#: Of Kubernetes: the oldest that the chart installs on, the newest, and two between.
VERSIONS = ("1.30", "1.32", "1.35", "1.37")

_STRICT = files("kubernetes_validate") / "kubernetes-json-schema"
_POD_TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object", "additionalProperties": False, "properties": properties, "required": list(required),
    }  # fmt: skip


_STRING: dict[str, Any] = {"type": "string"}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_COUNT = {"type": "integer", "minimum": 0}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}
_RULE = {
    "oneOf": [
        _object({"record": _STRING, "expr": _STRING, "labels": _STRINGS}, "record", "expr"),
        _object(
            {
                "alert": {"type": "string", "minLength": 1}, "expr": _STRING, "for": _DURATION,
                "keep_firing_for": _DURATION, "labels": _STRINGS, "annotations": _STRINGS,
            },
            "alert", "expr",
        ),
    ]
}  # fmt: skip
_RAY_GROUP = {"rayStartParams": _STRINGS, "template": {"$ref": f"#/$defs/{_POD_TEMPLATE}"}}

#: `spec` of custom resources, by version and kind: the fields that the chart sets, as their owners define them.
#: Anything else is refused, so a template that sets another field has to be looked up, and written down here.
CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _object(
        {
            "selector": _object({"matchLabels": _STRINGS}),
            "endpoints": {
                "type": "array", "minItems": 1,
                "items": _object(
                    {
                        "port": _STRING, "interval": _DURATION,
                        "relabelings": {
                            "type": "array", "items": _object({"targetLabel": _STRING, "replacement": _STRING}),
                        },
                    }
                ),
            },
        },
        "selector", "endpoints",
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        {
            "groups": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"type": "string", "minLength": 1}, "interval": _DURATION,
                        "rules": {"type": "array", "items": _RULE},
                    },
                    "name",
                ),
            }
        }
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        {
            "scaleTargetRef": _object({"apiVersion": _STRING, "kind": _STRING, "name": _STRING}, "name"),
            "minReplicaCount": _COUNT,
            "maxReplicaCount": _COUNT,
            "advanced": _object(
                {
                    "horizontalPodAutoscalerConfig": _object(
                        {"behavior": {"$ref": "#/$defs/io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior"}}
                    )
                }
            ),
            "triggers": {
                "type": "array",
                "items": _object(
                    {
                        "type": _STRING, "metadata": _STRINGS,
                        "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
                        "authenticationRef": _object({"name": _STRING, "kind": _STRING}, "name"),
                    },
                    "type", "metadata",
                ),
            },
        },
        "scaleTargetRef", "triggers",
    ),
    ("ray.io/v1", "RayCluster"): _object(
        {
            "headGroupSpec": _object(_RAY_GROUP, "rayStartParams", "template"),
            "workerGroupSpecs": {
                "type": "array",
                "items": _object(
                    {
                        **_RAY_GROUP, "groupName": _STRING, "replicas": _COUNT, "minReplicas": _COUNT,
                        "maxReplicas": _COUNT,
                    },
                    "groupName", "minReplicas", "maxReplicas", "rayStartParams", "template",
                ),
            },
        },
        "headGroupSpec",
    ),
}  # fmt: skip


def _folder(version: str) -> Any:
    return _STRICT / f"v{version}.0-local-strict"


@cache
def _definitions(version: str) -> Resource[Any]:
    return Resource.from_contents(json.loads((_folder(version) / "_definitions.json").read_text()))


@cache
def _validator(version: str, api: str, kind: str) -> Draft202012Validator:
    definitions = _definitions(version)
    if (api, kind) in CUSTOM:
        schema = {
            "$schema": definitions.contents["$schema"], "$id": definitions.contents["$id"],
            "$defs": definitions.contents["$defs"],
            **_object(
                {
                    "apiVersion": _STRING, "kind": _STRING, "spec": CUSTOM[api, kind],
                    "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                },
                "apiVersion", "kind", "metadata", "spec",
            ),
        }  # fmt: skip
        return Draft202012Validator(schema)
    group, _, of_group = api.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.partition(".")[0], of_group]))
    schema = json.loads((_folder(version) / f"{name}.json").read_text())
    return Draft202012Validator(schema, registry=Registry().with_resource(definitions.id(), definitions))


#: Of values that the schemas leave open, by the end of their path.
_FORMS = {
    "name": re.compile(r"[A-Za-z_]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?"),
    "storage": re.compile(r"[0-9.]+([KMGTPE]i?|[numk])?"),
    "memory": re.compile(r"[0-9.]+([KMGTPE]i?|[numk])?"),
    "cpu": re.compile(r"[0-9.]+m?"),
}
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def _loose_ends(value: Any, path: str) -> list[str]:
    """What the API server refuses and the schemas do not say: forms of names, labels and quantities."""
    found = []
    if isinstance(value, dict):
        for key, below in value.items():
            found += _loose_ends(below, f"{path}.{key}")
            if key in ("labels", "matchLabels"):
                found += [f"{path}.{key}.{n}: {text!r}" for n, text in below.items() if not _LABEL.fullmatch(text)]
            elif key in _FORMS and isinstance(below, str | int | float) and not _FORMS[key].fullmatch(str(below)):
                found.append(f"{path}.{key}: {below!r}")
    elif isinstance(value, list):
        for position, below in enumerate(value):
            found += _loose_ends(below, f"{path}[{position}]")
    return found


def problems(one: Object, version: str) -> list[str]:
    """Why a version of Kubernetes would refuse an object.

    Args:
        one: the object.
        version: of Kubernetes, MAJOR.MINOR.
    """
    errors = _validator(version, one["apiVersion"], one["kind"]).iter_errors(one)
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    return found + _loose_ends(one.get("spec", {}), "spec")
