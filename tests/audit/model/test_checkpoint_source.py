"""How a checkpoint is named: one line, which is understood as it is written and never reveals a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import InvalidInput
from audit.model.checkpoint_source import CheckpointSource, Embedding, Lora, find_repository

PLACES = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S"), exclude_characters=",:"), min_size=1)
TOKENS = st.text(st.characters(codec="ascii", categories=("L", "N", "S"), exclude_characters=",:"), max_size=8)
SOURCES = st.builds(
    CheckpointSource,
    PLACES,
    variant=st.sampled_from(["", "fp16", "non_ema"]),
    config=st.just("") | PLACES,
    denoiser=st.just("") | PLACES,
    vae=st.just("") | PLACES,
    calibration=st.just("") | PLACES,
    loras=st.lists(st.builds(Lora, PLACES, st.sampled_from([1.0, 0.5, -2.0, 0.0])), max_size=3).map(tuple),
    embeddings=st.lists(st.builds(Embedding, PLACES, TOKENS), max_size=3).map(tuple),
)


@given(SOURCES)
def test_lines_are_understood_as_they_are_written(source: CheckpointSource) -> None:
    """What is written down is read back, in every part."""
    assert CheckpointSource.parse(str(source)) == source


@given(st.text(max_size=60))
def test_any_line_is_a_source_or_a_clear_error(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        reason = "" if CheckpointSource.parse(text).base else "no base"
    except InvalidInput as error:
        reason = error.reason
    assert reason in ("", "CHECKPOINT_SOURCE_INVALID")


def test_a_whole_line() -> None:
    """Adapters and embeddings keep their order; a scale is 1 unless said."""
    text = "models/sd15,variant=fp16,vae=vae,lora=a.safetensors:0.8,embedding=c.safetensors:<cat>,lora=b.safetensors"
    assert CheckpointSource.parse(text) == CheckpointSource(
        "models/sd15",
        variant="fp16",
        vae="vae",
        loras=(Lora("a.safetensors", 0.8), Lora("b.safetensors", 1.0)),
        embeddings=(Embedding("c.safetensors", "<cat>"),),
    )


def test_commas_of_folders() -> None:
    """A comma that no key follows is part of a name."""
    assert CheckpointSource.parse("models/a,b, c=d,vae=x,y") == CheckpointSource("models/a,b, c=d", vae="x,y")


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a\0b", ",vae=x", "a,vae=", "a,lora=", "a,vae=x,vae=y", "a,lora=x:y", "a,lora=:1", "a,lora=x:nan",
        "a,lora=x:inf", "a,lora=x:11", "a,embedding=x:", "a,embedding=x:two words", "a,embedding=:x",
        "a,variant=../x", "a,variant=é", f"a,embedding=x:{'y' * 65}",
    ],
)  # fmt: skip
def test_lines_that_make_no_sense(text: str) -> None:
    """They are refused, in one line."""
    with pytest.raises(InvalidInput) as caught:
        CheckpointSource.parse(text)
    assert "\n" not in str(caught.value)


def test_repositories_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OWNER/NAME is a repository, with or without a revision, unless there is such a path."""
    monkeypatch.chdir(tmp_path)
    assert find_repository("acme/model") == ("acme/model", "")
    assert find_repository("acme/model@refs/pr/1") == ("acme/model", "refs/pr/1")
    for path in (
        "model",
        "/acme/model",
        "./acme",
        "../model",
        "a/b/c",
        "acme/model.safetensors",
        "a/b.gguf",
        "acme/",
        "@x",
    ):
        assert find_repository(path) is None, path
    (tmp_path / "acme" / "model").mkdir(parents=True)
    assert find_repository("acme/model") is None
    assert find_repository("acme/model@main") == ("acme/model", "main")


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is called after its folder, file or repository, and after what lies on top."""
    monkeypatch.chdir(tmp_path)
    for text, name in {
        "/models/sd15": "sd15", "/models/sd15/": "sd15", ".": tmp_path.name, "/x/dream.v2.safetensors": "dream.v2",
        "acme/model@main": "model", "/a,lora=/b/style.safetensors:2,embedding=c/cat.safetensors": "a+style+cat",
        "/models/flux,denoiser=/b/flux1-Q4_0.gguf": "flux1-Q4_0", "a,denoiser=acme/tuned@main": "tuned",
    }.items():  # fmt: skip
        assert CheckpointSource.parse(text).name == name


def test_what_others_are_told(tmp_path: Path) -> None:
    """Names without folders, scales, words, and a repository's revision; not where the calibration is."""
    text = f"{tmp_path}/m,denoiser={tmp_path}/d.gguf,vae={tmp_path}/v,calibration={tmp_path}/c.json"
    assert CheckpointSource.parse(f"{text},lora={tmp_path}/l.safetensors:0.5").told() == (
        "m,denoiser=d.gguf,vae=v,lora=l.safetensors:0.5"
    )
    assert CheckpointSource.parse("acme/model@abc,vae=acme/vae").told() == "acme/model@abc,vae=acme/vae"


def test_elsewhere_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds the same files; repositories stay what they are."""
    monkeypatch.chdir(tmp_path)
    found = CheckpointSource.parse("acme/model@abc,vae=./v,lora=l.safetensors").absolute()
    assert str(found) == f"acme/model@abc,vae={tmp_path}/v,lora={tmp_path}/l.safetensors:1"


def test_calibrations_of_folders_alone(tmp_path: Path) -> None:
    """A folder's calibration is of its own weights, so that what lies on top must name another."""
    (tmp_path / "m.safetensors").touch()
    for text, file in {
        f"{tmp_path}": tmp_path / "calibration.json",
        f"{tmp_path},lora=x.safetensors": None,
        f"{tmp_path},variant=fp16": None,
        f"{tmp_path}/m.safetensors": None,
        "acme/model": None,
        f"{tmp_path},lora=x.safetensors,calibration=mine.json": Path("mine.json"),
    }.items():
        assert CheckpointSource.parse(text).calibration_file == file
