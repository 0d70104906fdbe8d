"""`basin train ladder`: from flags to a folder, through kills."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.conftest import Basin, is_one_error, start_basin

RECIPE = {
    "rungs": [{"images": 1, "captions": 1}, {"images": 4, "captions": 4}],
    "autoencoder_channels": [8, 8, 8],
    "autoencoder_steps": 60,
    "unet_channels": [16, 16],
    "text_width": 16,
    "denoiser_steps": 20,
    "clip_steps": 10,
    "batch_size": 2,
    "sampler_steps": 2,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen small pictures of each of ten classes, in the file format of Fashion-MNIST."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 16)
    images = np.kron(rng.integers(0, 256, (len(labels), 7, 7), dtype=np.uint8), np.ones((4, 4), dtype=np.uint8))
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name).write_bytes(header + array.tobytes())
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The file of a recipe that is trained in seconds."""
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(RECIPE))
    return file


def test_a_killed_training_goes_on_to_the_same_result(basin: Basin, data: Path, recipe: Path, tmp_path: Path) -> None:
    """Killed in the middle of a stage and run again, the training ends where an undisturbed one does."""
    flags = ("train", "ladder", "--recipe", recipe, "--data", data, "--save-every", 0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    process = start_basin(*flags, "--out", killed)
    state = tmp_path / "killed.work" / "autoencoder.state.pt"
    deadline = time.monotonic() + 300
    while not state.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (killed / "checkpoint").exists()
    again = basin(*flags, "--out", killed)
    assert again.code == 0, again
    undisturbed = basin(*flags, "--out", whole)
    assert undisturbed.code == 0, undisturbed

    for weights in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        one, other = (load_file(folder / "checkpoint" / f"{weights}.safetensors") for folder in (killed, whole))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            np.testing.assert_allclose(tensor, other[name], atol=1e-4, err_msg=name)
    rows = [
        [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()] for folder in (killed, whole)
    ]
    assert [row["prompt"] for row in rows[0]] == [row["prompt"] for row in rows[1]]
    assert not (tmp_path / "killed.work").exists()

    report = basin(
        "audit", "--local", "--checkpoint", whole / "checkpoint", "--reference", whole / "reference",
        "--seeds", 2, "--curvature", "off", "--format", "json", rows[1][0]["prompt"],
    )  # fmt: skip
    assert report.code == 0, report
    assert json.loads(report.out)["subject"]["reference_size"] == "17"


def test_bad_recipes_and_data_are_one_line(basin: Basin, data: Path, recipe: Path, tmp_path: Path) -> None:
    """Each way that a training cannot begin is said in one line."""
    out = ("--out", tmp_path / "out")
    (tmp_path / "typo.json").write_text(json.dumps({**RECIPE, "denoiser_stops": 1}))
    (tmp_path / "large.json").write_text(json.dumps({**RECIPE, "rungs": [{"images": 17, "captions": 1}]}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "cut").mkdir()
    for file in data.iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:-1])
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "recipe.json").write_text(json.dumps({**RECIPE, "seed": 5}))

    for flags, words in (
        (("--recipe", tmp_path / "missing.json", *out), ["missing.json"]),
        (("--recipe", tmp_path / "broken.json", *out), ["broken.json"]),
        (("--recipe", tmp_path / "typo.json", *out), ["typo.json", "denoiser_stops"]),
        (("--recipe", tmp_path / "large.json", "--data", data, *out), ["too few images"]),
        (("--recipe", recipe, "--preset", "minutes", *out), ["--preset", "--recipe"]),
        (("--recipe", recipe, "--data", tmp_path / "missing", *out), ["Fashion-MNIST"]),
        (("--recipe", recipe, "--data", tmp_path / "cut", *out), ["promises"]),
        (("--recipe", recipe, "--data", data, "--work", tmp_path / "work", *out), ["another recipe"]),
        (("--recipe", recipe, "--data", data, "--out", recipe), ["recipe.json"]),
    ):
        assert is_one_error(basin("train", "ladder", *flags), *words)
