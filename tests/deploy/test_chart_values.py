"""Whether values, their schema, their README, and the settings of the server say the same."""

from __future__ import annotations

import importlib.util
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from alembic.script import ScriptDirectory
from pydantic import BaseModel

from service.config import Settings, load_settings
from tests.deploy.chart import CHART, ROOT, VALUES, Object, find, render, server

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())

#: Settings that the chart decides, so that `config` does not take them.
CHART_DECIDES = {
    "auth.tokens", "batches.ray.address", "batches.runner", "batches.store", "health", "listen", "metrics",
    "tls", "tls.certificate", "tls.client_ca", "tls.key",
}  # fmt: skip


def resolved(schema: Object) -> Object:
    """A part of the schema, wherever it stands."""
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def names(schema: Object, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in a schema of mappings; `*` is any name."""
    schema = resolved(schema)
    for choice in schema.get("oneOf", []):
        yield from names(choice, prefix)
    parts = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict) and resolved(schema["additionalProperties"]).keys() & {
        "oneOf", "properties",
    }:  # fmt: skip
        parts["*"] = schema["additionalProperties"]
    for name, part in parts.items():
        yield f"{prefix}{name}"
        yield from names(part, f"{prefix}{name}.")


def settings_names(kind: Any, prefix: str = "") -> Iterator[str]:
    """The same of a setting's type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield f"{prefix}{name}"
            yield from settings_names(field.annotation, f"{prefix}{name}.")
    elif get_origin(kind) is dict:
        below = list(settings_names(get_args(kind)[1], f"{prefix}*."))
        yield from ([f"{prefix}*", *below] if below else [])
    elif get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        for choice in get_args(kind):
            yield from settings_names(choice, prefix)


def test_config_takes_the_settings_of_the_server() -> None:
    """`config` takes every setting but those that the chart decides, and no other."""
    taken, known = set(names(SCHEMA["definitions"]["config"])), set(settings_names(Settings))
    assert taken <= known
    assert known - taken == CHART_DECIDES


@pytest.mark.parametrize("name", VALUES)
def test_the_server_takes_the_settings_of_the_chart(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings file that the chart renders is one that the server starts with."""
    for variable in os.environ:
        if variable.startswith("BASIN_"):
            monkeypatch.delenv(variable)
    objects = render(name)
    text = find(objects, "ConfigMap", server(objects)["metadata"]["name"])["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    settings = load_settings(tmp_path / "config.yaml")
    given = yaml.safe_load(VALUES[name].read_text()).get("config", {})
    assert settings.grace_seconds == given.get("grace_seconds", 30)
    assert set(given.get("checkpoints", {})) <= set(settings.all_checkpoints)


def test_schema_and_defaults_name_the_same_values() -> None:
    """A value that has no default, and so no description, is refused; one that is described is known."""

    def known(schema: Object, prefix: str = "") -> Iterator[str]:
        for name, part in schema["properties"].items():
            yield from known(part, f"{prefix}{name}.") if "properties" in part else [f"{prefix}{name}"]

    def described(values: Object, schema: Object, prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            part = schema["properties"].get(name, {})
            yield from described(value, part, f"{prefix}{name}.") if "properties" in part else [f"{prefix}{name}"]

    of_parent_charts = {"global", "enabled"}
    assert set(known(SCHEMA)) - of_parent_charts == set(described(DEFAULTS, SCHEMA))


def test_the_schema_is_strict() -> None:
    """A mapping says which names it takes, unless Kubernetes or the user chooses them."""

    def loose(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("type") == "object" and "additionalProperties" not in schema:
                yield path
            for name, part in schema.items():
                yield from loose(part, f"{path}/{name}")
        elif isinstance(schema, list):
            for position, part in enumerate(schema):
                yield from loose(part, f"{path}/{position}")

    # An environment variable is as Kubernetes has it, but for its name.
    assert list(loose({**SCHEMA, "allOf": []}, "")) == ["/definitions/serverEnv/items"]


def test_every_definition_is_used() -> None:
    """Nothing is left over in the schema."""
    text = json.dumps(SCHEMA)
    assert [name for name in SCHEMA["definitions"] if f'"#/definitions/{name}"' not in text] == []


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "helm" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_that_of_the_values() -> None:
    """`make chart-docs` would change nothing, and describes every value."""
    generator = _generator()
    text, values = (CHART / "README.md").read_text(), (CHART / "values.yaml").read_text()
    assert generator.readme(text, values) == text, "run make chart-docs"
    rows = {name: json.loads(default) for _, name, default, _ in generator.rows(values)}
    assert rows["image.repository"] == DEFAULTS["image"]["repository"]
    assert rows["resources"] == DEFAULTS["resources"]


def test_a_value_without_a_description_is_found() -> None:
    """The generator refuses it."""
    with pytest.raises(ValueError, match=r"line 4 of values\.yaml: a\.c has no description"):
        list(_generator().rows("a:\n  # Is described\n  b: 1\n  c: 2\n"))


def test_the_chart_is_of_the_packages_version() -> None:
    """The image that it takes by default is this version's."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_chart_says_which_tables_it_needs() -> None:
    """What a later chart has to step back to is the newest revision of the store."""
    (head,) = ScriptDirectory(str(ROOT / "service" / "store" / "migrations")).get_heads()
    assert find(render("postgresql"), "Job")["metadata"]["annotations"]["basin/store-revision"] == head


def test_every_file_of_values_says_what_it_is_for() -> None:
    """They are examples too: the chart's README links to them."""
    assert [name for name, file in VALUES.items() if not file.read_text().startswith("# ")] == []
