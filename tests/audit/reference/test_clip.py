"""CLIP embedders, small and ordinary, through the same code."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from audit import demo
from audit.errors import BrokenReference, NotFound
from audit.reference.clip import ClipEmbedder
from audit.reference.reference_set import ReferenceSet


def test_the_demos_model_embeds_images(reference: ReferenceSet) -> None:
    """Unit vectors, one per image, the same for grey and repeated grey, whatever the batch."""
    embedder = ClipEmbedder(f"local-dir:{demo.FOLDER / 'clip'}")
    images = reference.reference_images([0, 1, 2])
    found = embedder(images)
    assert found.shape == (3, 64)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found, embedder(images.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(found[1:2], embedder(images[1:2]), rtol=0, atol=1e-5)
    assert embedder(torch.rand(2, 3, 50, 70)).shape == (2, 64)


def test_an_ordinary_model_loads_by_the_same_code(tmp_path: Path) -> None:
    """A built-in ViT-B-32 with random weights from a local safetensors file embeds as open_clip itself does."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    embedder = ClipEmbedder(f"ViT-B-32@{tmp_path / 'w.safetensors'}")
    images = torch.rand(1, 3, 224, 224) * 2 - 1
    normalize = preprocess.transforms[-1]
    with torch.inference_mode():
        expected = model.eval().encode_image(normalize((images + 1) / 2), normalize=True)
    torch.testing.assert_close(embedder(images), expected, rtol=0, atol=1e-4)
    assert embedder(torch.rand(1, 1, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize(
    "model", ["ViT-B-32", "ViT-B-32@", "ViT-B-32@missing.safetensors", "ViT-B-32@weights.pt", "local-dir:nowhere", ""]
)
def test_missing_weights_are_not_found(model: str) -> None:
    """Nothing is downloaded and no pickle is read: weights are a safetensors file here, or missing."""
    with pytest.raises(NotFound) as caught:
        ClipEmbedder(model)
    assert caught.value.reason == "EMBEDDER_NOT_FOUND"


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    """Weights of another model, no weights at all, or an unknown name."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for model in (f"local-dir:{tmp_path}", f"NoSuchModel@{tmp_path / 'other.safetensors'}"):
        with pytest.raises(BrokenReference) as caught:
            ClipEmbedder(model)
        assert caught.value.reason == "EMBEDDER_DAMAGED"
        assert str(tmp_path.parent) not in str(caught.value)
