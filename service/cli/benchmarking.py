"""`basin bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.errors import InvalidInput
from audit.progress import progress_bar, stage_bars
from service.cli import options
from service.cli.console import messages

if TYPE_CHECKING:
    from audit.bench.ladders import TrainedLadder


def bench(
    ladder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="A trained ladder; repeat it. [default: those that ship with Basin and that nothing was tuned on; "
            "with --fit or --split tuning the others]",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The captions that count: held-out, or tuning.")] = "held-out",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where tables and figures go.")] = Path("bench"),
    public: Annotated[
        bool, typer.Option("--public", help="Instead, on public prompt lists, with --checkpoint and the lists.")
    ] = False,
    checkpoint: Annotated[str, typer.Option(metavar="SOURCE", help="With --public: the checkpoint.")] = "",
    reference: Annotated[
        str, typer.Option(metavar="FOLDER", help="With --public: a reference set, if there is one.")
    ] = "",
    memorized: Annotated[str, typer.Option(metavar="FILE", help="With --public: prompts said to be memorized.")] = "",
    ordinary: Annotated[str, typer.Option(metavar="FILE", help="With --public: prompts said not to be.")] = "",
    calibrate: Annotated[
        str,
        typer.Option(metavar="FILE", help="With --public: what to calibrate with. [default: 50 ordinary prompts]"),
    ] = "",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    device: Annotated[str, typer.Option(help="With --public: where the weights go, such as cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="With --public: float32, float16 or bfloat16.")] = "float32",
    fit: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Instead, fit the estimators to the tuning captions of these ladders."),
    ] = None,
) -> None:
    """Compare Basin with the published detectors on ladders, whose truth is known: what each costs, what it gets."""
    out.mkdir(parents=True, exist_ok=True)
    if public:
        lists = {"memorized": memorized, "ordinary": ordinary, "calibrate": calibrate}
        _public(checkpoint, reference, lists, {"steps": steps, "guidance": guidance}, (device, dtype), out)
        return
    if split not in ("held-out", "tuning"):
        raise InvalidInput(f"the split is held-out or tuning, not {split!r}", reason="SPLIT_UNKNOWN", field="split")
    with messages().status("loading"):
        from audit.bench.ladders import open_ladder, shipped

        folders = ladder or shipped("tuning" if fit is not None else split)
        if not folders:
            raise InvalidInput("there are no ladders; name one", reason="LADDER_REQUIRED", field="ladder")
        ladders = [open_ladder(folder) for folder in folders]
    if fit is not None:
        _fit(ladders, fit)
        return
    from audit.bench.comparison import compare
    from audit.bench.tables import Scored, draw, page

    scored = []
    for one in ladders:
        if rows := one.split(split):
            with stage_bars(f"{one.name}: ", len(rows)) as advance:
                scored.append(Scored(compare(one, rows, advance)))
    if not scored:
        raise InvalidInput(f"none of them has {split} captions", reason="SPLIT_EMPTY", field="split")
    draw(scored).savefig(out / "detection.png", dpi=130)
    (out / "detection.md").write_text("\n\n".join(page(one) for one in scored) + "\n")
    messages().print(f"The tables are in {out / 'detection.md'}, the figures in {out / 'detection.png'}.", markup=False)


def _public(
    checkpoint: str,
    reference: str,
    lists: dict[str, str],
    sampler: dict[str, float | None],
    place: tuple[str, str],
    out: Path,
) -> None:
    for name, given in (("checkpoint", checkpoint), *lists.items()):
        if not given and name != "calibrate":
            raise InvalidInput(f"--public needs --{name}", reason="FLAGS_MISSING", field=name)
    with messages().status("loading"):
        from audit.auditor import Auditor
        from audit.bench.public import compare_lists, split_lists
        from audit.bench.tables import Scored, draw, public_page
        from audit.calibrate import calibrate
        from service.imported_prompts import find_prompts
        from service.local import name_of, open_checkpoint, open_reference
        from service.prompts import read_prompts

        read = {
            name: [one.prompt for one in read_prompts(find_prompts(file))] if file else []
            for name, file in lists.items()
        }
        first, second, usual = split_lists(read["memorized"], read["ordinary"], read["calibrate"])
        model, _ = open_checkpoint(checkpoint, *place)
        images = open_reference(reference) if reference else None
    with stage_bars() as advance:
        auditor = Auditor(model, images)
        settings = auditor.resolve_sampler(**sampler)
        own = calibrate(auditor, usual, sampler=settings, on_prompt=lambda: advance("calibration"))
        found = compare_lists(name_of(checkpoint), Auditor(model, images, own), first, second, usual, advance)
    scored = Scored(found)
    draw([scored]).savefig(out / "public.png", dpi=130)
    (out / "public.md").write_text(public_page(scored) + "\n")
    messages().print(f"The tables are in {out / 'public.md'}, the figures in {out / 'public.png'}.", markup=False)


def _fit(ladders: list[TrainedLadder], out: Path) -> None:
    from audit.bench.fitting import carried_over, fit_estimators, measure_examples

    examples, told = {}, []
    with progress_bar() as bar:
        for one in ladders:
            rows = one.split("tuning")
            task = bar.add_task(one.name, total=len(rows), note="")
            examples[one.name] = measure_examples(
                one.auditor(),
                rows,
                on_prompt=lambda task=task: bar.advance(task),  # type: ignore[misc]
            )
            told.append(f"{one.name} ({len(rows)} captions)")
    everything = [example for own in examples.values() for example in own]
    found = fit_estimators(everything, source=f"the tuning captions of the ladders {', '.join(told)}")
    out.write_text(found.model_dump_json(indent=1) + "\n")
    if len(examples) > 1:
        print(f"Fitted to the other ladders, on each:\n\n{carried_over(examples)}")
    messages().print(f"The estimators are in {out}.", markup=False)
