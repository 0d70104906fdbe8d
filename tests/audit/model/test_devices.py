"""A checkpoint on another device than the CPU, which a process of its own stands in for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from audit import demo
from audit.errors import InvalidInput
from audit.model.loading import load_checkpoint
from tests.audit.model import elsewhere, stand_in
from tests.benchmarks.common import child

#: Numbers by place, energies by place, and where networks are, step by step.
Found = tuple[dict[str, elsewhere.Numbers], dict[str, elsewhere.Numbers], list[tuple[str, dict[str, str]]]]


@pytest.fixture(scope="module")
def found() -> Iterator[Found]:
    """What the process tells."""
    with child(elsewhere.work) as pipe:
        yield pipe.recv(), pipe.recv(), pipe.recv()


def require_close(ours: elsewhere.Numbers, theirs: elsewhere.Numbers, tolerance: float) -> None:
    """Every number of one place is that of the other."""
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("place", ["device", "offloaded"])
def test_a_device_without_float64_gives_what_a_cpu_gives(found: Found, place: str) -> None:
    """Audit, explanation and inspection run there, whatever waits on the CPU, with the same numbers."""
    require_close(found[0][place], found[0]["cpu"], 1e-3)


def test_energies_are_the_same_there(found: Found) -> None:
    """Relative and absolute ones, of the exact denoiser."""
    require_close(found[1][stand_in.NAME], found[1]["cpu"], 1e-5)


def test_what_is_offloaded_is_there_while_it_is_used(found: Found) -> None:
    """Text encoder and autoencoder come one at a time and go again; what denoises stays."""
    there = {when: {part for part, device in places.items() if device == stand_in.NAME} for when, places in found[2]}
    assert there == {
        "before": {"unet"},
        "while encoding a prompt": {"unet", "text_encoder"},
        "between": {"unet"},
        "while decoding": {"unet", "vae"},
        "while encoding an image": {"unet", "vae"},
        "after": {"unet"},
    }
    for _, places in found[2]:
        assert set(places.values()) <= {"cpu", stand_in.NAME}


def test_nothing_is_offloaded_from_a_cpu() -> None:
    """That would keep everything where it is, which somebody who asks for it does not expect."""
    with pytest.raises(InvalidInput) as error:
        load_checkpoint(demo.CHECKPOINT, offload=True)
    assert (error.value.reason, error.value.field) == ("OFFLOAD_UNSUPPORTED", "offload")
