"""Batched sampling: exact recall, independence of seeds, cost, free signals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.errors import InvalidInput
from audit.model.checkpoint import Checkpoint
from audit.model.denoiser import Condition, Denoiser, MeteredDenoiser
from audit.model.empirical import EmpiricalDenoiser
from audit.model.sampling import SCHEDULERS, SamplerSettings, Samples, build_scheduler, draw_noise, sample, sample_from
from tests.audit.makers import DIFFUSION, SCHEDULER_CONFIG, clusters, exact_denoiser, stable_diffusion_schedule

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


@pytest.mark.parametrize("scheduler", DIFFUSION)
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


@pytest.mark.parametrize("name", ["", *DIFFUSION])
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


def ready(name: str, steps: int) -> Any:
    """A scheduler with its timesteps set."""
    scheduler = build_scheduler(name, SCHEDULER_CONFIG)
    scheduler.set_timesteps(steps)
    return scheduler


def noising(name: str, steps: int, step: int) -> tuple[float, float]:
    """What the scheduler multiplies clean latents and noise with before a step, in its own coordinates."""
    scheduler = ready(name, steps)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    t = scheduler.timesteps[step : step + 1]
    return float(scheduler.add_noise(one, zero, t)), float(scheduler.add_noise(zero, one, t))


def walk_from(
    denoiser: Denoiser, name: str, steps: int, clean: Tensor, first_step: int, seeds: list[int], guidance: float = 1.0
) -> Tensor:
    """Where trajectories of the first prompt end that are joined midway, with a fresh scheduler."""
    condition = {"prompt": torch.zeros(1, dtype=torch.long)}
    wanted = SamplerSettings(name, steps, guidance)
    scheduler = build_scheduler(name, SCHEDULER_CONFIG)
    return sample_from(denoiser, scheduler, wanted, condition, condition, clean, first_step, seeds)


#: PNDM begins with Runge–Kutta steps wherever it begins.
MIDWAY = [name for name in DIFFUSION if name != "pndm"]


@pytest.mark.parametrize("name", MIDWAY)
def test_a_trajectory_joined_at_its_first_step_is_a_sample(name: str) -> None:
    """Latents that are noised to where `sample` starts go the same way, to 10⁻⁶, noise of the steps included."""
    denoiser = exact_denoiser(clusters(3, 4, 0.6))
    alpha, sigma = noising(name, 10, 0)
    seeds = [3, 4, 8]
    start, _ = draw_noise(seeds, (16,))
    clean = start.double() * (float(ready(name, 10).init_noise_sigma) - sigma) / alpha
    condition = denoiser.condition(0)
    expected = draw(denoiser, condition, condition, SamplerSettings(name, 10, 1.0), seeds, (16,), torch.float64)
    found = walk_from(denoiser, name, 10, clean, 0, seeds)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("first_step", [1, 4, 9])
def test_a_trajectory_joined_midway_ends_where_it_does(name: str, first_step: int) -> None:
    """From where a trajectory stands before a step, with noise taken off, the rest of it is walked as before."""
    denoiser = exact_denoiser(clusters(3, 4, 0.6))
    seeds = [5, 6]
    start, _ = draw_noise(seeds, (16,))
    scheduler = ready(name, 10)
    x, passed = start.double() * float(scheduler.init_noise_sigma), []
    condition = {"prompt": torch.zeros(2, dtype=torch.long)}
    for t in scheduler.timesteps:
        passed.append(x)
        noise = denoiser(scheduler.scale_model_input(x, t), t.expand(2), condition)
        x = scheduler.step(noise, t, x, return_dict=False)[0]
    alpha, sigma = noising(name, 10, first_step)
    clean = (passed[first_step] - sigma * start.double()) / alpha
    torch.testing.assert_close(walk_from(denoiser, name, 10, clean, first_step, seeds), x, rtol=0, atol=1e-5)
    assert float((passed[first_step] - x).norm()) > 0.05


def test_pndm_cannot_be_joined() -> None:
    """It is refused, with a word on what to take instead."""
    with pytest.raises(InvalidInput, match="ddim") as caught:
        walk_from(exact_denoiser(torch.zeros(1, 16)), "pndm", 6, torch.zeros(1, 16), 2, [0])
    assert caught.value.reason == "SCHEDULER_CANNOT_RESUME"


@pytest.mark.parametrize("name", MIDWAY)
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_a_lone_point_comes_back_from_any_step(name: str, shape: tuple[int, ...]) -> None:
    """All schedulers end at the stored point, or at the first timestep's α₀y + σ₀ε, within 10⁻⁵."""
    point = torch.randn(1, *shape, dtype=torch.float64).expand(3, *shape)
    denoiser, seeds = exact_denoiser(point[:1]), [0, 1, 2]
    expected = point
    if name == "ddim":  # with set_alpha_to_one = False
        noise, _ = draw_noise(seeds, shape)
        expected = denoiser.schedule.alphas[0] * point + denoiser.schedule.sigmas[0] * noise
    for first_step in (0, 1, 2, 3, 7, 12, 17, 19):
        found = walk_from(denoiser, name, 20, point, first_step, seeds)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MIDWAY)
def test_a_joined_trajectory_does_not_depend_on_other_rows(name: str, dtype: torch.dtype) -> None:
    """Alone, or among others in another order, a seed's noise, steps and end are the same."""
    points = clusters(3, 4, 0.6).to(dtype)
    denoiser = exact_denoiser(points)
    first = 3
    together = walk_from(denoiser, name, 8, points[[0, 4, 8]], first, [3, 7, 11])
    assert together.dtype == dtype
    alone = walk_from(denoiser, name, 8, points[[4]], first, [7])
    shuffled = walk_from(denoiser, name, 8, points[[8, 4]], first, [11, 7])
    other = walk_from(denoiser, name, 8, points[[4]], first, [8])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together[[2, 1]], shuffled, rtol=0, atol=1e-4)
    assert not torch.equal(alone, other)


@pytest.mark.parametrize("name", MIDWAY)
@pytest.mark.parametrize(("guidance", "cost"), [(1.0, 1), (3.0, 2)])
def test_a_joined_trajectory_costs_the_steps_that_are_left(name: str, guidance: float, cost: int) -> None:
    """One evaluation per row from before the last step, all of them from before the first, twice under guidance."""
    length = len(ready(name, 6).timesteps)
    for first_step in (0, length - 3, length - 1):
        meter = MeteredDenoiser(exact_denoiser(clusters(2, 2, 0.5).float()))
        walk_from(meter, name, 6, torch.zeros(3, 16), first_step, [0, 1, 2], guidance)
        assert meter.evaluations == 3 * cost * (length - first_step)


def test_a_joined_trajectory_is_noised_to_its_timestep() -> None:
    """The denoiser's first call sees αx₀ + σε with the noise of each row's seed, at that step's timestep."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(MeteredDenoiser):
        def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            seen.append((x, t))
            return super().native(x, t, condition)

    points = clusters(2, 2, 0.5)
    denoiser = Watched(exact_denoiser(points))
    noise, _ = draw_noise([4, 5, 6, 7], (16,))
    for name in MIDWAY:
        for first_step in (0, 2, 5):
            seen.clear()
            walk_from(denoiser, name, 6, points, first_step, [4, 5, 6, 7])
            x, t = seen[0]
            assert t.tolist() == [float(ready(name, 6).timesteps[first_step])] * 4
            alpha, sigma = denoiser.schedule.at(t, points)
            torch.testing.assert_close(x, alpha * points + sigma * noise, rtol=1e-3, atol=1e-3)
