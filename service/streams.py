"""Streams of requests that begin with a header."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from audit.errors import InvalidInput


async def headed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream, as they come: the first has a header, the others have none.

    Raises:
        InvalidInput: it is not so.
    """
    begun = False
    async for request in requests:
        if (request.WhichOneof("part") == "header") is begun:
            raise InvalidInput(
                "the header stands in the first message, and only there", reason="HEADER_MISPLACED", field="header"
            )
        begun = True
        yield request
    if not begun:
        raise InvalidInput("the stream was empty", reason="HEADER_MISSING", field="header")
