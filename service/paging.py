"""Pages of lists (AIP-158), and tokens that say where to go on."""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from audit.errors import InvalidInput

DEFAULT_SIZE = 100
MAX_SIZE = 1000


def page(names: Sequence[str], size: int, token: str) -> tuple[Sequence[str], str]:
    """One page and the token of the next one, "" at the end.

    Args:
        names: all of them, sorted.
        size: as `page_size` takes it.
        token: of the page, "" for the first.

    Raises:
        InvalidInput: the size is negative, or the token none of ours.
    """
    most, start = page_size(size), 0
    if token:
        (last,) = read_token(token, "page_token", str)
        start = bisect_right(names, last)
    found = names[start : start + most]
    more = start + len(found) < len(names)
    return found, write_token(found[-1]) if more else ""


def page_size(size: int) -> int:
    """How many a page holds, where so many are wanted; 0 lets us choose, and we never give more than `MAX_SIZE`.

    Raises:
        InvalidInput: it is negative.
    """
    if size < 0:
        raise InvalidInput(
            f"page_size must not be negative, as {size} is", reason="PAGE_SIZE_NEGATIVE", field="page_size"
        )
    return min(size or DEFAULT_SIZE, MAX_SIZE)


def write_token(*parts: str | int) -> str:
    """A token that `read_token` reads."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def read_token(token: str, field: str, *kinds: type) -> tuple[Any, ...]:
    """The parts of a token.

    Args:
        token: of a request.
        field: where it stands.
        kinds: of the parts.

    Raises:
        InvalidInput: it is none of ours.
    """
    try:
        parts = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds) or not all(map(_is_sane, parts)):
        raise not_given_out(field)
    return tuple(parts)


def not_given_out(field: str) -> InvalidInput:
    """What to say of a token that is none of ours."""
    return InvalidInput(
        f"this {field.replace('_', ' ')} was not given out", reason=f"{field.upper()}_INVALID", field=field
    )


def _is_sane(part: str | int) -> bool:
    """Whether a database can be asked for it."""
    if isinstance(part, int):
        return -(2**63) <= part < 2**63
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in part)
