"""Batched sampling: exact recall, independence of seeds, cost, free signals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import InvalidInput
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import SCHEDULERS, SamplerSettings, Samples, build_scheduler, draw_noise, sample
from tests.audit.makers import SCHEDULER_CONFIG, clusters, exact_denoiser, stable_diffusion_schedule

SETTINGS = SamplerSettings(steps=8, guidance=1.0)


def draw(
    denoiser: Denoiser,
    condition: Condition,
    unconditional: Condition,
    settings: SamplerSettings,
    seeds: list[int],
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Samples with a fresh scheduler."""
    scheduler = build_scheduler(settings.scheduler, SCHEDULER_CONFIG)
    return sample(denoiser, scheduler, settings, condition, unconditional, seeds, shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddim_on_the_exact_denoiser_lands_on_training_points(dtype: torch.dtype) -> None:
    """Every seed falls into a stored point, and different seeds into different ones."""
    points = 4 * torch.eye(6, 16, dtype=dtype)
    denoiser = exact_denoiser(points)
    found = draw(
        denoiser, denoiser.condition(0), denoiser.condition(0), SamplerSettings(steps=50, guidance=1.0),
        list(range(24)), (16,), dtype,
    )  # fmt: skip
    distances = torch.cdist(found.latents, points)
    # The last step ends at the first timestep, where noise of σ = 0.029 in each of 16 directions is left.
    assert float(distances.min(1).values.max()) < 2 * 0.029 * 16**0.5
    assert len(set(distances.argmin(1).tolist())) >= 4
    assert found.latents.dtype == dtype


def test_prompts_recall_their_own_points() -> None:
    """The condition decides which set a seed falls into, without and with guidance."""
    points = 3 * torch.eye(4, 16)
    priors = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    denoiser = EmpiricalDenoiser(points, priors, stable_diffusion_schedule())
    for prompt, guidance in ((0, 1.0), (1, 1.0), (0, 2.0), (1, 2.0)):
        found = draw(
            denoiser, denoiser.condition(prompt), denoiser.condition(2),
            SamplerSettings(steps=50, guidance=guidance), list(range(8)), (16,),
        )  # fmt: skip
        nearest = torch.cdist(found.latents, points).argmin(1)
        assert set(nearest.tolist()) <= {2 * prompt, 2 * prompt + 1}


@pytest.mark.parametrize(
    ("scheduler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("euler", 0.0), ("euler-ancestral", 0.0),
                           ("dpm++2m", 0.0), ("unipc", 0.0), ("pndm", 0.0)]
)  # fmt: skip
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_does_not_depend_on_its_batch(
    checkpoint: Checkpoint, scheduler: str, eta: float, guidance: float
) -> None:
    """Alone, or among others in another order, a seed gives the same sample, also where steps draw noise."""
    wanted = SamplerSettings(scheduler=scheduler, steps=5, guidance=guidance, eta=eta)
    condition, empty = checkpoint.encode_prompts(["a red wool coat"]), checkpoint.encode_prompts([""])
    together, alone, shuffled = (
        draw(checkpoint.denoiser, condition, empty, wanted, seeds, (4, 8, 8)) for seeds in ([3, 7, 11], [7], [11, 7])
    )
    scale = float(together.latents.abs().max())
    torch.testing.assert_close(together.latents[1:2], alone.latents, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(together.latents[[2, 1]], shuffled.latents, rtol=0, atol=1e-4 * scale)
    assert not torch.allclose(together.latents[0], together.latents[1], atol=1e-2 * scale)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler-ancestral"])
def test_stochastic_steps_draw_from_their_own_seed(scheduler: str) -> None:
    """The same seed twice in one batch gives the same sample twice."""
    denoiser = exact_denoiser(clusters(4, 4, 0.5).float())
    condition = denoiser.condition(0)
    found = draw(denoiser, condition, condition, SamplerSettings(scheduler, 6, 1.0), [5, 5, 6], (16,))
    assert torch.equal(found.latents[0], found.latents[1])
    assert not torch.equal(found.latents[0], found.latents[2])


def test_eta_makes_ddim_stochastic() -> None:
    """With η > 0 the noise of the steps changes where a seed ends."""
    denoiser = exact_denoiser(clusters(2, 8, 0.8).float())
    condition = denoiser.condition(0)
    plain, noisy = (
        draw(denoiser, condition, condition, SamplerSettings(steps=6, guidance=1.0, eta=eta), [1], (16,))
        for eta in (0.0, 1.0)
    )
    assert not torch.allclose(plain.latents, noisy.latents, atol=1e-3)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize(("guidance", "cost"), [(1.0, 1), (0.0, 2), (4.0, 2)])
def test_a_guided_row_costs_two_evaluations(scheduler: str, guidance: float, cost: int) -> None:
    """NFE is rows × timesteps, doubled by guidance; steps are told one by one."""
    meter = MeteredDenoiser(exact_denoiser(clusters(2, 2, 0.5).float()))
    condition, told = meter.inner.condition(0), []  # type: ignore[attr-defined]
    wanted = SamplerSettings(scheduler=scheduler, steps=5, guidance=guidance)
    made = build_scheduler(scheduler, SCHEDULER_CONFIG)
    sample(meter, made, wanted, condition, condition, [0, 1, 2], (16,), on_step=told.append)
    assert meter.evaluations == 3 * cost * len(made.timesteps)
    assert told == list(range(1, len(made.timesteps) + 1))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_free_signals_have_their_shapes(checkpoint: Checkpoint, guidance: float) -> None:
    """Displacements are there for every step; contrasts and their map come with guidance alone."""
    wanted = SamplerSettings(steps=4, guidance=guidance)
    condition, empty = checkpoint.encode_prompts(["a teal bag"]), checkpoint.encode_prompts([""])
    found = draw(checkpoint.denoiser, condition, empty, wanted, [1, 2], (4, 8, 8))
    assert found.displacements.shape == (2, 4)
    assert (found.displacements > 0).all()
    if guidance == 1:
        assert found.contrasts.shape == (2, 0)
        assert found.contrast_map is None
    else:
        assert found.contrasts.shape == (2, 4)
        assert found.contrast_map is not None
        assert found.contrast_map.shape == (2, 8, 8)
        assert (found.contrast_map >= 0).all()
    joined = Samples.concatenate([found, found])
    assert joined.seeds == (1, 2, 1, 2)
    assert joined.latents.shape == (4, 4, 8, 8)
    assert joined.displacements.shape == (4, 4)
    assert (joined.contrast_map is None) == (guidance == 1)
    assert len(joined) == 4


def test_displacements_add_up_to_the_path() -> None:
    """The last displacement is the distance between the last two latents of the trajectory."""
    denoiser = exact_denoiser(clusters(2, 3, 0.5).float())
    condition = denoiser.condition(0)
    found = draw(denoiser, condition, condition, SamplerSettings(steps=6, guidance=1.0), [9], (16,))
    start, _ = draw_noise([9], (16,))
    whole = float((found.latents - start).norm())
    assert float(found.displacements.max()) <= float(found.displacements.sum())
    assert whole <= float(found.displacements.sum()) * (1 + 1e-6)


def test_contrast_of_equal_branches_is_zero() -> None:
    """Where the prompt changes nothing, neither contrasts nor their map show anything."""
    denoiser = exact_denoiser(clusters(2, 3, 0.5).reshape(-1, 4, 2, 2).float())
    condition = denoiser.condition(0)
    found = draw(denoiser, condition, condition, SamplerSettings(steps=3, guidance=5.0), [0, 1], (4, 2, 2))
    assert found.contrast_map is not None
    assert float(found.contrasts.max()) == 0
    assert float(found.contrast_map.max()) == 0


def test_guidance_that_is_one_and_guidance_between_equal_branches_agree() -> None:
    """Extrapolating between two equal predictions is no extrapolation."""
    denoiser = exact_denoiser(clusters(2, 3, 0.5).float())
    condition = denoiser.condition(0)
    one, five = (
        draw(denoiser, condition, condition, SamplerSettings(steps=5, guidance=g), [0, 1], (16,)).latents
        for g in (1.0, 5.0)
    )
    torch.testing.assert_close(one, five, rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_noise_depends_on_each_seed_alone(seeds: list[int]) -> None:
    """The start of a seed is the same whatever seeds stand beside it."""
    together, generators = draw_noise(seeds, (4, 2, 2))
    assert together.shape == (len(seeds), 4, 2, 2)
    assert len(generators) == len(seeds)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, draw_noise([seed], (4, 2, 2))[0][0])


@pytest.mark.parametrize("name", ["", *SCHEDULERS])
def test_every_scheduler_is_built_from_a_checkpoints_configuration(name: str) -> None:
    """The schedule of the checkpoint survives the change of class."""
    made = build_scheduler(name, SCHEDULER_CONFIG)
    assert type(made).__name__ == SCHEDULERS.get(name, "DDIMScheduler")
    assert made.config.beta_end == 0.012
    alphas = made.alphas_cumprod.double().sqrt()
    torch.testing.assert_close(alphas, stable_diffusion_schedule().alphas, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"scheduler": "plms"}, "SCHEDULER_UNKNOWN", "sampler.scheduler"),
        ({"steps": 0}, "STEPS_OUT_OF_RANGE", "sampler.steps"),
        ({"steps": 1001}, "STEPS_OUT_OF_RANGE", "sampler.steps"),
        ({"guidance": math.nan}, "GUIDANCE_OUT_OF_RANGE", "sampler.guidance"),
        ({"guidance": math.inf}, "GUIDANCE_OUT_OF_RANGE", "sampler.guidance"),
        ({"guidance": -0.5}, "GUIDANCE_OUT_OF_RANGE", "sampler.guidance"),
        ({"eta": 1.5}, "ETA_OUT_OF_RANGE", "sampler.eta"),
        ({"eta": math.nan}, "ETA_OUT_OF_RANGE", "sampler.eta"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, object], reason: str, field: str) -> None:
    """A value out of range is refused with its field and a stable reason."""
    with pytest.raises(InvalidInput) as caught:
        SamplerSettings(**change)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.field) == (reason, field)
