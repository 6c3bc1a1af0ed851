"""What a task costs the supervisor while it waits, and what keeps its way through there and the client short."""

import json
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpworker.client import Client
from mpworker.inline.client import InlineClient
from mpworker.ipc import codec, details
from mpworker.ipc.channel import Channel
from mpworker.loopclient import LoopClient
from mpworker.supervisor.effects import Effects
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.places import Places
from mpworker.supervisor.reading import World
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import Times
from mpworker.supervisor.scheduler import Scheduler

TASKS = 5_000
CALL = b"the pickle of a call"
INLINE_MAX = 29  # attributes that CPython (3.11 to 3.13) keeps beside an instance; one more, and all are in a dict


def channel() -> Channel:
    ring = SimpleNamespace(push=lambda *record: True, max_payload=1 << 20)
    return cast(Channel, SimpleNamespace(outbound=ring, inbound=ring, bell=None, peer_bell=None))


def scheduler(kind: type[Scheduler] = Places, **options: Any) -> Scheduler:
    return kind(cast(Effects, None), Times(10.0, 10.0, 10.0, 10.0), uniform=lambda: 0.5, **options)


def bytes_of_each(said: dict[str, Any] | None, **options: Any) -> float:
    """Bytes of a task that waits, beyond its call and what it says besides."""
    port, waiting = ClientPort(channel(), 1 << 20), scheduler()
    told = {"timeout": None, "retries": 0, "crash_retries": 0} | options
    waiting.options_known(port.note_options(1, as_json(told)))
    payload = CALL if said is None else details.pack(said) + CALL
    tracemalloc.start()
    try:
        for key in range(1000, 1000 + TASKS):
            data = bytes(bytearray(payload))  # as it comes from the ring: an object of its own
            if said is None:
                waiting.submitted(port.task(0, key, 0, 1, data))
            else:
                waiting.submitted_with_details(port.detailed(codec.SUBMIT, codec.DETAILED, key, 0, 1, data))
        return tracemalloc.get_traced_memory()[0] / TASKS - len(payload)
    finally:
        tracemalloc.stop()


def as_json(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("said", "options", "bound"),
    [
        (None, {}, 310),
        (None, {"queue": "mail", "priority": 3}, 310),
        ({"concurrency": ["a key that many tasks share", 2]}, {}, 360),
        ({"name": "one", "metadata": {"tenant": "acme", "number": 7}}, {}, 360),
        ({"deadline": 123456.789}, {}, 445),
        ({"run_at": 123456.789}, {}, 445),
    ],
    ids=["plain", "in order", "concurrency key", "name, metadata", "deadline", "run_at"],
)
def test_a_task_that_waits_is_small(said: dict[str, Any] | None, options: dict[str, Any], bound: int) -> None:
    assert 0 < bytes_of_each(said, **options) < bound


def test_tasks_that_say_the_same_share_it() -> None:
    port = ClientPort(channel(), 1 << 20)
    port.note_options(1, as_json({"timeout": None}))
    data = details.pack({"concurrency": ["one key", 2]}) + CALL
    one, other = (port.detailed(codec.SUBMIT, codec.DETAILED, key, 0, 1, data) for key in (1, 2))
    assert one.concurrency_key == "one key"
    assert one.concurrency_key is other.concurrency_key


def test_what_every_task_passes_has_its_attributes_at_hand() -> None:
    assert not hasattr(scheduler(), "__dict__")
    assert not hasattr(scheduler(Recycling), "__dict__")
    sizes = {
        "child_ring_bytes": 1 << 16,
        "arena_bytes": 0,
        "slots": 32,
        "descriptors": 0,
        "child": {"max_payload_bytes": 1 << 20},
    }
    world = World(sizes, [], channel())
    assert len(vars(world)) <= INLINE_MAX
    world.roll.close()
    for kind in (Client, LoopClient, InlineClient):
        assert not hasattr(kind.__new__(kind), "__dict__")
