"""Run folders of batches: real ones of the demo checkpoint, and large ones whose results were made up."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import delete, insert

from audit import demo
from audit.v1 import report_pb2
from service.cli import main
from service.run_folder import Run, store_url, write_run
from service.store.engine import connect
from service.store.queue import result_row
from service.store.records import DONE, Entry
from service.store.schema import ResultRow, TaskRow
from service.store.store import Store

#: Words that trade places make these two prompts trade theirs: the one is memorized, the other generalizes.
TRADED = [("coral", "grey"), ("suede", "cotton"), ("pullover", "boot"), ("harvest", "carnival"), ("riga", "jena")]
#: Changes a report in place, given the position of its prompt.
Change = Callable[[report_pb2.Report, int], None]


def run_batch(out: Path, prompts: Sequence[dict[str, Any]], *arguments: str) -> Path:
    """Audit prompts of the demo checkpoint, as `basin batch run` does.

    Returns:
        The run folder.
    """
    file = out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    with pytest.raises(SystemExit) as end:
        main(["batch", "run", "--prompts", str(file), "--out", str(out), "--reference", "demo", *arguments])
    assert not end.value.code
    return out


def trade_words(folder: Path, words: Sequence[tuple[str, str]] = TRADED) -> Path:
    """A copy of the demo checkpoint in which words have traded their meanings: what the next release might do.

    Args:
        folder: to be made.
        words: in pairs.
    """
    shutil.copytree(demo.CHECKPOINT, folder)
    known = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    (table,) = (weights[name] for name in weights if "token_embedding" in name)
    for pair in words:
        one, other = (known[f"{word}</w>"] for word in pair)
        table[[one, other]] = table[[other, one]]
    save_file(weights, file)
    return folder


def make_up(out: Path, count: int, report: report_pb2.Report, change: Change | Mapping[str, Change]) -> Path:
    """A run folder with a real store, and results that no audit gave. Flagged ones are confirmed by the same again.

    Args:
        out: the folder.
        count: of its prompts.
        report: that all results are copies of.
        change: makes it the report of a prompt, by its position; for each checkpoint, or for one that is called demo.
    """
    changes = change if isinstance(change, Mapping) else {"demo": change}
    run, entries, results, tasks = Run(), [], [], []
    write_run(out, run)
    for name, make in changes.items():
        found = report_pb2.Report()
        found.CopyFrom(report)
        for position in range(count):
            found.prompt = f"prompt {position}"
            make(found, position)
            first, second = (hashlib.sha256(f"{out} {name} {position} {part}".encode()).hexdigest() for part in "12")
            entries.append(Entry(name, position, found.prompt, first))
            results.append(result_row(first, found))
            if found.verdict != report_pb2.generalized:
                results.append(result_row(second, found))
                tasks.append({"checkpoint": name, "prompt": found.prompt, "key": second, "confirms": first})
    engine = connect(store_url(out, ""))
    with engine.begin() as connection:
        connection.execute(insert(ResultRow), results)
    with closing(Store(engine)) as store:
        subjects = {name: {"checkpoint_digest": f"sha256:{name}"} for name in changes}
        settings = {"subjects": subjects, "reference": "", "pictures": "none"}
        batch = store.create(entries, settings, request_id=run.request_id)
        if tasks:
            with engine.begin() as connection:
                connection.execute(insert(TaskRow), [{"batch": batch.id, "state": DONE, **task} for task in tasks])
        store.set_state(batch.id, DONE)
    return out


def forget_second_audits(out: Path) -> None:
    """Make a run of `make_up` one whose flagged prompts are still to be confirmed."""
    engine = connect(store_url(out, ""))
    with engine.begin() as connection:
        connection.execute(delete(TaskRow).where(TaskRow.confirms != ""))
    engine.dispose()


def settle(report: report_pb2.Report, memorized: float, spurious: float, generalized: float) -> None:
    """Make a report's classes as probable as this."""
    values = {"memorized": memorized, "spurious": spurious, "generalized": generalized}
    report.probabilities.CopyFrom(report_pb2.ClassValues(**values))
    report.verdict = report_pb2.Verdict.Value(max(values, key=lambda name: values[name]))
    report.confidence = max(values.values())
    report.recurring_probability = memorized + spurious


def plain_report() -> report_pb2.Report:
    """A small report of a prompt that generalizes."""
    share = report_pb2.Interval(estimate=0.5, lower=0.4, upper=0.6)
    report = report_pb2.Report(
        verdict=report_pb2.generalized,
        confidence=1,
        decided=True,
        probabilities=report_pb2.ClassValues(generalized=1),
        fractions=report_pb2.ClassIntervals(memorized=share, spurious=share, generalized=share, level=0.9),
        reasons=["No two seeds met."],
        stability=report_pb2.StabilityEvidence(
            modes=[report_pb2.Mode(seeds=[seed], share=0.5, verdict=report_pb2.generalized) for seed in (0, 1)]
        ),
        samples=[
            report_pb2.SampleEvidence(seed=seed, mode=seed, verdict=report_pb2.generalized, nearest_sample_distance=9)
            for seed in (0, 1)
        ],
        subject=report_pb2.Subject(
            family="made up",
            sampler=report_pb2.Sampler(scheduler="none", steps=20, width=32, height=32),
            definition_samples=512,
            budget=report_pb2.Budget(seeds=2, minimum_seeds=2, curvature="off"),
            calibration=report_pb2.CalibrationInfo(delta_m=1, delta_s=2),
        ),
        cost=report_pb2.Cost(evaluations=40, compute_seconds=0.5),
        provenance=report_pb2.Provenance(basin_version="0", device="none"),
    )
    report.provenance.finish_time.FromSeconds(1_800_000_000)
    return report
