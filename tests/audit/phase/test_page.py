"""The page of a run in a browser: Chromium opens the file, without a network."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.patches import Rectangle

from audit.phase.figures import draw_distances
from audit.phase.folder import RunFolder
from audit.phase.page import capacity_effects, write_page
from audit.phase.story import Story
from audit.phase.sweep import Series
from audit.phase.transition import Estimate
from tests.audit.phase.finished import Finished

#: Stops whatever is not in the file itself, and tells.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
    "<script>var stopped = []; addEventListener('securitypolicyviolation', e => stopped.push(e.blockedURI));</script>"
)
#: Writes what a reader sees into the page.
LOOK = """<script>addEventListener("load", () => {
  const all = (what, tell) => Array.from(document.querySelectorAll(what), tell);
  const found = {
    title: document.title,
    headings: all("h1, h2", one => one.textContent),
    images: all("img", one => ({width: one.naturalWidth, shown: one.width, alt: one.alt, kind: one.src.slice(0, 22)})),
    captions: all("figcaption", one => one.textContent.trim().length),
    links: all("[href], [src]:not(img)", one => one.href || one.src),
    injected: all("#injected", one => one.tagName),
    scripts: document.scripts.length,
    wider: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    text: document.body.innerText,
    stopped,
  };
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});</script>"""


def look_at(page: Path, tmp_path: Path, width: int = 1200) -> dict[str, Any]:
    """What a reader of a page sees in Chromium."""
    browser = shutil.which("chromium")
    assert browser is not None, "install Debian's package chromium: make debian"
    text = page.read_text()
    assert text.count("<head>") == text.count("</body>") == 1
    copy = tmp_path / "looked-at.html"
    copy.write_text(text.replace("<head>", "<head>" + POLICY).replace("</body>", LOOK + "</body>"))
    run = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            copy.as_uri(),
        ],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stdout[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_page_tells_the_story_in_a_browser(finished: Finished, tmp_path: Path) -> None:
    """Title, headings, tables and every figure are rendered, each with a text for those who cannot see it."""
    found = look_at(finished.folder / "index.html", tmp_path)
    assert found["title"] == found["headings"][0] == "From memorization to generalization: folder"
    assert len(found["headings"]) == len(set(found["headings"])) >= 6
    figures = list((finished.folder / "figures").glob("*.png"))
    assert len(found["images"]) == len(figures) == len(found["captions"])
    for image in found["images"]:
        assert image["width"] > 600
        assert image["shown"] > 300
        assert len(image["alt"].split()) > 3
    assert all(length > 20 for length in found["captions"])
    for series in finished.sweep.series:
        assert series.name in found["text"]
    for number in ("200 steps", "2 to 12", "48 samples", "3 seeds", "DDIM, 6 steps"):
        assert number in found["text"]
    assert "nan" not in found["text"].lower().split()
    assert "None" not in found["text"].split()


def test_the_page_needs_nothing_but_itself(finished: Finished, tmp_path: Path) -> None:
    """It asks for no other file, runs no script, links nowhere outside, and stays within a narrow window."""
    page = finished.folder / "index.html"
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:|//|file:)""", page.read_text())
    assert "<script" not in page.read_text()
    assert "url(" not in page.read_text()
    found = look_at(page, tmp_path, width=600)
    assert found["stopped"] == []
    assert found["links"] == []
    assert found["scripts"] == 2  # those of this test
    assert {image["kind"] for image in found["images"]} == {"data:image/png;base64,"}
    assert not found["wider"]
    (tmp_path / "alone").mkdir()
    alone = look_at(Path(shutil.copy(page, tmp_path / "alone")), tmp_path)
    assert all(image["width"] > 0 for image in alone["images"])


def test_text_is_shown_as_it_is_written(story: Story, tmp_path: Path) -> None:
    """Markup in a text that reaches the page and its figures is text there."""
    text = '<b id="injected">one & two</b>'
    thresholds = {kind: replace(found, source_m=text) for kind, found in story.thresholds.items()}
    elsewhere = RunFolder(Path(shutil.copytree(story.run.path, tmp_path / "run")))
    page = write_page(replace(story, run=elsewhere, thresholds=thresholds))
    found = look_at(page, tmp_path)
    assert text in found["text"]
    assert found["injected"] == []
    root = ElementTree.parse(tmp_path / "run" / "figures" / "distances.svg").getroot()
    assert root.find(".//*[@id='injected']") is None


@pytest.mark.parametrize("delta", [0.0, 1e-9, 1e9])
def test_thresholds_far_from_all_distances_are_drawn(story: Story, delta: float) -> None:
    """They were given by hand, and both histograms show them."""
    thresholds = {kind: replace(found, delta_m=delta, delta_s=delta) for kind, found in story.thresholds.items()}
    figure = draw_distances(replace(story, thresholds=thresholds))
    figure.draw_without_rendering()
    for panel in figure.axes:
        assert sum(patch.get_height() for patch in panel.patches if isinstance(patch, Rectangle)) > 0
        if delta:
            low, high = panel.get_xlim()
            assert low < delta < high


FOUR, SIX, BEYOND = Estimate(4, 3, 5), Estimate(6, 5.5, 8), Estimate(math.inf, 9, math.inf)


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"),
    [
        ((FOUR, SIX), (SIX, BEYOND), ("memorization", 1.5, True)),
        ((SIX, SIX), (FOUR, SIX), ("memorization", 4 / 6, True)),
        ((FOUR, SIX), (FOUR, SIX), ("memorization", 1.0, False)),
        ((FOUR, FOUR), (BEYOND, SIX), ("generalization", 1.5, True)),
        ((FOUR, BEYOND), (BEYOND, SIX), ("", math.nan, False)),
    ],
)
def test_the_page_says_what_width_does(
    story: Story,
    narrow: tuple[Estimate, Estimate],
    wide: tuple[Estimate, Estimate],
    expected: tuple[str, float, bool],
) -> None:
    """By memorization or, beyond the sizes that were swept, by generalization."""
    series = [Series(architecture="mlp", width=width, learning_rate=1e-3) for width in (16, 32)]
    some = next(iter(story.transitions.values()))
    transitions = {
        one.name: replace(some, memorization=found[0], generalization=found[1])
        for one, found in zip(series, (narrow, wide), strict=True)
    }
    sweep = story.sweep.model_copy(update={"series": tuple(series)})
    (effect,) = capacity_effects(replace(story, sweep=sweep, transitions=transitions))
    assert (effect.narrow, effect.wide) == ("mlp-16", "mlp-32")
    assert (effect.capacity, effect.ratio, effect.apart) == pytest.approx(expected, nan_ok=True)
