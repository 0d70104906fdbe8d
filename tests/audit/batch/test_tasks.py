"""The digest that knows whether an audit was done before."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit import demo
from audit.auditor import Auditor
from audit.batch import tasks
from audit.batch.tasks import Subject
from audit.budget import Budget
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.limits import MAX_SEED, MAX_SEEDS
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.model.sampling import SamplerSettings
from audit.verdict.decision import ALGORITHM

SUBJECT = Subject(
    checkpoint_digest="sha256:weights",
    precision="float32",
    sampler=SamplerSettings("ddim", 20, 1.0, "", 32, 32, 0.0),
    budget=Budget(16, 8, 0, 512, CurvatureSettings("lanczos", 4, (0.15, 0.35), 2, 4, True)),
    reference_digest="sha256:images",
    embedder_digest="sha256:clip",
    calibration_digest="sha256:thresholds",
)
#: Another value of everything that a subject consists of.
OTHERS: dict[str, Any] = {
    "checkpoint_digest": "sha256:weight",
    "precision": "float16",
    "sampler.scheduler": "ddpm",
    "sampler.steps": 21,
    "sampler.guidance": 1.5,
    "sampler.negative_prompt": "blurred",
    "sampler.height": 64,
    "sampler.width": 64,
    "sampler.eta": 0.5,
    "sampler.true_guidance": 2.0,
    "sampler.embedded": True,
    "budget.seeds": 17,
    "budget.minimum_seeds": 9,
    "budget.first_seed": 1,
    "budget.definition_samples": 513,
    "budget.curvature.method": "dense",
    "budget.curvature.samples": 5,
    "budget.curvature.noise_levels": (0.35, 0.15),
    "budget.curvature.probes": 3,
    "budget.curvature.steps": 5,
    "budget.curvature.baseline": False,
    "reference_digest": "",
    "embedder_digest": "",
    "calibration_digest": "sha256:others",
}


def places(value: object, prefix: str = "") -> list[str]:
    """The dotted names of all that a dataclass holds."""
    found: list[str] = []
    assert is_dataclass(value)
    for one in fields(value):
        held = getattr(value, one.name)
        found += places(held, f"{prefix}{one.name}.") if is_dataclass(held) else [prefix + one.name]
    return found


def changed(value: Any, place: str, other: object) -> Any:
    """A dataclass with another value at a dotted name."""
    name, _, rest = place.partition(".")
    return replace(value, **{name: changed(getattr(value, name), rest, other) if rest else other})


def test_keys_are_the_same_in_every_process_and_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that changed without a reason would do finished work again."""
    monkeypatch.setattr(tasks, "ALGORITHM", 1)
    monkeypatch.setattr(tasks, "shipped", lambda: SimpleNamespace(digest="sha256:estimators"))
    assert SUBJECT.key("a red shirt") == "94082c4f9a20cbbdd4ac571f0d5fdd6b6b797beccd7a470e83a90d0b24371701"
    assert SUBJECT.key("  Zoë\u2028🎨\n") == "65781b22858c51e5dde5141dd4ae538bfb2de65320a5b51f73e6c769a9f22e41"


@pytest.mark.parametrize("place", places(SUBJECT))
def test_everything_that_decides_an_audit_is_in_its_key(place: str) -> None:
    """Each field of the subject, also those that are yet to come: this test fails until `OTHERS` names them."""
    other = changed(SUBJECT, place, OTHERS[place])
    assert other != SUBJECT
    assert other.key("a red shirt") != SUBJECT.key("a red shirt")


def test_keys_of_all_changes_differ() -> None:
    """No two of them are mixed up, and nothing is named that is not there."""
    subjects = [SUBJECT, *(changed(SUBJECT, place, other) for place, other in OTHERS.items())]
    assert len({subject.key("a red shirt") for subject in subjects}) == len(OTHERS) + 1
    assert set(OTHERS) == set(places(SUBJECT))


@given(st.lists(st.text(), min_size=2, max_size=5, unique=True))
def test_keys_tell_prompts_apart(prompts: list[str]) -> None:
    """To the last space; the same prompt has the same key."""
    keys = [SUBJECT.key(prompt) for prompt in prompts]
    assert len(set(keys)) == len(prompts)
    assert keys == [replace(SUBJECT).key(prompt) for prompt in prompts]


def test_another_algorithm_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that another version of the verdict gave is not served."""
    before = SUBJECT.key("a red shirt")
    monkeypatch.setattr(tasks, "ALGORITHM", ALGORITHM + 1)
    assert SUBJECT.key("a red shirt") != before


@given(st.integers(0, MAX_SEED) | st.integers(MAX_SEED - 2 * MAX_SEEDS, MAX_SEED), st.integers(2, MAX_SEEDS))
def test_confirmation_draws_fresh_seeds(first: int, seeds: int) -> None:
    """As many, none of them used before, and nothing else differs."""
    subject = replace(SUBJECT, budget=replace(SUBJECT.budget, first_seed=first, seeds=seeds))
    fresh = subject.confirmation.budget
    assert fresh.seeds == seeds
    assert abs(fresh.first_seed - first) >= seeds
    assert replace(subject.confirmation, budget=subject.budget) == subject
    assert replace(fresh, first_seed=first) == subject.budget
    assert subject.confirmation.key("x") != subject.key("x")


def test_subject_of_an_auditor(auditor: Auditor, checkpoint: Checkpoint) -> None:
    """It holds what the auditor audits with, every setting of the sampler filled in."""
    assert auditor.reference is not None
    assert auditor.reference.embedder is not None
    found = Subject.of(auditor, Budget(seeds=8), {"steps": 5, "guidance": None})
    assert found == Subject(
        checkpoint_digest=checkpoint.digest,
        precision="float32",
        sampler=replace(auditor.defaults, steps=5),
        budget=Budget(seeds=8),
        reference_digest=auditor.reference.digest,
        embedder_digest=auditor.reference.embedder.digest,
        calibration_digest=demo.calibration().digest,
    )
    assert found.sampler.height
    assert found.sampler.width
    alone = Subject.of(Auditor(checkpoint), Budget(seeds=8), {})
    assert (alone.reference_digest, alone.embedder_digest) == ("", "")
    assert alone.calibration_digest == demo.default_calibration().digest != found.calibration_digest


def test_precision_is_that_of_the_weights(auditor: Auditor) -> None:
    """The same weights in half precision give other answers, and so have other keys."""
    half = Auditor(load_checkpoint(demo.CHECKPOINT, name="demo", dtype=torch.bfloat16), auditor.reference)
    found = Subject.of(half, Budget(), {})
    assert found.precision == "bfloat16"
    whole = Subject.of(Auditor(auditor.checkpoint, auditor.reference), Budget(), {})
    assert replace(found, precision=whole.precision) == whole
    assert found.key("a red shirt") != whole.key("a red shirt")


def test_subject_of_an_impossible_setting(auditor: Auditor) -> None:
    """It is refused before any audit begins."""
    with pytest.raises(InvalidInput) as refused:
        Subject.of(auditor, Budget(), {"height": 33})
    assert refused.value.field == "sampler.height"
