"""Two checkpoints side by side: which ones, which of their prompts, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit import demo
from audit.batch.comparison import CLAIMS, Change
from audit.errors import InvalidInput
from audit.v1 import audit_pb2
from service.comparison import Comparison, Side, choose_sides
from service.gate import COMPARED_COUNTS, COMPARED_NAMES, check_condition, tripped
from service.local_batch import LocalBatch, Wanted
from service.results import OpenedRun, open_run
from service.store.engine import connect
from service.store.retention import Retention, expire
from tests.service.runs import Change as Make
from tests.service.runs import make_up, plain_report, settle

SURE = {"memorized": (1.0, 0.0, 0.0), "spurious": (0.0, 1.0, 0.0), "generalized": (0.0, 0.0, 1.0)}


def as_classes(*names: str) -> Make:
    """Prompts that are of these classes for sure, one after the other."""
    return lambda report, position: settle(report, *SURE[names[position]])


def as_prompts(*texts: str) -> Make:
    """Prompts of these texts, all of which generalize."""

    def change(report, position):
        report.prompt = texts[position]

    return change


class Runs:
    """Runs that were made up and are open.

    Args:
        root: folder to make them in.
        opened: closes them.
    """

    def __init__(self, root: Path, opened: ExitStack) -> None:
        self._root = root
        self._opened = opened

    def make(self, name: str, count: int, changes: dict[str, Make]) -> OpenedRun:
        """A run of some checkpoints."""
        make_up(self._root / name, count, plain_report(), changes)
        return self._opened.enter_context(open_run(self._root / name))

    def named(self, name: str, *checkpoints: str) -> OpenedRun:
        """A run of one prompt that generalizes under checkpoints of these names."""
        return self.make(name, 1, dict.fromkeys(checkpoints, as_prompts("a prompt")))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Where runs are made."""
    with ExitStack() as opened:
        yield Runs(tmp_path, opened)


def compared(before: Side, after: Side, rate: float = 0.05) -> Comparison:
    """As `basin compare` does."""
    return Comparison(before, after, rate)


# Which sides.


@pytest.mark.parametrize(
    ("names", "given", "chosen"),
    [
        (["a", "b"], ("", ""), ("a", "b")),
        (["b", "a"], ("", ""), ("b", "a")),  # in the order of the run, not of the alphabet
        (["a", "b"], ("b", ""), ("b", "a")),
        (["a", "b"], ("", "a"), ("b", "a")),
        (["a", "b", "c"], ("c", "a"), ("c", "a")),
    ],
)
def test_two_checkpoints_of_one_run(
    runs: Runs, names: list[str], given: tuple[str, str], chosen: tuple[str, str]
) -> None:
    """Those that are named; of two, what is not named is what is left."""
    run = runs.named("run", *names)
    before, after = choose_sides(run, run, *given)
    assert (before.checkpoint, after.checkpoint) == chosen


@pytest.mark.parametrize(
    ("one", "other", "given", "chosen"),
    [
        (["a"], ["b"], ("", ""), ("a", "b")),
        (["a"], ["a"], ("", ""), ("a", "a")),
        (["a", "b"], ["b"], ("", ""), ("b", "b")),
        (["a"], ["a", "b"], ("", ""), ("a", "a")),
        (["a", "b"], ["b", "c"], ("", ""), ("b", "b")),
        (["a", "b"], ["a", "b"], ("", "b"), ("b", "b")),
        (["a", "b"], ["a", "b"], ("a", "b"), ("a", "b")),
    ],
)
def test_checkpoints_of_two_runs(
    runs: Runs, one: list[str], other: list[str], given: tuple[str, str], chosen: tuple[str, str]
) -> None:
    """Those that are named, the only one of a run, or the one that both have."""
    before, after = choose_sides(runs.named("one", *one), runs.named("other", *other), *given)
    assert (before.checkpoint, after.checkpoint) == chosen


@pytest.mark.parametrize(
    ("one", "other", "given", "words"),
    [
        (["a"], None, ("", ""), ["holds one checkpoint, 'a'"]),
        (["a", "b", "c"], None, ("", ""), ["--before", "'a', 'b', 'c'"]),
        (["a", "b", "c"], None, ("a", ""), ["--after", "'a', 'b', 'c'"]),
        (["a", "b"], None, ("x", ""), ["no checkpoint 'x'", "'a', 'b'"]),
        (["a", "b"], ["c"], ("", ""), ["--before", "'a', 'b'"]),
        (["a", "b"], ["a", "b"], ("", ""), ["--before", "'a', 'b'"]),
        (["c"], ["a", "b"], ("", ""), ["--after", "'a', 'b'"]),
        (["a"], ["b"], ("", "a"), ["other holds no checkpoint 'a'", "'b'"]),
    ],
)
def test_what_is_unclear_is_asked(
    runs: Runs, one: list[str], other: list[str] | None, given: tuple[str, str], words: list[str]
) -> None:
    """With the names that there are to choose from."""
    first = runs.named("one", *one)
    second = first if other is None else runs.named("other", *other)
    with pytest.raises(InvalidInput) as error:
        choose_sides(first, second, *given)
    assert all(word in str(error.value) for word in words)
    assert len(str(error.value).splitlines()) == 1


def test_a_side_is_not_compared_with_itself(runs: Runs) -> None:
    """Also where the run was opened twice."""
    run = runs.named("run", "a", "b")
    with open_run(run.path) as again, pytest.raises(InvalidInput, match="both sides are 'a'"):
        compared(Side(run, "a"), Side(again, "a"))


# Which prompts.


def test_prompts_are_matched_to_the_letter(runs: Runs) -> None:
    """A duplicate counts once; case, spaces and composed letters make another prompt."""
    one = runs.make("one", 5, {"a": as_prompts("a cat", "a dog", "a cat", "caf\u00e9", "only one")})
    other = runs.make("other", 5, {"a": as_prompts("a dog", "A cat", "a cat", "cafe\u0301", " a dog")})
    found = compared(Side(one, "a"), Side(other, "a"))
    assert sorted(pair.prompt for pair in found.pairs) == ["a cat", "a dog"]
    assert found.only_before == ["caf\u00e9", "only one"]
    assert found.only_after == ["A cat", "cafe\u0301", " a dog"]
    assert [found.values[name] for name in ("prompts", "failed", "only_before", "only_after")] == [2, 0, 2, 3]


def test_nothing_in_common_is_refused(runs: Runs) -> None:
    """In one line that names both sides."""
    one, other = (runs.make(name, 1, {"a": as_prompts(name)}) for name in ("one", "other"))
    with pytest.raises(InvalidInput, match=r"'a' of .*one and 'a' of .*other have no prompt in common"):
        compared(Side(one, "a"), Side(other, "a"))


def test_prompts_that_were_removed_are_not_compared(runs: Runs, tmp_path: Path) -> None:
    """They would all look the same; it is said how to put them back."""
    kept = runs.named("kept", "a", "b")
    runs.named("expired", "a", "b")
    engine = connect(f"sqlite:///{tmp_path}/expired/basin.db")
    expire(engine, Retention(prompts=0), datetime.now(UTC) + timedelta(days=1))
    engine.dispose()
    with open_run(tmp_path / "expired") as expired:
        for before, after in ((Side(kept, "a"), Side(expired, "b")), (Side(expired, "a"), Side(expired, "b"))):
            with pytest.raises(InvalidInput, match=r"the prompts of .*expired were removed; the command") as refused:
                compared(before, after)
            assert refused.value.reason == "PROMPTS_REMOVED"


# What is counted.


def test_claims_count_where_they_are_made(runs: Runs) -> None:
    """Nine prompts, one of each pair of classes: counts, rates, and the order in which they are shown."""
    kinds = list(SURE)
    before, after = [one for one in kinds for _ in kinds], kinds * 3
    run = runs.make("run", 9, {"a": as_classes(*before), "b": as_classes(*after)})
    found = compared(Side(run, "a"), Side(run, "b"))
    assert found.values == {
        "prompts": 9, "failed": 0, "only_before": 0, "only_after": 0,
        "new_memorized": 2, "new_spurious": 2, "new_recurring": 2, "gone_memorized": 2, "gone_spurious": 2,
        "gone_recurring": 2, "changed": 6, "undecided": 0, "unchanged": 3,
        **{f"{name}_rate": found.values[name] / 9 for name in COMPARED_COUNTS},
    }  # fmt: skip
    assert set(found.values) == set(COMPARED_NAMES)
    assert [pair.said is Change.NEW_MEMORIZED for pair in found.pairs] == [True] * 2 + [False] * 7
    assert [bool(pair.claims) for pair in found.pairs] == [True] * 6 + [False] * 3
    for pair in found.pairs:
        assert pair.said in (pair.claims or [Change.UNCHANGED])
        assert set(pair.probabilities) == set(CLAIMS)
    assert found.shifts["memorized"].difference.estimate == 0
    assert not found.shifts["memorized"].beyond_noise


def test_the_second_audit_of_a_flagged_prompt_counts(runs: Runs) -> None:
    """What the first one said was used up by the choice."""

    def flagged_twice(report, position):
        settle(report, 0.6, 0.4, 0.0)

    run = runs.make("run", 1, {"a": as_classes("generalized"), "b": flagged_twice})
    (pair,) = compared(Side(run, "a"), Side(run, "b")).pairs
    assert pair.answers is not None
    assert pair.answers[1] == pair.after.row.second
    assert pair.said is Change.NEW_RECURRING


def test_one_audit_under_two_names_changed_nothing(runs: Runs, tmp_path: Path) -> None:
    """The same key, the same audit, whatever its checkpoint is called and however unsure it is."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(demo.prompts()[:3]))
    budget = audit_pb2.BudgetOptions(seeds=2, curvature="off")
    wanted = Wanted((str(demo.CHECKPOINT), "demo"), file, "", audit_pb2.SamplerOptions(steps=2), budget)
    with closing(LocalBatch(wanted, tmp_path / "run")) as batch:
        names = list(batch.names)
        batch.run()
    with open_run(tmp_path / "run") as run:
        found = compared(Side(run, names[0]), Side(run, names[1]))
        assert all(pair.same for pair in found.pairs)
        assert {pair.said for pair in found.pairs} == {Change.UNCHANGED}
        assert found.shifts["generalized"].difference.upper == 0


def test_what_was_not_audited_is_not_compared(tmp_path: Path) -> None:
    """A failed audit and one that is still to be done are no answers, and no class is made of them."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(demo.prompts()[:6]))
    budget = audit_pb2.BudgetOptions(seeds=2, curvature="off")
    sampler = audit_pb2.SamplerOptions(steps=2)
    other = tmp_path / "other"
    other.symlink_to(demo.CHECKPOINT)
    wanted = Wanted(("demo", str(other)), file, "", sampler, budget)
    with closing(LocalBatch(wanted, tmp_path / "run")):
        pass  # taken in, and left
    with open_run(tmp_path / "run") as run:
        found = compared(*choose_sides(run, run))
        assert [pair.said for pair in found.pairs] == [None] * 6
        assert all(pair.is_open for pair in found.pairs)
        assert (found.values["prompts"], found.values["failed"], found.values["changed_rate"]) == (6, 6, 0)
        assert found.shifts["memorized"].before.upper == 0


def test_failed_audits_are_not_open(runs: Runs, tmp_path: Path) -> None:
    """A prompt that one side refuses cannot be compared, and never will be."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"{demo.prompts()[0]}\n{'word ' * 200}\n")
    budget = audit_pb2.BudgetOptions(seeds=2, curvature="off")
    wanted = Wanted(("demo", str(demo.CHECKPOINT)), file, "", audit_pb2.SamplerOptions(steps=2), budget)
    with closing(LocalBatch(wanted, tmp_path / "run")) as batch:
        batch.run()
    with open_run(tmp_path / "run") as run:
        found = compared(*choose_sides(run, run))
    assert [(pair.said, pair.is_open) for pair in found.pairs] == [(Change.UNCHANGED, False), (None, False)]
    assert (found.values["failed"], found.values["unchanged_rate"]) == (1, 1.0)


# Conditions.


def test_conditions_of_a_comparison_have_names_of_their_own(runs: Runs) -> None:
    """Those of a batch are unknown there, and the other way round; what may be said is listed."""
    run = runs.make("run", 1, {"a": as_classes("generalized"), "b": as_classes("memorized")})
    values = compared(Side(run, "a"), Side(run, "b")).values
    assert tripped("new_memorized > 0 and new_memorized_rate == 1", values)
    assert not tripped("gone_memorized > 0 or undecided > 0", values)
    for name in COMPARED_NAMES:
        check_condition(f"{name} > 0", COMPARED_NAMES)
    with pytest.raises(InvalidInput, match=r"there is no memorized; names: .*new_memorized_rate"):
        check_condition("memorized > 0", COMPARED_NAMES)
    with pytest.raises(InvalidInput, match=r"there is no new_memorized; names: .*memorized_rate"):
        check_condition("new_memorized > 0")
