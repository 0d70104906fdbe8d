"""Every family against diffusers' own pipeline, on the same weights: prompts, predictions, trajectories, images.

Pipelines are tiny and random. They are saved as safetensors and loaded by Basin; what diffusers computes is computed by
the pipeline that was saved.
"""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import T5Tokenizer

from audit.errors import BrokenCheckpoint
from audit.model.denoiser import repeat
from audit.model.loading import load_checkpoint
from tests.audit.model import tiny
from tests.audit.model.side_by_side import PROMPTS, SEEDS, Both, assert_close

NEGATIVE = "a black leather boot"
#: Schedulers that people step each family with, beside its own.
STEPPED = {
    "sd": ("ddim", "ddpm", "euler", "euler-ancestral", "dpm++2m", "unipc", "pndm", "lcm"),
    "sdxl": ("ddim", "ddpm", "euler-ancestral", "dpm++2m", "unipc"),
    "sd3": ("flow-euler",),
    "pixart-sigma": ("ddpm", "euler", "unipc"),
    "dit": ("dpm++2m", "unipc"),  # not those that start from other noise, which the pipeline does not scale
    "ddpm": ("ddim",),
    "ldm": ("pndm", "dpm++2m"),
}
CASES = [(name, scheduler) for name in tiny.PIPELINES for scheduler in ("", *STEPPED.get(name, ()))]


_known: dict[str, Both] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pipelines are saved."""
    _known.clear()
    return tmp_path_factory.mktemp("families")


def both(name: str, folder: Path) -> Both:
    """A pipeline and its checkpoint, made once."""
    if name not in _known:
        pipeline = tiny.save(name, folder / name)
        _known[name] = Both(pipeline, load_checkpoint(folder / name))
    return _known[name]


@pytest.mark.parametrize(("name", "scheduler"), CASES)
def test_trajectories_are_the_pipelines_own(folder: Path, name: str, scheduler: str) -> None:
    """Same noise, prompt, guidance and steps: the same latents, guided as by default, and as little as can be."""
    one = both(name, folder)
    least = {"guidance": 2.0} if one.checkpoint.defaults.embedded else {"guidance": 1.0}
    least = {} if one.checkpoint.guidance == "none" else least
    for given in ({}, least) if least else ({},):
        settings = one.settings(scheduler=scheduler, **given)
        assert_close(one.ours(settings), one.theirs(settings))


@pytest.mark.parametrize("name", [name for name in tiny.PIPELINES if name not in ("lcm", "dit", "ddpm", "ddim", "ldm")])
def test_two_branches_are_the_pipelines_own(folder: Path, name: str) -> None:
    """With a negative prompt, and with classifier-free guidance on top of an embedded one."""
    one = both(name, folder)
    weight = "true_guidance" if one.checkpoint.defaults.embedded else "guidance"
    settings = one.settings(negative_prompt=NEGATIVE, **{weight: 4.0})
    assert settings.guided
    found = one.ours(settings)
    assert_close(found, one.theirs(settings))
    plain = one.ours(one.settings(**{weight: 4.0}))
    assert float((plain - found).abs().max()) > 1e-4
    assert_close(plain, one.theirs(one.settings(**{weight: 4.0})))


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_images_are_the_pipelines_own(folder: Path, name: str) -> None:
    """Latents decode to the pipeline's image, and an image becomes latents of the same shape and scale."""
    one = both(name, folder)
    settings = one.settings()
    latents = one.ours(settings)
    images = one.checkpoint.decode(latents)
    assert images.shape == (len(SEEDS), 3, settings.height, settings.width)
    expected = torch.as_tensor(one.theirs(settings, "pt"))
    if expected.shape != images.shape:  # LDMPipeline knows no other layout
        expected = expected.movedim(3, 1)
    torch.testing.assert_close((images + 1) / 2, expected, rtol=0, atol=2e-4)
    again = one.checkpoint.encode(images)
    assert again.shape == latents.shape
    if one.checkpoint.size_factor == 1:
        torch.testing.assert_close(again, images)
    else:
        coder = getattr(one.pipeline, "vqvae", None) or one.pipeline.vae
        with torch.no_grad():
            found = coder.encode(images)
            plain = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
            torch.testing.assert_close(one.checkpoint.decode(again), coder.decode(plain).sample.clamp(-1, 1))


@pytest.mark.parametrize("name", [name for name in tiny.PIPELINES if name not in ("dit", "ddpm", "ddim", "ldm")])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(folder: Path, name: str) -> None:
    """Row by row, and the empty prompt is what the pipeline takes where nothing is said against."""
    one = both(name, folder)
    given = {"device": "cpu", "num_images_per_prompt": 1}
    accepted = inspect.signature(one.pipeline.encode_prompt).parameters
    if "do_classifier_free_guidance" in accepted:
        given["do_classifier_free_guidance"] = True
    given |= {part: None for part in ("prompt_2", "prompt_3") if part in accepted}
    with torch.no_grad():
        outputs = one.pipeline.encode_prompt(PROMPTS["text"], **given)
    found = one.checkpoint.encode_prompts([PROMPTS["text"], ""])
    order = {
        "StableDiffusion": ("text", "text"),
        "LatentConsistency": ("text", "text"),
        "StableDiffusionXL": ("text", "text", "pooled", "pooled"),
        "StableDiffusion3": ("text", "text", "pooled", "pooled"),
        "PixArt": ("text", "mask", "text", "mask"),
        "Flux": ("text", "pooled"),
    }
    family = max((key for key in order if one.checkpoint.family.startswith(key)), key=len)
    seen: set[str] = set()
    for part, expected in zip(order[family], outputs, strict=False):
        row = 1 if part in seen else 0
        seen.add(part)
        torch.testing.assert_close(found[part][row], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_noise_and_clean_latents_agree(folder: Path, name: str) -> None:
    """X = αx̂₀ + σε̂ at every row's own timestep, and a row does not depend on those beside it."""
    one = both(name, folder)
    checkpoint, denoiser = one.checkpoint, one.checkpoint.denoiser
    shape = checkpoint.latent_shape(one.settings())
    x, t = torch.randn(3, *shape), torch.tensor([20.0, 437.5, 900.0])
    condition = repeat(checkpoint.encode_prompts([one.prompt]), 3)
    with torch.inference_mode():
        native = denoiser.native(x, t, condition)
        alone = denoiser.native(x[1:2], t[1:2], repeat(checkpoint.encode_prompts([one.prompt]), 1))
    torch.testing.assert_close(native[1:2], alone, rtol=1e-4, atol=1e-4)
    alpha, sigma = denoiser.schedule.at(t, x)
    noise, clean = denoiser.noise(x, t, native), denoiser.clean(x, t, native)
    torch.testing.assert_close(alpha * clean + sigma * noise, x, rtol=1e-4, atol=1e-4)


def test_a_family_is_made_of_its_own_parts(tmp_path: Path) -> None:
    """A part that is left out and one of another class are named, before anything is loaded."""
    tiny.save("sdxl", tmp_path / "sdxl")
    file = tmp_path / "sdxl" / "model_index.json"
    index = json.loads(file.read_text())
    for entry, said in (([None, None], "text_encoder"), (["transformers", "MyEncoder"], "MyEncoder")):
        file.write_text(json.dumps({**index, "text_encoder": entry}))
        with pytest.raises(BrokenCheckpoint, match=said) as caught:
            load_checkpoint(tmp_path / "sdxl")
        assert caught.value.reason == "CHECKPOINT_FAMILY_UNSUPPORTED"


def test_tokenizers_of_t5_come_as_sentencepiece_models_too(tmp_path: Path) -> None:
    """As PixArt has them: tokens are those of sentencepiece itself."""
    model, texts = io.BytesIO(), [PROMPTS["text"], NEGATIVE]
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_writer=model, vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    found = T5Tokenizer.from_pretrained(tmp_path, local_files_only=True)(texts).input_ids
    own = SentencePieceProcessor(model_proto=model.getvalue())
    assert found == [[*own.encode(text), 1] for text in texts]
