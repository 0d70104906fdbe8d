"""A pretended Kubernetes: enough of its API for Helm to install, upgrade, roll back and test a release.

Objects are kept as they are sent, and nothing runs them, but for jobs and pods of hooks: those end as soon as they are
made, well or not, as `runs` says. What Helm did is in `log`, in order.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy.chart import Object, helm

#: Resources by group and version: plural and kind.
_RESOURCES = {
    "v1": {
        "configmaps": "ConfigMap", "namespaces": "Namespace", "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod", "secrets": "Secret", "serviceaccounts": "ServiceAccount", "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet", "statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "batch/v1": {"jobs": "Job"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}  # fmt: skip


class Cluster:
    """The API server.

    Args:
        folder: for the file by which Helm finds it.
        runs: what a job or pod of a hook does: whether it ends well.
    """

    def __init__(self, folder: Path, runs: Callable[[Object], bool]) -> None:
        self.runs = runs
        self.log: list[str] = []
        self._objects: dict[str, Object] = {}  # by path
        self._version = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._config = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self._server.server_port}"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": address}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "audits"}}],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )  # fmt: skip
        self._folder = folder
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def helm(self, *arguments: str | Path, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        """Run Helm on it, with a home of its own."""
        environment = {"HOME": str(self._folder), "KUBECONFIG": str(self._config), "PATH": "/usr/bin:/bin"}
        return helm(*arguments, values=values, env=environment, timeout=120)

    def get(self, kind: str, name: str) -> Object:
        """An object by its kind and name."""
        found = [o for o in self._objects.values() if (o["kind"], o["metadata"]["name"]) == (kind, name)]
        assert len(found) == 1, f"{len(found)} of {kind} {name}"
        return found[0]

    def _put(self, path: str, one: Object) -> Object:
        """Keep an object as the API server would give it back."""
        with self._lock:
            old = self._objects.get(path)
            self._version += 1
            metadata = one.setdefault("metadata", {})
            metadata["uid"] = old["metadata"]["uid"] if old else str(uuid.uuid4())
            metadata["resourceVersion"] = str(self._version)
            metadata.setdefault("namespace", "audits")
            metadata.setdefault("creationTimestamp", "2031-05-17T00:00:00Z")
            self._objects[path] = one
        if one["kind"] != "Secret":
            self.log.append(f"{'change' if old else 'make'} {one['kind']}/{metadata['name']}")
        if one["kind"] in ("Job", "Pod") and not old:
            well = self.runs(one)
            if one["kind"] == "Pod":
                one["status"] = {"phase": "Succeeded" if well else "Failed"}
            else:
                condition = {"type": "Complete" if well else "Failed", "status": "True"}
                one["status"] = {"conditions": [condition], "succeeded" if well else "failed": 1}
        return one

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for its first half to be acknowledged

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the log is Helm's doing alone."""

            def _answer(self, content: Object, status: int = 200) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _missing(self) -> None:
                status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                self._answer({**status, "message": f"{self.path} not found"}, 404)

            def _body(self) -> Object:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                return _secret(body) if body.startswith(b"k8s\0") else yaml.safe_load(body)

            def do_GET(self) -> None:
                path, query = urlsplit(self.path).path.rstrip("/"), parse_qs(urlsplit(self.path).query)
                if (found := _discovery(path)) is not None:
                    self._answer(found)
                elif path in cluster._objects:
                    self._answer(cluster._objects[path])
                elif (listed := _kind(path)) is None:
                    self._missing()
                elif "watch" in query:
                    self._watch(path, listed)
                else:
                    api, kind = listed
                    items = list(cluster._select(path, query))
                    version = {"resourceVersion": str(cluster._version)}
                    self._answer({"kind": f"{kind}List", "apiVersion": api, "metadata": version, "items": items})

            def _watch(self, path: str, listed: tuple[str, str]) -> None:
                """What is there, and then silence: whatever Helm waits for has happened by then."""
                api, kind = listed
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Connection", "close")
                self.end_headers()
                events = [{"type": "ADDED", "object": one} for one in cluster._select(path, {})]
                metadata = {
                    "resourceVersion": str(cluster._version),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                }
                bookmark = {"kind": kind, "apiVersion": api, "metadata": metadata}
                for event in [*events, {"type": "BOOKMARK", "object": bookmark}]:
                    self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()
                cluster._ended.wait(30)
                self.close_connection = True

            def do_POST(self) -> None:
                one = self._body()
                path = f"{urlsplit(self.path).path}/{one['metadata']['name']}"
                self._answer(cluster._put(path, one), 201)

            def do_PUT(self) -> None:
                self._answer(cluster._put(urlsplit(self.path).path, self._body()))

            def do_PATCH(self) -> None:
                path, one = urlsplit(self.path).path, self._body()
                if self.headers["Content-Type"] != "application/apply-patch+yaml":  # Helm 3 sends differences
                    one = _patched(cluster._objects[path], one)
                self._answer(cluster._put(path, one))

            def do_DELETE(self) -> None:
                if length := int(self.headers.get("Content-Length", 0)):
                    self.rfile.read(length)
                if (gone := cluster._objects.pop(urlsplit(self.path).path, None)) is None:
                    self._missing()
                    return
                cluster.log.append(f"delete {gone['kind']}/{gone['metadata']['name']}")
                self._answer(gone)

        return Handler

    def _select(self, path: str, query: dict[str, list[str]]) -> Iterator[Object]:
        wanted = [pair.partition("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair]
        for place, one in list(self._objects.items()):
            labels = one["metadata"].get("labels", {})
            if place.rpartition("/")[0] == path and all(labels.get(name) == value for name, _, value in wanted):
                yield one


def _discovery(path: str) -> Object | None:
    """What the API is made of."""
    if path == "/version":
        return {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for api in _RESOURCES.keys() - {"v1"}:
            version = {"groupVersion": api, "version": api.partition("/")[2]}
            groups.append({"name": api.partition("/")[0], "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    documents = {f"/openapi/v3{_root(api)}": api for api in _RESOURCES}
    if path == "/openapi/v3":
        urls = {document.removeprefix("/openapi/v3/"): {"serverRelativeURL": document} for document in documents}
        return {"paths": urls}
    if path in documents:
        return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": _strict_paths(documents[path])}
    api = path.removeprefix("/apis/").removeprefix("/api/")
    if api in _RESOURCES:
        resources = [
            {
                "name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": plural != "namespaces",
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            }
            for plural, kind in _RESOURCES[api].items()
        ]  # fmt: skip
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}
    return None


def _patched(old: Any, patch: Any) -> Any:
    """What a strategic merge patch makes of a value; elements of lists are known by their names."""
    if isinstance(patch, dict) and isinstance(old, dict):
        directives = ("$setElementOrder", "$retainKeys")
        changes = {key: value for key, value in patch.items() if not key.startswith(directives)}
        merged = {**old, **{key: _patched(old.get(key), value) for key, value in changes.items()}}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(patch, list) and isinstance(old, list) and all("name" in one for one in [*old, *patch]):
        named = {one["name"]: one for one in old}
        for one in patch:
            named[one["name"]] = _patched(named.get(one["name"]), one)
        return [one for one in named.values() if "$patch" not in one]
    return patch


def _root(api: str) -> str:
    return f"/api/{api}" if api == "v1" else f"/apis/{api}"


def _strict_paths(api: str) -> Object:
    """That the server itself looks for unknown fields, so that Helm need not."""
    group, _, version = api.rpartition("/")
    return {
        f"/{plural}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                "responses": {},
            }
        }
        for plural, kind in _RESOURCES[api].items()
    }


def _fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a message in the wire format of protocol buffers: numbers, and bytes."""

    def number() -> int:
        nonlocal message
        value = shift = 0
        while True:
            byte, message = message[0], message[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found: dict[int, list[Any]] = {}
    while message:
        key = number()
        value: Any = number()
        assert key & 7 in (0, 2), "only numbers and bytes"
        if key & 7 == 2:
            value, message = message[:value], message[value:]
        found.setdefault(key >> 3, []).append(value)
    return found


def _secret(body: bytes) -> Object:
    """A secret as Helm sends the records of its releases: not in JSON."""
    secret = _fields(_fields(body.removeprefix(b"k8s\0"))[2][0])
    metadata = _fields(secret[1][0])
    labels = [_fields(pair) for pair in metadata[11]]
    data = [_fields(pair) for pair in secret[2]]
    return {
        "apiVersion": "v1", "kind": "Secret", "type": secret[3][0].decode(),
        "metadata": {
            "name": metadata[1][0].decode(),
            "labels": {pair[1][0].decode(): pair[2][0].decode() for pair in labels},
        },
        "data": {pair[1][0].decode(): base64.b64encode(pair[2][0]).decode() for pair in data},
    }  # fmt: skip


def _kind(path: str) -> tuple[str, str] | None:
    """Version and kind of the objects that a path lists."""
    api, _, rest = path.removeprefix("/apis/").removeprefix("/api/").partition("/namespaces/")
    kind = _RESOURCES.get(api, {}).get(rest.partition("/")[2])
    return None if kind is None else (api, kind)


@contextmanager
def running_cluster(folder: Path, runs: Callable[[Object], bool]) -> Iterator[Cluster]:
    """A cluster, and its end."""
    cluster = Cluster(folder, runs)
    try:
        yield cluster
    finally:
        cluster.close()
