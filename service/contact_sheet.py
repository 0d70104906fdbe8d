"""One picture of what the seeds gave, mode by mode, beside the nearest reference images.

A panel per report: its verdict in words, shape and colour, the numbers behind it, then one row per mode, largest
first, and last the seeds that met no other.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from audit.errors import InvalidInput
from audit.palette import COLOURS, INK
from audit.v1 import report_pb2
from service.reports import compared, confidence

WIDTH = 1120
MARGIN = 24
GAP = 3
#: Panels on one sheet.
MAX_PANELS = 24
#: Rows of thumbnails that a mode may fill, and modes that a panel may show, on a sheet of one panel and of several.
MAX_ROWS = (3, 1)
MAX_MODES = (12, 4)
#: Pixels for the words beside a mode's nearest reference image.
WORDS = 206

PAPER = "#ffffff"
FAINT = "#667079"
RULE = "#d5dae0"


@dataclass(frozen=True)
class _Sheet:
    """What all rows of a panel share."""

    report: report_pb2.Report
    samples: dict[int, report_pb2.SampleEvidence]
    references: dict[int, report_pb2.Image]
    thumbnail: int
    max_rows: int

    def is_copy(self, neighbor: report_pb2.Neighbor) -> bool:
        return neighbor.distance <= self.report.subject.calibration.delta_m


def write_contact_sheet(reports: Sequence[report_pb2.Report], path: Path) -> None:
    """Write a picture of reports that hold images.

    Args:
        reports: one panel each, in this order; at most `MAX_PANELS`.
        path: a PNG file.

    Raises:
        InvalidInput: the file cannot be written, or there are too many reports for one picture.
    """
    check_contact_sheet(len(reports), path)
    sheet = draw_contact_sheet(reports)
    try:
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path}: {error.strerror or error}", reason="IMAGE_UNWRITABLE", field="image"
        ) from error


def check_contact_sheet(count: int, path: Path) -> None:
    """Raises InvalidInput where a sheet of so many reports could not be written: better before the work than after."""
    if count > MAX_PANELS:
        raise InvalidInput(
            f"a picture has room for {MAX_PANELS} prompts, not {count}", reason="IMAGE_TOO_MANY_PROMPTS", field="image"
        )
    if not path.parent.is_dir():
        raise InvalidInput(f"no folder {path.parent} to write {path.name} to", reason="IMAGE_UNWRITABLE", field="image")


def draw_contact_sheet(reports: Sequence[report_pb2.Report]) -> Image.Image:
    """The picture of `write_contact_sheet`."""
    blocks: list[Image.Image] = []
    for report in reports:
        if blocks:
            blocks.append(_rule(34))
        blocks += _panel(report, several=len(reports) > 1)
    blocks.append(_legend(reports))
    height = sum(block.height for block in blocks) + 2 * MARGIN
    sheet = Image.new("RGB", (WIDTH + 2 * MARGIN, height), PAPER)
    y = MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, y))
        y += block.height
    return sheet


def _panel(report: report_pb2.Report, *, several: bool) -> Iterator[Image.Image]:
    side = max((max(sample.image.height, sample.image.width) for sample in report.samples), default=0)
    sheet = _Sheet(
        report=report,
        samples={sample.seed: sample for sample in report.samples},
        references={
            sample.nearest_reference.index: sample.nearest_reference.image
            for sample in report.samples
            if sample.nearest_reference.HasField("image")
        },
        thumbnail=64 if side <= 64 else 128,
        max_rows=MAX_ROWS[several],
    )
    yield _header(report)
    modes = [mode for mode in report.stability.modes if len(mode.seeds) > 1]
    for mode in modes[: MAX_MODES[several]]:
        yield _mode_block(sheet, mode)
    if len(modes) > MAX_MODES[several]:
        yield _note(f"and {_count(len(modes) - MAX_MODES[several], 'smaller group')} of seeds that met")
    alone = [sheet.samples[mode.seeds[0]] for mode in report.stability.modes if len(mode.seeds) == 1]
    if alone:
        yield _alone_block(sheet, alone)


def _header(report: report_pb2.Report) -> Image.Image:
    verdict = report_pb2.Verdict.Name(report.verdict)
    lines = _wrap(f"“{report.prompt}”", _font(22), WIDTH - 190, 2)
    subject, copies = report.subject, report.copies
    facts = [
        confidence(report),
        f"checkpoint {subject.checkpoint}, {_sampler(subject.sampler)}",
    ]
    if subject.reference:
        extent = "complete" if subject.reference_complete else "partial"
        facts.append(f"against {subject.reference}: {extent}, {subject.reference_size:,} images")
        found = f"{copies.found} of {_count(len(report.samples), 'seed')} gave copies"
        if copies.found:
            found += f" of {_count(copies.distinct_references, 'image')}"
        most = f"{found}; at most {copies.rate_upper_bound:.0%} of all samples are"
        facts.append(most if compared(report) else "it keeps no images: copies were not looked for")
    else:
        facts.append("against no reference set")
    body = max(26 * len(facts), 3 * 32)
    block = Image.new("RGB", (WIDTH, 30 * len(lines) + 14 + body + 10), PAPER)
    draw = ImageDraw.Draw(block)
    _glyph(draw, verdict, 0, 4, 20)
    draw.text((30, 14), verdict, COLOURS[verdict], _font(22, bold=True), anchor="lm")
    indent = 30 + draw.textlength(verdict, _font(22, bold=True)) + 18
    for row, line in enumerate(lines):
        draw.text((indent, 14 + 30 * row), line, INK, _font(22), anchor="lm")
    top = 30 * len(lines) + 14
    for row, fact in enumerate(facts):
        line = _wrap(fact, _font(16), WIDTH - 500, 1)[0]
        draw.text((0, top + 10 + 26 * row), line, INK if row == 0 else FAINT, _font(16, bold=row == 0), anchor="lm")
    _fraction_bars(draw, report, WIDTH - 480, top)
    return block


def _fraction_bars(draw: ImageDraw.ImageDraw, report: report_pb2.Report, left: int, top: int) -> None:
    """Each class: a bar as long as its fraction, a line as long as its interval, and both in figures."""
    start, length = left + 126, 190
    for row, name in enumerate(COLOURS):
        interval, y = getattr(report.fractions, name), top + 10 + 32 * row
        _glyph(draw, name, left, y - 7, 14)
        draw.text((left + 22, y), name, INK, _font(15), anchor="lm")
        draw.rectangle((start, y - 8, start + length, y + 8), "#eef1f4")
        draw.rectangle((start, y - 8, start + round(length * interval.estimate), y + 8), COLOURS[name])
        low, high = (start + round(length * end) for end in (interval.lower, interval.upper))
        draw.line((low, y, high, y), INK, 2)
        for end in (low, high):
            draw.line((end, y - 5, end, y + 5), INK, 2)
        figures = f"{interval.estimate:.0%}  ({100 * interval.lower:.0f}–{interval.upper:.0%})"
        draw.text((start + length + 14, y), figures, INK, _font(15), anchor="lm")


def _mode_block(sheet: _Sheet, mode: report_pb2.Mode) -> Image.Image:
    """Left the samples of a mode, right the reference image nearest to it."""
    searched = mode.HasField("nearest_reference")
    cell = sheet.thumbnail + GAP
    right = WIDTH - sheet.thumbnail - WORDS if searched else WIDTH + GAP
    per_row = (right - (40 if searched else 0)) // cell
    shown = [sheet.samples[seed] for seed in mode.seeds[: per_row * sheet.max_rows]]
    block = Image.new("RGB", (WIDTH, 26 + -(-len(shown) // per_row) * cell + 14), PAPER)
    draw = ImageDraw.Draw(block)
    title = f"{len(mode.seeds)} of {len(sheet.samples)} seeds returned to one image"
    if len(shown) < len(mode.seeds):
        title += f" ({len(shown)} are shown)"
    _glyph(draw, report_pb2.Verdict.Name(mode.verdict), 0, 3, 14)
    draw.text((22, 10), title, INK, _font(15), anchor="lm")
    for place, sample in enumerate(shown):
        corner = cell * (place % per_row), 26 + cell * (place // per_row)
        block.paste(_thumbnail(sample.image, sheet.thumbnail), corner)
    if searched:
        neighbor, text = mode.nearest_reference, right + sheet.thumbnail + 12
        copy = sheet.is_copy(neighbor)
        draw.text((right - 20, 26 + sheet.thumbnail // 2), "≈" if copy else "≠", INK, _font(22), anchor="mm")
        draw.text((right, 10), "nearest reference image", FAINT, _font(13), anchor="lm")
        _draw_reference(block, sheet, neighbor, (right, 26))
        colour = COLOURS["memorized"] if copy else INK
        draw.text((text, 33), "copy" if copy else "not a copy", colour, _font(15, bold=True), anchor="lm")
        draw.text((text, 51), f"distance {neighbor.distance:.2f}", INK, _font(14), anchor="lm")
        caption = neighbor.caption or neighbor.key
        for row, line in enumerate(_wrap(caption, _font(12), WIDTH - text, 2)):
            draw.text((text, 68 + 15 * row), line, FAINT, _font(12), anchor="lm")
    return block


def _alone_block(sheet: _Sheet, samples: Sequence[report_pb2.SampleEvidence]) -> Image.Image:
    """The seeds that met no other: above what they gave, below the reference image nearest to each."""
    searched = any(sample.HasField("nearest_reference") for sample in samples)
    side = sheet.thumbnail
    cell = side + GAP
    per_row = (WIDTH + GAP) // cell
    shown = samples[: per_row * sheet.max_rows]
    line = 2 * cell + 26 if searched else cell
    block = Image.new("RGB", (WIDTH, 26 + -(-len(shown) // per_row) * line + 8), PAPER)
    draw = ImageDraw.Draw(block)
    title = f"{_count(len(samples), 'seed')} met no other" if len(samples) < len(sheet.samples) else "no two seeds met"
    if len(shown) < len(samples):
        title += f" ({len(shown)} are shown)"
    draw.text((0, 10), title, INK, _font(15), anchor="lm")
    if searched:
        below = "below each the nearest reference image and its distance"
        draw.text((draw.textlength(title, _font(15)) + 12, 10), below, FAINT, _font(13), anchor="lm")
    for place, sample in enumerate(shown):
        x, y = cell * (place % per_row), 26 + line * (place // per_row)
        block.paste(_thumbnail(sample.image, side), (x, y))
        if sample.HasField("nearest_reference"):
            neighbor = sample.nearest_reference
            copy = sheet.is_copy(neighbor)
            _draw_reference(block, sheet, neighbor, (x, y + cell))
            text = f"copy {neighbor.distance:.1f}" if copy else f"{neighbor.distance:.2f}"
            colour = COLOURS["memorized"] if copy else FAINT
            draw.text((x + side // 2, y + 2 * cell + 9), text, colour, _font(13, bold=copy), anchor="mm")
    return block


def _draw_reference(block: Image.Image, sheet: _Sheet, neighbor: report_pb2.Neighbor, corner: tuple[int, int]) -> None:
    """A reference image; a copied one is framed."""
    image = sheet.references.get(neighbor.index)
    picture = Image.new("RGB", (sheet.thumbnail, sheet.thumbnail), RULE)
    if image is not None:
        picture = _thumbnail(image, sheet.thumbnail)
    if sheet.is_copy(neighbor):
        frame = (0, 0, picture.width - 1, picture.height - 1)
        ImageDraw.Draw(picture).rectangle(frame, outline=COLOURS["memorized"], width=3)
    block.paste(picture, corner)


def _note(text: str) -> Image.Image:
    block = Image.new("RGB", (WIDTH, 34), PAPER)
    ImageDraw.Draw(block).text((0, 10), text, FAINT, _font(15), anchor="lm")
    return block


def _legend(reports: Sequence[report_pb2.Report]) -> Image.Image:
    block = Image.new("RGB", (WIDTH, 48), PAPER)
    draw = ImageDraw.Draw(block)
    draw.line((0, 12, WIDTH, 12), RULE, 1)
    numbers = sorted({report.subject.definition_samples for report in reports})
    level = reports[0].fractions.level if reports else 0.9
    sentence = (
        f"Bars: share of each class expected among {' or '.join(map(str, numbers))} samples, "
        f"with {level:.0%} intervals.  Distances: ℓ2 over pixels"
    )
    thresholds = sorted(
        {round(report.subject.calibration.delta_m, 2) for report in reports if report.subject.reference}
    )
    if thresholds:
        sentence += f"; copies are within {' or '.join(f'{value:.2f}' for value in thresholds)}"
    version = reports[0].provenance.basin_version if reports else ""
    draw.text((0, 32), sentence + ".", FAINT, _font(13), anchor="lm")
    draw.text((WIDTH, 32), f"basin {version}", FAINT, _font(13), anchor="rm")
    return block


def _rule(height: int) -> Image.Image:
    block = Image.new("RGB", (WIDTH, height), PAPER)
    ImageDraw.Draw(block).line((0, height // 2 - 6, WIDTH, height // 2 - 6), RULE, 1)
    return block


def _glyph(draw: ImageDraw.ImageDraw, verdict: str, x: int, y: int, size: int) -> None:
    """A shape of its own per class: a square, a triangle, a disc."""
    box, colour = (x, y, x + size, y + size), COLOURS[verdict]
    if verdict == "memorized":
        draw.rectangle(box, colour)
    elif verdict == "spurious":
        draw.polygon(((x + size / 2, y), (x + size, y + size), (x, y + size)), colour)
    else:
        draw.ellipse(box, colour)


def _thumbnail(image: report_pb2.Image, side: int) -> Image.Image:
    """A picture of at most `side` pixels; small ones are enlarged by whole factors: their pixels stay square."""
    if not image.png:
        return Image.new("RGB", (side, side), RULE)
    with Image.open(io.BytesIO(image.png)) as stored:
        picture = stored.convert("RGB")
    factor = side / max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * int(factor), picture.height * int(factor)), Image.Resampling.NEAREST)
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _sampler(sampler: report_pb2.Sampler) -> str:
    name = sampler.scheduler.removesuffix("Scheduler")
    embedded = " (embedded)" if sampler.embedded else ""
    return f"{name}, {_count(sampler.steps, 'step')}, guidance {sampler.guidance:g}{embedded}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """Text in at most so many lines of at most so many pixels; what does not fit ends in an ellipsis."""
    words, found = text.split(), [""]
    for word in words:
        longer = f"{found[-1]} {word}".strip()
        if font.getlength(longer) <= width or not found[-1]:
            found[-1] = longer
        else:
            found.append(word)
    cut = len(found) > lines
    found = found[:lines]
    for row, line in enumerate(found):
        ending = "…" if (cut and row == lines - 1) or font.getlength(line) > width else ""
        while line and font.getlength(line + ending) > width:
            line = line[:-1]
        found[row] = line + ending
    return found


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
