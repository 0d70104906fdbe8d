"""Pages of named things (AIP-158)."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence

from audit.errors import InvalidInput

DEFAULT_SIZE = 100
MAX_SIZE = 1000


def page(names: Sequence[str], size: int, token: str) -> tuple[Sequence[str], str]:
    """One page and the token of the next one, "" at the end.

    Args:
        names: all of them, sorted.
        size: most wanted; 0 lets us choose, and we never give more than `MAX_SIZE`.
        token: of the page, "" for the first.

    Raises:
        InvalidInput: the size is negative, or the token none of ours.
    """
    if size < 0:
        raise InvalidInput(
            f"page_size must not be negative, as {size} is", reason="PAGE_SIZE_NEGATIVE", field="page_size"
        )
    try:
        last = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidInput(
            "this page token was not given out", reason="PAGE_TOKEN_INVALID", field="page_token"
        ) from error
    start = bisect_right(names, last) if token else 0
    found = names[start : start + min(size or DEFAULT_SIZE, MAX_SIZE)]
    more = start + len(found) < len(names)
    return found, base64.urlsafe_b64encode(found[-1].encode()).decode() if more else ""
