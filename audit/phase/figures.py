"""The figures of a run, after those of the paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from audit import palette
from audit.phase.one_model import rungs, truth
from audit.phase.space import open_space
from audit.phase.story import Story
from audit.phase.toy import EXTENT, SIGMA_SHOWN
from audit.phase.train_sweep import fleet_name, fleets
from audit.verdict.rule import CLASSES

#: Per class.
COLOURS, MARKERS = tuple(palette.COLOURS[name] for name in CLASSES), ("s", "^", "o")
#: Images per row of the sample figure.
SHOWN = 10

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": palette.INK,
    "axes.labelcolor": palette.INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "basin",  # the same file from the same numbers
}


def draw_figures(story: Story) -> dict[str, Figure]:
    """All of them, by name, in the order of the page."""
    drawings: dict[str, Callable[[Story], Figure]] = {
        "fractions": draw_fractions,
        "capacities": draw_capacities,
        "samples": draw_samples,
        "distances": draw_distances,
        "circle": draw_circle,
        "basins": draw_basins,
        "spectra": draw_spectra,
        "energy": draw_energy,
        "ladder": draw_ladder,
        "losses": draw_losses,
    }
    with matplotlib.rc_context(STYLE):
        return {name: draw(story) for name, draw in drawings.items()}


def _panels(rows: int, columns: int, width: float = 3.6, height: float = 2.7) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(max(width * columns, 6.5), height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _size_colours(sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """One colour per K, from dark to light."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(sizes))))


def _log_sizes(axes: Axes, sizes: NDArray[np.int64]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=60)
    axes.set_xlabel("training images K")


def draw_fractions(story: Story) -> Figure:
    """Class fractions against K, with 95% bands and capacities (the paper, figure 3)."""
    names = list(story.transitions)
    columns = min(len(names), 2)
    figure, axes = _panels(-(-len(names) // columns), columns, 4.2, 3.2)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        found = story.transitions[name]
        for index, label in enumerate(CLASSES):
            panel.fill_between(
                found.sizes, found.lower[:, index], found.upper[:, index], color=COLOURS[index], alpha=0.2, linewidth=0
            )
            panel.plot(found.sizes, found.fractions[:, index], MARKERS[index] + "-", color=COLOURS[index], label=label)
        for index, capacity in enumerate((found.memorization, found.spurious, found.generalization)):
            if found.sizes[0] <= capacity.value <= found.sizes[-1]:
                panel.axvline(capacity.value, color=COLOURS[index], linestyle=":", linewidth=1)
        panel.set(title=name, ylim=(-0.03, 1.03), ylabel="fraction of samples")
        _log_sizes(panel, found.sizes)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def draw_capacities(story: Story) -> Figure:
    """The three capacities of every series, with 95% intervals."""
    figure = Figure(figsize=(6.5, 1.1 + 0.45 * len(story.transitions)), layout="constrained")
    axes = figure.subplots()
    sizes = np.asarray(story.sweep.sizes)
    for row, found in enumerate(story.transitions.values()):
        for index, capacity in enumerate((found.memorization, found.spurious, found.generalization)):
            low, value, high = np.clip((capacity.lower, capacity.value, capacity.upper), sizes[0], sizes[-1])
            label = ("memorization", "spurious peak", "generalization")[index] if row == 0 else None
            axes.plot([low, high], [row, row], color=COLOURS[index], linewidth=4, alpha=0.35)
            axes.plot(value, row, MARKERS[index], color=COLOURS[index], label=label)
    axes.set_yticks(range(len(story.transitions)), list(story.transitions))
    axes.set_ylim(-0.6, len(story.transitions) - 0.4)
    _log_sizes(axes, sizes)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_samples(story: Story) -> Figure:
    """What three sizes give, above the nearest training image and the nearest other sample (the paper, figure 1)."""
    chosen = [
        (name, index)
        for name in _widest(story)
        for index in range(len(CLASSES))
        if story.transitions[name].fractions[:, index].any()
    ]
    figure = Figure(figsize=(8.6, 2.05 * len(chosen)), layout="constrained")
    parts = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for part, (name, index) in zip(parts, chosen, strict=True):
        found = story.transitions[name]
        size = int(found.sizes[found.fractions[:, index].argmax()])
        of_size = [network for network in story.networks(name) if network.size == size]
        network = max(of_size, key=lambda network: (story.classes(network) == index).sum())
        arrays, classes = story.samples[network], story.classes(network)
        space = open_space(story.run.path, story.space(name), story.sweep.data, story.source)
        rows = np.flatnonzero(classes == index)[:SHOWN]
        own = np.concatenate([rows, arrays["sample_index"][rows]])
        decoded = space.decode(torch.from_numpy(arrays["latents"][own]).float())
        stripes = (decoded[: len(rows)], space.images[arrays["reference_index"][rows]], decoded[len(rows) :])
        part.suptitle(
            f"{name}, K = {size:,}: {CLASSES[index]} ({found.fractions[:, index].max():.0%} of its samples)",
            color=COLOURS[index],
        )
        grid = part.subplots(3, SHOWN)
        for panel in grid.flat:
            panel.set_axis_off()
        for line, (label, stripe) in enumerate(
            zip(("sample", "nearest training image", "nearest sample"), stripes, strict=True)
        ):
            for column, image in enumerate(stripe):
                pixels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
                grid[line, column].imshow(
                    pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1
                )
            grid[line, 0].text(
                -0.15, 0.5, label, transform=grid[line, 0].transAxes, ha="right", va="center", fontsize=7
            )
    return figure


def _widest(story: Story) -> list[str]:
    """The series of each space with the largest memorization capacity."""
    best: dict[str, str] = {}
    for name, found in story.transitions.items():
        space = story.space(name)
        if space not in best or found.memorization.value > story.transitions[best[space]].memorization.value:
            best[space] = name
    return list(best.values())


def draw_distances(story: Story) -> Figure:
    """Histograms of nearest distances with their thresholds (the paper, figure 3)."""
    figure, axes = _panels(len(story.thresholds), 2, 4.4, 2.9)
    sizes = story.sweep.sizes
    for row, (kind, thresholds) in zip(axes, story.thresholds.items(), strict=True):
        own = [network for network in story.sweep.networks if story.space(network.series) == kind]
        for panel, array, value, source, label in (
            (row[0], "reference_distance", thresholds.delta_m, thresholds.source_m, "training image"),
            (row[1], "sample_distance", thresholds.delta_s, thresholds.source_s, "other sample"),
        ):
            by_size = [
                np.concatenate([story.samples[network][array] for network in own if network.size == size])
                for size in sizes
            ]
            everything = np.concatenate(by_size)
            low, high = np.quantile(everything, [0.02, 0.999])
            high = max(high, 2 * value)  # a threshold that was given may lie anywhere
            edges = np.geomspace(max(min(low, high / 2), value / 30, high / 1e6), high, 70)
            clipped = [np.maximum(distances, edges[0]) for distances in by_size]
            heights = panel.hist(
                clipped, edges, stacked=True, color=_size_colours(sizes), label=[f"K = {size:,}" for size in sizes]
            )[0]
            tallest = np.asarray(heights)[-1, 1:].max() * 1.25
            if 0 < tallest < heights[-1][0]:  # exact repeats would flatten everything else
                panel.set_ylim(0, tallest)
                panel.text(edges[1], tallest * 0.97, f" {heights[-1][0]:,.0f} coincide", fontsize=7, va="top")
            if value > 0:
                panel.axvline(value, color=palette.INK, linestyle="--")
            text = f" δ$_{'m' if array == 'reference_distance' else 's'}$ = {value:.3g}"
            panel.text(max(value, edges[0]), 0.97, text, transform=panel.get_xaxis_transform(), va="top")
            panel.set(xscale="log", xlabel=f"distance to the nearest {label}", ylabel="samples")
            panel.set_title(f"{kind} space; {source}", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(sizes), 8), fontsize=7, columnspacing=1.2)
    return figure


def draw_circle(story: Story) -> Figure:
    """Energy landscapes of the circle: learnt, exact, and the limit of infinitely many points (the paper, figure 2)."""
    figure, axes = _panels(len(story.circles), 4, 2.9, 2.75)
    extent = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    for row, circle in zip(axes, story.circles, strict=True):
        arrays = circle.arrays
        top = float(np.quantile(arrays["energy_exact"], 0.75))
        for panel, kind, title in zip(
            row, ("", "_exact", "_limit"), ("learnt energy", "exact energy", "K → ∞ limit"), strict=False
        ):
            panel.imshow(
                arrays[f"energy{kind}"].T, origin="lower", extent=extent, cmap="magma", vmin=0, vmax=top, aspect="equal"
            )
            panel.set(title=f"K = {circle.size:,}: {title}", xticks=[], yticks=[])
        side = np.linspace(-EXTENT, EXTENT, len(arrays["energy"]))
        every = slice(2, None, 6)
        x, y = np.meshgrid(side[every], side[every], indexing="ij")
        score = arrays["score"].reshape(len(side), len(side), 2)[every, every]
        length = np.linalg.norm(score, axis=-1, keepdims=True)
        arrows = score / np.maximum(length, 1e-9) * np.minimum(length, 8) / 8
        row[0].quiver(x, y, arrows[..., 0], arrows[..., 1], color="white", alpha=0.7, scale=14, width=0.006)
        panel = row[3]
        panel.plot(*arrays["samples"].T, ".", color="#4c78a8", markersize=4, alpha=0.4)
        panel.set(title=f"K = {circle.size:,}: samples", xlim=extent[:2], ylim=extent[2:], aspect="equal")
        if not circle.flat:
            _mark_attractors(row[0], arrays["attractors"], arrays["attractor_distance"])
            row[1].plot(*arrays["attractors_exact"].T, "o", markerfacecolor="none", markeredgecolor="white")
            panel.plot(*arrays["points"].T, "*", color=COLOURS[0], markerfacecolor="none", markersize=11)
            for center, energy in zip(arrays["attractors"], arrays["attractor_energy"], strict=True):
                panel.annotate(f"{abs(energy):.1f}", center * 1.32, ha="center", va="center", fontsize=8)
        for panel in row:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
    return figure


def _mark_attractors(axes: Axes, centers: NDArray[np.float64], distances: NDArray[np.float64]) -> None:
    stored = distances <= SIGMA_SHOWN / 2
    axes.plot(*centers[stored].T, MARKERS[0], color=COLOURS[0], markeredgecolor="white")
    axes.plot(*centers[~stored].T, MARKERS[1], color=COLOURS[1], markeredgecolor="white")


def _by_class(story: Story, name: str, array: str, axes: Axes, label: str) -> None:
    """Mean of a quantity per class and K, with its standard error."""
    for index, kind in enumerate(CLASSES):
        sizes, means, errors = [], [], []
        for size in story.sweep.sizes:
            values = np.concatenate(
                [
                    found[array][found["class"] == index]
                    for network, found in story.evidence.items()
                    if network.series == name and network.size == size
                ]
            )
            if len(values) >= 2:
                sizes.append(size)
                means.append(values.mean())
                errors.append(values.std(ddof=1) / len(values) ** 0.5)
        axes.errorbar(sizes, means, errors, fmt=MARKERS[index] + "-", color=COLOURS[index], label=kind, markersize=4)
    axes.set(title=name, ylabel=label)
    _log_sizes(axes, np.asarray(story.sweep.sizes))


def draw_basins(story: Story) -> Figure:
    """Critical time and log-volume of basins per class (the paper, figure 4B)."""
    names = list(story.transitions)
    figure, axes = _panels(2, len(names))
    for column, name in enumerate(names):
        _by_class(story, name, "critical_time", axes[0, column], "critical time")
        _by_class(story, name, "log_volume", axes[1, column], "log-volume of the basin")
    axes[0, 0].legend()
    return figure


def draw_spectra(story: Story) -> Figure:
    """Singular values of the curvature per class, and at training images as K grows (the paper, figure 5A)."""
    names = list(story.transitions)
    figure, axes = _panels(2, len(names))
    for column, name in enumerate(names):
        own = {network: found for network, found in story.evidence.items() if network.series == name}
        for index, kind in enumerate(CLASSES):
            values = np.concatenate([found["singular"][found["class"] == index] for found in own.values()])
            if len(values):
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
                rank = np.arange(1, values.shape[1] + 1)
                axes[0, column].fill_between(rank, low, high, color=COLOURS[index], alpha=0.2, linewidth=0)
                axes[0, column].plot(rank, middle, color=COLOURS[index], label=kind)
        axes[0, column].set(title=f"{name}: samples", xlabel="rank", ylabel="singular value × σ")
        for size, colour in zip(story.sweep.sizes, _size_colours(story.sweep.sizes), strict=True):
            values = np.concatenate(
                [found["training_singular"] for network, found in own.items() if network.size == size]
            )
            axes[1, column].plot(
                np.arange(1, values.shape[1] + 1), np.median(values, axis=0), color=colour, label=f"K = {size:,}"
            )
        axes[1, column].set(title=f"{name}: training images", xlabel="rank", ylabel="singular value × σ")
    axes[0, 0].legend()
    axes[1, 0].legend(fontsize=6.5)
    return figure


def draw_energy(story: Story) -> Figure:
    """Relative energy per class (the paper, appendix E)."""
    names = list(story.transitions)
    figure, axes = _panels(1, len(names))
    for column, name in enumerate(names):
        _by_class(story, name, "energy", axes[0, column], "energy above\nthe mean image, nats")
    axes[0, 0].legend()
    return figure


def draw_ladder(story: Story) -> Figure:
    """The same transition inside one checkpoint, caption by caption."""
    figure, axes = _panels(1, 3, 3.3, 3.0)
    rows = truth()
    sizes = np.unique([row.images for row in rows])
    for index, kind in enumerate(CLASSES):
        means = [np.mean([getattr(row, kind) for row in rows if row.images == size]) for size in sizes]
        axes[0, 0].plot(sizes, means, MARKERS[index] + "-", color=COLOURS[index], label=kind, markersize=4)
    axes[0, 0].set(ylabel="fraction of samples")
    axes[0, 0].legend(loc="center right")
    for panel, name, label in (
        (axes[0, 1], "log_volume", "log-volume of the basin"),
        (axes[0, 2], "trace", "trace of the curvature × σ / d"),
    ):
        panel.plot(
            [found["images"] for found in story.ladder], [found[name] for found in story.ladder], ".", color="#7a869a"
        )
        panel.plot(*rungs(story.ladder, name), "-", color=palette.INK)
        panel.set(ylabel=label)
    for panel in axes.flat:
        panel.set(xscale="log", xlabel="training images of a caption")
    return figure


def draw_losses(story: Story) -> Figure:
    """Loss curves of all networks."""
    names = list(story.transitions)
    figure, axes = _panels(1, len(names))
    sizes = list(story.sweep.sizes)
    colours = _size_colours(sizes)
    for column, name in enumerate(names):
        for fleet in (fleet for fleet in fleets(story.sweep) if fleet[0].series == name):
            lines = (story.run.training / f"{fleet_name(fleet)}.jsonl").read_text().splitlines()
            curve = [json.loads(line) for line in lines]
            for position, network in enumerate(fleet):
                axes[0, column].plot(
                    [point["step"] for point in curve],
                    [point["loss"][position] for point in curve],
                    color=colours[sizes.index(network.size)],
                    linewidth=1,
                    label=f"K = {network.size:,}" if network.seed == story.sweep.seeds[0] else None,
                )
        axes[0, column].set(title=name, xlabel="step", ylabel="loss", yscale="log")
    axes[0, 0].legend(fontsize=6.5, ncols=2)
    return figure
