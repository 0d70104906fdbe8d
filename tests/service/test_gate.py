"""Conditions that stop a release."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit.batch.discovery import Outcome
from audit.errors import InvalidInput
from service.gate import MOST_CHARACTERS, NAMES, check_condition, gate_values, tripped

#: Of 40 prompts, of which 2 failed.
OUTCOMES = [
    *[Outcome.MEMORIZED] * 3, *[Outcome.SPURIOUS] * 5, *[Outcome.GENERALIZED] * 20, *[Outcome.UNDECIDED] * 10,
    *[Outcome.FAILED] * 2,
]  # fmt: skip
VALUES = gate_values(OUTCOMES)


def refusal(condition: str) -> str:
    """Why a condition is refused, in one line, before any work and after it alike."""
    with pytest.raises(InvalidInput) as before:
        check_condition(condition)
    with pytest.raises(InvalidInput) as after:
        tripped(condition, VALUES)
    assert str(before.value) == str(after.value)
    assert (before.value.reason, before.value.field) == ("CONDITION_INVALID", "fail_on")
    assert len(str(before.value).splitlines()) == 1
    return str(before.value)


def answer(condition: str, values: dict[str, float]) -> bool | InvalidInput:
    """Whether it holds, or why it is refused."""
    try:
        return tripped(condition, values)
    except InvalidInput as error:
        return error


def test_names_mean_counts_and_rates() -> None:
    """Rates are shares of what could be audited; recurring is memorized or spurious."""
    assert VALUES == {
        "prompts": 40, "failed": 2, "memorized": 3, "spurious": 5, "generalized": 20, "undecided": 10, "recurring": 8,
        "memorized_rate": 3 / 38, "spurious_rate": 5 / 38, "generalized_rate": 20 / 38, "undecided_rate": 10 / 38,
        "recurring_rate": 8 / 38,
    }  # fmt: skip
    assert set(VALUES) == set(NAMES)


@pytest.mark.parametrize("outcomes", [[], [Outcome.FAILED] * 3])
def test_rates_of_nothing_are_zero(outcomes: list[Outcome]) -> None:
    """Where no prompt was audited, no rate trips a gate."""
    values = gate_values(outcomes)
    assert (values["prompts"], values["failed"]) == (len(outcomes), len(outcomes))
    assert all(value == 0 for name, value in values.items() if name not in ("prompts", "failed"))
    assert set(values) == set(NAMES)


@given(st.lists(st.sampled_from(Outcome)))
def test_counts_add_up(outcomes: list[Outcome]) -> None:
    """Every prompt recurs, or is one of the other three; rates add up to one where any prompt was audited."""
    values = gate_values(outcomes)
    kinds = ("recurring", "generalized", "undecided")
    assert sum(values[name] for name in (*kinds, "failed")) == values["prompts"] == len(outcomes)
    audited = values["prompts"] > values["failed"]
    assert sum(values[f"{name}_rate"] for name in kinds) == pytest.approx(float(audited))
    unsorted = outcomes.count(Outcome.RECURRING)
    assert values["recurring"] == values["memorized"] + values["spurious"] + unsorted


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("memorized > 0", True),
        ("memorized > 3", False),
        ("memorized >= 3", True),
        ("memorized == 3", True),
        ("memorized != 3", False),
        ("3 < memorized", False),
        ("recurring_rate > 0.2", True),
        ("recurring_rate>.22", False),
        ("recurring_rate > 2e-1", True),
        ("memorized > 5 or spurious > 4", True),
        ("memorized > 5 and spurious > 4", False),
        ("not memorized > 5", True),
        ("not (memorized > 5 or failed > 1)", False),
        ("memorized > 5 or failed > 1 and prompts == 40", True),
        ("1 < memorized <= 3", True),
        ("1 < memorized < 3", False),
        ("memorized + spurious == recurring", True),
        ("recurring - memorized * 2 <= -1", False),
        ("2 * (memorized + 1) == 8", True),
        ("undecided_rate * (prompts - failed) == undecided", True),
        ("-memorized < 0", True),
        ("  memorized > 0\t", True),
        ("(memorized\n> 0)", True),
        ("memorized < 1e999", True),
        ("(memorized > 0) == (spurious > 0)", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    """Comparisons, arithmetic, logic, parentheses, as anyone would read them."""
    check_condition(condition)
    assert tripped(condition, VALUES) is holds


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_asked_for(name: str) -> None:
    """In a condition that changes where its value does."""
    assert tripped(f"{name} > 0.5", {**VALUES, name: 1.0})
    assert not tripped(f"{name} > 0.5", {**VALUES, name: 0.0})


@pytest.mark.parametrize(
    "condition",
    [
        "", " ", "memorized >", "> 0", "memorized > 0 spurious > 0", "memorized => 0", "memorized = 0",
        "memorized := 0", "memorized 0", "memorized > 0,", "memorized > 1,5", "memorized > 5%",
        "memorized > 0 && spurious > 0", "(memorized > 0", "memorized > 0)", "memorized > 0; spurious > 0",
        "memorized > 0\nspurious > 0", "# memorized > 0", "memorized > 1and spurious > 1", "memorized > 0x",
        "memorized > 1" + "0" * 400, "\0", "memorized > 0\0", "\ud800 > 0",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(condition: str) -> None:
    """Before hours of work, with the condition in the message."""
    assert repr(condition) in refusal(condition)


@pytest.mark.parametrize(
    "condition",
    ["memorized", "5", "memorized + 1", "True", "memorized > 0 or 5", "spurious < 0 or memorized", "not memorized",
     "memorized > 0 and spurious", "-(memorized > 0)"],
)  # fmt: skip
def test_values_are_no_conditions(condition: str) -> None:
    """Also where the values at hand would not let them matter."""
    assert "compare it with a number" in refusal(condition)


@pytest.mark.parametrize(
    "condition",
    ["Memorized > 0", "memorised > 0", "memorized_rates > 0", "memorized > 0 or unknown > 1",
     "memorized < 0 and unknown > 1", "5 < memorized < unknown", "__builtins__ > 0", "print > 0", "(unknown\n> 1)"],
)  # fmt: skip
def test_unknown_names_are_refused(condition: str) -> None:
    """Those that are known are listed, even where logic would not have come to the unknown one."""
    said = refusal(condition)
    assert "there is no" in said
    assert "recurring_rate" in said


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("memorized / prompts > 0.1", "Div"),
        ("memorized // 1 > 0", "FloorDiv"),
        ("memorized % 2 == 0", "Mod"),
        ("memorized ** 2 > 4", "Pow"),
        ("9**9**9**9 > memorized", "Pow"),
        ("memorized << 999999 > 0", "LShift"),
        ("~memorized > 0", "Invert"),
        ("+memorized > 0", "UAdd"),
        ("memorized in (1, 2)", "In"),
        ("memorized is 1", "Is"),
        ("memorized & 1 > 0", "BitAnd"),
        ("memorized.real > 0", "Attribute"),
        ("memorized.__class__ > 0", "Attribute"),
        ("().__class__.__base__.__subclasses__() == 0", "Call"),
        ("(1).to_bytes(9999999999, 'big') == 0", "Call"),
        ("'a'.ljust(9999999999) == 0", "Call"),
        ("print(1) > 0", "Call"),
        ("__import__('os').system('true') == 0", "Call"),
        ("(lambda: 1)() > 0", "Call"),
        ("(lambda: memorized) > 0", "Lambda"),
        ("[1 for _ in range(9999999999)] == 0", "ListComp"),
        ("{1: 2} == 0", "Dict"),
        ("(1, 2) > 0", "Tuple"),
        ("[1] == [1]", "List"),
        ("f'{1:>9999999999}' == 0", "JoinedStr"),
        ("memorized[0] > 0", "Subscript"),
        ("1 if memorized else 2", "IfExp"),
        ("(memorized > 0 if memorized else 2 > 1)", "IfExp"),
        ("(memorized := 5) > 0", "NamedExpr"),
        ("(await memorized) > 0", "Await"),
        ("(yield) > 0", "Yield"),
        ("'memorized' > 'a'", "'memorized'"),
        ("'a' * 99999999 == 'a'", "'a'"),
        ("b'a' == b'a'", "b'a'"),
        ("None == None", "None"),
        ("... == ...", "Ellipsis"),
        ("1j == 1j", "1j"),
    ],
)
def test_the_rest_of_python_is_refused(condition: str, what: str) -> None:
    """Nothing of it is evaluated: these would run for years, fill the memory or get hold of the interpreter."""
    assert what in refusal(condition).rsplit(":", 1)[-1]


@pytest.mark.parametrize(
    "condition",
    ["(" * 240 + "memorized > 0" + ")" * 240, "-" * 480 + "memorized > 0", "not " * 120 + "memorized > 0",
     "memorized > " + "[" * 400, "memorized > 0 " + "or 1 > 0 " * 50, "1" + "*1" * 240 + " > 0",
     "(1>" * 150 + "0" + ")" * 150, "9" * 300 + "*" + "9" * 190 + " > 0"],
)  # fmt: skip
def test_nesting_breaks_nothing(condition: str) -> None:
    """However deep 500 characters go: there is an answer or a refusal."""
    found = answer(condition, VALUES)
    assert found in (True, False) or isinstance(found, InvalidInput)


def test_long_conditions_are_refused() -> None:
    """The longest one is read; one character more is not."""
    longest = "memorized > 0".ljust(MOST_CHARACTERS)
    assert tripped(longest, VALUES)
    assert str(MOST_CHARACTERS) in refusal(longest + " ")
    assert str(MOST_CHARACTERS) in refusal("9" * 10_000_000)


@given(
    st.text(max_size=60)
    | st.text("0123456789.e+-*/()<>=!&|^~%@[]{}:;,'\"\\ \n\tandornotlambdaif_", max_size=60)
    | st.lists(
        st.sampled_from(
            [*NAMES, "and", "or", "not", "in", "is", "if", "else", "lambda", "for", "(", ")", "[", "]", "0", "1", "0.5",
             "1e308", "9" * 60, "<", ">", "==", "!=", "+", "-", "*", "**", "/", ".", ",", ":", "'", "_", "x", "True"]
        ),
        max_size=14,
    ).map(" ".join)
)  # fmt: skip
@example("memorized > 0 or (1e308 * 10 - 1e308 * 10) < 1")
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    """And what `check_condition` lets pass has an answer, whatever the values."""
    found = [answer(text, values) for values in (VALUES, gate_values([]), dict.fromkeys(NAMES, 1e9))]
    if isinstance(found[0], InvalidInput):
        assert {str(one) for one in found} == {refusal(text)}
    else:
        check_condition(text)
        assert set(found) <= {True, False}


numbers = st.sampled_from(NAMES) | st.integers(0, 50).map(str) | st.floats(0, 1).map(repr)
sums = st.recursive(
    numbers,
    lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(lambda found: f"({' '.join(found)})"),
    max_leaves=4,
)
conditions = st.recursive(
    st.tuples(sums, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), sums).map(" ".join),
    lambda part: (
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda found: f"({' '.join(found)})")
        | part.map(lambda one: f"(not {one})")
    ),
    max_leaves=4,
)


@given(conditions, st.lists(st.sampled_from(Outcome), max_size=40))
@settings(deadline=None)
def test_conditions_mean_what_python_means(condition: str, outcomes: list[Outcome]) -> None:
    """Precedence, chains and logic are Python's own."""
    values = gate_values(outcomes)
    if len(condition) > MOST_CHARACTERS:
        assert str(MOST_CHARACTERS) in refusal(condition)
    else:
        expected = eval(condition, {}, {name: float(value) for name, value in values.items()})
        assert tripped(condition, values) is expected
