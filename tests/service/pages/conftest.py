"""A browser, and prompts whose classes are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from audit import demo
from tests.service.pages.browser import Page, chromium
from tests.service.pages.reading import CLASSES


@pytest.fixture(scope="session")
def known() -> dict[str, str]:
    """The prompt of the demo checkpoint that is the purest of its class, by class."""
    return {kind: str(max(demo.truth(), key=lambda row: float(str(row[kind])))["prompt"]) for kind in CLASSES}


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The browser that all tests share."""
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Page) -> Iterator[Page]:
    """A tab of usual size, and nothing to complain about when the test is over."""
    browser.requests.clear()
    browser.resize(1200)
    yield browser
    assert browser.complaints == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}
