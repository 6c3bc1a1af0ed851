"""What holds for every test."""

from collections.abc import Iterator

import leaks
import pytest


def pytest_sessionstart() -> None:
    leaks.begin_session()


@pytest.fixture(autouse=True)
def _leave_nothing_behind() -> Iterator[None]:
    before = leaks.snapshot()
    yield
    left = leaks.leaks_since(before)
    assert not left, "the test left behind: " + "; ".join(left)
