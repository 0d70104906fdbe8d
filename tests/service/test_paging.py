"""Tokens of pages and cursors, and the sizes of pages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.errors import InvalidInput
from service.paging import DEFAULT_SIZE, MAX_SIZE, page, page_size, read_token, write_token

characters = st.characters(codec="utf-8", exclude_characters="\0")
parts = st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(characters), max_size=4)


@given(parts)
def test_tokens_are_read_as_they_were_written(given_parts: list[Any]) -> None:
    """Whatever text and whole numbers they hold, in letters that a URL may hold."""
    token = write_token(*given_parts)
    assert token.replace("-", "").replace("_", "").rstrip("=").isalnum()
    assert read_token(token, "cursor", *map(type, given_parts)) == tuple(given_parts)


@given(parts, parts)
def test_tokens_of_another_kind_are_refused(one: list[Any], other: list[Any]) -> None:
    """A cursor is no page token: number and kinds of parts must be those that are asked for."""
    kinds = [type(part) for part in other]
    if [type(part) for part in one] == kinds:
        read_token(write_token(*one), "cursor", *kinds)
        return
    with pytest.raises(InvalidInput) as refused:
        read_token(write_token(*one), "cursor", *kinds)
    assert (refused.value.reason, refused.value.field) == ("CURSOR_INVALID", "cursor")


@given(st.text() | st.binary().map(lambda content: base64.urlsafe_b64encode(content).decode()))
@example("W10")  # without its padding
@example(base64.urlsafe_b64encode(100_000 * b"[").decode())
@example(base64.urlsafe_b64encode(b"[" + 5000 * b"9" + b', "x"]').decode())
def test_anything_else_is_refused(token: str) -> None:
    """In one line that names the field, whatever it is."""
    with pytest.raises(InvalidInput) as refused:
        read_token(token, "page_token", int, str)
    assert (refused.value.reason, refused.value.field) == ("PAGE_TOKEN_INVALID", "page_token")
    assert str(refused.value) == "this page token was not given out"


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.lists(any_json, max_size=3) | any_json)
@example([2**63, "x"])
@example([-(2**63) - 1, "x"])
@example([0, "\0"])
@example([0, "\ud800"])
@example([True, "x"])
def test_parts_are_such_as_a_database_can_be_asked_for(content: Any) -> None:
    """A forged token gives 64-bit integers and text that can be encoded, or nothing."""
    token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    try:
        number, text = read_token(token, "cursor", int, str)
    except InvalidInput:
        return
    assert [number, text] == content
    assert type(number) is int
    number.to_bytes(8, "big", signed=True)
    assert "\0" not in text
    text.encode()


def test_page_sizes() -> None:
    """0 leaves it to the server, which never gives more than it may; less than nothing is refused."""
    assert [page_size(size) for size in (0, 1, MAX_SIZE, 10**9)] == [DEFAULT_SIZE, 1, MAX_SIZE, MAX_SIZE]
    with pytest.raises(InvalidInput) as refused:
        page_size(-1)
    assert (refused.value.reason, refused.value.field) == ("PAGE_SIZE_NEGATIVE", "page_size")


names = st.lists(st.text(characters, min_size=1, max_size=5), unique=True, max_size=30)


@given(names, st.integers(0, 40))
def test_pages_hold_everything_once(found: list[str], size: int) -> None:
    """Following the tokens gives every name once and in order."""
    found.sort()
    seen, token = [], ""
    while True:
        part, token = page(found, size, token)
        seen += part
        if not token:
            break
    assert seen == found


@given(names.filter(lambda found: len(found) > 2))
def test_a_page_goes_on_where_names_came_and_went(found: list[str]) -> None:
    """A token holds the last name of its page, which need not be there any more."""
    found.sort()
    _, token = page(found, 1, "")
    rest, _ = page(found[1:], 0, token)
    assert list(rest) == found[1:]
