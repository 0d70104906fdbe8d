"""An image that already exists, as a sample: on exact denoisers, and on the demo, where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from audit import demo
from audit.auditor import Auditor
from audit.bench.truth import load_truth
from audit.errors import BrokenCheckpoint, InvalidInput, Stopped
from audit.inspection import WAY_BACK, as_batch, planned_evaluations, way_back
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import SamplerSettings
from audit.reference.reference_set import ReferenceSet
from audit.work import Progress
from tests.audit.makers import DIFFUSION, SCHEDULER_CONFIG, stable_diffusion_schedule

SIDE = 8
#: What exact denoisers store; far from each other.
STORED = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 1), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)


def exact(checkpoint: Checkpoint, *, reference: ReferenceSet | None = None, decode_to: float = 1.0) -> Auditor:
    """An auditor of the exact denoiser of `STORED`: "first" is a prompt of the first image alone, all others of all.

    Latents are the images themselves, times `decode_to` where they are decoded.
    """
    points = torch.from_numpy(STORED).permute(0, 3, 1, 2).double() / 127.5 - 1
    priors = torch.stack([torch.eye(6)[0], torch.ones(6)])

    def encode_prompts(prompts: Sequence[str]) -> Condition:
        return {"prompt": torch.tensor([int(prompt != "first") for prompt in prompts])}

    def encode(images: Tensor) -> Tensor:
        return images.clone()

    made = replace(
        checkpoint,
        digest="sha256:exact",
        autoencoder=f"exact {decode_to}",
        denoiser=EmpiricalDenoiser(points.float(), priors, stable_diffusion_schedule()),
        scheduler_config=SCHEDULER_CONFIG,
        defaults=SamplerSettings("", 20, 1.0, height=SIDE, width=SIDE),
        size_factor=1,
        latent_channels=1,
        image_channels=1,
        encode_prompts=encode_prompts,
        decode=lambda latents: latents * decode_to,
        encode=encode,
    )
    return Auditor(made, reference)


def stored(*, complete: bool = True, count: int = 6) -> ReferenceSet:
    """The first images that the exact denoisers store."""
    return ReferenceSet("stored", STORED[:count], [f"image {index}" for index in range(count)], complete=complete)


def image_of(reference: ReferenceSet, prompt: str) -> tuple[int, np.ndarray]:
    """Index and pixels of the first training image of a caption."""
    index = reference.captions.index(prompt)
    return index, np.asarray(reference.images[index])


def caption(images: int, number: int = 0) -> str:
    """A caption of the demo with so many training images."""
    return [row.prompt for row in load_truth(demo.TRUTH) if row.images == images][number]


def sample(checkpoint: Checkpoint, auditor: Auditor, prompt: str) -> Tensor:
    """What the demo makes of a prompt, (channels, height, width)."""
    drawn = checkpoint.sample(
        auditor.defaults, checkpoint.encode_prompts([prompt]), checkpoint.encode_prompts([""]), [5]
    )
    return checkpoint.decode(drawn.latents)[0].clamp(-1, 1)


def test_a_stored_point_comes_back(checkpoint: Checkpoint) -> None:
    """Where a prompt has one image, all of the noise is found again and all of it is undone, and seeds return to it."""
    found = exact(checkpoint, reference=stored()).inspect(STORED[0], "first")
    assert found.verdict == "memorized"
    assert found.decided
    assert found.neighbors is not None
    assert (found.neighbors.index[0], found.neighbors.original_distance[0]) == (0, 0)
    assert found.reconstruction_distance == 0
    np.testing.assert_allclose(found.smoothed.values, 1, atol=1e-3)
    assert found.basin.found
    assert found.basin.critical_time == found.basin.timesteps[-1]
    np.testing.assert_array_equal(found.basin.recovery, 1)
    assert (found.draw_distance < 0.5).all()


@pytest.mark.parametrize("prompt", ["first", "all", ""])
def test_an_image_far_from_all_points_does_not(checkpoint: Checkpoint, prompt: str) -> None:
    """Its noise is found again too, since every way back leads to the same point; the basin tells that this is another.

    It is no sample, and has no class.
    """
    found = exact(checkpoint, reference=stored()).inspect(OTHER, prompt)
    assert found.verdict is found.probabilities is None
    assert (found.confidence, found.decided) == (0, False)
    assert not found.basin.found
    assert found.basin.led_away
    assert np.isnan(found.basin.recovery[-1])
    assert (found.draw_distance > 3).all()
    assert any("no class" in reason for reason in found.reasons)


def test_without_a_reference_set_what_seeds_return_to_recurs(checkpoint: Checkpoint) -> None:
    """It may be memorized or spurious: not found is not "not there"; against the whole set, it would be spurious."""
    nothing = exact(checkpoint).inspect(STORED[0], "first")
    part = exact(checkpoint, reference=ReferenceSet("other", OTHER[None], [""], complete=False)).inspect(
        STORED[0], "first"
    )
    whole = exact(checkpoint, reference=ReferenceSet("other", OTHER[None], [""], complete=True)).inspect(
        STORED[0], "first"
    )
    assert nothing.probabilities is not None
    assert part.probabilities is not None
    assert nothing.probabilities[2] == part.probabilities[2] == 0
    assert nothing.probabilities[0] > part.probabilities[0] > 0
    assert whole.probabilities == (0, 1, 0)
    assert whole.verdict == "spurious"
    assert nothing.neighbors is None
    assert any("No images of a reference set" in reason for reason in nothing.reasons)
    assert any("partial" in reason for reason in part.reasons)


def test_without_a_prompt_nothing_is_estimated(checkpoint: Checkpoint) -> None:
    """The contrast is missing, and a sentence says so; copies are told all the same."""
    found = exact(checkpoint, reference=stored()).inspect(STORED[3])
    assert found.verdict == "memorized"
    auditor = exact(checkpoint, reference=stored(complete=False, count=2))
    found = auditor.inspect(STORED[3])
    assert found.verdict is None
    assert found.basin.found
    assert found.probabilities is not None
    assert found.probabilities[0] == found.probabilities[1]
    assert {one.name for one in found.measurements} == {"trace_near", "trace_far"}
    assert any("contrast" in reason for reason in found.reasons)
    assert found.cost.screening_evaluations == 0


def test_what_the_autoencoder_does_not_give_back_was_not_made(checkpoint: Checkpoint) -> None:
    """Its distance is reported; of something else that comes back nothing is concluded."""
    found = exact(checkpoint, decode_to=0.5).inspect(STORED[0])
    assert found.reconstruction_distance > found.delta_s
    assert found.basin.found
    assert found.verdict is found.probabilities is None
    assert any("does not give it back" in reason for reason in found.reasons)


def test_a_training_image_is_memorized_under_its_prompt(auditor: Auditor, reference: ReferenceSet) -> None:
    """With its own index, coming back from the most noise there is; also where the autoencoder blurs it."""
    index, image = image_of(reference, caption(1))
    found = auditor.inspect(image, caption(1))
    assert (found.verdict, found.confidence) == ("memorized", 1)
    assert found.neighbors is not None
    assert found.neighbors.index[0] == index
    assert found.neighbors.distance[0] < 0.01
    assert found.neighbors.original_distance[0] == 0
    assert found.reference is not None
    assert found.reference.entries[index].caption == caption(1)
    assert found.basin.critical_time > 800
    assert (found.draw_distance < found.delta_s).all()
    assert found.smoothed.values.mean() > 0.97
    assert found.calibration_fits
    index, blurred = image_of(reference, caption(16, 1))
    found = auditor.inspect(blurred)
    assert found.reconstruction_distance > found.delta_s
    assert found.neighbors is not None
    assert (found.verdict, found.neighbors.index[0]) == ("memorized", index)


def test_a_sample_of_a_memorized_prompt_is_memorized(checkpoint: Checkpoint, auditor: Auditor) -> None:
    """Without a second trip through the autoencoder being held against it."""
    found = auditor.inspect(sample(checkpoint, auditor, caption(1)), caption(1))
    assert found.verdict == "memorized"
    assert found.reconstruction_distance < found.delta_s


def test_a_sample_of_a_generalizing_prompt_is_not(checkpoint: Checkpoint, auditor: Auditor) -> None:
    """It comes back from little noise only, no seed returns to it, and it is a sample of its own prompt alone."""
    image = sample(checkpoint, auditor, caption(1000, 1))
    found = auditor.inspect(image, caption(1000, 1))
    assert found.verdict == "generalized"
    assert found.confidence > 0.7
    assert found.basin.noise_time < found.basin.critical_time < 500
    assert (found.draw_distance > found.delta_s).all()
    elsewhere = auditor.inspect(image, caption(1))
    assert elsewhere.verdict is None
    assert not elsewhere.basin.found


def test_noise_is_no_sample(auditor: Auditor, reference: ReferenceSet) -> None:
    """Nor is a training image upside down; neither is taken for memorized."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for image in (noise, image_of(reference, caption(1000, 1))[1][::-1]):
        found = auditor.inspect(image, caption(1000, 1))
        assert found.verdict is None
        assert found.neighbors is not None
        assert found.neighbors.distance[0] > found.delta_m


def test_size_and_channels_do_not_matter(auditor: Auditor, reference: ReferenceSet) -> None:
    """A copy in colour and three times as large is the same copy."""
    index, image = image_of(reference, caption(1))
    found = auditor.inspect(image.repeat(3, 0).repeat(3, 1).repeat(3, 2), caption(1))
    assert found.neighbors is not None
    assert (found.verdict, found.neighbors.index[0]) == ("memorized", index)


def test_the_same_image_gives_the_same_answer(auditor: Auditor, reference: ReferenceSet) -> None:
    """Twice, from bytes or from floats, and it costs what was planned at most."""
    image = image_of(reference, caption(16))[1]
    told: list[Progress] = []
    first = auditor.inspect(image, caption(16), on_progress=told.append)
    again = auditor.inspect(torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1, caption(16))
    assert first.verdict == again.verdict
    np.testing.assert_allclose(first.smoothed.values, again.smoothed.values, atol=1e-3)
    np.testing.assert_array_equal(first.basin.recovery, again.basin.recovery)
    least, most = planned_evaluations(auditor, first.sampler, prompted=True)
    assert least < first.cost.evaluations == again.cost.evaluations <= most
    assert {one.planned for one in told} == {most}
    assert first.cost.screening_evaluations == 8
    assert first.cost.curvature_evaluations == 32


@pytest.mark.parametrize("scheduler", ["", "euler", "dpm++2m", "pndm"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_planned_evaluations_are_those_of_an_image_that_always_comes_back(
    checkpoint: Checkpoint, scheduler: str, guidance: float
) -> None:
    """And the least are those of one that never does."""
    auditor = exact(checkpoint)
    sampler = auditor.resolve_sampler(scheduler=scheduler, steps=7, guidance=guidance)
    back = auditor.inspect(STORED[0], "first", sampler=sampler)
    assert (back.cost.evaluations, back.way_back.scheduler == "pndm") == (
        planned_evaluations(auditor, sampler, prompted=True)[1],
        False,
    )


def test_the_way_back_is_short(auditor: Auditor) -> None:
    """In at most twenty steps, and by DDIM where the sampler cannot begin in the middle."""
    assert way_back(auditor, auditor.resolve_sampler(steps=100)).steps == WAY_BACK
    assert way_back(auditor, auditor.resolve_sampler(steps=5)).steps == 5
    for name in DIFFUSION:
        used = way_back(auditor, auditor.resolve_sampler(scheduler=name)).scheduler
        assert used == ("ddim" if name == "pndm" else name)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4, 2), np.uint8), "IMAGE_WRONG_SHAPE"),
        (np.zeros((4, 4), np.float32), "IMAGE_WRONG_SHAPE"),
        (np.zeros((0, 4), np.uint8), "IMAGE_WRONG_SHAPE"),
        (np.zeros((1, 4, 4, 1), np.uint8), "IMAGE_WRONG_SHAPE"),
        (torch.zeros(4, 4), "IMAGE_WRONG_SHAPE"),
        (torch.full((1, 4, 4), 1.5), "IMAGE_OUT_OF_RANGE"),
        (torch.full((1, 4, 4), float("nan")), "IMAGE_OUT_OF_RANGE"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray | Tensor, reason: str) -> None:
    """By its shape or its values."""
    with pytest.raises(InvalidInput) as raised:
        as_batch(image)
    assert (raised.value.reason, raised.value.field) == (reason, "image")


def test_prompts_are_checked(auditor: Auditor) -> None:
    """One of blanks is none."""
    with pytest.raises(InvalidInput) as raised:
        auditor.inspect(OTHER, " ")
    assert raised.value.reason == "PROMPT_EMPTY"


def test_it_can_be_stopped(auditor: Auditor) -> None:
    """Before any denoiser call."""

    def check() -> None:
        raise Stopped("enough", reason="CANCELLED")

    with pytest.raises(Stopped):
        auditor.inspect(OTHER, caption(1), check=check)


def test_nan_is_the_checkpoints_fault(checkpoint: Checkpoint) -> None:
    """And never something new."""
    with pytest.raises(BrokenCheckpoint) as raised:
        exact(checkpoint, decode_to=float("nan")).inspect(STORED[0], "first")
    assert raised.value.reason == "SAMPLES_NOT_FINITE"
