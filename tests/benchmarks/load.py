"""Loading a checkpoint of Stable Diffusion 1.5's size, and one audit of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from audit.evidence.curvature import CurvatureSettings
from audit.model.checkpoint_source import CheckpointSource
from audit.model.loading import load_checkpoint, see
from audit.model.sources import open_source
from tests.benchmarks.common import BENCHMARK_SEED, child
from tests.benchmarks.scale import STABLE_DIFFUSION

RUNS = 3
#: What files are saved in, and what they are loaded as.
PRECISIONS = (("float32", "float32"), ("float16", "float16"), ("float16", "float32"))
PROMPT = "a red wool coat"
SEEDS, STEPS = 2, 2
#: Stable Diffusion 1.5's autoencoder and text encoder; all else is the classes' default.
AUTOENCODER = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def run() -> str:
    """The tables, as Markdown."""
    with tempfile.TemporaryDirectory(prefix="basin-load-") as place:
        folders = {name: make(Path(place) / name, getattr(torch, name)) for name in {saved for saved, _ in PRECISIONS}}
        sizes = {name: sum(file.stat().st_size for file in weights(folder)) for name, folder in folders.items()}
        loads = [[f"{saved}, as {loaded}", *_load(folders[saved], loaded)] for saved, loaded in PRECISIONS]
        audited = _audit(folders["float32"])
    return f"""# Loading

`python -m tests.benchmarks load`: random weights in the networks of Stable Diffusion 1.5 (UNet, autoencoder and text
encoder, {sizes["float32"] / 4e6:,.0f} million numbers) in safetensors files of {sizes["float32"] / 1e9:.2f} and
{sizes["float16"] / 1e9:.2f} GB, in the page cache; one thread; a process for each row.

Raw is what reading them with safetensors alone takes: every tensor copied into memory of its own. The first load reads
them once more for their digests; the second one, in the same process after the first was let go, knows these as long as
the files stay what they are. Loads end when a number of every page of the weights was used. Peak memory is that of the
process beyond what it had before, what it maps of files included. Times are wall seconds of {RUNS} processes, median
(range); ratios are of the same process.

{markdown(["weights", "raw", "first load", "second load", "second / raw", "peak memory / weights"], loads)}

The trial image that `load_checkpoint` draws to see whether the parts fit is not in these. With it, in float32, and one
audit of {SEEDS} seeds and {STEPS} steps at 512 × 512 pixels with the smoothed trace, without curvature:

{markdown(["load with trial", "audit", "evaluations", "seconds an evaluation", "peak resident memory"], [audited])}
"""


def make(folder: Path, dtype: torch.dtype) -> Path:
    """Save a random checkpoint; its tokenizer and scheduler are the demo's."""
    torch.manual_seed(BENCHMARK_SEED)
    networks: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": partial(UNet2DConditionModel, **STABLE_DIFFUSION),
        "vae": partial(AutoencoderKL, **AUTOENCODER),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
    }
    shutil.copytree(demo.CHECKPOINT / "scheduler", folder / "scheduler")
    shutil.copytree(demo.CHECKPOINT / "tokenizer", folder / "tokenizer")
    shutil.copyfile(demo.CHECKPOINT / "model_index.json", folder / "model_index.json")
    for part, build in networks.items():
        network = build().to(dtype)
        network.save_pretrained(folder / part, max_shard_size="100GB")
        del network
    return folder


def weights(folder: Path) -> list[Path]:
    """Its weight files."""
    return sorted(folder.glob("*/*.safetensors"))


def _load(folder: Path, dtype: str) -> list[str]:
    found = []
    for _ in range(RUNS):
        with child(partial(measure_load, folder, dtype)) as pipe:
            found.append(pipe.recv())
    raw, first, second, ratio, peak = np.array(found).T
    shown = [f"{np.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})" for values in (raw, first, second)]
    return [*shown, f"{np.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})", f"{max(peak):.2f}"]


def measure_load(folder: Path, dtype: str, pipe: Connection) -> None:
    """In a process of its own: seconds of a raw read and of two loads, their ratio, and peak memory over weights."""
    torch.set_num_threads(1)
    _read(folder)  # into the page cache
    start = time.perf_counter()
    _read(folder)
    raw = time.perf_counter() - start
    before, seconds = resident("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        start = time.perf_counter()
        source = open_source(CheckpointSource(str(folder)), torch.device("cpu"), getattr(torch, dtype))
        checkpoint = see(source, "real")
        for network in (source.pipeline.unet, source.pipeline.vae, source.pipeline.text_encoder):
            for value in network.parameters():
                value.flatten()[:: 4096 // value.itemsize].sum()  # what is mapped is read when it is used
        seconds.append(time.perf_counter() - start)
        size = checkpoint.parameters * checkpoint.dtype.itemsize
        del checkpoint, source, network, value
    pipe.send((raw, *seconds, seconds[1] / raw, (resident("VmHWM") - before) / size))


def _read(folder: Path) -> None:
    for file in weights(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensors.get_tensor(name).clone()


def resident(line: str) -> int:
    """Bytes of memory, by the line of /proc/self/status."""
    (found,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(line))
    return int(found.split()[1]) * 1024


def _audit(folder: Path) -> list[str]:
    with child(partial(measure_audit, folder)) as pipe:
        load, audit, evaluations, peak = pipe.recv()
    return [
        f"{load:.0f} s", f"{audit:.0f} s", f"{evaluations:.0f}", f"{audit / evaluations:.1f} s", f"{peak / 1e9:.2f} GB",
    ]  # fmt: skip


def measure_audit(folder: Path, pipe: Connection) -> None:
    """In a process of its own: seconds of loading with the trial and of an audit, its evaluations, peak memory."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    auditor = Auditor(load_checkpoint(folder))
    loaded = time.perf_counter()
    budget = Budget(
        seeds=SEEDS, minimum_seeds=SEEDS, first_seed=BENCHMARK_SEED, curvature=CurvatureSettings(method="off")
    )
    report = auditor.audit(PROMPT, sampler=auditor.resolve_sampler(steps=STEPS), budget=budget)
    pipe.send((loaded - start, time.perf_counter() - loaded, report.cost.evaluations, resident("VmHWM")))
