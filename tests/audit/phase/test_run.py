"""A run as a library call: in pixel and in latent space, in colour, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.errors import InvalidInput
from audit.phase.folder import RunFolder, read_arrays, write_arrays
from audit.phase.measure_sweep import evidence_jobs, sampling_jobs
from audit.phase.run import check_sweep, run_phase
from audit.phase.space import open_space, prepare_autoencoder
from audit.phase.story import Story, metrics
from audit.phase.sweep import PRESETS, Series, Sweep
from audit.phase.train_sweep import load_network, training_jobs
from tests.audit.phase.finished import (
    LATENT,
    SWEEP,
    Finished,
    full_disk,
    small_images,
    snapshot,
)


def test_latent_space_and_other_architectures(story: Story) -> None:
    """Colour images run through an autoencoder and a U-Net, beside a transformer in pixel space, once."""
    run = story.run
    assert set(story.thresholds) == {"latent", "pixel"}
    assert {"autoencoder", "samples", "evidence"} < set(story.seconds)
    shapes = {"latent": (24, 4, 4, 4), "pixel": (24, 3, 8, 8)}
    for network in LATENT.networks:
        assert story.samples[network]["latents"].shape == shapes[story.space(network.series)]
        assert np.isfinite(story.samples[network]["latents"]).all()
        assert load_network(run.path, network, LATENT, story.source).prediction_type == "sample"
    encoded = read_arrays(run.autoencoder / "encoded.npz")
    assert encoded["latents"].shape == (12, 4, 4, 4)
    assert encoded["images"].shape == (12, 3, 8, 8)
    assert not list(run.training.glob("*.state.*"))

    before = snapshot(run.path)
    prepare_autoencoder(run, LATENT, story.source)
    assert training_jobs(run, LATENT, story.source) == sampling_jobs(run, LATENT, story.source) == []
    assert evidence_jobs(run, LATENT, story.thresholds, story.source) == []
    assert snapshot(run.path) == before


def test_a_story_is_what_the_files_hold(story: Story) -> None:
    """Arrays, classes, fractions, metrics and page of a run are those that its call returns."""
    run = story.run
    assert set(story.samples) == set(story.evidence) == set(LATENT.networks)
    for network in LATENT.networks:
        for found, file in ((story.samples, run.samples(network)), (story.evidence, run.evidence(network))):
            for name, array in read_arrays(file).items():
                np.testing.assert_array_equal(found[network][name], array)
        evidence = story.evidence[network]
        np.testing.assert_array_equal(story.classes(network)[evidence["index"]], evidence["class"])
    page = (run.path / "index.html").read_text()
    for name, transition in story.transitions.items():
        own = story.networks(name)
        assert [network.size for network in own] == list(transition.sizes) == list(LATENT.sizes)
        for network, fractions in zip(own, transition.fractions, strict=True):
            np.testing.assert_allclose(np.bincount(story.classes(network), minlength=3) / 24, fractions)
        assert name in page
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(metrics(story))
    assert [line for line in lines if line["kind"] == "network"] == [
        line for line in metrics(story) if line["kind"] == "network"
    ]


@pytest.mark.parametrize(
    ("side", "changes", "field", "message"),
    [
        (8, {"sizes": (2, 4, 13)}, "sizes", "12 images, fewer than K = 13"),
        (31, {"distance": "lpips"}, "distance", "at least 32 pixels"),
        (9, {"architecture": "unet", "width": 8}, "series", "multiples of 2"),
        (9, {"architecture": "transformer", "width": 32}, "series", "multiples of 2"),
        (12, {"architecture": "ddpm", "width": 8}, "series", "multiples of 8"),
        (10, {"space": "latent"}, "series", "multiples of 4"),
        (12, {"architecture": "unet", "width": 8, "space": "latent"}, "series", "multiples of 8"),
        (16, {"architecture": "ddpm", "width": 8, "space": "latent"}, "series", "multiples of 32"),
        (8, {"architecture": "unet", "width": 12}, "series", "multiple of 8"),
        (8, {"architecture": "transformer", "width": 48}, "series", "multiple of 32"),
        (8, {"architecture": "ddpm", "width": 4}, "series", "multiple of 8"),
    ],
)
def test_what_cannot_be_trained_is_refused(side: int, changes: dict[str, Any], field: str, message: str) -> None:
    """Too few images, and sides and widths that an architecture or a distance cannot take, with the field at fault."""
    of_series = {name: value for name, value in changes.items() if name in Series.model_fields}
    sweep = Sweep.model_validate(
        {
            **SWEEP,
            "series": [{**SWEEP["series"][0], **of_series}],
            **{name: value for name, value in changes.items() if name not in of_series},
        }
    )
    with pytest.raises(InvalidInput, match=message) as caught:
        check_sweep(sweep, np.zeros((12, side, side), dtype=np.uint8))
    assert caught.value.field == field


@pytest.mark.parametrize(("preset", "side"), [("minutes", 8), ("evening", 32), ("paper", 32)])
def test_presets_fit_their_images(preset: str, side: int) -> None:
    """Each has the sides that its architectures need and asks for no more images than there are."""
    sweep = PRESETS[preset]
    check_sweep(sweep, np.zeros((sweep.sizes[-1], side, side), dtype=np.uint8))


@pytest.mark.parametrize("delta", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["delta_m", "delta_s"])
def test_thresholds_that_are_no_distances_are_refused(
    finished: Finished, tmp_path: Path, name: str, delta: float
) -> None:
    """Before anything is read or made."""
    with pytest.raises(InvalidInput, match=name) as caught:
        run_phase(finished.sweep, tmp_path / "run", source=finished.data, **{name: delta})
    assert caught.value.field == name
    assert not (tmp_path / "run").exists()


def test_a_network_that_diverged_is_named(finished: Finished, tmp_path: Path) -> None:
    """Samples that are no numbers end the run with the series whose learning rate is too high."""
    folder = finished.copy(tmp_path / "run", "evidence")
    file = RunFolder(folder).samples(finished.sweep.networks[2])
    samples = read_arrays(file)
    samples["latents"][5] = np.nan
    write_arrays(file, samples)
    with pytest.raises(
        InvalidInput, match=r"mlp-16/K00012-seed0 diverged; lower the learning rate of mlp-16"
    ) as caught:
        run_phase(finished.sweep, folder, source=finished.data)
    assert caught.value.reason == "TRAINING_DIVERGED"
    assert not (folder / "evidence").exists()


def test_a_full_disk_costs_no_trained_autoencoder(finished: Finished, tmp_path: Path) -> None:
    """Its weights are whole or not there, what failed is said, and with room they are written without training."""
    images = small_images(12, 8)
    np.savez(tmp_path / "images.npz", images=images)
    run = RunFolder(finished.claim(tmp_path / "run", LATENT, images))
    run.autoencoder.write_text("in the way, so that the trained state stays")
    with pytest.raises(OSError, match="autoencoder"):
        prepare_autoencoder(run, LATENT, tmp_path / "images.npz")
    run.autoencoder.unlink()
    state = snapshot(run.training)
    with full_disk(60_000), pytest.raises(OSError, match="File too large"):
        prepare_autoencoder(run, LATENT, tmp_path / "images.npz")
    assert snapshot(run.training) == state
    assert not list(run.autoencoder.glob("*.safetensors"))
    prepare_autoencoder(run, LATENT, tmp_path / "images.npz")
    assert open_space(run.path, "latent", "folder", tmp_path / "images.npz").latents.shape == (12, 4, 4, 4)
    assert not list(run.training.glob("*.state.pt"))
