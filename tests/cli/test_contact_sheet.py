"""The picture of what the seeds gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from audit.errors import InvalidInput
from audit.palette import COLOURS
from audit.v1 import report_pb2
from service.contact_sheet import MAX_PANELS, draw_contact_sheet, write_contact_sheet
from tests.cli.reports import make_report


def grey(value: int, side: int = 32) -> NDArray[np.uint8]:
    """A picture of one grey."""
    return np.full((side, side), value, dtype=np.uint8)


def count(sheet: Image.Image, colour: str | int) -> int:
    """Pixels of one colour."""
    wanted = (colour,) * 3 if isinstance(colour, int) else tuple(bytes.fromhex(colour[1:]))
    return int((np.asarray(sheet) == wanted).all(-1).sum())


def test_samples_stand_beside_their_nearest_reference() -> None:
    """Every sample and every mode's nearest reference is in the picture, enlarged by a whole factor."""
    report = make_report(
        report_pb2.spurious, [[grey(10)] * 3, [grey(20)] * 2, [grey(30)]], nearest=[grey(110), grey(120), grey(130)]
    )
    sheet = draw_contact_sheet([report])
    assert [count(sheet, value) // 64**2 for value in (10, 20, 30, 110, 120, 130)] == [3, 2, 1, 1, 1, 1]


def test_copies_are_marked() -> None:
    """The reference image of a copy is framed, of anything else it is not."""

    def frames(distance: float) -> int:
        report = make_report(report_pb2.generalized, [[grey(10)]], nearest=[grey(110)], distance=distance)
        return count(draw_contact_sheet([report]), 110)

    assert frames(1.0) < frames(9.0) == 64**2


def test_without_a_reference_set_there_are_only_samples() -> None:
    """An audit that searched nothing shows what the seeds gave."""
    sheet = draw_contact_sheet([make_report(report_pb2.generalized, [[grey(value)] for value in range(40, 60)])])
    assert all(count(sheet, value) >= 64**2 for value in range(40, 60))


@pytest.mark.parametrize("verdict", [report_pb2.memorized, report_pb2.spurious, report_pb2.generalized])
def test_each_verdict_has_its_colour(verdict: report_pb2.Verdict) -> None:
    """The header bears the verdict's colour."""
    sheet = draw_contact_sheet([make_report(verdict, [[grey(10)]], nearest=[grey(110)])])
    assert count(sheet.crop((0, 0, 60, 60)), COLOURS[report_pb2.Verdict.Name(verdict)]) > 100


def test_large_pictures_and_many_seeds_keep_the_sheet_bounded() -> None:
    """Pictures are brought down and long modes are cut."""
    modes = [[grey(index, 300)] * 40 for index in range(20)] + [[grey(200, 300)] for _ in range(300)]
    sheet = draw_contact_sheet([make_report(report_pb2.spurious, modes, prompt="long " * 500)])
    assert sheet.height < 8000


def test_images_that_are_missing_leave_gaps() -> None:
    """A report without images still makes a sheet."""
    report = make_report(report_pb2.memorized, [[grey(10)] * 2, [grey(20)]], nearest=[grey(110), grey(120)])
    for sample in report.samples:
        sample.ClearField("image")
        sample.nearest_reference.ClearField("image")
    assert draw_contact_sheet([report]).height > 100


def test_a_sheet_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """No folder, a folder in the file's place, and too many prompts are each InvalidInput."""
    report = make_report(report_pb2.memorized, [[grey(10)]])
    for reports, path, words in (
        ([report], tmp_path / "missing" / "x.png", "no folder"),
        ([report], tmp_path, "cannot write"),
        ([report] * (MAX_PANELS + 1), tmp_path / "x.png", "room"),
    ):
        with pytest.raises(InvalidInput, match=words):
            write_contact_sheet(reports, path)
    write_contact_sheet([report] * 2, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.format == "PNG"
