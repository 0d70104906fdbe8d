"""Where checkpoints come from: every way leads to the same networks, and says which weights they have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from audit.errors import AuditError, BrokenCheckpoint, NotFound
from audit.model.checkpoint_source import CheckpointSource
from audit.model.loading import load_checkpoint
from audit.model.sources import Source, open_source
from tests.audit.makers import save_sd2_pipeline
from tests.audit.model.original import save_original

UNET = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers writes it."""
    return save_sd2_pipeline(tmp_path_factory.mktemp("sources") / "tiny")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Source:
    """That pipeline."""
    return opened(folder)


def opened(text: object, dtype: torch.dtype = torch.float32) -> Source:
    """What a line leads to."""
    return open_source(CheckpointSource.parse(str(text)), torch.device("cpu"), dtype)


def weights(source: Source, part: str = "unet") -> dict[str, Tensor]:
    """Of one network."""
    return dict(getattr(source.pipeline, part).state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether weights are equal, name by name."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(text: object) -> AuditError:
    """The error of a source, as callers see it."""
    with pytest.raises((BrokenCheckpoint, NotFound)) as caught:
        load_checkpoint(str(text))
    assert str(caught.value.field) == "checkpoint"
    assert "/tmp" not in str(caught.value), "an error tells clients nothing of the server's folders"
    return caught.value


def copied(folder: Path, to: Path) -> Path:
    """A copy to change."""
    shutil.copytree(folder, to)
    return to


# Variants and shards


def test_a_variant_is_what_its_files_hold(folder: Path, tmp_path: Path, plain: Source) -> None:
    """Half-precision files beside whole ones are loaded when asked for, and only then counted in the digest."""
    copy = copied(folder, tmp_path / "copy")
    for file in sorted(copy.glob("*/*.safetensors")):
        halves = {name: value.half() for name, value in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    half = opened(f"{copy},variant=fp16")
    assert same(weights(half), {name: value.half().float() for name, value in weights(plain).items()})
    assert half.digest != plain.digest
    assert half.source.told() == "copy,variant=fp16"
    assert opened(copy).digest == plain.digest
    (copy / UNET).unlink()
    assert opened(f"{copy},variant=fp16").digest == half.digest
    assert "unet has no weights" in str(refused(copy))
    assert refused(f"{folder},variant=fp16").reason == "CHECKPOINT_INCOMPLETE"


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_one_network(folder: Path, tmp_path: Path, plain: Source, variant: str) -> None:
    """Weights in several files are those of one."""
    copy = copied(folder, tmp_path / "copy")
    (copy / UNET).unlink()
    plain.pipeline.unet.save_pretrained(copy / "unet", max_shard_size="20KB", variant=variant or None)
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    if variant:
        for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
            (copy / f"{part}.safetensors").rename(copy / f"{part}.{variant}.safetensors")
    sharded = opened(f"{copy},variant={variant}" if variant else copy)
    assert same(weights(sharded), weights(plain))
    assert sharded.digest != plain.digest
    next((copy / "unet").glob("*.safetensors")).unlink()
    assert refused(f"{copy},variant={variant}" if variant else copy).reason == "CHECKPOINT_INCOMPLETE"


def test_weights_that_have_no_place(folder: Path, tmp_path: Path) -> None:
    """A file with more weights than its configuration describes is of another network."""
    copy = copied(folder, tmp_path / "copy")
    save_file({**load_file(copy / UNET), "adapter.weight": torch.zeros(2)}, copy / UNET)
    error = refused(copy)
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    assert "no place for 1 weights, 'adapter.weight'" in str(error)


# A hub's cache


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a repository in a cache without a hub, laid out as the hub's own library does; its snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(name: str, files: Path, commit: str = COMMIT) -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            blob = repository / "blobs" / f"{commit[:4]}{len(list((repository / 'blobs').iterdir()))}"
            link = snapshot / path.relative_to(files)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return snapshot

    return make


def test_a_repository_and_its_revisions(hub: Callable[..., Path], folder: Path, tmp_path: Path, plain: Source) -> None:
    """Without a revision, the report says to which commit the name led; with one, it is that one's."""
    hub("acme/tiny-model", folder, COMMIT[::-1])
    other = save_sd2_pipeline(tmp_path / "other", beta_end=0.013)
    hub("acme/tiny-model", other)
    newest = opened("acme/tiny-model")
    pinned = opened(f"acme/tiny-model@{COMMIT[::-1]}")
    assert newest.digest == opened(other).digest
    assert pinned.digest == plain.digest
    assert newest.source.told() == f"acme/tiny-model@{COMMIT}"
    assert pinned.source.told() == f"acme/tiny-model@{COMMIT[::-1]}"
    checkpoint = load_checkpoint("acme/tiny-model@main")
    assert (checkpoint.name, checkpoint.source) == ("tiny-model", f"acme/tiny-model@{COMMIT}")


def test_repositories_that_are_not_there(hub: Callable[..., Path], folder: Path) -> None:
    """Offline, what the cache lacks is not found, at once and in one line."""
    hub("acme/tiny-model", folder)
    for place in ("acme/other", "acme/tiny-model@nowhere", f"acme/tiny-model@{COMMIT[::-1]}"):
        error = refused(place)
        assert error.reason == "CHECKPOINT_NOT_FOUND"
        assert "HF_HUB_OFFLINE" in str(error)


def test_a_repository_that_was_fetched_in_part(hub: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    """What a cached snapshot lacks is named as in any folder."""
    part = copied(folder, tmp_path / "part")
    shutil.rmtree(part / "vae")
    hub("acme/tiny-model", part)
    assert refused("acme/tiny-model").reason == "CHECKPOINT_INCOMPLETE"


def test_a_repository_that_links_out_of_the_cache(hub: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    """A cache is no more trusted than any other folder."""
    snapshot = hub("acme/tiny-model", folder)
    config = snapshot / "unet" / "config.json"
    config.unlink()
    config.symlink_to(folder / "unet" / "config.json")
    assert refused("acme/tiny-model").reason == "CHECKPOINT_UNSAFE"


def test_only_what_is_needed_is_fetched(
    hub: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a repository, the weights of one variant are asked for, and no pickles, code or pictures."""
    from fnmatch import fnmatch

    from audit.model import hub as module

    snapshot, asked = hub("acme/tiny-model", folder), []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(module, "snapshot_download", fetch)
    module.locate("acme/tiny-model", "fp16")
    assert [(name, revision) for name, revision, _ in asked] == [("acme/tiny-model", None), ("acme/tiny-model", COMMIT)]

    def wanted(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in asked[-1][2])

    for file in (
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "text_encoder/model.fp16.safetensors",
    ):  # fmt: skip
        assert wanted(file), file
    for file in (
        "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.bin",
        "safety_checker/model.safetensors", "text_encoder/model.safetensors", "pipeline.py", "README.md", "cat.png",
    ):  # fmt: skip
        assert not wanted(file), file
    module.locate("acme/tiny-model", "fp16", replaced=("unet",))
    assert wanted("unet/config.json")
    assert wanted("text_encoder/model.fp16.safetensors")
    assert not wanted("unet/diffusion_pytorch_model.fp16.safetensors")


# Single files


@pytest.fixture(scope="module")
def original(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in one file of the original layout."""
    return save_original(folder, tmp_path_factory.mktemp("original") / "tiny.safetensors")


def test_a_single_file_has_the_same_networks(folder: Path, original: Path, tmp_path: Path, plain: Source) -> None:
    """With the configurations of a folder, which needs no weights of its own, it is the pipeline of that folder."""
    bare = copied(folder, tmp_path / "bare")
    for file in bare.rglob("*.safetensors"):
        file.unlink()
    single = opened(f"{original},config={bare}")
    for part in ("unet", "vae", "text_encoder"):
        assert same(weights(single, part), weights(plain, part)), part
    assert single.digest != plain.digest
    assert single.digest == opened(f"{original},config={folder}").digest
    assert single.source.told() == "tiny.safetensors,config=bare"
    checkpoint = load_checkpoint(f"{original},config={bare}")
    assert checkpoint.name == "tiny"
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), checkpoint.encode_prompts(["a red coat", ""])
    torch.testing.assert_close(
        checkpoint.denoiser.native(x, t, text), load_checkpoint(folder).denoiser.native(x, t, text), rtol=0, atol=0
    )


def test_a_single_file_needs_configurations(original: Path, tmp_path: Path) -> None:
    """Without them, the error says how to name some; the hub is never asked."""
    error = refused(original)
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    assert "tiny.safetensors,config=FOLDER" in str(error)
    assert refused(f"{original},config={tmp_path / 'nothing'}").reason == "CHECKPOINT_NOT_FOUND"


def test_a_single_file_that_lacks_weights(folder: Path, original: Path, tmp_path: Path) -> None:
    """Neither random weights, nor those beside the configurations, stand in for what is missing."""
    file = tmp_path / "part.safetensors"
    whole = load_file(original)
    for prefix in ("model.diffusion_model.out.2.", "first_stage_model.", "cond_stage_model."):
        save_file({name: value for name, value in whole.items() if not name.startswith(prefix)}, file)
        assert refused(f"{file},config={folder}").reason in ("CHECKPOINT_INCOMPLETE", "CHECKPOINT_DAMAGED"), prefix


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickled_single_files(folder: Path, tmp_path: Path, name: str) -> None:
    """A pickle is refused by its name, whatever is in it."""
    (tmp_path / name).write_bytes(b"pickle")
    assert refused(f"{tmp_path / name},config={folder}").reason == "CHECKPOINT_PICKLED"


# Another autoencoder


def test_another_autoencoder(folder: Path, original: Path, tmp_path: Path, plain: Source) -> None:
    """From a folder of its own, another pipeline or a single file; its digest is its own, the rest stays."""
    other = save_sd2_pipeline(tmp_path / "other")
    vae = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    vae["decoder.conv_out.bias"] += 1
    save_file(vae, other / "vae" / "diffusion_pytorch_model.safetensors")
    found = opened(f"{folder},vae={other / 'vae'}")
    assert same(weights(found, "vae"), vae)
    assert same(weights(found), weights(plain))
    assert found.autoencoder_digest == opened(other).autoencoder_digest != plain.autoencoder_digest
    assert found.digest == opened(f"{folder},vae={other}").digest != plain.digest
    assert found.source.told() == "tiny,vae=vae"
    names = {name: value for name, value in load_file(original).items() if name.startswith("first_stage_model.")}
    save_file(
        {name.removeprefix("first_stage_model."): value for name, value in names.items()}, tmp_path / "vae.safetensors"
    )
    assert same(weights(opened(f"{other},vae={tmp_path / 'vae.safetensors'}"), "vae"), weights(plain, "vae"))


def test_an_autoencoder_of_another_kind(folder: Path, tmp_path: Path) -> None:
    """What is no autoencoder of the family, or not there, is refused by name."""
    assert "UNet2DConditionModel" in str(refused(f"{folder},vae={folder / 'unet'}"))
    assert refused(f"{folder},vae={tmp_path / 'nothing'}").reason == "CHECKPOINT_NOT_FOUND"


# LoRA adapters


@pytest.fixture(scope="module")
def lora(plain: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, dict[str, Tensor]]]:
    """Makes an adapter of the attention's projections, and what it adds to each weight at scale 1."""
    place = tmp_path_factory.mktemp("lora")

    def make(seed: int) -> tuple[Path, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        adapter, added = {}, {}
        for name, value in weights(plain).items():
            if ".attn2." in name and name.endswith(("to_q.weight", "to_v.weight")):
                down = 0.1 * torch.randn(3, value.shape[1], generator=generator)
                up = 0.1 * torch.randn(value.shape[0], 3, generator=generator)
                adapter[f"unet.{name.removesuffix('weight')}lora_A.weight"] = down
                adapter[f"unet.{name.removesuffix('weight')}lora_B.weight"] = up
                added[name] = up @ down
        save_file(adapter, place / f"style{seed}.safetensors", metadata={"format": "pt"})
        return place / f"style{seed}.safetensors", added

    return make


def test_adapters_become_weights(
    folder: Path, plain: Source, lora: Callable[[int], tuple[Path, dict[str, Tensor]]]
) -> None:
    """W + s BA for each adapter, in a network of the same parameters as before."""
    (one, first), (two, second) = lora(1), lora(2)
    found = weights(opened(f"{folder},lora={one}:0.5,lora={two}:-2"))
    assert found.keys() == weights(plain).keys()
    for name, value in weights(plain).items():
        expected = value + 0.5 * first[name] - 2 * second[name] if name in first else value
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)


def test_adapters_and_scales_are_in_the_digest(
    folder: Path, plain: Source, lora: Callable[[int], tuple[Path, dict[str, Tensor]]]
) -> None:
    """Each adapter and each scale makes other weights; names of files do not."""
    (one, _), (two, _) = lora(1), lora(2)
    lines = (
        "",
        f",lora={one}",
        f",lora={one}:0.5",
        f",lora={two}",
        f",lora={one},lora={two}",
        f",lora={one},lora={one}",
    )
    digests = [opened(f"{folder}{line}").digest for line in lines]
    assert len(set(digests)) == len(lines)
    assert opened(f"{folder},lora={shutil.copy(one, one.with_name('copy.safetensors'))}:1.0").digest == digests[1]
    assert opened(f"{folder},lora={one}:0.5").source.told() == "tiny,lora=style1.safetensors:0.5"


def test_curvature_sees_one_network(folder: Path, lora: Callable[[int], tuple[Path, dict[str, Tensor]]]) -> None:
    """A checkpoint with an adapter has as many parameters as without, and other noise predictions."""
    bare, adapted = load_checkpoint(folder), load_checkpoint(f"{folder},lora={lora(1)[0]}")
    assert (adapted.name, adapted.parameters) == ("tiny+style1", bare.parameters)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), bare.encode_prompts(["a red coat"])
    assert not torch.allclose(adapted.denoiser.native(x, t, text), bare.denoiser.native(x, t, text))


@pytest.mark.parametrize("damage", ["shape", "names", "header", "pickle", "missing", "one matrix"])
def test_adapters_that_do_not_fit(
    folder: Path, tmp_path: Path, lora: Callable[[int], tuple[Path, dict[str, Tensor]]], damage: str
) -> None:
    """An adapter of another network, damaged or pickled, is refused by the name of its file."""
    adapter = load_file(lora(1)[0])
    file = tmp_path / ("bad.bin" if damage == "pickle" else "bad.safetensors")
    if damage == "shape":
        adapter = {name: torch.zeros(5, 7) for name in adapter}
    elif damage == "names":
        adapter = {f"unet.nowhere.{name}": value for name, value in adapter.items()}
    elif damage == "one matrix":
        adapter = {name: value for name, value in adapter.items() if "lora_A" in name}
    if damage != "missing":
        save_file(adapter, file)
    if damage == "header":
        file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])
    error = refused(f"{folder},lora={file}")
    reasons = {"pickle": "CHECKPOINT_PICKLED", "missing": "CHECKPOINT_NOT_FOUND"}
    assert error.reason == reasons.get(damage, "CHECKPOINT_DAMAGED")
    assert file.name in str(error)


# Textual inversions


def test_words_of_textual_inversions(folder: Path, tmp_path: Path) -> None:
    """A word is read as its one or several vectors; it is the file's own, the file's name or the one given."""
    bare = load_checkpoint(folder)
    one, several = tmp_path / "cat.safetensors", tmp_path / "dog.safetensors"
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"<cat>": vectors[:1]}, one)
    save_file({"emb_params": vectors}, several)
    found = load_checkpoint(f"{folder},embedding={one},embedding={several},embedding={several}:<wolf>")
    assert found.name == "tiny+cat+dog+dog"
    assert found.digest != bare.digest
    assert found.source == "tiny,embedding=cat.safetensors,embedding=dog.safetensors,embedding=dog.safetensors:<wolf>"
    encode = found.encode_prompts
    torch.testing.assert_close(encode(["a red coat"])["text"], bare.encode_prompts(["a red coat"])["text"])
    texts = encode(["a <cat> coat", "a dog coat", "a <wolf> coat", "a red coat"])["text"]
    assert len({tuple(row.flatten().tolist()) for row in texts}) == 3
    torch.testing.assert_close(texts[1], texts[2])
    table = opened(f"{folder},embedding={several}:<wolf>").pipeline.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(table[-3:], vectors)


@pytest.mark.parametrize("damage", ["width", "names", "taken", "many", "header"])
def test_textual_inversions_that_do_not_fit(folder: Path, tmp_path: Path, damage: str) -> None:
    """Vectors of another encoder, a word that exists, or thousands of vectors are refused."""
    file = tmp_path / "bad.safetensors"
    tensors = {
        "width": {"<x>": torch.zeros(1, 33)},
        "names": {"a": torch.zeros(1, 32), "b": torch.zeros(1, 32)},
        "taken": {"red": torch.zeros(1, 32)},
        "many": {"<x>": torch.zeros(4096, 32)},
        "header": {"<x>": torch.zeros(1, 32)},
    }[damage]
    save_file(tensors, file)
    if damage == "header":
        file.write_bytes(file.read_bytes()[:-4])
    assert refused(f"{folder},embedding={file}").reason == "CHECKPOINT_DAMAGED"


# Quantized weights


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "someone/kernel", None])
def test_quantized_weights_are_refused(folder: Path, tmp_path: Path, method: object) -> None:
    """It is named before any weight is read."""
    copy = copied(folder, tmp_path / "copy")
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": method}}))
    error = refused(copy)
    assert error.reason == "CHECKPOINT_QUANTIZATION_UNSUPPORTED"
    assert str(method) in str(error)
