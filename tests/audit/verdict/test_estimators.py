"""From features to shares: the formula, looks, files, and the estimators that ship."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import expit

from audit.bench.fitting import LOOKS, names_of
from audit.verdict.estimators import FEATURES, FILE, Estimators, ShareEstimator, segments, shipped
from audit.verdict.features import CONTRASTS, KNOTS, MEETINGS, TRACES
from audit.verdict.rule import DEFINITION_SAMPLES
from tests.audit.verdict.evidence_made import constant, estimators

#: Every feature, bounded as `normalise` and `meetings` bound them.
VALUES = st.fixed_dictionaries(dict.fromkeys(FEATURES, st.floats(-20, 20)))


def every(made: Estimators) -> list[ShareEstimator]:
    """All that predict."""
    return [one for look in made.looks for one in (look.recurring, look.copied)]


def test_predictions_follow_the_formula() -> None:
    """r̂ = 1/(1 + exp(−(b + Σ (c(f) − μ)))), and features that are not its own do not matter."""
    made = ShareEstimator(
        features=("closeness", "trace_far"), knots=((1.0,), (0.2, 0.5)), slopes=((0.25, 0.5), (1.0, 2.0, 4.0)),
        center=(0.1, 0.6), spread=(1.0, 0.0), intercept=-0.3, concentration=7.0,
    )  # fmt: skip
    for closeness, trace, curves in (
        (2.0, 0.9, 0.5 + 2.0 * 0.3 + 4.0 * 0.4),
        (-1.0, 0.3, -0.25 * 2.0 + 2.0 * 0.1),
        (1.0, 0.0, -1.0 * 0.2),
    ):
        logit = -0.3 + curves - 0.1 - 0.6
        found = made.predict({"closeness": closeness, "trace_far": trace, "meeting": 5.0})
        assert found == pytest.approx(1 / (1 + math.exp(-logit)))
    assert constant(0.3, 1.0).predict({}) == pytest.approx(0.3)


@given(value=st.floats(-50, 50), knots=st.sets(st.integers(-9, 9), min_size=1, max_size=4).map(sorted))
def test_segments_add_up_to_the_way_from_the_first_knot(value: float, knots: list[float]) -> None:
    """Each is walked to its end before the next, and none backwards but the first."""
    found = segments(value, knots)
    assert found.sum() == pytest.approx(value - knots[0])
    assert found[0] <= 0 <= found[1:].min()
    for length, own, after in zip(np.diff(knots), found[1:], found[2:], strict=False):
        assert own == pytest.approx(length) or after == 0


@pytest.mark.parametrize("missing", [(), CONTRASTS, CONTRASTS + TRACES])
def test_a_missing_feature_may_have_been_anything(missing: tuple[str, ...]) -> None:
    """Mean and spread of the share are those over prompts like the ones of the fit; none missing, nothing changes."""
    rng = np.random.default_rng(0)
    known = {name: knots[-1] for name, knots in KNOTS.items()}
    for one in every(shipped()):
        mean, concentration = one.distribution({name: v for name, v in known.items() if name not in missing})
        draws = []
        for _ in range(1500):
            curves = [
                rng.normal(0, spread) if name in missing else segments(known[name], knots) @ slopes - center
                for name, knots, slopes, center, spread in zip(
                    one.features, one.knots, one.slopes, one.center, one.spread, strict=True
                )
            ]
            share = np.clip(expit(one.intercept + sum(curves)), 1e-9, 1 - 1e-9)
            draws.append(rng.beta(one.concentration * share, one.concentration * (1 - share)))
        assert mean == pytest.approx(np.mean(draws), abs=0.05)
        assert mean * (1 - mean) / (concentration + 1) == pytest.approx(np.var(draws), abs=0.02)
        assert concentration <= one.concentration * (1 + 1e-9)
        if not missing:
            assert (mean, concentration) == (one.predict(known), one.concentration)


@pytest.mark.parametrize("made", [estimators, shipped])
@given(values=VALUES, name=st.sampled_from(FEATURES), more=st.floats(0, 20))
def test_predictions_are_shares_and_rise_with_every_feature(
    made: Callable[[], Estimators], values: dict[str, float], name: str, more: float
) -> None:
    """In (0, 1), and never less for more of anything."""
    for one in every(made()):
        before, after = one.predict(values), one.predict(values | {name: values[name] + more})
        assert 0 < before <= after < 1


@given(
    looks=st.sets(st.integers(1, 200), max_size=6).map(lambda found: sorted({0, *found})), seeds=st.integers(0, 1100)
)
def test_a_look_is_the_last_that_was_reached(looks: list[int], seeds: int) -> None:
    """The one of the most seeds that are not more than those drawn."""
    one = constant(0.5, 1.0)
    made = Estimators.model_validate(
        {
            "looks": [{"seeds": at, "recurring": one, "copied": one} for at in looks],
            "definition_samples": 512,
            "source": "",
        }
    )
    found = made.look(seeds).seeds
    assert found in looks
    assert found <= seeds
    assert not [at for at in looks if found < at <= seeds]


def _first(content: dict[str, Any], **changes: object) -> dict[str, Any]:
    """With another first estimator, of two features."""
    looks = json.loads(json.dumps(content["looks"]))
    looks[0]["recurring"] |= changes
    return {**content, "looks": looks}


def _without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: [],
        lambda c: _without(c, "looks"),
        lambda c: _without(c, "source"),
        lambda c: {**c, "unknown": 1},
        lambda c: {**c, "looks": []},
        lambda c: {**c, "looks": c["looks"][1:]},
        lambda c: {**c, "looks": c["looks"][::-1]},
        lambda c: {**c, "looks": [c["looks"][0], c["looks"][2], c["looks"][1]]},
        lambda c: {**c, "looks": [c["looks"][0], *c["looks"]]},
        lambda c: {**c, "definition_samples": "many"},
        lambda c: _first(c, slopes=[[1.0, 1.0]]),
        lambda c: _first(c, center=[0.0, 0.0, 0.0]),
        lambda c: _first(c, slopes=[[1.0, 1.0], [1.0, -0.1]]),
        lambda c: _first(c, slopes=[[1.0, 1.0], [1.0, None]]),
        lambda c: _first(c, slopes=[[1.0, 1.0], [1.0]]),
        lambda c: _first(c, knots=[[0.0], []], slopes=[[1.0, 1.0], [1.0]]),
        lambda c: _first(c, knots=[[0.0], [1.0, 0.0]], slopes=[[1.0, 1.0], [1.0, 1.0, 1.0]]),
        lambda c: _first(c, knots=[[0.0], [math.inf]]),
        lambda c: _first(c, spread=[1.0, -1.0]),
        lambda c: _first(c, features=["contrast_early", "mood"]),
        lambda c: _first(c, intercept=math.nan),
        lambda c: _first(c, center=[0.0, math.inf]),
        lambda c: _first(c, concentration=0.0),
        lambda c: _first(c, concentration=math.inf),
    ],
)
def test_bad_files_are_refused(damage: Callable[[Any], object]) -> None:
    """What is incomplete, out of order, of wrong lengths, negative or not finite is no estimator."""
    content = json.loads(estimators().model_dump_json())
    assert Estimators.model_validate_json(json.dumps(content)) == estimators()
    with pytest.raises(ValidationError):
        Estimators.model_validate_json(json.dumps(damage(content)))


def test_digests_tell_estimators_apart() -> None:
    """The same content has the same digest, any other another."""
    assert estimators().digest == estimators().digest
    assert estimators().digest.startswith("sha256:")
    others = {estimators(11.0).digest, estimators(copied=7.0).digest, shipped().digest, estimators().digest}
    assert len(others) == 4


def test_the_estimators_that_ship_are_whole() -> None:
    """There is one for every look that an audit may take, of the features that it gives, and no slope is negative."""
    made = shipped()
    assert made is shipped()
    assert made == Estimators.model_validate_json(FILE.read_text())
    assert tuple(look.seeds for look in made.looks) == LOOKS
    assert made.definition_samples == DEFINITION_SAMPLES
    assert made.source
    for look in made.looks:
        assert look.recurring.features == look.copied.features == names_of(look.seeds)
    assert min(slope for one in every(made) for curve in one.slopes for slope in curve) >= 0


def test_the_estimators_that_ship_tell_recall() -> None:
    """At every look, ordinary measurements are likelier not to recur, those of an isolated point are likelier to."""
    ordinary = dict.fromkeys((*CONTRASTS, *TRACES), 0.0) | {"closeness": -0.7, "meeting": math.log(0.5 / 497)}
    recalled = (
        dict.fromkeys(CONTRASTS, 15.0) | dict.fromkeys(TRACES, 1.0) | {"closeness": 1.5, "meeting": math.log(0.5)}
    )
    assert set(ordinary) == set(recalled) == {*CONTRASTS, *TRACES, *MEETINGS}
    for look in shipped().looks:
        assert look.recurring.predict(ordinary) < 0.5 < look.recurring.predict(recalled)
