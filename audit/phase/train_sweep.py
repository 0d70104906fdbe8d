"""Training the networks of a sweep, several at once, each on its own subset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save
from torch import Tensor, nn

from audit.model.denoiser import Condition, Denoiser, PredictionType, Schedule
from audit.model.sampling import build_scheduler
from audit.phase.architectures import Architecture, Fleet, build_network, forward_flops
from audit.phase.folder import RunFolder, write_whole
from audit.phase.space import open_space
from audit.phase.sweep import Network, Sweep
from audit.phase.training import fit
from audit.phase.workers import Job, Report

#: Networks that are trained as one (docs/benchmarks/training.md).
FLEET: dict[Architecture, int] = {"mlp": 8, "unet": 1, "transformer": 1, "ddpm": 1}


class NetworkDenoiser(Denoiser):
    """A network of a sweep as everything else sees it; it knows no prompts, so its condition is empty.

    Args:
        network: x (n, *shape), timesteps (n,) to what `prediction_type` says.
        schedule: α and σ per timestep.
        prediction_type: of the network.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction_type: PredictionType) -> None:
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type

    def to(self, device: torch.device | str) -> NetworkDenoiser:
        """The same on another device."""
        return NetworkDenoiser(self.network.to(device), self.schedule, self.prediction_type)

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's prediction."""
        return self.network(x, t.to(x.device))


def schedule_of(sweep: Sweep) -> Schedule:
    """α and σ of a sweep's timesteps."""
    return Schedule.from_alphas_cumprod(build_scheduler("", sweep.scheduler_config).alphas_cumprod)


def training_rows(size: int, seed: int, total: int) -> Tensor:
    """Indices of the K training images: the first of a permutation that depends on the seed alone, so sets nest."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:size]


def load_network(run: Path, network: Network, sweep: Sweep, source: Path | None = None) -> NetworkDenoiser:
    """A trained network of a run, from its EMA weights.

    Args:
        run: the run folder.
        network: which one.
        sweep: of the run.
        source: where the data set's files are; the usual places when None.
    """
    series = sweep.series_named(network.series)
    space = open_space(run, series.space, sweep.data, source)
    built = build_network(series.architecture, series.width, space.latents.shape[1:])
    built.load_state_dict(load_file(RunFolder(run).weights(network)))
    return NetworkDenoiser(built.eval().requires_grad_(False), schedule_of(sweep), sweep.prediction_type)


def fleets(sweep: Sweep) -> list[tuple[Network, ...]]:
    """The networks that are trained as one; they do not depend on the number of workers, nor does the result."""
    found = []
    for series in sweep.series:
        own = [network for network in sweep.networks if network.series == series.name]
        each = FLEET[series.architecture]
        found += [tuple(own[first : first + each]) for first in range(0, len(own), each)]
    return found


def fleet_name(fleet: Sequence[Network]) -> str:
    """Stem of a fleet's state and loss curve."""
    return fleet[0].name.replace("/", "-")


def training_jobs(run: RunFolder, sweep: Sweep, source: Path | None) -> list[Job]:
    """What is left to train, fleet by fleet."""
    jobs = []
    for fleet in fleets(sweep):
        if all(run.weights(network).is_file() for network in fleet):
            continue
        series = sweep.series_named(fleet[0].series)
        shape = open_space(run.path, series.space, sweep.data, source).latents.shape[1:]
        with torch.device("meta"):
            network = build_network(series.architecture, series.width, shape)
        flops = forward_flops(network, shape)
        work = partial(train_fleet, run.path, sweep, fleet, source)
        # A backward pass costs two forward ones.
        weight = 3 * flops * sweep.steps * sweep.batch_size * len(fleet)
        jobs.append(Job(name=fleet_name(fleet), weight=weight, function=work))
    return jobs


def train_fleet(
    path: Path, sweep: Sweep, networks: Sequence[Network], source: Path | None, report: Report, device: str
) -> None:
    """Train networks of one series side by side and write their EMA weights.

    Args:
        path: the run folder.
        sweep: the configuration.
        networks: all of one series.
        source: where the data set's files are.
        report: told the share that is done.
        device: a torch device.
    """
    run, series = RunFolder(path), sweep.series_named(networks[0].series)
    latents = open_space(path, series.space, sweep.data, source).latents
    built = []
    for network in networks:
        torch.manual_seed(network.seed)
        built.append(build_network(series.architecture, series.width, latents.shape[1:]))
    fleet = Fleet(built)
    name = fleet_name(networks)
    sets = [latents[training_rows(network.size, network.seed, len(latents))] for network in networks]
    trained = train_on(
        fleet,
        sets,
        schedule_of(sweep),
        prediction_type=sweep.prediction_type,
        steps=sweep.steps,
        batch_size=sweep.batch_size,
        learning_rate=series.learning_rate,
        ema_decay=sweep.ema_decay,
        weight_decay=sweep.weight_decay,
        seed=networks[0].seed,
        name=name,
        folder=run.training,
        report=report,
        device=device,
    )
    for index, network in enumerate(networks):
        content = save({key: value.contiguous().cpu() for key, value in trained.weights(index).items()})
        write_whole(run.weights(network), content)
    (run.training / f"{name}.state.pt").unlink(missing_ok=True)


def train_on(
    fleet: Fleet,
    sets: Sequence[Tensor],
    schedule: Schedule,
    *,
    prediction_type: PredictionType,
    steps: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    weight_decay: float,
    seed: int,
    name: str,
    folder: Path,
    report: Report,
    device: str = "cpu",
) -> Fleet:
    """Train every network of a fleet on its own set, by denoising at uniform timesteps (Ho et al. 2020, algorithm 1).

    Args:
        fleet: fresh networks.
        sets: the training set of each, (K, *shape); sizes may differ.
        schedule: α and σ per timestep.
        prediction_type: what the networks predict.
        steps: of the optimizer.
        batch_size: rows a step, of each network.
        learning_rate: peak of a cosine schedule with warm-up.
        ema_decay: of the average that is returned.
        weight_decay: of AdamW.
        seed: of the draws.
        name: of state and loss curve.
        folder: where they are.
        report: told the share that is done.
        device: a torch device.

    Returns:
        The average, in evaluation mode.
    """
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if device == "cpu" else "bf16")
    where = torch.device(device)
    pool = torch.cat(list(sets)).to(where)
    sizes = torch.tensor([[len(own)] for own in sets])
    first = (sizes.flatten().cumsum(0) - sizes.flatten())[:, None]
    ones = (1,) * (pool.dim() - 1)

    def loss(generator: torch.Generator) -> Tensor:
        torch.manual_seed(generator.initial_seed())  # dropout draws from the global generator
        shape = (len(sets), batch_size)
        # Drawn on the CPU, so that every device sees the same batches.
        rows = first + (torch.rand(shape, generator=generator) * sizes).long()
        t = torch.randint(len(schedule), shape, generator=generator)
        noise = torch.randn(*shape, *pool.shape[1:], generator=generator).to(where)
        clean, times = pool[rows.to(where)], t.to(where)
        alpha, sigma = (factor.reshape(*shape, *ones) for factor in schedule.at(t.flatten(), pool))
        if prediction_type == "epsilon":
            target = noise
        else:
            target = clean if prediction_type == "sample" else alpha * noise - sigma * clean
        with accelerator.autocast():
            predicted = fleet(alpha * clean + sigma * noise, times)
        return (predicted.float() - target).square().flatten(2).mean((1, 2))

    trained = fit(
        name,
        nn.ModuleDict({"fleet": fleet.to(where)}),
        loss,
        steps=steps,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        weight_decay=weight_decay,
        seed=seed,
        folder=folder,
        clip_gradients=lambda modules: fleet.clip_gradients(1.0),
        on_step=lambda done: report(done / steps),
    )["fleet"]
    assert isinstance(trained, Fleet)
    return trained
