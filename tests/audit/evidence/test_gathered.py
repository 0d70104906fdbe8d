"""Samples and what was measured at them, group by group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.evidence.gathered import Draws
from audit.evidence.neighbors import Neighbors
from audit.evidence.screening import Screening
from audit.evidence.smoothed import SmoothedTrace
from audit.evidence.stability import measure_stability
from audit.model.sampling import Samples


def draws(n: int, *, traced: int | None = None, guided: bool = True, searched: bool = True, clip: bool = True) -> Draws:
    """N samples, every number of which says what and whose it is."""
    rng = np.random.default_rng(n)
    traced = n if traced is None else traced

    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    return Draws(
        samples=Samples(
            seeds=tuple(range(100, 100 + n)),
            latents=random(n, 4, 2, 2),
            displacements=random(n, 5),
            contrasts=random(n, 5 if guided else 0),
            contrast_map=random(n, 2, 2) if guided else None,
        ),
        images=random(n, 1, 4, 4),
        vectors=random(n, 16),
        smoothed=SmoothedTrace((150, 300), (0.35, 0.7), rng.normal(size=(traced, 2))),
        neighbors=Neighbors(
            index=rng.integers(0, 50, n),
            distance=rng.normal(size=n),
            original_distance=rng.normal(size=n),
            clip_index=rng.integers(0, 50, n) if clip else None,
            clip_similarity=rng.normal(size=n) if clip else None,
        )
        if searched
        else None,
    )


def same(a: Any, b: Any) -> None:
    """Two dataclasses of arrays, equal to the last bit."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor | np.ndarray):
            np.testing.assert_array_equal(value, other)
        elif hasattr(value, "__dataclass_fields__"):
            same(value, other)
        else:
            assert value == other


@given(
    n=st.integers(1, 12), data=st.data(), guided=st.booleans(), searched=st.booleans(), clip=st.booleans()
)  # fmt: skip
def test_groups_put_together_are_the_whole(n: int, data: Any, guided: bool, searched: bool, clip: bool) -> None:
    """Cut anywhere and put together again, nothing is lost or moved, also where nothing was guided or searched."""
    whole = draws(n, guided=guided, searched=searched, clip=clip)
    assert len(whole) == n
    cut = data.draw(st.integers(0, n), "cut")
    head = whole.first(cut)
    tail = replace(
        whole,
        samples=Samples(
            seeds=whole.samples.seeds[cut:],
            latents=whole.samples.latents[cut:],
            displacements=whole.samples.displacements[cut:],
            contrasts=whole.samples.contrasts[cut:],
            contrast_map=None if whole.samples.contrast_map is None else whole.samples.contrast_map[cut:],
        ),
        images=whole.images[cut:],
        vectors=whole.vectors[cut:],
        smoothed=replace(whole.smoothed, values=whole.smoothed.values[cut:]),
        neighbors=whole.neighbors
        and Neighbors(
            whole.neighbors.index[cut:],
            whole.neighbors.distance[cut:],
            whole.neighbors.original_distance[cut:],
            None if whole.neighbors.clip_index is None else whole.neighbors.clip_index[cut:],
            None if whole.neighbors.clip_similarity is None else whole.neighbors.clip_similarity[cut:],
        ),
    )
    assert (len(head), len(tail)) == (cut, n - cut)
    same(Draws.concatenate([head, tail]), whole)
    same(Draws.concatenate([whole]), whole)


@pytest.mark.parametrize(("n", "traced"), [(2, 2), (5, 3), (9, 3)])
def test_the_first_samples_keep_the_traces_they_have(n: int, traced: int) -> None:
    """Where only the first samples were traced, fewer of them have fewer traces, and more have no more."""
    whole = draws(9, traced=3)
    found = whole.first(n)
    assert len(found) == n
    assert found.samples.seeds == whole.samples.seeds[:n]
    np.testing.assert_array_equal(found.smoothed.values, whole.smoothed.values[:traced])


def test_evidence_is_what_the_samples_show() -> None:
    """Stability of the vectors with the trajectories' last step, traces and neighbours as they are, the screening."""
    whole = draws(6)
    screening = Screening((900, 400), (0.92, 0.5), np.ones((4, 2)), np.zeros((4, 2)))
    found = whole.evidence(screening, 5.0)
    expected = measure_stability(whole.vectors, 5.0, whole.samples.displacements, whole.samples.latents)
    same(found.stability, expected)
    assert np.isfinite(found.stability.final_step)
    assert found.screening is screening
    assert found.smoothed is whole.smoothed
    assert found.neighbors is whole.neighbors
    assert found.curvature == ()
    assert draws(6, searched=False).evidence(screening, 5.0).neighbors is None
