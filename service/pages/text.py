"""How pages and Markdown write numbers, and text that comes from users."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

#: Format characters that ordinary text needs: the joiners of Persian, Indic scripts and emoji.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """Text with its control characters spelled out.

    Unseen, they would turn what stands beside them around, or make two prompts look the same.
    """
    return "".join(
        f"⟨U+{ord(one):04X}⟩" if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") and one not in _JOINERS else one
        for one in text
    )


def shorten(text: str, most: int) -> str:
    """At most so many characters; an ellipsis says that there were more."""
    return text if len(text) <= most else text[: most - 1] + "…"


def percent(probability: float) -> str:
    """A probability in percent, never quite certain."""
    if probability >= 0.995:
        return ">99%"
    return "<1%" if probability < 0.005 else f"{probability:.0%}"


def count(number: int, noun: str) -> str:
    """A number with its noun, which takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def spoken(name: str) -> str:
    """A name of machines as people read it."""
    return name.replace("_", " ")


def moment(time: datetime) -> str:
    """A time for people."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def code_span(text: str) -> str:
    """Text as a Markdown code span, in which nothing is markup: no link, no mention, no HTML."""
    shown = visible(text) or " "  # nothing is no code span
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # One space at each end is dropped again; it keeps a backtick there apart from the fence, and a space in its place.
    space = " " if {shown[0], shown[-1]} & {"`", " "} else ""
    return f"{fence}{space}{shown}{space}{fence}"
