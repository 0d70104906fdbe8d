"""Checkpoint folders of which a file was damaged: they work, or are refused in our own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import AuditError
from audit.evidence.curvature import CurvatureSettings
from audit.model.loading import load_checkpoint
from tests.audit.makers import save_sd2_pipeline
from tests.mutations import mutated, reconfigured, run

EXAMPLES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose files are put back as they were."""
    return save_sd2_pipeline(tmp_path_factory.mktemp("damaged") / "model")


@contextmanager
def holding(file: Path, content: bytes) -> Iterator[None]:
    """In here, a file holds something else."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def refusal(folder: Path) -> str:
    """Why it cannot be audited, in our own words; "" where it can."""
    try:
        auditor = Auditor(load_checkpoint(folder))
        sampler = auditor.resolve_sampler(steps=1, guidance=1.0)
        auditor.audit("a red coat", sampler=sampler, budget=Budget(seeds=2, curvature=CurvatureSettings(method="off")))
    except AuditError as error:
        return str(error)
    return ""


def test_undamaged(folder: Path) -> None:
    """What is damaged below is whole."""
    assert not refusal(folder)


def test_bytes(folder: Path) -> None:
    """Bytes of any file."""
    files, refusals = sorted(path for path in folder.rglob("*") if path.is_file()), []

    @run(EXAMPLES)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(files))
        with holding(file, data.draw(mutated(file.read_bytes()))):
            refusals.append(refusal(folder))

    check()
    assert str(folder.parent) not in "".join(refusals)
    assert 0 < sum(map(bool, refusals)) < EXAMPLES
    assert not refusal(folder)


def test_values(folder: Path) -> None:
    """Values of any configuration."""
    files, refusals = sorted(folder.rglob("*.json")), []

    @run(EXAMPLES)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(files))
        changed = data.draw(reconfigured(json.loads(file.read_text())))
        with holding(file, json.dumps(changed).encode()):
            refusals.append(refusal(folder))

    check()
    assert str(folder.parent) not in "".join(refusals)
    assert 0 < sum(map(bool, refusals)) < EXAMPLES
    assert not refusal(folder)
