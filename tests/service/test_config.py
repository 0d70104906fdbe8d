"""Settings and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit import demo
from service.config import ConfigError, Settings, load_settings
from service.store.retention import Retention


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a configuration file."""

    def file(text: str) -> Path:
        (tmp_path / "basin.yaml").write_text(text)
        return tmp_path / "basin.yaml"

    return file


def test_defaults_serve_the_demo() -> None:
    """Without any setting the shipped checkpoint is served to this machine alone."""
    settings = load_settings()
    assert settings.listen.startswith("127.0.0.1:")
    assert settings.metrics.startswith("127.0.0.1:")
    assert settings.all_checkpoints["demo"].source == str(demo.CHECKPOINT)
    assert settings.all_references == {"demo": demo.REFERENCE}


def test_the_store_is_in_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is said where."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings().batches.store_url == f"sqlite:///{tmp_path}/basin/basin.db"
    monkeypatch.setenv("BASIN_BATCHES__STORE", "postgresql://host/name")
    assert load_settings(batches={"lanes": 2}).batches.store_url == "postgresql://host/name"


def test_flags_over_environment_over_file(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several sources the first that says something counts, part by part."""
    file = write("listen: 1.1.1.1:1\nqueue_evaluations: 1\nconcurrent_audits: 1\nlimits: {seeds: 30, steps: 31}\n")
    monkeypatch.setenv("BASIN_QUEUE_EVALUATIONS", "2")
    monkeypatch.setenv("BASIN_CONCURRENT_AUDITS", "2")
    monkeypatch.setenv("BASIN_LIMITS__SEEDS", "32")
    settings = load_settings(file, concurrent_audits=3, grace_seconds=None)
    assert (settings.listen, settings.queue_evaluations, settings.concurrent_audits) == ("1.1.1.1:1", 2, 3)
    assert (settings.limits.seeds, settings.limits.steps) == (32, 31)
    assert settings.grace_seconds == Settings().grace_seconds


def test_file_from_the_environment(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """BASIN_CONFIG names the file when no flag does."""
    monkeypatch.setenv("BASIN_CONFIG", str(write("queue_evaluations: 7")))
    assert load_settings().queue_evaluations == 7


def test_variables_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes sets for a service named basin disturbs nothing."""
    monkeypatch.setenv("BASIN_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("BASIN_SERVICE_HOST", "10.0.0.1")
    assert load_settings().model_dump() == Settings().model_dump()


def test_retention(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days, for ever unless said; null is for ever, too."""
    assert load_settings().retention == Retention(prompts=None, samples=None, results=None)
    file = write("retention: {prompts: 30, samples: 0.5, results: null}\n")
    monkeypatch.setenv("BASIN_RETENTION__SAMPLES", "7")
    assert load_settings(file).retention == Retention(prompts=30, samples=7)
    for text, message in (("{prompts: -1}", "retention.prompts"), ("{pictures: 1}", "no setting retention.pictures")):
        with pytest.raises(ConfigError, match=message):
            load_settings(write(f"retention: {text}\n"))


def test_checkpoints(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is a folder or a whole entry; naming one leaves the demo out unless it is asked for."""
    file = write("checkpoints:\n  a: /models/a\n  b: {source: /models/b, dtype: float16, preload: false}\n")
    monkeypatch.setenv("BASIN_CHECKPOINTS__C", "/models/c")
    settings = load_settings(file)
    assert sorted(settings.all_checkpoints) == ["a", "b", "c"]
    assert settings.all_checkpoints["a"].preload
    assert settings.all_checkpoints["b"].dtype == "float16"
    assert not settings.all_references
    assert sorted(load_settings(file, demo=True).all_checkpoints) == ["a", "b", "c", "demo"]


def test_prompt_sets(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by name; the variable of imported sets' folder is no setting."""
    monkeypatch.setenv("BASIN_PROMPTS_FOLDER", "/somewhere")
    assert load_settings().prompts == {}
    monkeypatch.setenv("BASIN_PROMPTS__B", "/prompts/b.csv")
    settings = load_settings(write("prompts: {a: /prompts/a.txt}"))
    assert settings.prompts == {"a": Path("/prompts/a.txt"), "b": Path("/prompts/b.csv")}


@pytest.mark.parametrize("off", ["metrics: off", "metrics: 'off'", "metrics: ''", "metrics: false"])
def test_metrics_off(write: Any, off: str) -> None:
    """However YAML reads it, off is off."""
    assert load_settings(write(off)).metrics == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "there is no setting colour"),
        ("limits: {colour: 1}", "there is no setting limits.colour"),
        ("queue_evaluations: many", "queue_evaluations: "),
        ("queue_evaluations: 0", "queue_evaluations: "),
        ("listen: here", "listen: 'here' is not HOST:PORT"),
        ("listen: localhost:70000", "listen: 'localhost:70000' is not HOST:PORT"),
        ("metrics: here", "metrics: 'here' is not HOST:PORT"),
        ("checkpoints: {a b: /x}", "'a b' must be"),
        ("checkpoints: {a: {source: /x, dtype: int4}}", "checkpoints.a.dtype: "),
        ("checkpoints: {a: {}}", "checkpoints.a.source: "),
        ("checkpoints: {demo: /x}\ndemo: true", "the name 'demo' belongs to the shipped checkpoint"),
        ("prompts: {a b: /x}", "'a b' must be"),
        ("prompts: {ordinary: /x}", "the name 'ordinary' belongs to a shipped prompt set"),
        ("demo: false", "there is no checkpoint to serve"),
        ("budget: {seeds: 0}", "budget.seeds: "),
        ("limits: {seeds: 4}", "limits.seeds only 4"),
        ("batches: {lease_seconds: 0}", "batches.lease_seconds: "),
        ("batches: {colour: 1}", "there is no setting batches.colour"),
        ("- a list", "must hold settings by name"),
        ("a: [", "is not valid YAML (line 1)"),
        ("a: \0", "is not valid YAML"),
    ],
)
def test_bad_file(write: Any, text: str, message: str) -> None:
    """A bad configuration is told in one line that says where."""
    with pytest.raises(ConfigError) as error:
        load_settings(write(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables are checked like files, and a file must be there."""
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_settings(tmp_path / "none.yaml")
    monkeypatch.setenv("BASIN_CHECKPOINTS", "{not json")
    with pytest.raises(ConfigError, match="checkpoints"):
        load_settings()
    monkeypatch.delenv("BASIN_CHECKPOINTS")
    monkeypatch.setenv("BASIN_LIMITS__STEPS", "0")
    with pytest.raises(ConfigError, match=r"limits\.steps: "):
        load_settings()
