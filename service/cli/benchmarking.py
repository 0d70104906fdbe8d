"""`basin bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.errors import InvalidInput
from audit.progress import progress_bar
from service.cli.console import messages

if TYPE_CHECKING:
    from audit.bench.comparison import Comparison
    from audit.bench.ladders import TrainedLadder


def bench(
    ladder: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A trained ladder; repeat it. [default: those that ship with Basin]"),
    ] = None,
    split: Annotated[str, typer.Option(help="The captions that count: held-out, or tuning.")] = "held-out",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where tables and figures go.")] = Path("bench"),
    fit: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Instead, fit the estimators to the tuning captions of these ladders."),
    ] = None,
) -> None:
    """Compare Basin with the published detectors on ladders, whose truth is known: what each costs, what it gets."""
    if split not in ("held-out", "tuning"):
        raise InvalidInput(f"the split is held-out or tuning, not {split!r}", reason="SPLIT_UNKNOWN", field="split")
    with messages().status("loading"):
        from audit.bench.ladders import FOLDER, open_ladder

        folders = ladder or sorted(path.parent for path in FOLDER.glob("*/recipe.json"))
        if not folders:
            raise InvalidInput("there are no ladders; name one", reason="LADDER_REQUIRED", field="ladder")
        ladders = [open_ladder(folder) for folder in folders]
    if fit is not None:
        _fit(ladders, fit)
        return
    from audit.bench.tables import Scored, draw, page

    scored = []
    for one in ladders:
        if one.split(split):
            scored.append(Scored(_compare(one, split)))
    if not scored:
        raise InvalidInput(f"none of them has {split} captions", reason="SPLIT_EMPTY", field="split")
    out.mkdir(parents=True, exist_ok=True)
    draw(scored).savefig(out / "detection.png", dpi=130)
    (out / "detection.md").write_text("\n\n".join(page(one) for one in scored) + "\n")
    messages().print(f"The tables are in {out / 'detection.md'}, the figures in {out / 'detection.png'}.", markup=False)


def _fit(ladders: list[TrainedLadder], out: Path) -> None:
    from audit.bench.fitting import fit_estimators, measure_examples

    examples, told = [], []
    with progress_bar() as bar:
        for one in ladders:
            rows = one.split("tuning")
            task = bar.add_task(one.name, total=len(rows), note="")
            examples += measure_examples(one.auditor(), rows, on_prompt=lambda task=task: bar.advance(task))  # type: ignore[misc]
            told.append(f"{one.name} ({len(rows)} captions)")
    found = fit_estimators(examples, source=f"the tuning captions of the ladders {', '.join(told)}")
    out.write_text(found.model_dump_json(indent=1) + "\n")
    messages().print(f"The estimators are in {out}.", markup=False)


def _compare(one: TrainedLadder, split: str) -> Comparison:
    from audit.bench.comparison import compare

    rows = one.split(split)
    with progress_bar() as bar:
        tasks: dict[str, object] = {}

        def advance(stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{one.name}: {stage}", total=len(rows), note="")
            bar.advance(tasks[stage])  # type: ignore[arg-type]

        return compare(one, rows, advance)
