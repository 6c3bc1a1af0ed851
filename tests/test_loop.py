"""The supervisor's loop: what it notices while its rings are never empty."""

import subprocess
import sys

import leaks
import psutil

_BUSY_FOR_EVER = """
from mpworker import ProcessWorker

def fail():
    raise ValueError

w = ProcessWorker(n=2)
endless = w.options(retries=1_000_000)
futures = [endless.submit(fail) for _ in range(200)]
w.submit(abs, 1).result()
print(w.processes()["supervisor"], flush=True)
futures[0].result()
"""


def test_a_supervisor_that_is_never_idle_notices_its_clients_death() -> None:
    client = subprocess.Popen([sys.executable, "-c", _BUSY_FOR_EVER], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    with client.stdout:
        supervisor = psutil.Process(int(client.stdout.readline()))
    client.kill()
    client.wait()

    def gone() -> bool:
        return not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE

    try:
        assert leaks.wait_until(gone, 20)
    finally:
        if supervisor.is_running():
            supervisor.kill()
