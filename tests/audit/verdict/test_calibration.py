"""Calibrations: files, thresholds, features and the estimator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import demo
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.model.sampling import SamplerSettings
from audit.verdict.calibration import FEATURES, Calibration, recurrence_features
from tests.audit.verdict.evidence_made import DELTA_S, calibration, curvature, stability

SAMPLER = SamplerSettings(steps=20, guidance=1.0, height=32, width=32)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """A calibration survives its file, digest and all."""
    made = calibration(sampler=SAMPLER)
    made.save(tmp_path / "calibration.json")
    loaded = Calibration.load(tmp_path / "calibration.json")
    assert loaded == made
    assert loaded.digest == made.digest
    assert loaded.digest != calibration(sampler=SAMPLER, delta_m=2.0).digest


def _without(content: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(content))
    place = copy
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return copy


def _with_estimator(content: dict[str, Any], **changes: object) -> str:
    return json.dumps({**content, "with_curvature": {**content["with_curvature"], **changes}})


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: "",
        lambda c: "{",
        lambda c: "[]",
        lambda c: b"\xff\xfe\x00",
        lambda c: json.dumps(_without(c, "with_curvature")),
        lambda c: json.dumps(_without(c, "with_curvature", "weights")),
        lambda c: json.dumps({**c, "unknown": 1}),
        lambda c: json.dumps({**c, "delta_m": "near"}),
        lambda c: json.dumps({**c, "delta_m": -1.0}),
        lambda c: json.dumps({**c, "sampler": {**c["sampler"], "steps": 0}}),
        lambda c: _with_estimator(c, weights=[1.0]),
        lambda c: _with_estimator(c, spread=[1.0, 0.0, 1.0]),
        lambda c: _with_estimator(c, features=["meeting", "mood", "trace"]),
        lambda c: _with_estimator(c, intercept=math.nan),
        lambda c: _with_estimator(c, concentration=0.0),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Any) -> None:
    """A file that is cut short, incomplete, of wrong types or impossible values is a clear error."""
    content = json.loads(calibration(sampler=SAMPLER).model_dump_json())
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
    levels = CurvatureSettings(noise_levels=made.noise_levels)
    assert made.fits("sha256:abc", SAMPLER, levels)
    assert not made.fits("sha256:def", SAMPLER, levels)
    assert not made.fits("sha256:abc", SamplerSettings(steps=21, guidance=1.0, height=32, width=32), levels)
    assert not made.fits("sha256:abc", SAMPLER, CurvatureSettings(noise_levels=(0.2,)))
    assert made.fits("sha256:abc", SAMPLER, CurvatureSettings("off", noise_levels=(0.2,)))
    assert not demo.default_calibration().fits("", SAMPLER, levels)


def test_built_in_defaults_have_no_thresholds() -> None:
    """Without a calibration thresholds follow the number of pixels, and the demo's estimators remain."""
    built_in = demo.default_calibration()
    assert built_in.delta_m is None
    assert built_in.checkpoint_digest == ""
    assert built_in.with_curvature == demo.calibration().with_curvature
    assert built_in.thresholds(100) == pytest.approx((1.5, 1.5))
    assert demo.calibration().thresholds(100) == (demo.calibration().delta_m, demo.calibration().delta_s)


@given(
    n=st.integers(1, 40),
    pairs=st.integers(0, 20),
    nearest=st.floats(0, 1e6),
    trace=st.none() | st.floats(-10, 10),
)
def test_features_are_finite_and_known(n: int, pairs: int, nearest: float, trace: float | None) -> None:
    """Every feature is a finite number, at any number of seeds, and predictions are shares."""
    seen = stability(n, pairs=min(pairs, n // 2), nearest=nearest) if n > 1 else _alone()
    found = recurrence_features(seen, () if trace is None else curvature(trace), DELTA_S)
    assert np.isfinite(list(found.values())).all()
    assert found.keys() == (FEATURES if trace is not None else {"meeting", "closeness"})
    estimator = calibration().with_curvature if trace is not None else calibration().without_curvature
    assert 0 < estimator.predict(found) < 1


def _alone() -> Any:
    import torch

    from audit.evidence.stability import measure_stability

    return measure_stability(torch.zeros(1, 2), 1.0)


def test_features_rise_with_recurrence() -> None:
    """More meetings and nearer samples raise their features."""
    none, one = (recurrence_features(stability(16, pairs=p), (), DELTA_S) for p in (0, 1))
    assert one["meeting"] > none["meeting"]
    far, near = (recurrence_features(stability(16, nearest=d), (), DELTA_S) for d in (9.0, 5.0))
    assert near["closeness"] > far["closeness"]
    assert recurrence_features(stability(4, nearest=DELTA_S), (), DELTA_S)["closeness"] == pytest.approx(0)


def test_predictions_follow_the_formula() -> None:
    """r̂ = 1/(1 + exp(−(b + Σ w (f − μ)/s)))."""
    estimator = calibration().with_curvature
    features = {"meeting": -1.5, "closeness": 1.0, "trace": 1.0, "unused": 5.0}
    assert estimator.predict(features) == pytest.approx(1 / (1 + math.exp(-(0.4 + 1.0 + 1.5))))
