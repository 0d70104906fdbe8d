"""What tests of whole runs share."""

from __future__ import annotations

import pytest

from audit.phase.story import Story
from tests.audit.phase.finished import Finished, finished_run, latent_story


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing disturbed."""
    return finished_run(tmp_path_factory.getbasetemp() / "phase")


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What the library returns of a run in latent and in pixel space."""
    return latent_story(tmp_path_factory.getbasetemp() / "phase")
