"""Training speed of the networks of a sweep: what was tried, what was adopted, and that the loss is the same."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from audit.bench.markdown import markdown
from audit.phase.architectures import Architecture, Fleet, build_network
from audit.phase.data import load_data
from audit.phase.space import as_images
from audit.phase.sweep import PRESETS
from audit.phase.train_sweep import FLEET, schedule_of, train_on, training_rows

SWEEP = PRESETS["minutes"]
SCHEDULE = schedule_of(SWEEP)
#: Seconds of each measurement, and how often all of them are repeated, in turns.
SECONDS, ROUNDS = 3.0, 3
#: Training images of every network, and of the loss curves.
IMAGES = 128
NETWORKS: tuple[tuple[Architecture, int, tuple[int, int, int]], ...] = (
    ("mlp", 64, (1, 8, 8)),
    ("mlp", 128, (1, 8, 8)),
    ("unet", 16, (4, 8, 8)),
    ("transformer", 64, (4, 8, 8)),
)
#: Steps, networks and seeds of the draws of the comparison of losses.
STEPS, SEEDS, DRAWS = 1500, 4, 4


def _stepper(
    architecture: Architecture,
    width: int,
    shape: tuple[int, ...],
    networks: int,
    *,
    fused: bool = True,
    compiled: bool = False,
    half: bool = False,
) -> Callable[[], Tensor]:
    """One optimizer step of several networks, with everything that the real loop does in it."""
    torch.manual_seed(0)
    fleet = Fleet([build_network(architecture, width, shape) for _ in range(networks)])
    clean_images = torch.randn(IMAGES, *shape).clamp(-1, 1)
    optimizer = torch.optim.AdamW(fleet.parameters(), 1e-3, fused=fused)
    average = AveragedModel(fleet, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    forward = torch.compile(fleet) if compiled else fleet
    rows = (networks, SWEEP.batch_size)

    def step() -> Tensor:
        clean = clean_images[torch.randint(IMAGES, rows)]
        t = torch.randint(len(SCHEDULE), rows)
        alpha, sigma = (factor.reshape(*rows, 1, 1, 1) for factor in SCHEDULE.at(t.flatten(), clean_images))
        noisy = alpha * clean + sigma * torch.randn_like(clean)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            predicted = forward(noisy, t)
        loss = (predicted.float() - clean).square().flatten(2).mean((1, 2))
        optimizer.zero_grad()
        loss.sum().backward()
        fleet.clip_gradients(1.0)
        optimizer.step()
        average.update_parameters(fleet)
        return loss

    return step


_barriers: dict[int, Any] = {}


def _meet(barriers: dict[int, Any]) -> None:
    _barriers.update(barriers)


def _count(options: dict[str, Any], processes: int, threads: int) -> float:
    """Networks' steps a second of one process, measured while all the others run too."""
    torch.set_num_threads(threads)
    step = _stepper(**options)
    for _ in range(3):
        step()
    _barriers[processes].wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        step()
        done += options["networks"]
    rate = done / (time.perf_counter() - start)
    _barriers[processes].wait()
    return rate


def _images_per_second(pool: ProcessPoolExecutor, options: dict[str, Any], processes: int, threads: int) -> float:
    running = [pool.submit(_count, options, processes, threads) for _ in range(processes)]
    return sum(future.result() for future in running) * SWEEP.batch_size


def _speeds() -> str:
    cores = len(os.sched_getaffinity(0))
    ways: dict[str, tuple[dict[str, Any], int, int]] = {
        "plain: eager, float32, one after another on all cores": ({"networks": 1, "fused": False}, 1, cores),
        "fused AdamW": ({"networks": 1}, 1, cores),
        "one process per core": ({"networks": 1}, cores, 1),
        "eight as one, on all cores": ({"networks": 8}, 1, cores),
        "eight as one, one process per core": ({"networks": 8}, cores, 1),
        "the same, compiled": ({"networks": 8, "compiled": True}, cores, 1),
        "one process per core, bfloat16": ({"networks": 1, "half": True}, cores, 1),
    }
    adopted = {1: "one process per core", 8: "eight as one, one process per core"}
    table = []
    measured: dict[tuple[str, str], list[float]] = {}
    context = multiprocessing.get_context("spawn")
    barriers = {count: context.Barrier(count) for count in {1, cores}}
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_meet, initargs=(barriers,)) as pool:
        for _ in range(ROUNDS):
            for (architecture, width, shape), (name, way) in itertools.product(NETWORKS, ways.items()):
                options, processes, threads = way
                if "compiled" in options and architecture != "mlp":
                    continue
                whole = {"architecture": architecture, "width": width, "shape": shape, **options}
                rate = _images_per_second(pool, whole, processes, threads)
                measured.setdefault((f"{architecture}-{width}", name), []).append(rate)
    kinds = {f"{architecture}-{width}": adopted[FLEET[architecture]] for architecture, width, _ in NETWORKS}
    baseline = next(iter(ways))
    for name in ways:
        row = [name]
        for kind, chosen in kinds.items():
            rates = measured.get((kind, name))
            if rates is None:
                row.append("")
                continue
            ratios = np.asarray(rates) / np.asarray(measured[kind, baseline])
            shown = f"{np.median(rates):,.0f}: {np.median(ratios):.2f} ({ratios.min():.2f}–{ratios.max():.2f})"
            row.append(f"**{shown}**" if name == chosen else shown)
        table.append(row)
    return markdown(["images a second: times the plain loop", *kinds], table)


def _losses() -> str:
    """The last third of the loss curve of networks trained as one, beside the same networks trained one by one."""
    images = as_images(load_data("digits", None).images)
    sets = [images[training_rows(IMAGES, seed, len(images))] for seed in range(SEEDS)]
    settings: dict[str, Any] = {
        "prediction_type": SWEEP.prediction_type, "steps": STEPS, "batch_size": SWEEP.batch_size,
        "learning_rate": 3e-3, "ema_decay": SWEEP.ema_decay, "weight_decay": SWEEP.weight_decay,
        "report": lambda share: None,
    }  # fmt: skip

    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build_network("mlp", 128, images.shape[1:])

    together, alone = np.zeros(DRAWS), np.zeros(DRAWS)
    with tempfile.TemporaryDirectory() as folder:
        train = partial(train_on, schedule=SCHEDULE, folder=Path(folder), **settings)
        for draws in range(DRAWS):
            train(Fleet([fresh(seed) for seed in range(SEEDS)]), sets, seed=draws, name=f"together-{draws}")
            together[draws] = _tail(Path(folder) / f"together-{draws}.jsonl")
            for seed in range(SEEDS):
                name = f"alone-{draws}-{seed}"
                train(Fleet([fresh(seed)]), sets[seed : seed + 1], seed=DRAWS + draws, name=name)
                alone[draws] += _tail(Path(folder) / f"{name}.jsonl") / SEEDS
    shown = [f"{found.mean():.4f} ± {found.std(ddof=1):.4f}" for found in (alone, together)]
    return (
        f"Mean loss over the last third of {STEPS:,} steps, {SEEDS} networks mlp-128, each on its own {IMAGES} digits: "
        f"one by one {shown[0]}, as one {shown[1]} (mean and standard deviation over {DRAWS} seeds of the draws)."
    )


def _tail(file: Path) -> float:
    curve = np.asarray([json.loads(line)["loss"] for line in file.read_text().splitlines()])
    return float(curve[-len(curve) // 3 :].mean())


def run() -> str:
    """The tables."""
    return f"""# Training many small networks

Images a second of all processes together, batches of {SWEEP.batch_size}, everything that the loop does included (draws,
forward and backward pass, clipping, AdamW, EMA), and the ratio to the plain loop in the same round; median of {ROUNDS}
rounds with the smallest and the largest ratio. Bold is what `basin phase run` does. {os.cpu_count()} cores.

{_speeds()}

Compilation takes half a minute per process and shape and needs a C++ compiler, so it is not adopted. Networks of
convolutions or attention gain nothing from being stacked on a CPU.

{_losses()}
"""
