"""Things that were good before something was done to them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: Bytes at the beginning of a file that are as likely to be hit as all others together.
HEAD = 400
#: What may stand where a value of a configuration stood.
VALUES = (None, True, -1, 0, 1, 2, 3, 8, 1.5, -0.5, float("nan"), 2**31, 10**12, "", "x", "../x", [], [0], {}, {"x": 1})


def run(examples: int) -> settings:
    """As often as that, however slow, and with nothing remembered."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes like these, with some changed, left out, put in or said twice."""
    place = st.integers(0, min(len(content), HEAD)) | st.integers(0, len(content))
    change = st.tuples(place, place, st.binary(max_size=8), st.booleans())

    def apply(changes: list[tuple[int, int, bytes, bool]]) -> bytes:
        found = content
        for one, other, new, twice in changes:
            begin, end = sorted((one, other))
            found = found[:begin] + new + (found[begin:end] if twice else b"") + found[end if not twice else begin :]
        return found

    return st.lists(change, min_size=1, max_size=4).map(apply)


@st.composite
def reconfigured(draw: st.DrawFn, configuration: Any) -> Any:
    """A configuration (JSON) of which one value, at any depth, is another one or is not there."""
    found = copy.deepcopy(configuration)
    part = found
    while isinstance(part, dict | list) and part:
        place = draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not (isinstance(part[place], dict | list) and part[place] and draw(st.booleans())):
            if draw(st.integers(0, 4)):
                part[place] = draw(st.sampled_from(VALUES))
            else:
                del part[place]
            break
        part = part[place]
    return found
