"""The compose file: its form, and that its parts fit together. No engine runs it here."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.chart import ROOT

DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
#: With variables as Compose puts them in: their defaults, or something where there is none.
FILLED = re.sub(r"\$\{\w+:(?:-([^}]*)|\?[^}]*)\}", lambda found: found[1] or "secret", TEXT)
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]


def test_the_file_is_what_the_specification_allows() -> None:
    """Every key and value is of the Compose specification."""
    assert set(PyCompose.from_yaml(FILLED).service_names()) == {"basin", "grafana", "postgres", "prometheus"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("read_only: true", "read_only: maybe"), ("healthcheck:", "healthchecks:"), ("service_healthy", "service_well")],
)
def test_a_mistake_in_the_file_is_found(right: str, wrong: str) -> None:
    """The check above sees a value of another type, an unknown key and an unknown word."""
    assert right in TEXT
    with pytest.raises(ValueError, match="services"):
        PyCompose.from_yaml(FILLED.replace(right, wrong))


def mounts(service: str) -> list[list[str]]:
    """Source, target and mode of what a service mounts."""
    return [volume.split(":") for volume in SERVICES[service]["volumes"]]


def test_volumes_and_files_are_there() -> None:
    """Every named volume is declared and used, and every mounted file is one of the repository."""
    used = {mount[0] for service in SERVICES for mount in mounts(service)}
    assert {source for source in used if not source.startswith(".")} == set(COMPOSE["volumes"])
    own = {source for source in used if source.startswith(".")} - {"./models"}  # the user's
    assert [source for source in own if not (DEPLOY / source).exists()] == []
    assert all(mount[2:] == ["ro"] for service in SERVICES for mount in mounts(service) if mount[0].startswith("."))


def test_ports_are_open_to_this_machine_alone() -> None:
    """Neither an unprotected server nor a dashboard is open to the network."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_password_is_in_the_file() -> None:
    """They come from the environment, and without them nothing starts."""
    environment = str([service.get("environment") for service in SERVICES.values()])
    assert environment.count("${POSTGRES_PASSWORD:?") == 2
    assert environment.count("${GRAFANA_PASSWORD:?") == 1
    assert ".env" in (ROOT / ".gitignore").read_text()


def test_the_server_has_nothing_that_it_does_not_need() -> None:
    """Its root is read-only, it has no capabilities, and time to end its work."""
    basin = SERVICES["basin"]
    assert (basin["read_only"], basin["cap_drop"]) == (True, ["ALL"])
    assert basin["security_opt"] == ["no-new-privileges:true"]
    assert basin["tmpfs"] == ["/tmp"]
    assert int(basin["stop_grace_period"].rstrip("s")) > 30  # the default of grace_seconds
    assert "user" not in basin  # the image's


def test_the_server_is_built_of_the_repository() -> None:
    """The Dockerfile's context is the repository, and its arguments are the Dockerfile's."""
    build = SERVICES["basin"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    dockerfile = (context / build["dockerfile"]).read_text()
    assert all(f"ARG {argument}=" in dockerfile for argument in build["args"])


def test_the_server_finds_its_database() -> None:
    """Its URL names the service, user and database that PostgreSQL makes."""
    url = SERVICES["basin"]["environment"]["BASIN_BATCHES__STORE"]
    postgres = SERVICES["postgres"]["environment"]
    found = re.fullmatch(r"postgresql://(\w+):\$\{POSTGRES_PASSWORD:\?[^}]+\}@(\w+)/(\w+)", url)
    assert found is not None
    assert found.groups() == (postgres["POSTGRES_USER"], "postgres", postgres["POSTGRES_DB"])
    assert SERVICES["basin"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "healthcheck" in SERVICES["postgres"]


def test_what_is_waited_for_says_when_it_is_well() -> None:
    """`service_healthy` without a health check would wait for ever; the server's is in its image."""
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            assert (how["condition"] != "service_healthy") or "healthcheck" in SERVICES[name]


def inside(service: str, path: str) -> Any:
    """The file of the repository that a service sees at a path, read."""
    for source, target, *_ in mounts(service):
        if PurePosixPath(path).is_relative_to(target):
            return yaml.safe_load((DEPLOY / source / PurePosixPath(path).relative_to(target)).read_text())
    raise AssertionError(f"{service} sees no file of ours at {path}")


def test_prometheus_reads_its_configuration_and_finds_the_server() -> None:
    """It scrapes the metrics port of the service, as the job that the rules are about."""
    (file,) = [flag.partition("=")[2] for flag in SERVICES["prometheus"]["command"] if "config.file" in flag]
    config = inside("prometheus", file)
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    port = yaml.safe_load((DEPLOY / "basin.yaml").read_text())["metrics"].rpartition(":")[2]
    assert jobs == {"basin": [f"basin:{port}"]}
    for rules in config["rule_files"]:
        assert "groups" in inside("prometheus", str(PurePosixPath(file).parent / rules))


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """The data source is the service, and the folder that it loads holds the dashboard."""
    provisioning = "/etc/grafana/provisioning"
    (source,) = inside("grafana", f"{provisioning}/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = inside("grafana", f"{provisioning}/dashboards/basin.yaml")["providers"]
    assert inside("grafana", f"{provider['options']['path']}/basin.json")["title"]


def test_images_have_versions() -> None:
    """No tag moves from one major to the next by itself."""
    images = {name: service["image"].partition(":")[2] for name, service in SERVICES.items() if name != "basin"}
    assert all(re.match(r"v?\d+", tag) for tag in images.values()), images
