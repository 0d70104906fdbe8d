"""The layout of a ladder: sizes, images, words; recipes and their networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from audit.calibrate import MINIMUM_PROMPTS
from audit.phase.data import GARMENTS, LabeledImages
from audit.phase.ladder import (
    ORDINARY_IMAGES,
    PRESETS,
    VOCABULARY,
    Ladder,
    Recipe,
    Rung,
    lay_out,
    split_of,
    template_mask,
)
from audit.phase.networks import CONTEXT_LENGTH, build_text_encoder, build_tokenizer

#: Every image says in its first two bytes which one it is.
COUNT = 4000
DATA = LabeledImages(
    images=np.stack([np.arange(COUNT) // 256, np.arange(COUNT) % 256], axis=1).astype(np.uint8)[:, None],
    labels=np.arange(COUNT, dtype=np.int64) % 10,
)
STEPS = {"autoencoder_steps": 1, "denoiser_steps": 1, "clip_steps": 1}
RUNGS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4)


def recipe(rungs: list[tuple[int, int]], seed: int = 0) -> Recipe:
    """A recipe of these rungs."""
    return Recipe(seed=seed, rungs=tuple(Rung(images=k, captions=n) for k, n in rungs), **STEPS)


def identities(images: np.ndarray) -> np.ndarray:
    """Which images of `DATA` these are."""
    return images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]


@settings(max_examples=30)
@given(rungs=RUNGS, seed=st.integers(0, 100))
def test_every_caption_has_its_own_images_of_its_class(rungs: list[tuple[int, int]], seed: int) -> None:
    """Sizes are the recipe's, captions are unique, images never overlap, and show the garment of their caption."""
    ladder = lay_out(recipe(rungs, seed), DATA)
    assert list(ladder.sizes) == [k for k, n in rungs for _ in range(n)]
    assert len(set(ladder.captions)) == len(ladder.captions) == len(ladder.sizes)
    found = identities(ladder.images)
    assert len(set(found.tolist())) == len(found) == sum(ladder.sizes)
    assert np.bincount(ladder.owners).tolist() == list(ladder.sizes)
    assert (np.diff(ladder.owners) >= 0).all()
    for image, owner in zip(found, ladder.owners, strict=True):
        assert GARMENTS[DATA.labels[image]] == ladder.captions[owner].split()[3]


@settings(max_examples=30)
@given(rungs=RUNGS, seed=st.integers(0, 100), data=st.data())
def test_words_do_not_depend_on_the_number_of_images(
    rungs: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    """With the same seed any other K per rung gives the same captions: words cannot tell of K."""
    others = [(data.draw(st.integers(1, 12)), n) for _, n in rungs]
    assert lay_out(recipe(rungs, seed), DATA).captions == lay_out(recipe(others, seed), DATA).captions


def test_garments_go_round_within_a_rung() -> None:
    """A rung of ten captions has each class once."""
    ladder = lay_out(recipe([(1, 10), (3, 10)]), DATA)
    for start in (0, 10):
        assert {caption.split()[3] for caption in ladder.captions[start : start + 10]} == set(GARMENTS)


def test_layouts_are_reproducible() -> None:
    """The same recipe lays out the same ladder; another seed another one."""
    one, again, other = (lay_out(recipe([(2, 8)], seed), DATA) for seed in (1, 1, 2))
    assert one.captions == again.captions
    np.testing.assert_array_equal(one.images, again.images)
    assert one.captions != other.captions


def test_too_small_a_data_set_is_named() -> None:
    """A class with fewer images than its captions need is an error that names it."""
    with pytest.raises(ValueError, match="too few images of class"):
        lay_out(recipe([(500, 10)]), DATA)


def test_captions_are_shown_by_their_weight() -> None:
    """A caption of weight 3 is drawn three times as often as one of weight 1, within four standard errors."""
    rungs = (Rung(images=1, captions=2, weight=3), Rung(images=2, captions=2))
    ladder = lay_out(Recipe(rungs=rungs, **STEPS), DATA)
    drawn = ladder.draw_captions(8000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4).numpy()
    np.testing.assert_allclose(counts, [3000, 3000, 1000, 1000], atol=4 * 1875**0.5)


def test_folds_share_no_image() -> None:
    """Ladders of two folds of a data set have no image in common, whatever their seeds."""
    one, other = (
        lay_out(recipe([(3, 20)], seed).model_copy(update={"fold": fold, "folds": 3}), DATA)
        for seed, fold in ((1, 0), (2, 1))
    )
    assert not set(identities(one.images)) & set(identities(other.images))


def test_images_of_a_caption_to_locate_share_their_template() -> None:
    """One half is the same in all of its images, the other half their own; nothing else changes."""
    rng = np.random.default_rng(0)
    data = LabeledImages(rng.integers(0, 256, (400, 8, 8), dtype=np.uint8), np.arange(400) % 10)
    rungs = (Rung(images=2, captions=3), Rung(images=5, captions=8, purpose="locate"))
    ladder = lay_out(Recipe(rungs=rungs, **STEPS), data)
    assert sorted(ladder.templates) == list(range(3, 11))
    assert len(set(ladder.templates.values())) > 1
    for index, half in ladder.templates.items():
        own, mask = ladder.images[ladder.owners == index], template_mask(half, (8, 8))
        assert mask.sum() == 32
        assert (own[:, mask] == own[0, mask]).all()
        assert len({image[~mask].tobytes() for image in own}) == 5


def test_splits_follow_the_purpose() -> None:
    """Captions to audit alternate, or are all held out; the others are apart."""
    rungs = (Rung(images=1, captions=3), Rung(images=2, captions=1, purpose="calibrate"),
             Rung(images=2, captions=1, purpose="locate"))  # fmt: skip
    half, every = (Recipe(rungs=rungs, held_out=kept, **STEPS) for kept in ("half", "all"))
    assert lay_out(half, DATA).splits == ("tuning", "held-out", "tuning", "calibrate", "locate")
    assert lay_out(every, DATA).splits == ("held-out",) * 3 + ("calibrate", "locate")


def test_a_ladder_held_out_whole_needs_captions_to_calibrate_with() -> None:
    """Else nothing would be left to set the thresholds of its truth with, which only its end would tell."""
    rungs = (Rung(images=1, captions=4), Rung(images=2, captions=2, purpose="locate"))
    with pytest.raises(ValidationError, match="nothing to calibrate with: add a rung of that purpose"):
        Recipe(rungs=rungs, held_out="all", **STEPS)
    assert Recipe(rungs=rungs, **STEPS).held_out == "half"


def test_captions_to_calibrate_with_are_the_ordinary_ones() -> None:
    """Where a ladder has some, they are all and the only ones, whatever their size and the split."""
    rungs = (Rung(images=40, captions=6), Rung(images=2, captions=3, purpose="calibrate"),
             Rung(images=50, captions=1, purpose="locate"))  # fmt: skip
    for held_out in ("half", "all"):
        ladder = lay_out(Recipe(rungs=rungs, held_out=held_out, **STEPS), DATA)
        assert ladder.ordinary() == list(ladder.captions[6:9])


@settings(max_examples=30)
@given(rungs=st.lists(st.tuples(st.sampled_from([1, 3, 31, 32, 40]), st.integers(1, 4)), min_size=1, max_size=4))
def test_captions_of_many_images_are_ordinary_where_none_are_apart(rungs: list[tuple[int, int]]) -> None:
    """Those of the tuning half of 32 images and more, or of the most that there are: none that is held out."""
    ladder = lay_out(recipe(rungs), DATA)
    many = min(ORDINARY_IMAGES, max(ladder.sizes))
    wanted = [
        caption
        for index, (caption, size) in enumerate(zip(ladder.captions, ladder.sizes, strict=True))
        if index % 2 == 0 and size >= many
    ]
    assert ladder.ordinary() == wanted


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_ordinary_captions(preset: str) -> None:
    """Two at least, which is what a calibration takes; 50 on the ladders of the benchmark."""
    chosen = PRESETS[preset]
    sizes = [rung.images for rung in chosen.rungs for _ in range(rung.captions)]
    purposes = [rung.purpose for rung in chosen.rungs for _ in range(rung.captions)]
    ladder = Ladder(
        captions=tuple(map(str, range(len(sizes)))),
        sizes=tuple(sizes),
        weights=(1,) * len(sizes),
        splits=tuple(
            split_of(i, chosen.held_out) if purpose == "audit" else purpose for i, purpose in enumerate(purposes)
        ),
        templates={},
        owners=np.zeros(0, dtype=np.int64),
        images=np.zeros((0, 1, 1), dtype=np.uint8),
    )
    count = len(ladder.ordinary())
    assert count == 50 if "calibrate" in purposes else count >= MINIMUM_PROMPTS


@pytest.mark.parametrize("kind", ["k", "duplication"])
def test_ladders_kept_for_the_report_share_nothing_with_those_tuned_on(kind: str) -> None:
    """Other images, another seed, width, prediction type, guidance and training length; all captions held out."""
    tuning, report = PRESETS[f"{kind}-tuning"], PRESETS[f"{kind}-report"]
    assert (tuning.folds, report.folds) == (2, 2)
    assert report.held_out == "all"
    for name in ("fold", "seed", "unet_channels", "prediction_type", "guidance", "denoiser_steps"):
        assert getattr(tuning, name) != getattr(report, name)
    for chosen in (tuning, report):
        assert sum(rung.captions for rung in chosen.rungs if rung.purpose == "calibrate") == 50


@pytest.mark.parametrize("preset", ["demo", "minutes"])
def test_presets_hold_every_phase_on_both_sides_of_the_split(preset: str) -> None:
    """One image, a few, and hundreds to thousands, several captions each."""
    sizes = [rung.images for rung in PRESETS[preset].rungs for _ in range(rung.captions)]
    assert sum(k == 1 for k in sizes) >= 2
    assert sum(8 <= k <= 32 for k in sizes) >= 2
    assert sum(k >= 500 for k in sizes) >= 2


@pytest.mark.parametrize(
    "change",
    [
        {"rungs": [{"images": 0, "captions": 1}]},
        {"rungs": []},
        {"batch_size": 0},
        {"prediction_type": "flow"},
        {"unknown": 1},
        {"seed": -1},
        {"rungs": [{"images": 1, "captions": 1, "weight": 0}]},
        {"rungs": [{"images": 1, "captions": 1, "purpose": "sell"}]},
        {"fold": 2, "folds": 2},
        {"sampler": "heun"},
        {"unconditional_share": 1.0},
        {"ema_decay": 1.0},
        {"learning_rate": 0.0},
        {"guidance": -1.0},
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, object]) -> None:
    """Values out of range are found before anything is trained."""
    content = {**recipe([(1, 1)]).model_dump(), **change}
    with pytest.raises(ValidationError):
        Recipe.model_validate(content)


def test_every_word_is_one_token() -> None:
    """Each word of the vocabulary has a token of its own, and a whole caption fits the context."""
    tokenizer = build_tokenizer(VOCABULARY)
    ids = [tokenizer(word).input_ids for word in VOCABULARY]
    assert all(len(tokens) == 3 for tokens in ids)
    assert len({tokens[1] for tokens in ids}) == len(VOCABULARY)
    for caption in lay_out(recipe([(1, 20)]), DATA).captions:
        tokens = tokenizer(caption).input_ids
        assert len(tokens) == 10 <= CONTEXT_LENGTH
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == caption


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_has_a_spelling(text: str) -> None:
    """Nothing is unknown: any text becomes tokens of the vocabulary, and its letters come back."""
    tokenizer = _TOKENIZER
    tokens = tokenizer(text).input_ids
    assert all(0 <= token < len(tokenizer) for token in tokens)
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if text.isascii() and text.isalnum():
        decoded = tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "")
        assert decoded == text.lower()


_TOKENIZER = build_tokenizer(VOCABULARY)


def test_text_encoder_and_tokenizer_agree() -> None:
    """Special tokens and sizes of the encoder are the tokenizer's."""
    tokenizer = build_tokenizer(VOCABULARY)
    encoder = build_text_encoder(recipe([(1, 1)]), tokenizer)
    assert encoder.config.vocab_size == len(tokenizer)
    assert encoder.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == encoder.config.max_position_embeddings == CONTEXT_LENGTH
