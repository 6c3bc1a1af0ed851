"""The nursery: a small, thread-free process that forks the children and reaps them.

It is exec'd by the supervisor, imports what the user asked to preload, then forks a child whenever the supervisor says
so: milliseconds each, with the preloaded modules shared copy-on-write. Only a parent can reap, so it also buries them:

1. a child's pidfd becomes readable: it is a zombie, and its process id and group id are pinned until it is reaped;
2. its process group is killed (what the task started dies with it);
3. it is reaped, and what it started in other groups or sessions, now re-parented to this process (children and nursery
   are both subreapers), is killed and reaped too;
4. the supervisor is told (id, status).

Orders: {"op": "spawn", "id": n} with the child's descriptors, and {"op": "kill", "id": n} for one whose pidfd did not
arrive. Reports: ready, failed, unable, spawned (with a pidfd), spawn_failed, died. When the supervisor's socket closes,
everything is killed and the nursery exits.
"""

from __future__ import annotations

import gc
import os
import select
import sys

from mpworker.ipc import frames, json, ownpath, tracebacks
from mpworker.ipc._native import prctl
from mpworker.ipc.channel import Channel, channel_bytes, map_claims
from mpworker.ipc.failures import brief, cut, full
from mpworker.ipc.limits import explained
from mpworker.ipc.signals import signal
from mpworker.ipc.stacks import StackFile
from mpworker.supervisor.advance import InAdvance
from mpworker.supervisor.burying import become_subreaper, bury, kill_strays
from mpworker.supervisor.spawning import UNHEEDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_CHILD_OOM_SCORE_ADJ = "500"


class Nursery:
    """The process's state.

    Args:
        supervisor: The socket to the supervisor.
        settings: The "child" part of the configuration, handed to every child.
        initializer: The pickle of the user's initializer, or b"".
        arenas: The descriptors of the arenas, that for calls and that for results; none where there are none.
        life: What each process is to have open until it is dead, if there is such a descriptor: by it others see that
            all of them are.
        advance: What it imports when it has nothing to do.
    """

    def __init__(
        self,
        supervisor: frames.Frames,
        settings: dict[str, Any],
        initializer: bytes,
        arenas: list[int],
        life: list[int],
        advance: InAdvance,
    ) -> None:
        self._life = life
        self._supervisor = supervisor
        self._settings = settings
        self._initializer = initializer
        self._advance = advance
        self._arenas = arenas
        self._children: dict[int, tuple[int, int]] = {}  # pidfd: (pid, id)
        self._poller = select.poll()
        self._poller.register(supervisor, select.POLLIN)

    def serve(self) -> None:
        """Fork and bury until the supervisor is gone."""
        while True:
            events = self._poller.poll(self._advance.wait_ms())
            if not events:
                self._advance.load_and_freeze()
            for fd, _ in events:
                if fd in self._children:
                    self._died(fd)
                elif fd == self._supervisor.fileno():
                    try:
                        order = self._supervisor.receive()
                    except frames.DescriptorsLost as lost:
                        self._cannot_spawn(lost.message["id"], lost)
                        continue
                    if order is None:
                        return
                    self._obey(order[0], order[1])

    def _obey(self, order: dict[str, Any], fds: list[int]) -> None:
        if order["op"] == "spawn":
            self._spawn(order, fds)
        else:
            for pid, child in self._children.values():
                if child == order["id"]:
                    os.kill(pid, signal.SIGKILL)  # ours to reap, so the number is its own

    def _cannot_spawn(self, child: int, error: OSError) -> None:
        why = str(explained(error, "fork failed"))
        self._supervisor.send({"op": "spawn_failed", "id": child, "error": why})

    def _spawn(self, order: dict[str, Any], fds: list[int]) -> None:
        pid = pidfd = -1
        try:
            try:
                pid = os.fork()
                if pid == 0:
                    self._become_child(fds, order)
                os.setpgid(pid, pid)  # here as well as in the child: whoever is first
                pidfd = os.pidfd_open(pid)
            finally:
                for fd in fds:
                    os.close(fd)
        except OSError as error:
            if pid > 0 and pidfd < 0:
                os.kill(pid, signal.SIGKILL)
                bury(pid)
            self._cannot_spawn(order["id"], error)
            return
        self._advance.forked()
        self._children[pidfd] = (pid, order["id"])
        self._poller.register(pidfd, select.POLLIN)
        self._supervisor.send({"op": "spawned", "id": order["id"], "pid": pid}, [pidfd])

    def _died(self, pidfd: int) -> None:
        pid, child = self._children.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        status = bury(pid)
        kill_strays({other for other, _ in self._children.values()})
        self._supervisor.send({"op": "died", "id": child, "status": status})

    def kill_all(self) -> None:
        """Kill every child and whatever they started."""
        for pid, _ in self._children.values():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for pid, _ in self._children.values():
            bury(pid)
        kill_strays(set())

    def _become_child(self, fds: list[int], order: dict[str, Any]) -> NoReturn:
        try:
            os.setpgid(0, 0)
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            become_subreaper()
            if os.getppid() != self._settings["nursery_pid"]:
                os._exit(1)  # it died before the line above could notice
            self._supervisor.close()
            for pidfd in self._children:
                os.close(pidfd)
            _heed_signals()
            _set_oom_score()
            _move_high(self._life)
            segment, one_bell, other_bell, roll, *arenas = _move_high([*fds, *self._arenas])
            capacities = order["capacities"]
            channel = Channel([segment, one_bell, other_bell], capacities, 1)
            claims = map_claims(roll, order["region"], order["slots"])
            os.close(roll)
            stack_file = StackFile(segment, channel_bytes(capacities))
            from mpworker.child import main

            settings = self._settings | {"cores": order["cores"]}
            main.run(channel, claims, stack_file, settings, self._initializer, arenas)
        except BaseException as error:  # noqa: BLE001
            tracebacks.show(error)
        finally:
            os._exit(1)


def _heed_signals() -> None:
    """A task, and what it starts, shall find what any program finds, or what a preloaded module has set."""
    for number in UNHEEDED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _set_oom_score() -> None:
    """When memory runs out, the kernel shall take a child, not the supervisor."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            if int(file.read()) < int(_CHILD_OOM_SCORE_ADJ):
                file.write(_CHILD_OOM_SCORE_ADJ)
    except OSError:
        pass  # /proc may be read-only in a container; the kernel then chooses by size


def _move_high(fds: list[int]) -> list[int]:
    """Move our descriptors out of the way: a task that closes 3 to 99 and opens files shall not get our numbers."""
    import fcntl
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4096 if soft == resource.RLIM_INFINITY else min(soft, 4096)
    floor = max(limit - 64, limit // 2)
    moved = []
    for fd in fds:
        moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor))
        os.close(fd)
    return moved


class _PreloadFailed(Exception):
    """A module cannot be preloaded. Its cause, if it has one, is what the module raised."""


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the client runs without them, or a preloaded module has closed or replaced them


def _preload(modules: list[str], *, blas_asked: bool) -> None:
    """Import what the user asked for, with BLAS and OpenMP limited to one thread: a fork with threads is a hang.

    Raises:
        _PreloadFailed: One cannot be, or must not.
    """
    from mpworker import context

    context._loading = lambda: True
    try:
        if modules:
            from mpworker.supervisor import blas

            with blas.one_thread(asked=blas_asked):
                for module in modules:
                    _preload_one(module)
    finally:
        context._loading = None
        _flush_streams()  # what was printed shall not be printed by every fork again


def _preload_one(module: str) -> None:
    try:
        __import__(module)
    except BaseException as error:
        raise _PreloadFailed(f"preload of {module!r} raised {brief(error)}") from error
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise _PreloadFailed(
            f"preload of {module!r} left {len(threads) - 1} running thread(s); a process with threads cannot be forked "
            f"safely: import it in the initializer instead"
        )


def _blas_threads(settings: dict[str, Any], modules: list[str]) -> int:
    threads, asked = settings["blas_threads"], settings["blas_asked"]
    if not (modules or asked):
        return 0
    from mpworker.supervisor import blas

    try:
        return blas.threads_to_set(threads, asked=asked)
    except ImportError as error:
        why = f"blas_threads={threads} of what was preloaded needs threadpoolctl: pip install threadpoolctl"
        raise _PreloadFailed(why) from error


def main(fd: int, collects: bool) -> None:
    """The nursery's whole life; never returns.

    Args:
        fd: The socket to the supervisor.
        collects: Was the garbage collector on, as in the client, before this process began to load itself?
    """
    supervisor = frames.adopt(fd)
    status = 1
    try:
        _live(supervisor, collects)
        status = 0
    except ConnectionError:
        pass  # the supervisor is gone: nobody is left to be told anything
    except OSError as error:
        _say_unable(supervisor, error)
    except BaseException as error:  # noqa: BLE001
        tracebacks.show(error)
    finally:
        os._exit(status)  # nothing here needs an orderly end, and stopping should be quick


def _say_unable(supervisor: frames.Frames, error: OSError) -> None:
    try:
        supervisor.send({"op": "unable", "error": str(error)})
    except OSError:
        pass  # the end of the socket says as much


def _live(supervisor: frames.Frames, collects: bool) -> None:
    # What the children import at run time is imported now, before the path is the user's; and while the supervisor,
    # which was started in the same moment, still loads itself.
    import atexit
    import resource

    from mpworker.child import main as child_main

    del atexit, resource, child_main
    # While it imports what to preload it looks at no socket, and there is nothing yet that it would have to end.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    first = supervisor.receive()
    if first is None or supervisor.peek() == b"":
        return  # the supervisor was dead before
    config, (blob_fd, *arenas) = first
    life = [arenas.pop()] if config["holds_life"] else []
    with open(blob_fd, "rb") as file:
        file.seek(0)
        blob = json.loads(file.read())
    become_subreaper()
    if blob["preload"] or config["child"]["blas_asked"]:
        from mpworker.supervisor import blas  # few pools need it

        del blas
    if collects:
        gc.enable()
    os.environ.clear()
    os.environ.update(blob["environment"])
    sys.argv = blob["argv"]
    try:
        if blob["directory"] is not None:
            os.chdir(blob["directory"])
        ownpath.keep(sys.path[:])
        advance = InAdvance()
        sys.path[:] = blob["path"]
        _preload(blob["preload"], blas_asked=config["child"]["blas_asked"])
        blas_threads = _blas_threads(config["child"], blob["preload"])
    except BaseException as error:  # noqa: BLE001  # an import runs anything
        cause = error.__cause__
        why = str(error) if isinstance(error, _PreloadFailed) else brief(error)
        text = "" if cause is None else cut(full(cause))
        supervisor.send({"op": "failed", "why": why, "traceback": text})
        return
    settings = config["child"] | {"nursery_pid": os.getpid(), "blas_threads": blas_threads}
    settings["middleware"] = bytes.fromhex(blob["middleware"])
    nursery = Nursery(supervisor, settings, bytes.fromhex(blob["initializer"]), arenas, life, advance)
    # Stopped, it could not see that its supervisor is gone; and a stopped one may get the SIGHUP of an orphaned group.
    prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    gc.freeze()  # the collector of a child would otherwise touch, and so copy, every page of the preloaded modules
    try:
        supervisor.send({"op": "ready"})
        nursery.serve()
    finally:
        nursery.kill_all()
