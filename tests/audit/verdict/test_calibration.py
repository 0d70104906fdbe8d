"""Calibrations: files, thresholds, what they fit, and how many ordinary prompts they flag."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import demo
from audit.errors import InvalidInput
from audit.model.sampling import SamplerSettings
from audit.verdict.calibration import Calibration, conformal_threshold
from tests.audit.verdict.evidence_made import calibration

SAMPLER = SamplerSettings(steps=20, guidance=1.0, height=32, width=32)
MADE = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """A calibration survives its file, digest and all."""
    made = calibration(sampler=SAMPLER, made=MADE)
    made.save(tmp_path / "calibration.json")
    loaded = Calibration.load(tmp_path / "calibration.json")
    assert loaded == made
    assert loaded.digest == made.digest
    assert loaded.digest != calibration(sampler=SAMPLER, made=MADE, delta_m=2.0).digest
    assert loaded.digest != calibration(sampler=SAMPLER, made=MADE, screen_threshold=0.6).digest


def _without(content: dict[str, Any], *path: str) -> str:
    copy = json.loads(json.dumps(content))
    place = copy
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return json.dumps(copy)


def _usual(content: dict[str, Any], name: str, **changes: object) -> str:
    ordinary = content["ordinary"]
    return json.dumps({**content, "ordinary": {**ordinary, name: {**ordinary["trace_far"], **changes}}})


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: "",
        lambda c: "{",
        lambda c: "[]",
        lambda c: b"\xff\xfe\x00",
        lambda c: _without(c, "ordinary"),
        lambda c: _without(c, "ordinary", "trace_near"),
        lambda c: _without(c, "ordinary", "contrast_late", "spread"),
        lambda c: _without(c, "screen_threshold"),
        lambda c: _usual(c, "mood"),
        lambda c: _usual(c, "trace_far", spread=-1.0),
        lambda c: _usual(c, "trace_far", mean=math.nan),
        lambda c: _usual(c, "trace_far", mean=math.inf),
        lambda c: _usual(c, "trace_far", spread=math.inf),
        lambda c: _usual(c, "trace_far", median=0.0),
        lambda c: json.dumps({**c, "unknown": 1}),
        lambda c: json.dumps({**c, "delta_m": "near"}),
        lambda c: json.dumps({**c, "delta_m": -1.0}),
        lambda c: json.dumps({**c, "delta_s": 0.0}),
        lambda c: json.dumps({**c, "delta_s": math.nan}),
        lambda c: json.dumps({**c, "delta_m": math.inf}),
        lambda c: json.dumps({**c, "prompts": -1}),
        lambda c: json.dumps({**c, "screen_threshold": 1.5}),
        lambda c: json.dumps({**c, "false_positive_rate": 0.0}),
        lambda c: json.dumps({**c, "made": "yesterday"}),
        lambda c: json.dumps({**c, "sampler": {**c["sampler"], "steps": 0}}),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Any) -> None:
    """A file that is cut short, incomplete, of wrong types or impossible values is a clear error."""
    content = json.loads(calibration(sampler=SAMPLER, made=MADE).model_dump_json())
    broken = damage(content)
    file = tmp_path / "calibration.json"
    file.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    with pytest.raises(InvalidInput) as caught:
        Calibration.load(file)
    assert (caught.value.reason, caught.value.field) == ("CALIBRATION_DAMAGED", "calibration")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file is no calibration."""
    with pytest.raises(InvalidInput, match=r"none\.json"):
        Calibration.load(tmp_path / "none.json")


def test_it_fits_its_checkpoint_and_sampler_alone() -> None:
    """Another checkpoint, another number of steps, or the built-in defaults: it does not fit."""
    made = calibration(sampler=SAMPLER)
    assert made.fits("sha256:abc", SAMPLER)
    assert not made.fits("sha256:def", SAMPLER)
    assert not made.fits("sha256:abc", SamplerSettings(steps=21, guidance=1.0, height=32, width=32))
    assert not demo.default_calibration().fits("", SAMPLER)


def test_built_in_defaults_have_no_thresholds() -> None:
    """Without a calibration thresholds follow the number of pixels, and what is ordinary is what is on the demo."""
    built_in = demo.default_calibration()
    assert built_in.delta_m is None
    assert built_in.delta_s is None
    assert built_in.made is None
    assert built_in.sampler is None
    assert built_in.checkpoint_digest == ""
    assert built_in.ordinary == demo.calibration().ordinary
    assert built_in.thresholds(100) == pytest.approx((1.5, 1.5))
    assert demo.calibration().thresholds(100) == (demo.calibration().delta_m, demo.calibration().delta_s)


# --- the threshold of the screen -------------------------------------------------------------------------------------

#: Few different values: ties happen often.
SCORES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40)


@given(scores=SCORES, rate=st.floats(0.01, 0.99))
def test_no_more_than_the_rate_is_flagged_whichever_prompt_is_the_fresh_one(scores: list[float], rate: float) -> None:
    """Of exchangeable scores each is as likely to be the fresh one: at most α of them are over the others' threshold.

    That is the guarantee P ≤ α itself, for any distribution and with ties.
    """
    over = [score > conformal_threshold(scores[:i] + scores[i + 1 :], rate) for i, score in enumerate(scores)]
    assert np.mean(over) <= rate + 1e-9


@given(count=st.integers(1, 60), rate=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_as_many_are_flagged_as_the_rate_allows(count: int, rate: float, seed: int) -> None:
    """Of different scores the threshold leaves exactly ⌊α(n + 1)⌋ ranks to the fresh one, no fewer.

    Where α(n + 1) is a whole number but for rounding, one less is as well.
    """
    scores = np.random.default_rng(seed).permutation(count + 1).astype(float)
    over = sum(score > conformal_threshold(np.delete(scores, i).tolist(), rate) for i, score in enumerate(scores))
    assert math.floor(rate * (count + 1) - 1e-9) <= over <= math.floor(rate * (count + 1) + 1e-9)


@pytest.mark.parametrize("draw", ["normal", "lognormal", "exponential"])
def test_fresh_prompts_are_flagged_at_the_rate(draw: str) -> None:
    """Over 4,000 calibrations of 50 scores each, 1/20 at most and 2/51 at least, within four standard errors."""
    rng = np.random.default_rng(3)
    scores, fresh = getattr(rng, draw)(size=(4000, 50)), getattr(rng, draw)(size=4000)
    flagged = np.mean([one > conformal_threshold(own, 0.05) for own, one in zip(scores, fresh, strict=True)])
    error = 4 * (0.05 * 0.95 / 4000) ** 0.5
    assert 2 / 51 - error <= flagged <= 0.05 + error


def test_few_prompts_allow_no_small_rate() -> None:
    """18 scores cannot bound the rate by 1/20: nothing is flagged. 19 can, by the largest."""
    scores = [0.1 * i for i in range(19)]
    assert conformal_threshold(scores[:18], 0.05) == math.inf
    assert conformal_threshold(scores, 0.05) == max(scores)
    assert conformal_threshold([], 0.05) == math.inf
