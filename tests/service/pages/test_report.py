"""The report of a batch in a browser: real runs, hostile prompts, and a run too large for one page."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from audit import demo
from audit.batch.discovery import Outcome
from audit.v1 import audit_pb2, report_pb2
from service.gate import gate_values
from service.local_batch import LocalBatch, Wanted
from service.pages.page import CHUNK, MOST_INSIDE
from service.pages.report import MOST_ALIKE, MOST_GROUPS, write_report
from service.pages.report_summary import as_markdown
from service.results import open_run
from service.run_folder import store_url
from service.store.engine import connect
from service.store.queue import Queue
from service.wire import picture
from tests.service.pages.browser import Page
from tests.service.pages.reading import (
    CLASSES,
    COUNT_PRINTED,
    ENTER,
    HOSTILE,
    LOADED,
    UNSEEN,
    choose,
    code_in,
    column,
    press,
)  # fmt: skip
from tests.service.runs import make_up, plain_report, run_batch

CHEAP = ("--seeds", "4", "--curvature", "off")
EXTRA = "</dd><i id=injected>\u202e"
#: Folder of a checkpoint, and so its name.
OTHER = "other <i id=injected> `|`"


def report_of(folder: Path) -> Path:
    """Write the report of a run."""
    with open_run(folder) as opened:
        return write_report(opened)


@pytest.fixture(scope="module")
def page(known: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run of two checkpoints, which are the same one under two names."""
    root = tmp_path_factory.mktemp("runs")
    other = shutil.copytree(demo.CHECKPOINT, root / OTHER)
    prompts = [{"prompt": prompt, "k": row, "from": "a <shop>"} for row, prompt in enumerate(known.values())]
    prompts += [{"prompt": prompt, EXTRA: EXTRA} for prompt in HOSTILE]
    return report_of(run_batch(root / "run", prompts, "--checkpoint", "demo", "--checkpoint", str(other), *CHEAP))


def test_the_page_tells_what_was_found(page: Path, known: dict[str, str], tab: Page) -> None:
    """Headings in order, a bar per outcome and checkpoint with words, rows by risk, provenance; one file is enough."""
    tab.open(page)
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tab.evaluate("document.title") == tab.texts("h1")[0] == "Basin report: run"
    assert tab.evaluate("document.documentElement.lang") == "en"
    summary = json.loads((page.parent / "report.json").read_text())
    bars = tab.evaluate("[...document.querySelectorAll('.fractions svg')].map(one => one.ariaLabel)")
    assert bars == [
        f"{name}: {found['outcomes'][name]['rate']:.1%}"
        for found in summary["checkpoints"]
        for name in ("recurring", *CLASSES, "undecided")
    ]
    assert column(tab, "prompt")[:2] == [known["memorized"]] * 2
    assert column(tab, "outcome")[:2] == ["■ memorized"] * 2
    assert sorted(set(column(tab, "checkpoint"))) == ["demo", OTHER]
    assert tab.texts("#status") == ["16 of 16 rows"]
    text = tab.texts("body")[0]
    for fact in (
        summary["checkpoints"][0]["digest"], "demo: complete, 13,306 images", "DDIMScheduler, 20 steps",
        "4 seeds from 4, curvature off", "made for this checkpoint and sampler", "torch", "cpu float32",
    ):  # fmt: skip
        assert fact in text
    assert not {"None", "nan", "undefined"} & set(text.split())
    assert len([one for one in tab.requests if one.startswith("file:")]) == 1


def test_the_table_sorts_by_keyboard(page: Path, tab: Page) -> None:
    """A header is a button; it turns the order around, and says how it is to those who cannot see it."""
    tab.open(page)
    for name, first in (("prompt", "ascending"), ("copies", "descending"), ("position", "ascending")):
        header = f"th[data-column={name}]"
        press(tab, f"{header} button")
        assert tab.evaluate("[...document.querySelectorAll('[aria-sort]')].map(one => one.ariaSort)") == [first]
        before = column(tab, name)
        press(tab, f"{header} button")
        after = column(tab, name)
        assert tab.evaluate(f"document.querySelector('{header}').ariaSort") != first
        missing = before.count("–")
        assert before[len(before) - missing :] == after[len(after) - missing :] == ["–"] * missing
        assert before[: len(before) - missing] == after[: len(after) - missing][::-1] != after[: len(after) - missing]
    assert column(tab, "position") == sorted(column(tab, "position"), reverse=True)
    focus = tab.evaluate("document.activeElement.parentElement.dataset.column")
    assert focus == "position"


def test_the_table_filters_and_searches(page: Path, known: dict[str, str], tab: Page) -> None:
    """By outcome, by checkpoint, by words in any order, and by all of them together; a label says which is which."""
    tab.open(page)
    choose(tab, "#outcome", "memorized")
    assert set(column(tab, "outcome")) == {"■ memorized"}
    choose(tab, "#checkpoint", OTHER)
    assert set(column(tab, "checkpoint")) == {OTHER}
    choose(tab, "#outcome", "all")
    assert len(column(tab, "prompt")) == 8
    assert tab.evaluate("document.querySelector('#search').labels[0].innerText") == "search prompts"
    tab.evaluate("document.querySelector('#search').focus()")
    tab.type(" ".join(reversed(known["spurious"].upper().split())))
    assert column(tab, "prompt") == [known["spurious"]]
    assert tab.texts("#status") == ["1 of 16 rows"]
    tab.type(" nowhere")
    assert column(tab, "prompt") == []


def test_a_card_opens_with_everything_its_audits_found(page: Path, known: dict[str, str], tab: Page) -> None:
    """Pictures with a text each, distances, reasons, both audits, what they took and the columns of the prompt file."""
    tab.open(page)
    press(tab, ".open")
    assert tab.evaluate("document.querySelector('.open').ariaExpanded") == "true"
    assert tab.evaluate("document.querySelector('.open').getAttribute('aria-controls')") == tab.evaluate(
        "document.querySelector('.card').id"
    )
    (card,) = tab.texts(".card")
    assert card.startswith(known["memorized"])
    for fact in (
        "the second, with fresh seeds, confirms it", "first audit", "second audit", "seeds gave copies of one training",
        "■ memorized, 4 seeds met", "copy, distance", "104 denoiser evaluations", "a <shop>",
    ):  # fmt: skip
        assert fact in card
    assert "no copy" not in card
    images = tab.evaluate(
        "[...document.querySelectorAll('.card img')].map(one => [one.naturalWidth, one.width, one.alt])"
    )
    assert [alt.split(" ")[0] for _, _, alt in images] == ["Sample", "Reference"]
    assert all(natural == 32 and width == 96 for natural, width, _ in images)
    tab.press(*ENTER)
    assert tab.texts(".card") == []
    press(tab, "#all")
    assert len(tab.texts(".card")) == 16
    assert sum("Error: the prompt has" in one for one in tab.texts(".card")) == 2 * len(HOSTILE)
    for width in (500, 1200):
        tab.resize(width)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    press(tab, "#all")
    assert tab.texts(".card") == []


def test_a_spectrum_is_drawn(known: dict[str, str], tmp_path: Path, tab: Page) -> None:
    """Every singular value is a point inside the drawing, at both noise levels, under the prompt and without it."""
    out = run_batch(tmp_path / "run", [{"prompt": known["generalized"]}], "--checkpoint", "demo", "--seeds", "6")
    tab.open(report_of(out))
    with open_run(out) as opened:
        (item,) = opened.concluded["demo"]
        first, second = opened.reports(item.row)
    report = second or first
    assert report is not None
    assert len(report.curvature) == 2
    press(tab, ".open")
    shapes = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(one => ({label: one.ariaLabel,"
        "points: [...one.querySelectorAll('circle, rect')].map(one => one.getBBox()).map(({x, y}) => ({x, y}))}))"
    )
    for level, shape in zip(report.curvature, shapes, strict=True):
        values = {value for one in (level.prompt, level.unconditional) for value in (*one.top, *one.bottom)}
        assert len(shape["points"]) == len(values)
        for box in shape["points"]:
            assert 30 < box["x"] < 320
            assert 0 < box["y"] < 150
        for end in (level.prompt.top[0], level.prompt.bottom[0]):
            assert f"{end:.2f}" in shape["label"]
    assert f"{report.curvature[0].prompt.trace:.2f} ±" in tab.texts(".card")[0]
    assert "Pictures were not kept." in tab.texts(".card")[0]
    assert tab.texts(".card")[0].count("no copy, distance") == len(report.stability.modes)


def test_whatever_a_prompt_holds_is_text(page: Path, tab: Page) -> None:
    """Markup, templates, bidi controls and unbroken words are shown as they are, in the table, cards and Markdown."""
    tab.open(page)
    press(tab, "#all")
    shown = column(tab, "prompt")
    for prompt in (*HOSTILE[:2], HOSTILE[3]):
        assert shown.count(prompt) == 2
    assert "⟨U+202E⟩desrever ⟨U+2066⟩⟨U+2069⟩⟨U+2069⟩ end⟨U+001B⟩[31m⟨U+2028⟩ line" in shown
    cards = tab.texts(".card")
    assert sum("</dd>⟨U+202E⟩" in one for one in cards) == 0
    assert sum("</dd><i id=injected>⟨U+202E⟩" in one for one in cards) == 2 * len(HOSTILE)
    assert tab.evaluate("document.querySelectorAll('#injected').length") == 0
    assert tab.evaluate("typeof injected") == "undefined"
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for name in ("report.html", "report.md"):
        assert not UNSEEN & set((page.parent / name).read_text())
    summary = json.loads((page.parent / "report.json").read_text())
    summary["riskiest"] = [{**summary["riskiest"][0], "prompt": prompt} for prompt in HOSTILE]
    assert {*HOSTILE[:2], HOSTILE[3]} <= code_in(as_markdown(summary))


def test_whatever_a_report_holds_is_text(tmp_path: Path, tab: Page) -> None:
    """Captions, names and settings come from users too."""

    def change(report: report_pb2.Report, position: int) -> None:
        hostile = HOSTILE[position]
        near = report_pb2.Neighbor(caption=hostile, distance=1)
        report.stability.modes[0].nearest_reference.CopyFrom(near)
        report.subject.reference = report.subject.reference_digest = report.subject.sampler.negative_prompt = hostile
        report.provenance.device = report.reasons[0] = hostile

    page = report_of(make_up(tmp_path / "<i id=injected>", len(HOSTILE), plain_report(), change))
    tab.open(page)
    press(tab, "#all")
    for text in (tab.texts("body")[0], page.read_text()):
        assert not UNSEEN & set(text)
    assert tab.texts("h1") == ["Basin report: <i id=injected>"]
    assert all(tab.texts("body")[0].count(prompt) >= 5 for prompt in HOSTILE[:2])
    assert tab.evaluate("document.querySelectorAll('#injected').length") == 0
    assert tab.evaluate("typeof injected") == "undefined"
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_large_pictures_and_long_spectra_stay_small(tmp_path: Path, tab: Page) -> None:
    """A picture is brought down to what is shown of it; between the ends of a spectrum there is a gap."""

    def change(report: report_pb2.Report, position: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
        report.samples[0].image.CopyFrom(picture(noise))
        top, bottom = [1.4, 1.3, 1.2], [0.0, 0.1, 0.2]
        report.curvature.add(sigma=0.2, prompt=report_pb2.Spectrum(top=top, bottom=bottom, trace_error=float("nan")))

    tab.open(report_of(make_up(tmp_path / "run", 1, plain_report(), change)))
    press(tab, ".open")
    size = "(one => [one.naturalWidth, one.naturalHeight])(document.querySelector('.card img'))"
    assert tab.evaluate(size) == [128, 64]
    curves = tab.evaluate(
        "[...document.querySelectorAll('polyline')].map(one => [...one.points].map(({x, y}) => [x, y]))"
    )
    assert [len(curve) for curve in curves] == [3, 3]
    xs, ys = zip(*(point for curve in curves for point in curve), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)
    assert xs[3] - xs[2] > 1.5 * (xs[2] - xs[1])
    assert "±" not in tab.texts(".card")[0]


def test_the_summary_agrees_with_the_gate(page: Path) -> None:
    """Counts and rates are those that conditions are checked against, each rate inside its interval."""
    summary = json.loads((page.parent / "report.json").read_text())
    with open_run(page.parent) as opened:
        for found in summary["checkpoints"]:
            values = gate_values(item.outcome for item in opened.concluded[found["name"]])
            assert found["prompts"] == values["prompts"] == 8
            for name, one in found["outcomes"].items():
                assert (one["count"], one["rate"]) == (values[name], values[f"{name}_rate"])
                assert 0 <= one["lower"] <= one["rate"] <= one["upper"] <= 1
    assert summary["riskiest"][0]["outcome"] == "memorized"
    assert summary["batch"]["false_discovery_rate"] == 0.05


def test_a_run_that_is_not_done_says_so(known: dict[str, str], tmp_path: Path, tab: Page) -> None:
    """What is still to be audited is open, what failed says why, and the figures are of the rest."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([known["generalized"], *demo.prompts()[:12]]))
    budget = audit_pb2.BudgetOptions(seeds=2, curvature="off")
    wanted = Wanted(("demo",), file, "", audit_pb2.SamplerOptions(steps=2), budget)
    with closing(LocalBatch(wanted, tmp_path / "run")) as batch:
        queue = Queue(connect(store_url(batch.out, "")))
        (task,) = queue.take(batch.batch.id, "demo", 1, idle=True)
        queue.fail(task, "RuntimeError: <lost>", final=True)
        batch.run(batch.stopping.set)
    page = report_of(tmp_path / "run")
    (found,) = json.loads((page.parent / "report.json").read_text())["checkpoints"]
    assert found["prompts"] == 13
    assert found["failed"] == 1
    assert 0 < found["open"] <= 12
    tab.open(page)
    (note,) = tab.texts(".note")
    assert note.startswith(f"Unfinished. {found['open']} prompts still to be audited")
    choose(tab, "#outcome", "failed")
    press(tab, "#all")
    assert "RuntimeError: <lost>" in tab.texts(".card")[0]
    choose(tab, "#outcome", "open")
    assert len(column(tab, "prompt")) == found["open"]
    assert "Unfinished" in (page.parent / "report.md").read_text()


def test_all_rows_are_on_paper(tmp_path: Path, tab: Page) -> None:
    """On screen the table has pages; on paper it has all rows and no controls."""
    page = report_of(make_up(tmp_path / "run", 120, plain_report(), lambda report, position: None))
    tab.open(page)
    assert len(column(tab, "prompt")) == 100
    tab.evaluate(COUNT_PRINTED)
    assert tab.print().startswith(b"%PDF")
    assert tab.evaluate("printed") == 120
    assert len(column(tab, "prompt")) == 100
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('form')).display") == "none"
    tab.call("Emulation.setEmulatedMedia", media="")


def test_many_prompts_have_their_cards_beside_the_page(tmp_path: Path, tab: Page) -> None:
    """The table is paged, searched and sorted as ever; a card is read from its file when it is opened."""
    most = 2000

    def change(report: report_pb2.Report, position: int) -> None:
        report.probabilities.generalized = 1 - position / most
        report.recurring_probability = position / most

    page = report_of(make_up(tmp_path / "run", most, plain_report(), change))
    assert len(list((page.parent / "report").iterdir())) == most // CHUNK
    tab.open(page)
    assert tab.texts("#status") == ["2,000 of 2,000 rows"]
    assert column(tab, "prompt") == [f"prompt {most - 1 - rank}" for rank in range(100)]
    press(tab, "#forth")
    assert column(tab, "prompt")[0] == "prompt 1899"
    assert tab.texts("#page") == ["page 2 of 20"]
    tab.evaluate("document.querySelector('#search').focus()")
    tab.type("prompt 1234")
    assert column(tab, "prompt") == ["prompt 1234"]
    press(tab, ".open")
    card = tab.evaluate(LOADED)
    assert card.startswith("prompt 1234\n")
    assert "No two seeds met." in card
    (file,) = (page.parent / "report").glob("061-*.js")
    assert [one for one in tab.requests if one.endswith(".js")] == [file.as_uri()]
    (file,) = (page.parent / "report").glob("099-*.js")
    shutil.rmtree(page.parent / "report")
    tab.open(page)
    press(tab, ".open")
    assert tab.evaluate(LOADED) == f"report/{file.name} is not beside this page."
    assert len(tab.complaints) == 1  # the browser's own, of the file that is gone
    tab.complaints.clear()


def test_a_page_opens_no_card_of_another(tmp_path: Path, tab: Page) -> None:
    """Neither when the next one was never finished, nor when it is the one that is left open."""
    made: dict[str, Path] = {}
    for name, prefix in (("old", ""), ("new", "new ")):

        def change(report: report_pb2.Report, position: int, prefix: str = prefix) -> None:
            report.prompt = f"{prefix}prompt {position}"

        made[name] = make_up(tmp_path / name, MOST_INSIDE + 1, plain_report(), change)
    page = report_of(made["old"])
    kept = set((made["old"] / "report").iterdir())
    report_of(made["new"])
    for file in (made["new"] / "report").iterdir():  # as far as a writer comes that is killed before the page
        shutil.copy(file, made["old"] / "report")
    tab.open(page)
    press(tab, ".open")
    assert tab.evaluate(LOADED).startswith("prompt ")
    assert report_of(made["old"]) == page
    assert set((made["old"] / "report").iterdir()) == kept


def test_near_duplicates_are_listed(tmp_path: Path, tab: Page) -> None:
    """Group by group with their rows, as text, as many as a page bears; all of them in report.json and on paper."""
    pairs = [hashlib.sha256(bytes([number])).hexdigest() for number in range(MOST_GROUPS)]
    texts = [*HOSTILE, *HOSTILE, *("same" + "!" * number for number in range(MOST_ALIKE + 3)), *pairs, *pairs]

    def change(report: report_pb2.Report, position: int) -> None:
        report.prompt = texts[position].upper() if texts[position] in texts[:position] else texts[position]

    page = report_of(make_up(tmp_path / "run", len(texts), plain_report(), change))
    groups = json.loads((page.parent / "report.json").read_text())["repeats"]["near_duplicates"]
    assert len(groups) == MOST_GROUPS + len(HOSTILE) + 1
    tab.open(page)
    (said,) = tab.texts("summary")
    assert said == f"{len(groups)} groups of prompts that are nearly the same"
    assert not tab.evaluate("document.querySelector('details').open")
    tab.print()
    assert tab.evaluate("document.querySelector('details').open")
    assert tab.evaluate("document.querySelectorAll('details > ol > li').length") == MOST_GROUPS
    listed = tab.texts("details > ol > li > ul > li")
    assert listed[:2] == [f"row 1: {HOSTILE[0]}", f"row {1 + len(HOSTILE)}: {HOSTILE[0].upper()}"]
    assert "And 3 more in report.json." in listed
    assert tab.texts("details > p") == [f"And {len(groups) - MOST_GROUPS} groups more in report.json."]
    assert not UNSEEN & set(tab.texts("body")[0])
    assert tab.evaluate("document.querySelectorAll('#injected').length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_outcomes_have_marks_of_their_own(page: Path, tab: Page) -> None:
    """No two outcomes share a shape, so that the page reads without colour."""
    tab.open(page)
    shapes = tab.evaluate("JSON.parse(document.getElementById('data').textContent).shapes")
    assert set(shapes) == {*map(str, Outcome), "open"}
    assert len(set(shapes.values())) == len(shapes)
