"""A notebook without its pages: runs cells in a real Jupyter kernel and prints, as JSON, what each of them showed.

It reads a JSON list of cells from stdin. A cell is its source, or {"source", "interrupt_at", "until"}: when it has
shown the text `interrupt_at`, the kernel is interrupted, as by the stop button; and it is over when it has shown all
words of `until` too, for the kernel collects what other processes print in a thread of its own.

It has an interpreter of its own, so that the sockets and event loops of a notebook's client stay out of the tests'
process.
"""

import json
import sys
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

GUARD = 60.0  # seconds


def show(
    manager: KernelManager, client: BlockingKernelClient, source: str, interrupt_at: str = "", until: str = ""
) -> dict[str, str]:
    """Run one cell; what it showed: "stdout", "stderr", "result" and "error"."""
    shown = dict.fromkeys(("stdout", "stderr", "result", "error"), "")
    waiting = bool(interrupt_at)

    def take(message: dict[str, Any]) -> None:
        nonlocal waiting
        content = message["content"]
        if message["msg_type"] == "stream":
            shown[content["name"]] += content["text"]
        elif message["msg_type"] == "execute_result":
            shown["result"] += content["data"]["text/plain"]
        elif message["msg_type"] == "error":
            shown["error"] += f"{content['ename']}: {content['evalue']}"
        if waiting and interrupt_at in shown["stdout"]:
            waiting = False
            manager.interrupt_kernel()

    client.execute_interactive(source, output_hook=take, timeout=GUARD)
    while not set(until.split()) <= set((shown["stdout"] + shown["stderr"]).split()):
        take(client.get_iopub_msg(timeout=GUARD))
    return shown


def main() -> None:
    cells = [{"source": cell} if isinstance(cell, str) else cell for cell in json.load(sys.stdin)]
    manager = KernelManager(transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(GUARD)
        print("shown", json.dumps([show(manager, client, **cell) for cell in cells]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


if __name__ == "__main__":
    main()
