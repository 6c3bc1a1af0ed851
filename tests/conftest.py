"""What holds for every test."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import leaks
import pytest
from commands import folder  # noqa: F401  # a fixture
from kinds import here, make, w  # noqa: F401  # fixtures
from pooljobs import Gate


def pytest_sessionstart() -> None:
    leaks.begin_session()
    # A shell has what it starts in the background ignore Ctrl-C, and programs pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _leave_nothing_behind() -> Iterator[None]:
    before = leaks.snapshot()
    yield
    left = leaks.leaks_since(before)
    assert not left, "the test left behind: " + "; ".join(left)


@pytest.fixture
def hasty() -> Iterator[None]:
    """The GIL changes hands as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()
