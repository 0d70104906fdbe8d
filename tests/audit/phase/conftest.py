"""What tests of whole runs share."""

from __future__ import annotations

import pytest

from audit.phase.story import Story
from tests.audit.phase.finished import latent_story, shared_folder


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What the library returns of a run in latent and in pixel space."""
    return latent_story(shared_folder(tmp_path_factory))
