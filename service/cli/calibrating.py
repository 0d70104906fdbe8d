"""`basin calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from audit.errors import InvalidInput
from audit.progress import progress_bar
from service.cli import options
from service.cli.audits import collect_prompts
from service.cli.console import messages, results

#: Fewer ordinary prompts than this leave spreads rough.
ENOUGH = 30


def calibrate(
    checkpoint: Annotated[str, typer.Option(metavar="SOURCE", help=f"The checkpoint, {options.SOURCE}.")],
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="About 50 ordinary prompts, one a line; - for standard input.")
    ],
    reference: Annotated[
        str, typer.Option(metavar="FOLDER", help="The reference set that audits will compare with, or demo.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="[default: calibration.json in the checkpoint's folder]")
    ] = None,
    samples: Annotated[int, typer.Option(min=4, max=1024, help="Images drawn under each prompt.")] = 16,
    delta_m: Annotated[
        float | None,
        typer.Option(callback=options.finite, help="Distance to a reference image up to which a sample is a copy."),
    ] = None,
    delta_s: Annotated[
        float | None,
        typer.Option(callback=options.finite, help="Distance between samples up to which they are the same image."),
    ] = None,
    scheduler: options.Scheduler = "",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    true_guidance: options.TrueGuidance = None,
    negative_prompt: options.NegativePrompt = "",
    size: options.Size = "",
    eta: options.Eta = None,
    device: Annotated[str, typer.Option(help="Where the weights go, such as cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    offload: options.Offload = False,
) -> None:
    """Learn what is usual of a checkpoint from ordinary prompts. Nobody has to know what they give.

    A calibration is for one checkpoint and one setting of the sampler. Thresholds that are not given are measured; that
    of copies needs the reference set.
    """
    sides = options.parse_size(size)
    texts = collect_prompts([], prompts)
    for name, value in (("delta_m", delta_m), ("delta_s", delta_s)):
        if value is not None and value <= 0:
            raise InvalidInput(f"{name} must be positive, not {value:g}", reason="THRESHOLD_INVALID", field=name)
    with messages().status("loading the checkpoint"):
        from audit.auditor import Auditor
        from audit.calibrate import calibrate
        from service.local import DEMO, find_source, open_checkpoint, open_reference

        loaded, _ = open_checkpoint(checkpoint, device, dtype, offload)
        auditor = Auditor(loaded, open_reference(reference) if reference else None)
        sampler = auditor.resolve_sampler(
            scheduler=scheduler or None,
            steps=steps,
            guidance=guidance,
            true_guidance=true_guidance,
            negative_prompt=negative_prompt or None,
            height=sides and sides[0],
            width=sides and sides[1],
            eta=eta,
        )
        for text in texts:
            auditor.check_prompt(text)
    target = out or find_source(checkpoint).calibration_file
    if target is None or (checkpoint == DEMO and out is None):
        why = "the demo has its calibration" if checkpoint == DEMO else "the checkpoint is no folder alone"
        raise InvalidInput(f"name a file with --out: {why}", reason="OUT_REQUIRED", field="out")
    with progress_bar() as bar:
        bar.live.transient = True
        bar.disable = not bar.console.is_terminal
        task = bar.add_task("prompts", total=len(texts), note="")
        found = calibrate(
            auditor, texts, sampler=sampler, samples=samples, delta_m=delta_m, delta_s=delta_s,
            on_prompt=lambda: bar.advance(task),
        )  # fmt: skip
    found.save(target)
    table = Table("", "ordinary prompts", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, usual in found.ordinary.items():
        low, high = usual.range
        table.add_row(name, f"{usual.mean:.3f} ({low:.3f} to {high:.3f})")
    shown = {"delta_m": found.delta_m, "delta_s": found.delta_s, "screen threshold": found.screen_threshold}
    for name, threshold in shown.items():
        table.add_row(name, "0.15 a pixel, for want of a reference set" if threshold is None else f"{threshold:.3f}")
    results().print(table)
    if found.prompts < ENOUGH:
        messages().print(f"{found.prompts} prompts are few: with about 50 the ranges are sure.", markup=False)
    messages().print(f"The calibration is in {target}.", markup=False)
