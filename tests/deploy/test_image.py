"""The image: what its Dockerfile says. No engine builds it here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import ROOT, container, find, render, server

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def instructions(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of a Dockerfile's stages, each with its arguments in one line."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    stages: list[list[tuple[str, str]]] = [[]]
    for line in lines.replace("\\\n", " ").splitlines():
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stages.append([])
        if name:
            stages[-1].append((name, re.sub(r"\s+", " ", arguments)))
    return stages[1:]


BUILD, FINAL = instructions(DOCKERFILE)


def said(stage: list[tuple[str, str]], name: str) -> list[str]:
    """The arguments of a stage's instructions of a name."""
    return [arguments for instruction, arguments in stage if instruction == name]


def hadolint(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run hadolint."""
    command = Path(sys.executable).with_name("hadolint")
    assert command.exists(), "there is no hadolint: make venv"
    return subprocess.run([command, *arguments], input=text, capture_output=True, text=True)


def test_hadolint_finds_nothing() -> None:
    """Not even what is only style."""
    done = hadolint("--failure-threshold", "style", str(DEPLOY / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong() -> None:
    """The check above would see a tag that moves."""
    assert "DL3007" in hadolint("-", text="FROM debian:latest\n").stdout


def test_the_end_is_no_root() -> None:
    """The user is a number, so that Kubernetes can tell, and the one that the chart runs and volumes belong to."""
    (user,) = said(FINAL, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    context = server(render())["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    after = [name for name, _ in FINAL[FINAL.index(("USER", user)) :]]
    assert not {"RUN", "COPY", "ADD", "USER"} & set(after[1:])


def test_the_end_has_no_build_tools() -> None:
    """Debian's Python and an init are installed; compilers, headers, pip and its cache stay behind."""
    (run,) = said(FINAL, "RUN")
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends ([^&]+?) &&", run)
    assert installed == "python3 tini"
    assert "rm -rf /var/lib/apt/lists/*" in run
    assert said(FINAL, "COPY") == [
        "--from=build /opt/basin /opt/basin",
        "--from=build /usr/local/bin /usr/local/bin",
        "deploy/basin.yaml /etc/basin/basin.yaml",
    ]
    assert "python3 -m venv --without-pip /opt/basin" in " ".join(said(BUILD, "RUN"))


def test_every_version_is_pinned() -> None:
    """Nothing is installed without the constraints, from source, or into the cache."""
    (environment,) = [arguments for arguments in said(BUILD, "ENV") if "PIP_" in arguments]
    assert set(environment.split()) >= {
        "PIP_CONSTRAINT=/src/deploy/constraints.txt", "PIP_NO_CACHE_DIR=1", "PIP_ONLY_BINARY=:all:",
    }  # fmt: skip
    constraints = (DEPLOY / "constraints.txt").read_text()
    pinned = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    position = [name for name, _ in BUILD].index("ENV")
    assert not any("pip install" in arguments for _, arguments in BUILD[:position])


def test_both_stages_are_the_same_debian() -> None:
    """The environment's Python is a link to the system's."""
    assert [said(stage, "FROM")[0].partition(" ")[0] for stage in (BUILD, FINAL)] == ["debian:${DEBIAN}"] * 2


def test_an_unknown_variant_ends_the_build() -> None:
    """And is not taken for one of the two."""
    (run,) = [arguments for arguments in said(BUILD, "RUN") if "$VARIANT" in arguments]
    script = run.replace("/tools/bin/pip", "echo pip")

    def choose(variant: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-euc", script], env={"VARIANT": variant}, capture_output=True, text=True)

    assert "--index-url https://download.pytorch.org/whl/cpu torch torchvision" in choose("cpu").stdout
    assert (choose("cuda").returncode, choose("cuda").stdout) == (0, "")
    assert choose("rocm").returncode == 1
    assert "VARIANT is cpu or cuda" in choose("rocm").stderr


@pytest.mark.parametrize("extras", ["", "ray"])
def test_requirements_are_those_of_the_package(extras: str) -> None:
    """What is installed before the package is what the package asks for, with its extras."""
    (run,) = [arguments for arguments in said(BUILD, "RUN") if "tomllib" in arguments]
    script = run.partition(" >requirements.txt")[0].replace("python3", sys.executable)
    done = subprocess.run(["bash", "-euc", script], env={"EXTRAS": extras}, cwd=ROOT, capture_output=True, text=True)
    requirements = done.stdout.splitlines()
    assert any(line.startswith("torch>=") for line in requirements), done.stderr
    assert any(line.startswith("ray>=") for line in requirements) is (extras == "ray")
    assert not any(line.startswith("pytest") for line in requirements)


def test_the_extras_of_the_image_are_there() -> None:
    """Those that are installed unless said are extras of the package."""
    (default,) = [arguments.partition("=")[2] for arguments in said(BUILD, "ARG") if arguments.startswith("EXTRAS=")]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(default.split(",")) <= extras.keys()


def test_the_health_check_is_the_probe() -> None:
    """The engine asks what Kubernetes asks: readiness, over gRPC, on the plaintext port of the settings."""
    (check,) = said(FINAL, "HEALTHCHECK")
    port = yaml.safe_load((DEPLOY / "basin.yaml").read_text())["health"].rpartition(":")[2]
    assert check.endswith(f'CMD ["basin", "health", "127.0.0.1:{port}", "--service", "readiness"]')
    assert container(server(render()))["readinessProbe"]["grpc"] == {"port": int(port), "service": "readiness"}


def test_a_server_that_starts_hears_signals() -> None:
    """An init is process 1, whoever starts the image: neither the chart nor the compose file takes its place."""
    (entry,) = said(FINAL, "ENTRYPOINT")
    assert json.loads(entry) == ["tini", "--", "basin"]
    assert "command" not in container(server(render()))
    assert container(server(render()))["args"][0] == "serve"
    assert (
        not {"entrypoint", "command"}
        & yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["basin"].keys()
    )


def test_ports_and_folders_are_those_of_settings_and_chart() -> None:
    """Whoever runs the image, it listens and writes at the same places."""
    settings = yaml.safe_load((DEPLOY / "basin.yaml").read_text())
    (exposed,) = said(FINAL, "EXPOSE")
    ports = {name: int(address.rpartition(":")[2]) for name, address in settings.items()}
    assert sorted(ports.values()) == sorted(map(int, exposed.split()))
    named = {port["name"]: port["containerPort"] for port in container(server(render()))["ports"]}
    assert named == {"grpc": ports["listen"], "health": ports["health"], "metrics": ports["metrics"]}
    (volumes,) = said(FINAL, "VOLUME")
    (environment,) = said(FINAL, "ENV")
    written = dict(pair.split("=") for pair in environment.split())
    assert volumes == f'["{written["XDG_CACHE_HOME"]}", "{written["XDG_DATA_HOME"]}"]'
    mounts = {mount["mountPath"] for mount in container(server(render()))["volumeMounts"]}
    assert {"/tmp", written["XDG_CACHE_HOME"], written["XDG_DATA_HOME"]} <= mounts


def test_what_is_copied_is_sent_to_the_builder_and_nothing_else() -> None:
    """Every COPY of the context is let through, and neither tests nor secrets are."""
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore
    copied = {
        source.rstrip("/")
        for stage in (BUILD, FINAL)
        for arguments in said(stage, "COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch("tests/conftest.py", pattern) or fnmatch("deploy/.env", pattern) for pattern in allowed)


def test_the_download_job_has_its_tool() -> None:
    """`hf` comes with a dependency, and is linked to where every shell finds it."""
    assert Path(sys.executable).with_name("hf").exists()
    assert "for name in basin hf ray" in " ".join(said(BUILD, "RUN"))
    assert "hf download" in str(find(render("downloads"), "Job"))
