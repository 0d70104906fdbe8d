"""Checkpoint folders: what loads, what is refused, and what the digest says."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from audit import demo
from audit.errors import AuditError, BrokenCheckpoint, InvalidInput, NotFound
from audit.model import files
from audit.model.checkpoint import Checkpoint
from audit.model.files import digest_files
from audit.model.loading import load_checkpoint
from tests.audit.makers import copy_demo

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PICKLES = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}


def refused(folder: Path) -> AuditError:
    """The error of loading a folder, which must be one of ours."""
    with pytest.raises(BrokenCheckpoint) as caught:
        load_checkpoint(folder)
    assert caught.value.field == "checkpoint"
    assert str(folder.parent) not in str(caught.value), "an error tells clients nothing of the server's folders"
    return caught.value


def test_the_demo_describes_itself(checkpoint: Checkpoint) -> None:
    """Sizes, channels, prediction type and defaults are those of the folder's configuration."""
    assert checkpoint.name == "demo"
    assert checkpoint.family == "StableDiffusionPipeline"
    assert (checkpoint.size_factor, checkpoint.latent_channels, checkpoint.image_channels) == (4, 4, 1)
    assert (checkpoint.defaults.height, checkpoint.defaults.width) == (32, 32)
    assert checkpoint.latent_shape(checkpoint.defaults) == (4, 8, 8)
    assert checkpoint.denoiser.prediction_type == checkpoint.scheduler_config["prediction_type"]
    assert len(checkpoint.denoiser.schedule) == 1000
    assert checkpoint.parameters > 1_000_000
    assert checkpoint.digest.startswith("sha256:")


def test_prompts_encode_row_by_row(checkpoint: Checkpoint) -> None:
    """A prompt's condition does not depend on the prompts beside it."""
    prompts = ["a red wool coat", "", "a"]
    together = checkpoint.encode_prompts(prompts)["text"]
    assert together.shape[0] == 3
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row[None], checkpoint.encode_prompts([prompt])["text"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompts", [["coat " * 15], ["a", "coat " * 15], ["\N{SNOWMAN}" * 40]])
def test_prompts_over_the_length_are_refused(checkpoint: Checkpoint, prompts: list[str]) -> None:
    """A prompt that would be cut is refused, also beside one that fits."""
    with pytest.raises(InvalidInput) as caught:
        checkpoint.encode_prompts(prompts)
    assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", "prompt")


def test_the_longest_prompt_still_fits(checkpoint: Checkpoint) -> None:
    """A prompt of exactly the length is read."""
    assert checkpoint.encode_prompts(["coat " * 14])["text"].shape[1] == 16


def test_images_survive_the_autoencoder(checkpoint: Checkpoint) -> None:
    """Encode and decode keep shapes, and images stay in [-1, 1]."""
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    latents = checkpoint.encode(images)
    assert latents.shape == (3, 4, 8, 8)
    decoded = checkpoint.decode(10 * latents)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    assert float(decoded.abs().max()) <= 1


def test_half_precision_loads_and_samples_stay_close(checkpoint: Checkpoint) -> None:
    """The same folder in bfloat16 gives the same noise prediction, within the precision."""
    half = load_checkpoint(demo.CHECKPOINT, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    found = half.denoiser(x.bfloat16(), t, half.encode_prompts(["a red bag"] * 2))
    expected = checkpoint.denoiser(x, t, checkpoint.encode_prompts(["a red bag"] * 2))
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.1


def test_the_digest_is_of_the_content(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """A copy has the same digest under any name; one changed weight, or the scheduler, has another."""
    folder = copy_demo(tmp_path / "elsewhere")
    copied = load_checkpoint(folder)
    assert copied.name == "elsewhere"
    assert load_checkpoint(folder, name="given").name == "given"
    assert copied.digest == checkpoint.digest
    weights = load_file(folder / "unet" / WEIGHTS["unet"])
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "unet" / WEIGHTS["unet"], metadata={"format": "pt"})
    changed = load_checkpoint(folder)
    assert changed.digest != checkpoint.digest
    assert load_checkpoint(copy_demo(tmp_path / "other", beta_end=0.013)).digest != checkpoint.digest


def test_calibrations_do_not_change_the_digest(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """What lies beside the weights is no part of them: a calibration names the digest it was made for."""
    folder = copy_demo(tmp_path / "copy")
    (folder / "calibration.json").unlink()
    (folder / "notes.txt").write_text("hello")
    assert load_checkpoint(folder).digest == checkpoint.digest


@pytest.mark.parametrize("part", sorted(WEIGHTS))
def test_pickled_weights_are_refused(tmp_path: Path, part: str) -> None:
    """A pickle is named and never opened, whatever part it is."""
    folder = copy_demo(tmp_path / "copy")
    (folder / part / WEIGHTS[part]).unlink()

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    (folder / part / PICKLES[part]).write_bytes(pickle.dumps(Trap()))
    error = refused(folder)
    assert error.reason == "CHECKPOINT_PICKLED"
    assert PICKLES[part] in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", sorted(WEIGHTS))
def test_a_pickle_beside_other_safetensors_is_not_opened_either(tmp_path: Path, part: str) -> None:
    """Weights under an unknown name do not let a pickle in."""
    folder = copy_demo(tmp_path / "copy")
    (folder / part / WEIGHTS[part]).rename(folder / part / "other.safetensors")

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    (folder / part / PICKLES[part]).write_bytes(pickle.dumps(Trap()))
    refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler",
        "scheduler/scheduler_config.json",
        "tokenizer",
        "unet",
        "vae",
        "text_encoder",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        *(f"{part}/{file}" for part, file in WEIGHTS.items()),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, missing: str) -> None:
    """A folder without one of its parts is incomplete or damaged, never half loaded."""
    folder = copy_demo(tmp_path / "copy")
    path = folder / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert refused(folder).reason in ("CHECKPOINT_INCOMPLETE", "CHECKPOINT_DAMAGED")


@pytest.mark.parametrize("part", sorted(WEIGHTS))
def test_every_weight_must_be_there(tmp_path: Path, part: str) -> None:
    """A missing tensor is never replaced by a random one."""
    folder = copy_demo(tmp_path / "copy")
    file = folder / part / WEIGHTS[part]
    weights = load_file(file)
    name = sorted(weights)[3]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    error = refused(folder)
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    assert part in str(error)


@pytest.mark.parametrize("part", sorted(WEIGHTS))
@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "shape"])
def test_damaged_weights_are_refused(tmp_path: Path, part: str, damage: str) -> None:
    """Safetensors that are cut short, empty, garbled or of other shapes are a clear error."""
    folder = copy_demo(tmp_path / "copy")
    file = folder / part / WEIGHTS[part]
    raw = file.read_bytes()
    if damage == "shape":
        weights = load_file(file)
        weights[sorted(weights)[3]] = torch.zeros(7, 5)
        save_file(weights, file, metadata={"format": "pt"})
    else:
        file.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "header": b"\xff" * 64 + raw[64:]}[damage])
    assert refused(folder).reason == "CHECKPOINT_DAMAGED"


@pytest.mark.parametrize("file", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"])
@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe", b"", b"null"])
def test_broken_json_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    """Configuration that is no JSON object is a clear error."""
    folder = copy_demo(tmp_path / "copy")
    (folder / file).write_bytes(content)
    assert refused(folder).reason in ("CHECKPOINT_INCOMPLETE", "CHECKPOINT_DAMAGED")


@pytest.mark.parametrize("family", ["KolorsPipeline", "", None, {"a": 1}])
def test_unknown_families_are_named(tmp_path: Path, family: object) -> None:
    """A pipeline of another family says which ones are supported."""
    folder = copy_demo(tmp_path / "copy")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": family}))
    error = refused(folder)
    assert error.reason == "CHECKPOINT_FAMILY_UNSUPPORTED"
    assert "StableDiffusionPipeline" in str(error)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("StableDiffusionInpaintPipeline", "completes a given image"),
        ("FluxFillPipeline", "completes a given image"),
        ("StableDiffusionXLControlNetPipeline", "follows a given image"),
        ("StableDiffusionXLImg2ImgPipeline", "refiner"),
        ("StableVideoDiffusionPipeline", "makes videos"),
    ],
)
def test_pipelines_that_start_from_something_else_are_told_why(tmp_path: Path, family: str, why: str) -> None:
    """What was found, why it cannot be audited, and what can."""
    folder = copy_demo(tmp_path / "copy")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": family}))
    error = refused(folder)
    assert error.reason == "CHECKPOINT_FAMILY_UNSUPPORTED"
    assert family in str(error)
    assert why in str(error)
    assert "StableDiffusionXLPipeline" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"prediction_type": "flow_prediction"},
        {"_class_name": "NoSuchScheduler"},
        {"_class_name": "StableDiffusionPipeline"},
    ],
)
def test_unsupported_schedulers_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A scheduler without a variance-preserving schedule, or no scheduler at all, is an error at loading."""
    assert refused(copy_demo(tmp_path / "copy", **change)).reason in (
        "CHECKPOINT_SCHEDULER_UNSUPPORTED",
        "CHECKPOINT_DAMAGED",
    )


def test_an_inpainting_unet_is_another_family(tmp_path: Path) -> None:
    """A UNet that reads more than latents is refused at loading, not at the first audit."""
    folder = copy_demo(tmp_path / "copy")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 9}))
    weights = load_file(folder / "unet" / WEIGHTS["unet"])
    old = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.zeros(old.shape[0], 9, *old.shape[2:])
    save_file(weights, folder / "unet" / WEIGHTS["unet"], metadata={"format": "pt"})
    assert refused(folder).reason == "CHECKPOINT_FAMILY_UNSUPPORTED"


def test_a_rectangular_unet_has_rectangular_defaults(tmp_path: Path) -> None:
    """A sample size of two numbers is height and width."""
    folder = copy_demo(tmp_path / "copy")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": [8, 12]}))
    loaded = load_checkpoint(folder)
    assert (loaded.defaults.height, loaded.defaults.width) == (32, 48)
    assert loaded.latent_shape(loaded.defaults) == (4, 8, 12)


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    """Python files that a checkpoint brings along stay closed, and one that needs them is refused."""
    folder = copy_demo(tmp_path / "copy")
    for place in (folder, folder / "unet", folder / "tokenizer"):
        for name in ("pipeline.py", "modeling.py", "tokenization.py", "__init__.py"):
            (place / name).write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    load_checkpoint(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["pipeline", "MyUNet"]}))
    error = refused(folder)
    assert error.reason == "CHECKPOINT_UNSAFE"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_no_folder_is_not_found(tmp_path: Path, kind: str) -> None:
    """A path without a folder is named by its last part only."""
    path = tmp_path / "nothing"
    if kind == "file":
        path.write_text("hello")
    with pytest.raises(NotFound) as caught:
        load_checkpoint(path)
    assert caught.value.reason == "CHECKPOINT_NOT_FOUND"
    assert str(tmp_path) not in str(caught.value)


def test_text_encoders_as_stable_diffusion_ships_them(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Weight names with the prefix of older releases load to the same encoder."""
    folder = copy_demo(tmp_path / "copy")
    file = folder / "text_encoder" / WEIGHTS["text_encoder"]
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, file, metadata={"format": "pt"})
    found = load_checkpoint(folder).encode_prompts(["a red coat"])["text"]
    torch.testing.assert_close(found, checkpoint.encode_prompts(["a red coat"])["text"])


def test_a_file_is_read_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest is remembered for files that have long been what they are, and only for as long as they are."""
    path, reads = tmp_path / "file", []
    read = hashlib.file_digest

    def watch(*given: Any) -> Any:
        reads.append(given)
        return read(*given)

    monkeypatch.setattr(hashlib, "file_digest", watch)
    path.write_bytes(b"one")
    first = digest_files({"name": path})
    assert digest_files({"name": path}) == first
    assert len(reads) == 2, "it may still be written to"
    monkeypatch.setattr(files, "SETTLED_SECONDS", -1.0)
    assert [digest_files({"name": path}) for _ in range(3)] == [first] * 3
    assert len(reads) == 3
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_files({"name": path}) != first, "its time can be set back, that of its change cannot"
    assert digest_files({"other": path}) != digest_files({"name": path})
