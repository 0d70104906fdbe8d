"""Embedders by name: timm, TorchScript and the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from audit import demo
from audit.errors import BrokenReference, NotFound
from audit.reference.build import build
from audit.reference.clip import ClipEmbedder
from audit.reference.embedder import open_embedder, shown, with_path
from audit.reference.reference_set import ReferenceSet

NETWORK = "test_resnet.r160_in1k"


class Averages(torch.nn.Module):
    """Colour averages in the quarters of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width) to (n, 12)."""
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ResNet, a TorchScript file, and files that are neither."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_file(timm.create_model(NETWORK).state_dict(), folder / "resnet.safetensors")
    torch.jit.script(Averages()).save(str(folder / "averages.pt"))
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "words.pt").write_text("words")
    torch.jit.script(torch.nn.Conv2d(3, 4, 1)).save(str(folder / "maps.pt"))
    return folder


def test_a_timm_model_embeds_as_timm_does(models: Path) -> None:
    """Features before the classifier, of unit length, after the model's own preprocessing."""
    embedder = open_embedder(f"timm:{NETWORK}@{models / 'resnet.safetensors'}")
    torch.manual_seed(0)
    network = timm.create_model(NETWORK).eval()
    side = network.pretrained_cfg["input_size"][-1]
    images = torch.rand(2, 3, side, side) * 2 - 1
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        features = network.forward_head(network.forward_features(((images + 1) / 2 - mean) / std), pre_logits=True)
    torch.testing.assert_close(embedder(images), torch.nn.functional.normalize(features, dim=1), rtol=0, atol=1e-5)
    assert embedder(torch.rand(1, 1, 20, 30)).shape == (1, features.shape[1])


def test_a_torchscript_file_embeds(models: Path) -> None:
    """It is shown images of the side that its name says, as ImageNet's are normalised; the side is in its digest."""
    embedder = open_embedder(f"torchscript:{models / 'averages.pt'}")
    small = open_embedder(f"torchscript:{models / 'averages.pt'}?side=32")
    assert (embedder.size, small.size) == ((288, 288), (32, 32))
    assert embedder.digest != small.digest
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(small(images), torch.nn.functional.normalize(Averages()(pixels), dim=1))


def test_a_model_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, what was downloaded before is found, by branch and by revision; anything else is not."""
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--clip" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(demo.CLIP, snapshot)
    (tmp_path / "models--some--clip" / "refs").mkdir()
    (tmp_path / "models--some--clip" / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    local = ClipEmbedder(f"local-dir:{demo.CLIP}")
    for name in ("hf-hub:some/clip", f"hf-hub:some/clip@{revision}"):
        assert open_embedder(name).digest == local.digest
    for name in ("hf-hub:some/other", f"hf-hub:some/clip@{'f' * 40}", "hf-hub:../x", "hf-hub:"):
        with pytest.raises(NotFound) as caught:
            open_embedder(name)
        assert caught.value.reason == "EMBEDDER_NOT_FOUND"


def test_words_are_near_what_they_describe() -> None:
    """Texts become unit vectors in the space of the images."""
    embedder = ClipEmbedder(f"local-dir:{demo.CLIP}")
    found = embedder.embed_texts(["a coral velvet shirt", "an olive bag"])
    assert found.shape == (2, 64)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_models_that_are_not_there_or_damaged(models: Path) -> None:
    """Missing, pickled, of another network, no program, or one that gives no vectors: refused, without the folder."""
    for name, kind, reason in (
        (f"timm:{NETWORK}@nowhere.safetensors", NotFound, "EMBEDDER_NOT_FOUND"),
        (f"timm:{NETWORK}@{models / 'words.pt'}", NotFound, "EMBEDDER_NOT_FOUND"),
        (f"timm:{NETWORK}@{models / 'other.safetensors'}", BrokenReference, "EMBEDDER_DAMAGED"),
        (f"timm:no_such_network@{models / 'resnet.safetensors'}", BrokenReference, "EMBEDDER_DAMAGED"),
        ("torchscript:nowhere.pt", NotFound, "EMBEDDER_NOT_FOUND"),
        (f"torchscript:{models / 'averages.pt'}?side=0", NotFound, "EMBEDDER_NOT_FOUND"),
        (f"torchscript:{models / 'words.pt'}", BrokenReference, "EMBEDDER_DAMAGED"),
        (f"torchscript:{models / 'maps.pt'}", BrokenReference, "EMBEDDER_DAMAGED"),
    ):
        with pytest.raises(kind) as caught:
            open_embedder(name)
        assert caught.value.reason == reason, name
        assert str(models.parent) not in str(caught.value), name


def test_paths_in_names_can_be_changed() -> None:
    """Every kind of name keeps the rest of itself; names from the hub have no path."""
    for name, changed in (
        ("local-dir:/a/b", "local-dir:b"), ("ViT-B-32@/a/b.safetensors", "ViT-B-32@b.safetensors"),
        ("timm:net@/a/b.safetensors", "timm:net@b.safetensors"), ("hf-hub:a/b@c", "hf-hub:a/b@c"),
        ("torchscript:/a/b.pt?side=9", "torchscript:b.pt?side=9"),
    ):  # fmt: skip
        assert shown(name) == changed
        assert with_path(name, lambda path: path) == name


def test_a_set_of_several_embedders(tmp_path: Path, models: Path, reference: ReferenceSet) -> None:
    """Each is searched by itself; one with other weights is noticed."""
    np.save(tmp_path / "a.npy", np.unique(reference.images[:30], axis=0)[:12])
    shutil.copytree(models, tmp_path / "models")
    names = [f"timm:{NETWORK}@{tmp_path / 'models' / 'resnet.safetensors'}"]
    names.append(f"torchscript:{tmp_path / 'models' / 'averages.pt'}?side=32")
    built = build(tmp_path / "a.npy", tmp_path / "set", embedders=names)
    for which in range(2):
        found = built.search_embedded(built.reference_images([3, 4]), 1, which)
        assert found is not None
        assert found[0][:, 0].tolist() == pytest.approx([1, 1], abs=2e-3)
    assert built.search_embedded(built.reference_images([3]), 1, 2) is None
    torch.jit.script(torch.nn.Sequential(Averages(), torch.nn.Identity())).save(
        str(tmp_path / "models" / "averages.pt")
    )
    with pytest.raises(BrokenReference, match="other weights"):
        ReferenceSet.load(tmp_path / "set")
    assert len(ReferenceSet.load(tmp_path / "set", models=False)) == 12
