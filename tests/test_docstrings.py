"""The examples in the public docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "mpworker.aio",
        "mpworker.aiocontrol",
        "mpworker.aiocron",
        "mpworker.aiotasks",
        "mpworker.context",
        "mpworker.control",
        "mpworker.recurring",
        "mpworker.results",
        "mpworker.view",
        "mpworker.worker",
    ],
)
def test_the_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
