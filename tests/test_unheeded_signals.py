"""Signals that systemd, or a shell, sends to every process of a service."""

import os
import signal
from pathlib import Path

import campaign_tasks
import faults_tasks
import pytest
from concurrently import GUARD, eventually

from mpworker import ProcessWorker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda each: each.name)
def test_supervisor_and_nursery_stay_at_work(tmp_path: Path, number: signal.Signals) -> None:
    gate = tmp_path / "gate"
    with ProcessWorker(n=1) as pool:
        future = pool.submit(campaign_tasks.hold, str(tmp_path / "begun"), str(gate))
        eventually((tmp_path / "begun").exists)
        before = pool.processes()
        for name in ("supervisor", "nursery"):
            os.kill(before[name], number)
        gate.touch()
        assert future.result(GUARD) == "held"
        os.kill(before["children"][0]["pid"], signal.SIGKILL)  # only a nursery that lives replaces it
        assert pool.submit(abs, -3).result(GUARD) == 3
        after = pool.processes()
        assert [after[name] for name in ("supervisor", "nursery")] == [
            before[name] for name in ("supervisor", "nursery")
        ]


def test_a_task_finds_what_a_program_finds() -> None:
    with ProcessWorker(n=1) as pool:
        here, there = pool.submit(faults_tasks.dispositions).result(GUARD)
    alone, _ = faults_tasks.dispositions()
    assert here == there == alone
