"""The chart as a whole: its names, its notes, and as a package."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.deploy.chart import CHART, ROOT, VALUES, documents, find, helm, render, server, settings


def test_extra_objects_are_rendered() -> None:
    """As objects or as text, with templates of the chart's in them."""
    assert find(render("extras"), "ConfigMap", "basin-extra")["data"] == {"name": "basin"}
    assert find(render("extras"), "ConfigMap", "basin-text")


@pytest.mark.parametrize(
    ("release", "override", "name"),
    [
        ("basin", "", "basin"),
        ("studio", "", "studio-basin"),
        ("studio", "auditor", "auditor"),
        ("a-release-with-a-name-as-long-as-they-can-be-here-53", "", "a-release-with-a-name-as-long-as-the"),
    ],
)
def test_names(release: str, override: str, name: str) -> None:
    """Objects bear the release's name, and what Kubernetes and KubeRay put behind it fits."""
    done = helm("template", release, CHART, "--set", f"fullnameOverride={override}")
    assert server(documents(done.stdout))["metadata"]["name"] == name


def test_the_package_holds_the_linked_files(tmp_path: Path) -> None:
    """Rules and dashboard are links in the repository, and files in what `helm package` makes."""
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "basin-0.1.0.tgz") as archive:
        for name in ("prometheus/rules.yaml", "grafana/basin.json"):
            packed = archive.extractfile(f"basin/files/{Path(name).name}")
            assert packed is not None
            assert packed.read() == (ROOT / "deploy" / name).read_bytes()


def test_it_can_be_part_of_another_chart(tmp_path: Path) -> None:
    """A chart that depends on it may switch it by condition and say things to all its parts."""
    (tmp_path / "charts").mkdir()
    helm("package", CHART, "--destination", tmp_path / "charts")
    (tmp_path / "Chart.yaml").write_text(
        "{apiVersion: v2, name: studio, version: 1.0.0, "
        "dependencies: [{name: basin, version: 0.1.0, condition: basin.enabled}]}"
    )
    values = {"global": {"region": "north"}, "basin": {"enabled": True, "config": {"log_level": "debug"}}}
    done = helm("template", "studio", tmp_path, values=values)
    assert done.returncode == 0, done.stderr
    assert settings(documents(done.stdout))["log_level"] == "debug"


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("defaults", ["statefulset/basin", "--checkpoint demo", "only the demo", "whoever reaches"], ["gone with"]),
        ("secured", ["basin.audits.svc:443"], ["WARNING"]),
        ("postgresql", ["deployment/basin", "--checkpoint candidate"], ["only the demo"]),
        ("sqlite-ephemeral", ["gone with the pod"], []),
        ("step-back", ["tables are at 0001", "helm rollback basin"], ["helm test"]),
    ],
)  # fmt: skip
def test_notes(name: str, said: list[str], unsaid: list[str]) -> None:
    """After an installation stands what to do next, and what is open to whom."""
    done = helm("install", "basin", CHART, "--namespace", "audits", "--dry-run=client", "--values", VALUES[name])
    notes = done.stdout.partition("NOTES:")[2]
    assert [text for text in said if text not in notes] == []
    assert [text for text in unsaid if text in notes] == []
