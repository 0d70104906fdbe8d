"""What a sweep may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from audit.evidence.basin import BasinSettings
from audit.model.sampling import build_scheduler
from audit.phase.sweep import PRESETS, Network, Series, Sweep

SMALL: dict[str, Any] = {
    "data": "digits",
    "sizes": [2, 4, 8],
    "series": [{"architecture": "mlp", "width": 16, "learning_rate": 1e-3}],
    "steps": 10,
}

series = st.builds(
    Series,
    architecture=st.sampled_from(["mlp", "unet", "transformer", "ddpm"]),
    width=st.integers(1, 10_000),
    space=st.sampled_from(["pixel", "latent"]),
    learning_rate=st.floats(1e-9, 1e3),
)
sweeps = st.builds(
    Sweep,
    data=st.sampled_from(["digits", "cifar10", "folder"]),
    sizes=st.sets(st.integers(1, 10**9), min_size=3, max_size=6).map(sorted).map(tuple),
    series=st.lists(series, min_size=1, max_size=4, unique_by=lambda one: one.name).map(tuple),
    seeds=st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=3).map(sorted).map(tuple),
    steps=st.integers(1, 10**7),
    ema_decay=st.floats(0, 1, exclude_max=True),
    weight_decay=st.floats(0, 10),
    samples=st.integers(8, 10**6),
    sampler_steps=st.integers(2, 1000),
    distance=st.sampled_from(["pixel", "clip", "lpips"]),
    basin=st.builds(
        BasinSettings, trials=st.integers(1, 100), share=st.floats(0, 1), stride=st.integers(1, 100)
    ),
    noise_level=st.floats(0, 1, exclude_min=True, exclude_max=True),
)  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    """They pass their own validation, from JSON as well, and their scheduler is one of diffusers'."""
    preset = PRESETS[name]
    assert Sweep.model_validate(preset.model_dump()) == preset
    assert Sweep.model_validate_json(preset.model_dump_json()) == preset
    scheduler = build_scheduler("", preset.scheduler_config)
    assert scheduler.config.prediction_type == preset.prediction_type
    assert len(scheduler.alphas_cumprod) == 1000


@given(sweep=sweeps)
def test_any_sweep_survives_json(sweep: Sweep) -> None:
    """Every field comes back as it was."""
    again = Sweep.model_validate_json(sweep.model_dump_json())
    assert again == sweep
    assert again.networks == sweep.networks


@given(sweep=sweeps)
def test_networks_are_every_size_of_every_series_and_seed_under_a_name_of_its_own(sweep: Sweep) -> None:
    """Series by series, then by seed, then by size; each knows its series."""
    networks = sweep.networks
    assert len(networks) == len(sweep.series) * len(sweep.seeds) * len(sweep.sizes)
    assert len({network.name for network in networks}) == len(networks)
    place = {one.name: index for index, one in enumerate(sweep.series)}
    order = [(place[network.series], network.seed, network.size) for network in networks]
    assert order == sorted(order)
    assert all(sweep.series_named(network.series).name == network.series for network in networks)


def test_names_say_what_they_name() -> None:
    """Names are files: the space is told, and sizes sort as text."""
    assert Series(architecture="unet", width=16, space="latent", learning_rate=1e-3).name == "unet-16-latent"
    assert Network(series="mlp-64", size=32, seed=1).name == "mlp-64/K00032-seed1"
    sizes = PRESETS["evening"].sizes
    names = [Network(series="a", size=size, seed=0).name for size in sizes]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", "imagenet"),
        ("sizes", []),
        ("sizes", [2, 4]),
        ("sizes", [0, 2, 4]),
        ("sizes", [4, 2, 8]),
        ("sizes", [2, 2, 8]),
        ("series", []),
        ("series", SMALL["series"] * 2),
        ("series", [SMALL["series"][0], {**SMALL["series"][0], "learning_rate": 1.0}]),
        ("series", [{**SMALL["series"][0], "width": 0}]),
        ("series", [{**SMALL["series"][0], "learning_rate": 0.0}]),
        ("series", [{**SMALL["series"][0], "learning_rate": float("inf")}]),
        ("series", [{**SMALL["series"][0], "architecture": "resnet"}]),
        ("series", [{**SMALL["series"][0], "depth": 3}]),
        ("seeds", []),
        ("seeds", [1, 0]),
        ("seeds", [0, 0]),
        ("seeds", [-1]),
        ("seeds", [2**31]),
        ("steps", 0),
        ("batch_size", 0),
        ("ema_decay", 1.0),
        ("weight_decay", -0.1),
        ("prediction_type", "score"),
        ("beta_schedule", "cosine"),
        ("autoencoder_widths", []),
        ("autoencoder_widths", [16, 20]),
        ("autoencoder_widths", [0]),
        ("autoencoder_steps", 0),
        ("samples", 7),
        ("sampler_steps", 1),
        ("sampler_steps", 1001),
        ("distance", "ssim"),
        ("points", 0),
        ("basin", {"trials": 0}),
        ("basin", {"stride": 0}),
        ("basin", {"share": 1.01}),
        ("basin", {"share": float("nan")}),
        ("basin", {"trails": 10}),
        ("noise_level", 0.0),
        ("noise_level", 1.0),
        ("noise_level", float("nan")),
        ("colour", "red"),
    ],
)
def test_impossible_sweeps_are_refused(field: str, value: object) -> None:
    """The error names the field; without it the sweep is fine."""
    Sweep.model_validate(SMALL)
    with pytest.raises(ValidationError) as caught:
        Sweep.model_validate({**SMALL, field: value})
    places = [error["loc"] for error in caught.value.errors()]
    # Two series that go by one name are seen on the whole sweep only.
    assert all(place[:1] in ((field,), ()) for place in places)
    assert any(place[:1] == (field,) for place in places) or "two series" in str(caught.value)


def test_series_may_differ_in_space_alone() -> None:
    """The same network among images and among latents is two series."""
    both = [SMALL["series"][0], {**SMALL["series"][0], "space": "latent"}]
    assert len(Sweep.model_validate({**SMALL, "series": both}).networks) == 6


def test_a_sweep_cannot_be_changed() -> None:
    """It decides what a folder holds."""
    sweep = Sweep.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        sweep.steps = 5
