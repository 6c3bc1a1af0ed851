"""Which queues there are: a name is refused, or makes one, in the same way wherever it is said."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mpworker import AsyncProcessWorker, ProcessWorker, QueueOptions, Task
from mpworker.client import Client
from mpworker.errors import ConfigurationError
from mpworker.options import QUEUES_MAX

NAMES: dict[str, Callable[[ProcessWorker, str], Any]] = {
    "options": lambda w, name: w.options(queue=name),
    "register_task": lambda w, name: w.register_task(Task(abs, (1,), queue=name)),
    "pause": lambda w, name: w.pause(name),
    "drain": lambda w, name: w.drain(name),
    "resume": lambda w, name: w.resume(name),
    "set_queue": lambda w, name: w.set_queue(name, weight=2),
}

LOOKS: dict[str, Callable[[ProcessWorker, str], Any]] = {
    "get_tasks": lambda w, name: w.get_tasks(queue=name),
    "subscribe_results": lambda w, name: w.subscribe_results(queues=["default", name]),
}


@pytest.mark.parametrize("how", [each for each in [*NAMES, *LOOKS] if each != "set_queue"])
def test_an_unknown_queue_is_refused_wherever_it_is_named(how: str) -> None:
    with ProcessWorker(n=1, unknown_queues="refuse") as w:
        w.set_queue("mail", rate=1.0)  # which makes it
        call = (NAMES | LOOKS)[how]
        call(w, "mail")
        with pytest.raises(ConfigurationError, match=r"^there is no queue 'typo', .*; there are 'default', 'mail'$"):
            call(w, "typo")
        w.resume()
        w.resume("mail")
        assert w.queues().keys() == {"default", "mail"}


@pytest.mark.parametrize("how", NAMES)
def test_there_are_not_too_many_queues_wherever_they_are_named(how: str) -> None:
    with ProcessWorker(n=1, queues=dict.fromkeys((f"q{number}" for number in range(QUEUES_MAX - 2)), 1)) as w:
        NAMES[how](w, "the last one")
        with pytest.raises(ConfigurationError, match=r"^a worker has .* 1000 queues: there is no room for 'more'$"):
            NAMES[how](w, "more")
        NAMES[how](w, "q3")
        w.resume()
        w.resume("q3", "the last one")
        assert len(w.queues()) <= QUEUES_MAX


@pytest.mark.parametrize("how", LOOKS)
def test_a_look_makes_no_queue(how: str) -> None:
    with ProcessWorker(n=1, queues=dict.fromkeys((f"q{number}" for number in range(QUEUES_MAX - 2)), 1)) as w:
        for name in ("still", "to", "come"):  # more than there is room for
            LOOKS[how](w, name)
        w.pause("the last one")
        w.resume("the last one")


def test_a_worker_is_made_with_as_many_as_there_may_be() -> None:
    names = [f"q{number}" for number in range(QUEUES_MAX)]
    with pytest.raises(ConfigurationError, match="at most 1000 queues, and there is 'default', too: not 1000"):
        ProcessWorker(n=1, queues=dict.fromkeys(names, 1))
    with ProcessWorker(n=1, queues=dict.fromkeys(["default", *names[1:]], 1)) as w:
        assert len(w.queues()) == QUEUES_MAX


def test_in_an_event_loop() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, unknown_queues="refuse") as w:
            for verb in (w.pause, w.drain, w.resume):
                with pytest.raises(ConfigurationError, match="there is no queue 'typo'"):
                    await verb("typo")  # type: ignore[operator]
            with pytest.raises(ConfigurationError, match="there is no queue 'typo'"):
                await w.get_tasks(queue="typo")
            with pytest.raises(ConfigurationError, match="there is no queue 'typo'"):
                w.subscribe_results(queues=["typo"])
            assert (await w.queues()).keys() <= {"default"}

    asyncio.run(main())


def test_a_burst_that_nobody_gave_is_that_of_the_children_at_any_time() -> None:
    queues = {"mail": QueueOptions(rate=2.0), "own": QueueOptions(rate=2.0, burst=7), "free": 1}
    with ProcessWorker(n=1, queues=queues, rate=50.0, max_pending=3) as w:

        def bursts() -> dict[str, int | None]:
            return {name: state.burst for name, state in w.queues().items() if name != "default"}

        assert bursts() == {"mail": 1, "own": 7, "free": None}
        w.set_max_workers(2)
        assert bursts() == {"mail": 2, "own": 7, "free": None}
        w.set_queue("free", rate=3.0)
        w.set_max_workers(4)
        assert bursts() == {"mail": 3, "own": 7, "free": 3}, "no more than max_pending"
        w.set_queue("mail", burst=5)
        w.set_max_workers(1)
        assert bursts() == {"mail": 5, "own": 7, "free": 1}


def test_so_is_that_of_all_queues_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessWorker(n=1, rate=50.0) as w:
        told: list[dict[str, Any]] = []
        tell = Client.tell
        monkeypatch.setattr(Client, "tell", lambda client, message: told.append(message) or tell(client, message))
        w.set_max_workers(2)
        w.set_rate(60.0, 9)
        w.set_max_workers(1)
        w.set_rate(None)
        w.set_max_workers(2)
        assert [(each["rate"], each["burst"]) for each in told] == [(50.0, 2), (60.0, 9), (None, 1)]
