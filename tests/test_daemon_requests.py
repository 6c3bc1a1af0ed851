"""Requests that no client of ours would send: who sends one is served no more, and the others are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from services import GUARD, Service, serving

from mpworker.errors import SupervisorLost
from mpworker.steps import answered


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, "n = 1\n") as service:
        yield service


@pytest.mark.parametrize(
    "message",
    [
        {"verb": "task", "id": {}},
        {"verb": "task", "task": "x"},
        {"verb": "tasks"},
        {"verb": "tasks", "status": None, "queue": None, "limit": "x"},
        {"verb": "remembered", "tasks": 7},
        {"verb": "cron", "op": "list", "name": {}},
        {"verb": "cancel", "task": []},
        {"verb": "retention", "options": {}},
        {"verb": "stacks"},
        {"verb": "set_max_workers", "n": 2, "descriptors": 100},
        {"verb": "service", "op": "cancel", "id": 7},
    ],
    ids=str,
)
def test_a_request_that_means_nothing_is_its_own_clients_end_at_the_most(
    tmp_path: Path, message: dict[str, Any]
) -> None:
    with serving(tmp_path, "n = 1\n[clients]\nsteering_uids = [54321]\n") as service, service.connect() as other:
        with service.connect(reconnect_timeout=0) as w, contextlib.suppress(SupervisorLost, KeyError, TypeError):
            w._client.carry_out(answered(w._client, message))
        assert other.submit(pooljobs.square, 3).result(GUARD) == 9
        assert len(other.get_tasks()) == 1


QUEUE = {"weight": 1, "max_running": None, "rate": None, "burst": 1}


@pytest.mark.parametrize(
    "message",
    [
        *({"verb": "set_max_workers", "n": n, "descriptors": 100} for n in (True, 0, 257, 2.0)),
        {"verb": "set_max_workers", "n": 2, "descriptors": None},
        *({"verb": "rate", "rate": rate, "burst": 1} for rate in (0, -1.0, "1", 1e400)),
        {"verb": "rate", "rate": 1.0, "burst": "x"},
        *({"verb": "queue", "name": "mail", "options": QUEUE | {name: "x"}} for name in QUEUE),
        {"verb": "queue", "name": 7, "options": QUEUE},
    ],
    ids=str,
)
def test_who_steers_cannot_ask_for_what_would_be_everybodys_end(one: Service, message: dict[str, Any]) -> None:
    with one.connect(reconnect_timeout=0) as w, pytest.raises(SupervisorLost):
        w._client.carry_out(answered(w._client, message))
    with one.connect() as w:
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
        assert len(w.processes()["children"]) == 1
