"""Denoisers out of GGUF files: diffusers' own arithmetic, near the weights that they were made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import GGUFQuantizationConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import AuditError, BrokenCheckpoint, NotFound
from audit.evidence.curvature import CurvatureSettings
from audit.model.checkpoint import Checkpoint
from audit.model.checkpoint_source import CheckpointSource
from audit.model.denoiser import repeat
from audit.model.gguf_headers import read_gguf_header
from audit.model.loading import load_checkpoint, see
from audit.model.sources import Source, open_source, weights_bytes
from tests.audit.makers import save_sd2_pipeline
from tests.audit.model import tiny
from tests.audit.model.gguf_files import save_gguf
from tests.audit.model.original import original_sd3, unet_name
from tests.audit.model.side_by_side import SIZE, Both, assert_close

STEM = "diffusion_pytorch_model.safetensors"
#: Every type that diffusers computes with.
KINDS = (
    "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS", "F16", "BF16",
)  # fmt: skip


def wide(name: str, heads: int = 4) -> Any:
    """A tiny pipeline with a transformer that is wide enough for blocks."""
    made = tiny.PIPELINES[name]()
    config = {**made.transformer.config, "num_attention_heads": heads, "attention_head_dim": 16}
    if name == "sd3":
        config["caption_projection_dim"] = heads * 16
    torch.manual_seed(6)
    made.transformer = type(made.transformer).from_config(config)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines of FLUX and Stable Diffusion 3."""
    place = tmp_path_factory.mktemp("quantized")
    for name in ("flux-dev", "sd3"):
        wide(name).save_pretrained(place / name, safe_serialization=True)
    return {name: place / name for name in ("flux-dev", "sd3")}


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the transformer of a pipeline."""
    return load_file(folder / "transformer" / STEM)


def opened(text: object, dtype: torch.dtype = torch.float32) -> Source:
    """What a line leads to."""
    return open_source(CheckpointSource.parse(str(text)), torch.device("cpu"), dtype)


def seen(text: object, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """That, as a checkpoint which nobody tried out."""
    return see(opened(text, dtype), "tiny")


def plain(folder: Path, numbers: dict[str, Tensor]) -> Checkpoint:
    """The checkpoint of a folder with these weights."""
    source = opened(folder)
    source.pipeline.transformer.load_state_dict(numbers)
    return see(source, "plain")


def predict(checkpoint: Checkpoint, x: Tensor | None = None) -> Tensor:
    """Predictions at two levels of noise."""
    torch.manual_seed(7)
    rows = torch.randn(2, checkpoint.latent_channels, 8, 8) if x is None else x
    condition = repeat(checkpoint.encode_prompts(["a cream linen coat"]), 2)
    condition = {name: value.clone() for name, value in condition.items()}
    return checkpoint.denoiser.native(rows.to(checkpoint.dtype), torch.tensor([900.0, 20.0]), condition)


def distance(one: Tensor, other: Tensor) -> float:
    """As a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def refused(text: object) -> AuditError:
    """The error of a source, as callers see it."""
    with pytest.raises((BrokenCheckpoint, NotFound)) as caught:
        load_checkpoint(str(text))
    assert str(caught.value.field) == "checkpoint"
    assert "/tmp" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# Numbers


@pytest.mark.parametrize(("name", "kind", "bound"), [("flux-dev", "Q8_0", 0.01), ("sd3", "Q4_0", 0.1)])
def test_trajectories_are_the_pipelines_own(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str, bound: float
) -> None:
    """Where diffusers' pipeline ends with the same file; and predictions are near those of the unquantized weights."""
    folder, file = folders[name], tmp_path / f"{kind}.gguf"
    save_gguf(weights(folder), file, kind)
    pipeline = opened(folder).pipeline
    pipeline.scheduler = type(pipeline.scheduler).from_pretrained(folder / "scheduler")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer = type(pipeline.transformer).from_single_file(
        str(file),
        config=str(folder),
        subfolder="transformer",
        local_files_only=True,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    both = Both(pipeline, seen(f"{folder},denoiser={file}"))
    settings = both.settings()
    assert_close(both.ours(settings), both.theirs(settings))
    assert 1e-4 < distance(predict(both.checkpoint), predict(seen(folder))) < bound


def test_blocks_mean_what_gguf_says(tmp_path: Path) -> None:
    """With a type after the other, predictions are those of the numbers that gguf reads, up to half precision."""
    folder, file = tmp_path / "flux", tmp_path / "all.gguf"
    wide("flux-dev", heads=16).save_pretrained(folder, safe_serialization=True)
    numbers = save_gguf(weights(folder), file, *KINDS)
    assert {entry.dtype for entry in read_gguf_header(file).values()} == {*KINDS, "F32"}
    assert distance(predict(seen(f"{folder},denoiser={file}")), predict(plain(folder, numbers))) < 2e-3


def test_biases_norms_and_convolutions_may_be_packed_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """A file of brain floats alone, of which diffusers unpacks the weights of linear layers only."""
    folder, file = folders["sd3"], tmp_path / "bf16.gguf"
    numbers = save_gguf(weights(folder), file, "BF16", matrices=False)
    assert {entry.dtype for entry in read_gguf_header(file).values()} == {"BF16"}
    found = seen(f"{folder},denoiser={file}")
    assert found.dtype == torch.float32
    assert distance(predict(found), predict(plain(folder, numbers))) < 1e-5


def test_other_precisions(folders: dict[str, Path], tmp_path: Path) -> None:
    """Activations have the precision that is asked for, and unpacked weights with them."""
    folder, file = folders["flux-dev"], tmp_path / "q8.gguf"
    numbers = save_gguf(weights(folder), file, "Q8_0")
    found = seen(f"{folder},denoiser={file}", torch.bfloat16)
    prediction = predict(found)
    assert found.dtype == prediction.dtype == torch.bfloat16
    assert distance(prediction.float(), predict(plain(folder, numbers))) < 0.05


def test_gradients_pass_through_packed_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """What a prediction changes by is what the unpacked network's changes by."""
    folder, file = folders["sd3"], tmp_path / "q8.gguf"
    numbers = save_gguf(weights(folder), file, "Q8_0")
    gradients = []
    for checkpoint in (seen(f"{folder},denoiser={file}"), plain(folder, numbers)):
        x = torch.linspace(-2, 2, 2 * 4 * 64).reshape(2, 4, 8, 8).requires_grad_(True)
        gradients += torch.autograd.grad(predict(checkpoint, x).square().sum(), x)
    assert distance(*gradients) < 5e-3


def test_an_audit(folders: dict[str, Path], tmp_path: Path) -> None:
    """It measures what an audit of the unpacked weights measures."""
    folder, file, traces = folders["sd3"], tmp_path / "q8.gguf", []
    numbers = save_gguf(weights(folder), file, "Q8_0")
    budget = Budget(seeds=2, minimum_seeds=2, curvature=CurvatureSettings(samples=1))
    for checkpoint in (load_checkpoint(f"{folder},denoiser={file}"), plain(folder, numbers)):
        auditor = Auditor(checkpoint)
        sampler = auditor.resolve_sampler(steps=2, height=SIZE, width=SIZE)
        report = auditor.audit("a cream linen coat", sampler=sampler, budget=budget)
        assert report.checkpoint_digest == checkpoint.digest
        assert report.gaps == ()
        traces.append([level.prompt.trace for level in report.evidence.curvature])
    assert traces[0] == pytest.approx(traces[1], rel=0.02)


# Files


def test_what_a_file_is_for_a_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is in the digest by its content, gives the name, and the pipeline needs no denoiser's weights of its own."""
    folder, file, other = folders["flux-dev"], tmp_path / "flux1-Q8_0.gguf", tmp_path / "other.gguf"
    save_gguf(weights(folder), file, "Q8_0")
    save_gguf(weights(folder), other, "Q4_0")
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "transformer" / STEM).unlink()
    found, own = load_checkpoint(f"{bare},denoiser={file}"), opened(folder)
    assert (found.name, found.source) == ("flux1-Q8_0", "bare,denoiser=flux1-Q8_0.gguf")
    assert found.autoencoder == own.autoencoder_digest
    assert found.parameters == seen(folder).parameters
    changed = opened(f"{bare},denoiser={other}").digest
    assert len({own.digest, found.digest, changed}) == 3
    shutil.copyfile(other, file)
    assert opened(f"{bare},denoiser={file}").digest == changed


def test_the_memory_that_a_file_takes(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is known before anything is loaded, and that of blocks does not depend on the precision."""
    folder, file = folders["flux-dev"], tmp_path / "q4.gguf"
    save_gguf(weights(folder), file, "Q4_0")
    for dtype in (torch.float32, torch.bfloat16):
        source = CheckpointSource.parse(f"{folder},denoiser={file}")
        pipeline = opened(source, dtype).pipeline
        parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        held = sum(value.nbytes for part in parts for value in part.parameters())
        assert weights_bytes(source, dtype) == pytest.approx(held, rel=0.01)
        assert weights_bytes(source, dtype) < weights_bytes(CheckpointSource(str(folder)), dtype)


def test_files_of_the_first_layout(tmp_path: Path) -> None:
    """Stable Diffusion under the names of its first release, alone or beside the autoencoder of the same file."""
    folder, file = save_sd2_pipeline(tmp_path / "sd2"), tmp_path / "sd2.gguf"
    bare = opened(folder)
    layers = bare.pipeline.unet.config.layers_per_block
    own = {
        f"model.diffusion_model.{unet_name(name, layers)}": value
        for name, value in bare.pipeline.unet.state_dict().items()
    }
    for more in ({}, {"first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4)}):
        save_gguf({**own, **more}, file, "F16")
        assert distance(predict(seen(f"{folder},denoiser={file}")), predict(see(bare, "sd2"))) < 2e-3
    own.popitem()
    save_gguf(own, file, "F16")
    assert refused(f"{folder},denoiser={file}").reason == "CHECKPOINT_INCOMPLETE"


def test_files_of_stable_diffusion_3s_own_layout(folders: dict[str, Path], tmp_path: Path) -> None:
    """Blocks survive that diffusers renames tensors, splits some and turns others round."""
    folder, file = folders["sd3"], tmp_path / "sd3.gguf"
    own = original_sd3(weights(folder))
    save_gguf(own, file, "Q8_0")
    expected = save_gguf(weights(folder), tmp_path / "diffusers.gguf", "Q8_0")
    assert distance(predict(seen(f"{folder},denoiser={file}")), predict(plain(folder, expected))) < 2e-3
    own.pop("joint_blocks.0.x_block.mlp.fc1.weight")
    save_gguf(own, file, "Q8_0")
    error = refused(f"{folder},denoiser={file}")
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    assert "joint_blocks.0.x_block.mlp.fc1.weight" in str(error)


def test_other_denoisers_come_as_folders_and_safetensors(folders: dict[str, Path], tmp_path: Path) -> None:
    """As other autoencoders do: a network's own folder, another pipeline, or a single file."""
    folder, other = folders["flux-dev"], tmp_path / "other"
    changed = {name: value + 0.01 for name, value in weights(folder).items()}
    shutil.copytree(folder, other)
    save_file(changed, other / "transformer" / STEM)
    save_file(changed, tmp_path / "single.safetensors")
    for place in (other, other / "transformer", tmp_path / "single.safetensors"):
        found = opened(f"{folder},denoiser={place}").pipeline.transformer.state_dict()
        assert found.keys() == changed.keys()
        assert all(torch.equal(value, changed[name]) for name, value in found.items())


# What is refused


def damaged(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[dict[str, Path], Path], str]:
    """A FLUX pipeline with a file of other weights than its own."""

    def make(folders: dict[str, Path], file: Path) -> str:
        save_gguf(change(weights(folders["flux-dev"])), file, "Q8_0")
        return f"{folders['flux-dev']},denoiser={file}"

    return make


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (damaged(lambda own: {**own, "adapter.weight": torch.zeros(2, 32)}), "INCOMPLETE"),
        (damaged(lambda own: dict(list(own.items())[1:])), "INCOMPLETE"),
        (damaged(lambda own: {**own, "x_embedder.weight": own["x_embedder.weight"].T.contiguous()}), "DAMAGED"),
        (damaged(lambda own: {name: value[:1] for name, value in own.items()}), "DAMAGED"),
        (damaged(lambda own: {f"text.{name}": value for name, value in own.items()}), "INCOMPLETE"),
        (damaged(lambda own: {}), "DAMAGED"),
    ],
)
def test_files_of_other_networks(
    folders: dict[str, Path], tmp_path: Path, make: Callable[[dict[str, Path], Path], str], expected: str
) -> None:
    """Weights too many, too few, or of another shape."""
    assert refused(make(folders, tmp_path / "bad.gguf")).reason == f"CHECKPOINT_{expected}"


def test_files_of_other_families(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion 3's transformer is none of FLUX; and what diffusers reads from folders alone comes as such."""
    file = tmp_path / "sd3.gguf"
    save_gguf(weights(folders["sd3"]), file, "Q8_0")
    error = refused(f"{folders['flux-dev']},denoiser={file}")
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    tiny.save("dit", tmp_path / "dit")
    error = refused(f"{tmp_path / 'dit'},denoiser={file}")
    assert error.reason == "CHECKPOINT_FAMILY_UNSUPPORTED"
    assert "DiTTransformer2DModel" in str(error)
    assert refused(f"{folders['sd3']},denoiser={tmp_path / 'nothing.gguf'}").reason == "CHECKPOINT_NOT_FOUND"
    error = refused(f"{folders['sd3']},vae={file}")
    assert error.reason == "CHECKPOINT_NOT_FOUND"


def test_a_file_alone_is_no_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    """The error says where to name it."""
    file = tmp_path / "flux1.gguf"
    save_gguf(weights(folders["flux-dev"]), file, "Q8_0")
    assert "FOLDER,denoiser=flux1.gguf" in str(refused(file))


def test_adapters_do_not_become_part_of_blocks(folders: dict[str, Path], tmp_path: Path) -> None:
    """Nothing is added to what cannot hold it."""
    folder, file, lora = folders["flux-dev"], tmp_path / "q8.gguf", tmp_path / "style.safetensors"
    save_gguf(weights(folder), file, "Q8_0")
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{name}.lora_A.weight": torch.zeros(2, 64), f"{name}.lora_B.weight": torch.zeros(64, 2)}, lora)
    assert refused(f"{folder},denoiser={file},lora={lora}").reason == "CHECKPOINT_QUANTIZATION_UNSUPPORTED"
    assert opened(f"{folder},lora={lora}").source.name.endswith("style")
