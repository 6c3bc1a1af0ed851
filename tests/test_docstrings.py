"""The examples in the public docstrings run."""

import doctest
import importlib

import pytest

import mpworker


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


def test_a_verb_in_an_event_loop_is_documented_where_it_is_not() -> None:
    model, own = mpworker.ProcessWorker.drain.__doc__ or "", mpworker.AsyncProcessWorker.drain.__doc__ or ""
    assert own.splitlines()[0] == model.splitlines()[0]
    assert "What waits at `max_pending` counts as taken.\n\nArgs:\n    *queues: " in own
    assert own.endswith("Its supervisor has died.\n    WrongEventLoop: The worker is in use by another event loop.")
    own = mpworker.AsyncProcessWorker.register_task.__doc__ or ""
    assert own.count("QueueFull: ") == own.count("Returns:") == own.count("Example:") == 1
    assert "    QueueFull: As for `submit`.\n" in own  # and not what the model has
    assert "    A future to await, as from `submit`;" in own
    assert ">>> asyncio.run(main())" in own
