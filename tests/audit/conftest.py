"""What tests of audit/ share: the checkpoint that ships with Basin, loaded once."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import settings

from audit import demo
from audit.auditor import Auditor
from audit.model.checkpoint import Checkpoint
from audit.model.loading import load_checkpoint
from audit.reference.reference_set import ReferenceSet

# Other work may hold the processor: how long an example takes says nothing here.
settings.register_profile("audit", deadline=None)
settings.load_profile("audit")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draws without a generator of their own are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The demo checkpoint."""
    return load_checkpoint(demo.CHECKPOINT, name="demo")


@pytest.fixture(scope="session")
def reference() -> ReferenceSet:
    """Its complete training set."""
    return ReferenceSet.load(demo.REFERENCE)


@pytest.fixture(scope="session")
def auditor(checkpoint: Checkpoint, reference: ReferenceSet) -> Auditor:
    """Audits of the demo checkpoint against its training set, calibrated."""
    return Auditor(checkpoint, reference, demo.calibration())


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    """The demo checkpoint as diffusers loads it."""
    loaded = StableDiffusionPipeline.from_pretrained(demo.CHECKPOINT, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded
