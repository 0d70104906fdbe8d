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
from audit.phase.run import Story, check_sweep, metrics, run_phase
from audit.phase.space import open_space, prepare_autoencoder
from audit.phase.sweep import PRESETS, Series, Sweep
from audit.phase.train_sweep import load_network, training_jobs
from audit.verdict.rule import CLASSES
from tests.audit.phase.finished import SWEEP, Finished, finished_run, finished_story, full_disk, small_images, snapshot

LATENT = Sweep.model_validate(
    {
        **SWEEP,
        "series": [
            {"architecture": "unet", "width": 8, "space": "latent", "learning_rate": 1e-3},
            {"architecture": "transformer", "width": 32, "space": "latent", "learning_rate": 1e-3},
            {"architecture": "mlp", "width": 16, "learning_rate": 1e-2},
        ],
        "seeds": [0],
        "steps": 20,
        "samples": 24,
        "sampler_steps": 4,
        "points": 2,
        "autoencoder_widths": [8, 8, 8],
        "autoencoder_steps": 10,
    }
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing disturbed."""
    return finished_run(tmp_path_factory.getbasetemp() / "phase")


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What the library returns for a copy of it."""
    return finished_story(tmp_path_factory.getbasetemp() / "phase")


def test_the_library_returns_what_the_command_writes(finished: Finished, story: Story) -> None:
    """The story of a finished run holds the arrays of its files, and its metrics are those of the command."""
    run = RunFolder(finished.folder)
    assert set(story.samples) == set(story.evidence) == set(finished.sweep.networks)
    for network in finished.sweep.networks:
        for found, file in ((story.samples, run.samples(network)), (story.evidence, run.evidence(network))):
            for name, array in read_arrays(file).items():
                np.testing.assert_array_equal(found[network][name], array)
        # Evidence is of the class that the thresholds of the whole run give.
        evidence = story.evidence[network]
        np.testing.assert_array_equal(story.classes(network)[evidence["index"]], evidence["class"])
    for name, transition in story.transitions.items():
        assert [network.series for network in story.networks(name)] == [name] * 9
        np.testing.assert_allclose(transition.fractions.sum(1), 1)
    assert {index for network in story.samples for index in story.classes(network)} == set(range(len(CLASSES)))
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [line["kind"] for line in metrics(story)]


def test_latent_space_and_other_architectures(finished: Finished, tmp_path: Path) -> None:
    """Colour images run through an autoencoder, a U-Net and a transformer, beside a series in pixel space."""
    images = small_images(12, 16, channels=3)
    np.savez(tmp_path / "images.npz", images=images)
    folder = finished.claim(tmp_path / "run", LATENT, images)
    story = run_phase(LATENT, folder, source=tmp_path / "images.npz", devices=["cpu"])

    assert set(story.thresholds) == {"latent", "pixel"}
    assert {"autoencoder", "samples", "evidence"} < set(story.seconds)
    shapes = {"latent": (24, 4, 4, 4), "pixel": (24, 3, 16, 16)}
    for network, samples in story.samples.items():
        assert samples["latents"].shape == shapes[story.space(network.series)]
        assert np.isfinite(samples["latents"]).all()
        assert load_network(folder, network, LATENT, tmp_path / "images.npz").prediction_type == "sample"
    assert (folder / "autoencoder" / "diffusion_pytorch_model.safetensors").is_file()
    encoded = read_arrays(folder / "autoencoder" / "encoded.npz")
    assert encoded["latents"].shape == (12, 4, 4, 4)
    assert encoded["images"].shape == (12, 3, 16, 16)
    assert not list((folder / "training").glob("*.state.*"))
    assert (folder / "figures" / "samples.png").is_file()
    page = (folder / "index.html").read_text()
    assert all(series.name in page for series in LATENT.series)

    before, run = snapshot(folder), RunFolder(folder)
    prepare_autoencoder(run, LATENT, tmp_path / "images.npz")
    assert training_jobs(run, LATENT, None) == sampling_jobs(run, LATENT, None) == []
    assert evidence_jobs(run, LATENT, story.thresholds, None) == []
    assert snapshot(folder) == before


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
    images = small_images(12, 16)
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
