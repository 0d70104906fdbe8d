"""The comparison of two checkpoints in a browser: a release in which two prompts traded places, and made-up runs."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from audit.batch.comparison import CLAIMS, Change
from audit.v1 import report_pb2
from service.comparison import Comparison, choose_sides
from service.pages.comparison import TOLD, write_comparison
from service.pages.comparison_summary import as_markdown
from service.pages.page import CHUNK, MARKS, MOST_INSIDE
from service.results import open_run
from tests.service.pages.browser import Page
from tests.service.pages.reading import (
    CLASSES,
    COUNT_PRINTED,
    HOSTILE,
    LOADED,
    UNSEEN,
    choose,
    code_in,
    column,
    press,
)  # fmt: skip
from tests.service.runs import Change as Make
from tests.service.runs import forget_second_audits, make_up, plain_report, run_batch, settle, trade_words

#: A copy of the demo has no sampler settings of its own.
SAMPLER = ("--steps", "20", "--guidance", "1", "--seeds", "6", "--minimum-seeds", "6", "--curvature", "off")
SURE = {"memorized": (1.0, 0.0, 0.0), "spurious": (0.0, 1.0, 0.0), "generalized": (0.0, 0.0, 1.0)}


def comparison_of(*folders: Path, out: Path | None = None, rate: float = 0.05) -> Path:
    """Write the comparison of one run's two checkpoints, or of two runs."""
    with ExitStack() as opened:
        runs = [opened.enter_context(open_run(folder)) for folder in folders]
        write_comparison(Comparison(*choose_sides(runs[0], runs[-1]), rate), out or folders[-1])
    return (out or folders[-1]) / "compare.html"


def summary_of(page: Path) -> dict[str, Any]:
    """What stands in compare.json."""
    return json.loads((page.parent / "compare.json").read_text())


def as_classes(*names: str) -> Make:
    """Prompts that are of these classes for sure, one after the other and again."""
    return lambda report, position: settle(report, *SURE[names[position % len(names)]])


@pytest.fixture(scope="module")
def page(known: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of the demo checkpoint with one under which two of three prompts traded places."""
    root = tmp_path_factory.mktemp("runs")
    candidate = trade_words(root / "candidate")
    prompts = [{"prompt": prompt, "from": "a <shop>"} for prompt in known.values()]
    checkpoints = ("--checkpoint", "demo", "--checkpoint", str(candidate))
    return comparison_of(run_batch(root / "run", prompts, *checkpoints, *SAMPLER))


def test_the_page_tells_what_changed(page: Path, known: dict[str, str], tab: Page) -> None:
    """New memorization first, headings in order, a bar with words for each line; one file is enough."""
    tab.open(page)
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tab.evaluate("document.title") == tab.texts("h1")[0] == "Basin comparison: demo → candidate"
    assert column(tab, "prompt") == [known["generalized"], known["memorized"], known["spurious"]]
    assert column(tab, "change")[:2] == ["+■ new memorized", "−■ gone memorized"]
    assert column(tab, "change")[2] in ("= unchanged", "◇ undecided")
    assert column(tab, "after")[0] == column(tab, "before")[1] == "■ memorized"
    assert tab.texts("#status") == ["3 of 3 rows"]
    summary = summary_of(page)
    bars = tab.evaluate("[...document.querySelectorAll('.fractions svg')].map(one => one.ariaLabel)")
    rates = {name: summary["values"][f"{name}_rate"] for name in (*CLAIMS, Change.UNDECIDED, Change.UNCHANGED)}
    assert bars[: len(rates)] == [f"{name.replace('_', ' ')}: {rate:.1%}" for name, rate in rates.items()]
    assert [bar.split(":")[0] for bar in bars[len(rates) :]] == [*CLASSES, "recurring"]
    text = tab.texts("body")[0]
    for fact in (
        summary["before"]["digest"], summary["after"]["digest"], "demo: complete, 13,306 images",
        "DDIMScheduler, 20 steps", "6 seeds from 6, curvature off", "may be noise", "cpu float32",
    ):  # fmt: skip
        assert fact in text
    assert not {"None", "nan", "undefined"} & set(text.split())
    assert len([one for one in tab.requests if one.startswith("file:")]) == 1


def test_the_summary_says_the_same(page: Path, known: dict[str, str]) -> None:
    """Every prompt with what was said of it and why, for machines; the same for a pull request."""
    summary = summary_of(page)
    new, gone, same = summary["prompts"]
    assert (new["said"], gone["said"]) == ("new_memorized", "gone_memorized")
    assert {"new_memorized", "changed"} <= set(new["claims"])
    assert {"gone_memorized", "changed"} <= set(gone["claims"])
    assert same["claims"] == []
    assert new["probabilities"]["new_memorized"] > 0.9
    p, q = new["before"]["probabilities"], new["after"]["probabilities"]
    assert new["probabilities"]["new_memorized"] == pytest.approx(q["memorized"] * (1 - p["memorized"]), abs=0.02)
    assert 0 <= summary["kept"] < 0.5
    assert new["after"]["outcome"] == "memorized"
    assert (new["before"]["copies"], new["after"]["copies"], new["after"]["samples"]) == (0, 6, 6)
    assert new["after"]["nearest"] < 2 < new["before"]["nearest"]
    assert new["after"]["audit"] == "second"
    assert summary["values"]["new_memorized"] == summary["values"]["gone_memorized"] == 1
    assert (summary["same_audits"], summary["only_before"], summary["only_after"]) == (0, [], [])
    shift = summary["shifts"]["memorized"]
    assert shift["before"]["estimate"] == pytest.approx(
        sum(one["before"]["probabilities"]["memorized"] for one in summary["prompts"])
    )
    assert not shift["beyond_noise"]
    assert {known["generalized"], known["memorized"]} < code_in((page.parent / "compare.md").read_text())
    assert "### New memorization" in (page.parent / "compare.md").read_text()


def test_a_checkpoint_without_a_calibration_of_its_own_is_warned_of(page: Path, tab: Page) -> None:
    """The thresholds of the candidate were made for another checkpoint, and this may be why an answer differs."""
    (one,) = summary_of(page)["differences"]
    assert one["what"] == "calibration"
    assert "made for this checkpoint" in one["before"]
    assert "made for others" in one["after"]
    tab.open(page)
    (note,) = tab.texts(".note")
    assert note.startswith("More than the checkpoint differs, and a change may come from that.")
    assert one["after"] in note
    assert f"- calibration: `{one['before']}`" in (page.parent / "compare.md").read_text()


def test_a_card_shows_both_sides_next_to_each_other(page: Path, known: dict[str, str], tab: Page) -> None:
    """What is claimed, and of each side its outcome, modes with nearest references, distances and spectra."""
    tab.open(page)
    press(tab, ".open")
    (card,) = tab.texts(".card")
    assert card.startswith(known["generalized"])
    assert "+■ new memorized. Most probably" in card
    before, after = tab.texts(".sides section")
    assert before.startswith("before: demo\n")
    assert after.startswith("after: candidate\n")
    assert "\n■ memorized. The first audit flags it, and the second" in after
    assert "no copy, distance" in before
    assert "■ memorized, 6 seeds met\ncopy, distance" in after
    for side in (before, after):
        for fact in ("probability to dominate", "seeds", "denoiser evaluations"):
            assert fact in side
    assert card.count("a <shop>") == 1
    tops = "[...document.querySelectorAll('.sides section')].map(one => one.getBoundingClientRect().top)"
    one, other = tab.evaluate(tops)
    assert one == other
    images = tab.evaluate(
        "[...document.querySelectorAll('.sides section:last-child img')].map(one => one.alt.split(' ')[0])"
    )
    assert images == ["Sample", "Reference"]
    press(tab, "#all")
    for width in (1200, 950, 800, 710, 400):
        tab.resize(width)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    one, other = tab.evaluate(tops)[:2]
    assert one < other  # below each other where there is no room


def test_rows_are_filtered_by_kind_and_sorted(tmp_path: Path, tab: Page) -> None:
    """A prompt is found under every claim that is made of it; options tell how many there are."""
    kinds = list(SURE)
    before, after = [one for one in kinds for _ in kinds], kinds * 3
    made = {"demo": as_classes(*before), "other": as_classes(*after)}
    page = comparison_of(make_up(tmp_path / "run", 9, plain_report(), made))
    values = summary_of(page)["values"]
    tab.open(page)
    assert column(tab, "change")[:2] == ["+■ new memorized"] * 2
    for claim in CLAIMS:
        choose(tab, "#change", f"{claim.replace('_', ' ')} ({values[claim]})")
        assert len(column(tab, "prompt")) == values[claim]
    choose(tab, "#change", "new recurring")
    assert set(column(tab, "before")) == {"● generalized"}
    assert column(tab, "change") == ["+■ new memorized", "+▲ new spurious"]
    choose(tab, "#after", "memorized")
    assert column(tab, "change") == ["+■ new memorized"]
    choose(tab, "#change", "all")
    assert len(column(tab, "prompt")) == 3
    choose(tab, "#after", "all")
    press(tab, "th[data-column=changed] button")
    assert tab.evaluate("document.querySelector('th[data-column=changed]').ariaSort") == "descending"
    assert column(tab, "changed") == [">99%"] * 6 + ["<1%"] * 3
    press(tab, "th[data-column=change] button")
    order = [MARKS[name][0] + " " + name.replace("_", " ") for name in TOLD]
    places = [order.index(text) for text in column(tab, "change")]
    assert places == sorted(places)
    tab.evaluate("document.querySelector('#search').focus()")
    tab.type("prompt 4")
    assert column(tab, "prompt") == ["prompt 4"]


def test_shapes_and_words_tell_without_colour(page: Path, tab: Page) -> None:
    """No two changes share a shape, nor two outcomes; every bar of a shift says its numbers."""
    tab.open(page)
    shapes = tab.evaluate("JSON.parse(document.getElementById('data').textContent).shapes")
    assert set(TOLD) <= set(shapes)
    assert len(set(shapes.values())) == len(shapes)
    labels = tab.evaluate("[...document.querySelectorAll('svg.pairs')].map(one => one.ariaLabel)")
    assert len(labels) == 4
    assert all(" prompts before, " in label for label in labels)
    assert tab.evaluate("[...document.querySelectorAll('select, input')].every(one => one.labels.length === 1)")


def test_prompts_of_one_side_are_counted_and_listed(tmp_path: Path, tab: Page) -> None:
    """Those that only one run has, in order, as text, also on paper."""

    def first(report: report_pb2.Report, position: int) -> None:
        report.prompt = ("shared", *HOSTILE)[position]

    def second(report: report_pb2.Report, position: int) -> None:
        report.prompt = ("shared", "another")[position]

    one = make_up(tmp_path / "one", 1 + len(HOSTILE), plain_report(), first)
    other = make_up(tmp_path / "other", 2, plain_report(), second)
    page = comparison_of(one, other)
    tab.open(page)
    assert tab.texts("h1") == ["Basin comparison: one/demo → other/demo"]
    assert tab.texts("summary") == [f"{len(HOSTILE)} prompts before only: one/demo", "1 prompt after only: other/demo"]
    assert column(tab, "prompt") == ["shared"]
    tab.evaluate("addEventListener('beforeprint', () => { printed = document.querySelectorAll('li').length })")
    tab.print()
    assert tab.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    listed = tab.texts("details li")
    assert {*HOSTILE[:2], HOSTILE[3], "another"} <= set(listed)
    assert not UNSEEN & set(tab.texts("body")[0])
    assert tab.evaluate("document.querySelectorAll('#injected').length") == 0
    assert summary_of(page)["only_before"] == list(HOSTILE)
    assert summary_of(page)["values"]["only_before"] == len(HOSTILE)


def test_whatever_reports_hold_is_text(tmp_path: Path, tab: Page) -> None:
    """Prompts, captions and settings of both sides, on the page and in Markdown."""

    def change(report: report_pb2.Report, position: int) -> None:
        report.prompt = hostile = HOSTILE[position]
        near = report_pb2.Neighbor(caption=hostile, distance=1)
        report.stability.modes[0].nearest_reference.CopyFrom(near)
        report.subject.reference = report.subject.reference_digest = report.subject.sampler.negative_prompt = hostile
        report.provenance.device = report.reasons[0] = hostile
        report.probabilities.CopyFrom(report_pb2.ClassValues(generalized=1))
        report.verdict = report_pb2.generalized

    def changed(report: report_pb2.Report, position: int) -> None:
        change(report, position)
        settle(report, 1, 0, 0)
        report.provenance.device = HOSTILE[0] + "other"

    made: dict[str, Make] = {"<i id=injected>": change, "`other` \u202e": changed}
    page = comparison_of(make_up(tmp_path / "<b id=injected>", len(HOSTILE), plain_report(), made))
    tab.open(page)
    press(tab, "#all")
    for text in (tab.texts("body")[0], page.read_text(), (page.parent / "compare.md").read_text()):
        assert not UNSEEN & set(text)
    assert tab.texts("h1") == ["Basin comparison: <i id=injected> → `other` ⟨U+202E⟩"]
    assert all(tab.texts("body")[0].count(prompt) >= 5 for prompt in HOSTILE[:2])
    assert tab.evaluate("document.querySelectorAll('#injected').length") == 0
    assert tab.evaluate("typeof injected") == "undefined"
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert {*HOSTILE[:2], HOSTILE[3]} <= code_in(as_markdown(summary_of(page)))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("subject.sampler.steps", 10, "sampler"),
        ("subject.sampler.guidance", 7.5, "sampler"),
        ("subject.definition_samples", 64, "fractions"),
        ("subject.reference_digest", "sha256:other", "reference set"),
        ("subject.reference_complete", True, "reference set"),
        ("subject.embedder_digest", "sha256:clip", "CLIP model"),
        ("subject.calibration.delta_m", 3.0, "calibration"),
        ("provenance.basin_version", "1", "software"),
        ("provenance.device", "cuda float16", "device"),
        ("subject.reference", "another name", None),
        ("subject.checkpoint", "another name", None),
        ("subject.family", "another pipeline", None),
    ],
)
def test_settings_that_differ_are_named(tmp_path: Path, field: str, value: object, what: str | None) -> None:
    """All that decides an answer but for the checkpoint; a name decides nothing."""
    *path, name = field.split(".")

    def change(report: report_pb2.Report, position: int) -> None:
        place: Any = report
        for part in path:
            place = getattr(place, part)
        setattr(place, name, value)

    made: dict[str, Make] = {"demo": lambda report, position: None, "other": change}
    page = comparison_of(make_up(tmp_path / "run", 2, plain_report(), made))
    assert [one["what"] for one in summary_of(page)["differences"]] == ([] if what is None else [what])
    assert ("More than the checkpoint differs" in page.read_text()) is (what is not None)
    assert ("More than the checkpoint differs" in (page.parent / "compare.md").read_text()) is (what is not None)


def test_a_smaller_budget_is_a_difference_and_other_seeds_are_none(tmp_path: Path) -> None:
    """Nor is a second audit that only one side needed."""

    def fresh(report: report_pb2.Report, position: int) -> None:
        settle(report, 1, 0, 0)
        for sample, seed in zip(report.samples, (100, 101), strict=True):
            sample.seed = seed
        for mode, seed in zip(report.stability.modes, (100, 101), strict=True):
            mode.seeds[:] = [seed]

    def fewer(report: report_pb2.Report, position: int) -> None:
        report.subject.budget.seeds = 1
        del report.samples[1:]
        del report.stability.modes[1:]

    def pages(change: Make) -> Path:
        made: dict[str, Make] = {"demo": lambda report, position: None, "other": change}
        return comparison_of(make_up(tmp_path / change.__name__, 2, plain_report(), made))

    assert summary_of(pages(fresh))["differences"] == []
    (one,) = summary_of(pages(fewer))["differences"]
    assert one["what"] == "budget of first audits"
    assert (one["before"].split(",")[0], one["after"].split(",")[0]) == (
        "first audits: 2 seeds from 0", "first audits: 1 seed from 0",
    )  # fmt: skip


def test_many_prompts_have_their_cards_beside_the_page(tmp_path: Path, tab: Page) -> None:
    """In the order of the table, so that what is looked at first is in the first file; on paper they stay away."""
    most = MOST_INSIDE + 5

    def after(report: report_pb2.Report, position: int) -> None:
        settle(report, *SURE["memorized" if position == most - 2 else "generalized"])

    made = {"demo": as_classes("generalized"), "other": after}
    page = comparison_of(make_up(tmp_path / "run", most, plain_report(), made), out=tmp_path / "out")
    assert len(list((page.parent / "compare").iterdir())) == -(-most // CHUNK)
    assert not list((tmp_path / "run").glob("compare*"))
    tab.open(page)
    assert tab.texts("#status") == [f"{most:,} of {most:,} rows"]
    assert column(tab, "prompt")[0] == f"prompt {most - 2}"
    press(tab, ".open")
    assert tab.evaluate(LOADED).startswith(f"prompt {most - 2}\n\n+■ new memorized.")
    (file,) = (page.parent / "compare").glob("000-*.js")
    assert [one for one in tab.requests if one.endswith(".js")] == [file.as_uri()]
    assert len(summary_of(page)["prompts"]) == most
    shutil.rmtree(page.parent / "compare")
    tab.open(page)
    press(tab, ".open")
    assert tab.evaluate(LOADED) == f"compare/{file.name} is not beside this page."
    assert len(tab.complaints) == 1  # the browser's own, of the file that is gone
    tab.complaints.clear()


def test_cards_of_an_earlier_comparison_go(tmp_path: Path) -> None:
    """What lies beside a page is of that page; files of others are left alone."""
    made = {"demo": as_classes("generalized"), "other": as_classes("memorized")}
    run = make_up(tmp_path / "run", 2, plain_report(), made)
    (run / "compare").mkdir()
    for name in ("000.js", "1234-0123456789ab.js", "notes.js"):
        (run / "compare" / name).write_text("")
    comparison_of(run)
    assert [file.name for file in (run / "compare").iterdir()] == ["notes.js"]


def test_all_rows_are_on_paper(tmp_path: Path, tab: Page) -> None:
    """On screen the table has pages; on paper it has all rows and no controls."""
    made = {"demo": as_classes("generalized"), "other": as_classes("generalized", "memorized")}
    tab.open(comparison_of(make_up(tmp_path / "run", 120, plain_report(), made)))
    assert len(column(tab, "prompt")) == 100
    tab.evaluate(COUNT_PRINTED)
    assert tab.print().startswith(b"%PDF")
    assert tab.evaluate("printed") == 120


def test_a_comparison_of_unfinished_runs_says_so(tmp_path: Path, tab: Page) -> None:
    """What cannot be compared yet is open, beside what failed; figures are of the rest."""

    def flagged(report: report_pb2.Report, position: int) -> None:
        settle(report, *SURE["memorized" if position else "generalized"])

    run = make_up(tmp_path / "run", 3, plain_report(), {"demo": as_classes("generalized"), "other": flagged})
    forget_second_audits(run)
    page = comparison_of(run)
    tab.open(page)
    assert tab.texts(".note") == ["Unfinished. 2 prompts still to be audited, and the figures below may change."]
    assert column(tab, "change") == ["= unchanged", "… open", "… open"]
    assert column(tab, "changed") == ["<1%", "–", "–"]
    press(tab, "#all")
    assert "is still to be done, so that it cannot be compared" in tab.texts(".card")[1]
    assert "Unfinished" in (page.parent / "compare.md").read_text()
    assert summary_of(page)["values"]["failed"] == 2
    assert summary_of(page)["prompts"][1]["probabilities"] is None
