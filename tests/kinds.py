"""A pool, and `debug=True` in place of one: most tests of the latter run against both. See `conftest`."""

import functools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from mpworker import ProcessWorker

Make: TypeAlias = Callable[..., ProcessWorker]


@pytest.fixture(params=[False, True], ids=["pool", "debug"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a worker of either kind."""
    return functools.partial(ProcessWorker, n=1, debug=request.param)


@pytest.fixture
def w(make: Make) -> Iterator[ProcessWorker]:
    with make() as worker:
        yield worker


@pytest.fixture
def here() -> Iterator[ProcessWorker]:
    """One that runs its tasks here."""
    with ProcessWorker(debug=True) as worker:
        yield worker
