"""What a checkpoint's folder may hold, and what is refused before any library sees it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from audit import demo
from audit.errors import BrokenCheckpoint
from audit.model import vetting
from audit.model.files import read_json
from audit.model.headers import read_header
from audit.model.loading import load_checkpoint
from audit.model.vetting import vet_folder, vet_index, vet_network
from tests.audit.makers import copy_demo

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint."""
    return copy_demo(tmp_path / "server" / "model")


def reason(folder: Path) -> str:
    """Why a folder is refused before any library is called."""
    with pytest.raises(BrokenCheckpoint) as caught:
        vet_folder(folder)
    assert str(folder.parent) not in str(caught.value), "an error tells clients nothing of the server's folders"
    return caught.value.reason


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_good_folder_passes(folder: Path) -> None:
    """Nothing is said of a folder as diffusers writes it, with whatever else lies beside its parts."""
    (folder / "other.ckpt").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{")
    (folder / ".git").symlink_to("/")
    vet_folder(folder)


def test_links_that_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    """A link to a file elsewhere, to a folder, or to nowhere is refused; one to a file inside is not."""
    weights = folder / UNET
    inside = weights.rename(folder / "unet" / "real.bin")
    weights.symlink_to("real.bin")
    vet_folder(folder)
    weights.unlink()
    outside = inside.rename(tmp_path / "real.bin")
    for target in (outside, Path("../../../real.bin"), Path("nothing"), Path(weights.name)):
        weights.symlink_to(target)
        assert reason(folder) == "CHECKPOINT_UNSAFE", target
        weights.unlink()
    shutil.move(outside, weights)
    vet_folder(folder)
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    assert reason(folder) == "CHECKPOINT_UNSAFE"


def test_a_hub_cache_links_into_its_own_files(tmp_path: Path) -> None:
    """Snapshots link to the files of their own repository, and to no other's."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = copy_demo(repository / "snapshots" / ("a" * 40))
    other = tmp_path / "hub" / "models--owner--other" / "blobs"
    for blobs in (repository / "blobs", other):
        blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(os.path.relpath(repository / "blobs" / str(number), path.parent))
    vet_folder(snapshot)
    weights = snapshot / UNET
    moved = weights.resolve().rename(other / "x")
    weights.unlink()
    weights.symlink_to(os.path.relpath(moved, weights.parent))
    assert reason(snapshot) == "CHECKPOINT_UNSAFE"


@pytest.mark.parametrize("place", ["model_index.json", "calibration.json", "unet/config.json", "tokenizer/pipe"])
def test_pipes_are_never_opened(folder: Path, place: str) -> None:
    """A named pipe would keep its reader waiting for ever."""
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)
    assert reason(folder) == "CHECKPOINT_UNSAFE"


def test_folders_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and levels of folders are counted."""
    deep = folder / "unet" / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    (deep / "f").touch()
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"
    shutil.rmtree(folder / "unet" / "a")
    monkeypatch.setattr(vetting, "MAX_ENTRIES", 4)
    vet_folder(folder)
    for name in "abc":
        (folder / "vae" / name).touch()
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"


@pytest.mark.parametrize(
    "value",
    [["pipeline", "MyUNet"], ["unet", "MyUNet"], ["../evil", "X"], ["diffusers"], [], [["diffusers"], "X"], [1, 2]],
)
def test_components_of_other_libraries(folder: Path, value: list[Any]) -> None:
    """A class from the folder itself, or from any other package, is refused."""
    change(folder / "model_index.json", unet=value)
    assert reason(folder) == "CHECKPOINT_UNSAFE"


@pytest.mark.parametrize("name", ["../vae", "/etc", "a/b", "", "a b", "\u00e9"])
def test_components_of_other_places(folder: Path, name: str) -> None:
    """The name of a component is that of a folder beside the index."""
    change(folder / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})
    assert reason(folder) == "CHECKPOINT_UNSAFE"


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("model_index.json", {"_class_name": ["my_pipeline", "MyPipeline"]}),
        ("model_index.json", {"custom_pipeline": "evil"}),
        ("unet/config.json", {"_class_name": ["unet", "MyUNet"]}),
        ("unet/config.json", {"auto_map": {"AutoModel": "unet--MyUNet"}}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "modeling.MyModel"}}),
        ("text_encoder/config.json", {"trust_remote_code": True}),
        ("text_encoder/config.json", {"_attn_implementation": "someone/kernel"}),
        ("text_encoder/config.json", {"text_config": {"attn_implementation": "someone/kernel@main"}}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization.My", None]}}),
        ("scheduler/scheduler_config.json", {"auto_map": {"x": "y"}}),
    ],
)
def test_configurations_that_ask_for_code(folder: Path, place: str, values: dict[str, Any]) -> None:
    """Code that a configuration names is neither run nor fetched."""
    change(folder / place, **values)
    assert reason(folder) == "CHECKPOINT_UNSAFE"


def test_an_adapter_in_the_folder_names_another_model(folder: Path) -> None:
    """A library would load what such a file calls its base."""
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert reason(folder) == "CHECKPOINT_UNSAFE"


@pytest.mark.parametrize("name", ["vocab.pkl", "tokenizer.bin", "tokenizer.pickle", "vocab.pt"])
def test_pickled_tokenizers(folder: Path, name: str) -> None:
    """A tokenizer is text, or not read at all."""
    (folder / "tokenizer" / name).write_bytes(b"pickle")
    assert reason(folder) == "CHECKPOINT_PICKLED"


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"cross_attention_dim": [10**9]}),
        ("unet/config.json", {"norm_eps": 1e300}),
        ("vae/config.json", {"latent_channels": -(10**9)}),
        ("vae/config.json", {"block_out_channels": [8] * 9}),
        ("text_encoder/config.json", {"num_labels": 10**9}),
        ("text_encoder/config.json", {"vocab_size": 10**9}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
    ],
)
def test_absurd_numbers(folder: Path, place: str, values: dict[str, Any]) -> None:
    """A configuration of a billion of anything is refused as it is read."""
    change(folder / place, **values)
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"


def test_infinite_settings_of_schedulers(folder: Path) -> None:
    """DPM-Solver's own configuration has an infinite number."""
    change(folder / "scheduler" / "scheduler_config.json", lambda_min_clipped=-float("inf"))
    vet_folder(folder)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": "' + b"x" * 2**21 + b'"}',
        b'{"a": [' + b"1," * 2**16 + b"1]}",
        b'{"a":' * 10**5,
        b'{"a":' * 40 + b"1" + b"}" * 40,
    ],
)
@pytest.mark.parametrize("place", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_long_and_deep_json(folder: Path, place: str, content: bytes) -> None:
    """Bytes, values and levels of a JSON file are bounded before it is understood."""
    (folder / place).write_bytes(content)
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"


def test_keys_that_stand_there_twice(folder: Path) -> None:
    """What readers would understand differently is refused."""
    (folder / "unet" / "config.json").write_text('{"sample_size": 8, "sample_size": 16}')
    assert reason(folder) == "CHECKPOINT_INCOMPLETE"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json"]
)
def test_tokenizers_of_a_terabyte(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a tokenizer's file is looked at before the file is read."""
    path = folder / "tokenizer" / name
    path.touch()
    os.truncate(path, 2**40)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"


def test_tokenizers_of_too_many_entries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of vocabularies and lines of merges are counted."""
    monkeypatch.setattr(vetting, "MAX_TOKENIZER_VALUES", 1000)
    tokenizer = folder / "tokenizer"
    small = {"model": {"type": "WordLevel", "vocab": {"a": 0}}}
    for name, content in (
        ("tokenizer.json", {**small, "model": {"vocab": {str(number): number for number in range(1001)}}}),
        ("vocab.json", {str(number): number for number in range(1001)}),
    ):
        (tokenizer / name).write_text(json.dumps(content))
        assert reason(folder) == "CHECKPOINT_TOO_LARGE"
        (tokenizer / name).write_text(json.dumps(small))
    vet_folder(folder)
    (tokenizer / "merges.txt").write_text("a b\n" * 1001)
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"


def test_tokenizers_that_lengthen_without_bound(folder: Path) -> None:
    """Replacements of replacements would make gigabytes of a short prompt."""
    path = folder / "tokenizer" / "tokenizer.json"
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10} for _ in range(30)]
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "normalizer": {"type": "Sequence", "normalizers": steps}}))
    assert reason(folder) == "CHECKPOINT_TOO_LARGE"
    path.write_text(json.dumps({**whole, "normalizer": {"type": "Sequence", "normalizers": steps[:1]}}))
    vet_folder(folder)


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The index of a UNet in two shards."""
    weights = load_file(folder / UNET)
    names = sorted(weights)
    shards = {"one.safetensors": names[:100], "two.safetensors": names[100:]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / "unet" / shard)
    (folder / UNET).unlink()
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {name: shard for shard, part in shards.items() for name in part}}))
    return path


def test_an_index_of_shards_passes(sharded: Path) -> None:
    """Two shards beside an index that says what they hold."""
    vet_index(sharded)


@pytest.mark.parametrize(
    ("shard", "expected"),
    [
        ("/etc/passwd", "CHECKPOINT_UNSAFE"),
        ("/etc/x.safetensors", "CHECKPOINT_UNSAFE"),
        ("../vae/diffusion_pytorch_model.safetensors", "CHECKPOINT_UNSAFE"),
        ("..\\x.safetensors", "CHECKPOINT_UNSAFE"),
        ("./one.safetensors", "CHECKPOINT_UNSAFE"),
        ("", "CHECKPOINT_UNSAFE"),
        ("pytorch_model.bin", "CHECKPOINT_UNSAFE"),
        ("three.safetensors", "CHECKPOINT_INCOMPLETE"),
        ("two.safetensors", "CHECKPOINT_DAMAGED"),
        (3, "CHECKPOINT_DAMAGED"),
        (None, "CHECKPOINT_DAMAGED"),
    ],
)
def test_an_index_that_leads_elsewhere(sharded: Path, shard: Any, expected: str) -> None:
    """Shards are files beside their index, they are there, and hold what it says."""
    index = json.loads(sharded.read_text())
    index["weight_map"][min(index["weight_map"])] = shard
    sharded.write_text(json.dumps(index))
    assert reason(sharded.parent.parent) == expected


@pytest.mark.parametrize("places", [{}, [], None, "one.safetensors"])
def test_an_index_of_nothing(sharded: Path, places: Any) -> None:
    """An index without a map is none."""
    sharded.write_text(json.dumps({"weight_map": places}))
    assert reason(sharded.parent.parent) == "CHECKPOINT_DAMAGED"


def test_an_index_that_forgets_a_tensor(sharded: Path) -> None:
    """The libraries would load what a shard holds beside what the index says."""
    index = json.loads(sharded.read_text())
    del index["weight_map"][max(index["weight_map"])]
    sharded.write_text(json.dumps(index))
    assert reason(sharded.parent.parent) == "CHECKPOINT_DAMAGED"


def networks() -> dict[str, Callable[[dict[str, Any]], nn.Module]]:
    """How each network of the demo is made from its configuration."""
    return {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)),
    }


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {}),
        ("unet", {"layers_per_block": 2**20}),
        ("unet", {"transformer_layers_per_block": 2**20}),
        ("unet", {"block_out_channels": [2**20, 2**20]}),
        ("unet", {"cross_attention_dim": 2**20}),
        ("unet", {"norm_num_groups": 0}),
        ("vae", {}),
        ("vae", {"layers_per_block": 2**20}),
        ("vae", {"block_out_channels": [2**20, 2**20, 2**20]}),
        ("text_encoder", {}),
        ("text_encoder", {"num_hidden_layers": 2**20}),
        ("text_encoder", {"vocab_size": 2**20, "hidden_size": 2**20}),
        ("text_encoder", {"max_position_embeddings": 2**20}),
    ],
)
def test_networks_larger_than_their_files(part: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a configuration claims is never made: no tensor takes memory, and a million layers end after a few."""
    weights = demo.CHECKPOINT / part / ("model" if part == "text_encoder" else "diffusion_pytorch_model")
    entries = read_header(weights.with_suffix(".safetensors"))
    made = []
    register = nn.Module.register_parameter

    def watch(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None:
            assert value.is_meta
            made.append(value.numel())
        register(module, name, value)

    monkeypatch.setattr(nn.Module, "register_parameter", watch)
    config = {**read_json(demo.CHECKPOINT / part / "config.json"), **values}
    if values:
        with pytest.raises(BrokenCheckpoint) as caught:
            vet_network(lambda: networks()[part](config), entries, part)
        assert caught.value.reason == "CHECKPOINT_DAMAGED"
        assert part in str(caught.value)
        assert len(made) <= 2 * len(entries) + 65
    else:
        vet_network(lambda: networks()[part](config), entries, part)
        assert len(made) >= len(entries)


def test_tables_of_positions_are_no_weights() -> None:
    """A transformer's table of positions, which its files do not hold, is bounded by itself."""
    small = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1,
        "cross_attention_dim": 16, "caption_channels": 8, "norm_num_groups": 2,
    }  # fmt: skip
    entries = {
        name: vetting.Entry("F32", tuple(value.shape), 0, 0)
        for name, value in PixArtTransformer2DModel(**small, sample_size=8).state_dict().items()
    }
    vet_network(lambda: PixArtTransformer2DModel(**small, sample_size=8), entries, "transformer")
    with pytest.raises(BrokenCheckpoint, match="larger network"):
        vet_network(lambda: PixArtTransformer2DModel(**small, sample_size=2**20), entries, "transformer")


def test_other_threads_are_not_counted() -> None:
    """While a network is vetted, another thread may make one of any size; afterwards, this one may."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        vet_network(lambda: pool.submit(nn.Linear, 1000, 1000).result() and nn.Linear(2, 2), {}, "unet")
    assert nn.Linear(1000, 1000).weight.numel() == 10**6


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"layers_per_block": 2**19}),
        ("vae", {"latent_channels": 2**19}),
        ("text_encoder", {"hidden_size": 2**19}),
    ],
)
def test_no_library_reads_weights_of_a_network_that_is_refused(
    folder: Path, part: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading ends before anything is allocated for what a configuration claims."""
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **kwargs: pytest.fail("weights were used"))
    change(folder / part / "config.json", **values)
    with pytest.raises(BrokenCheckpoint) as caught:
        load_checkpoint(folder)
    assert caught.value.reason == "CHECKPOINT_DAMAGED"
