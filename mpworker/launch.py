"""How a client configures its supervisor, once that is on its way, and holds it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from mpworker.arenas import Arenas
from mpworker.arenas import make as make_arenas
from mpworker.cgroups import available_cores
from mpworker.errors import InvalidArgument, SerializationError
from mpworker.ipc import codec, frames, json
from mpworker.ipc.channel import Channel, close_all, make_channel, make_segment
from mpworker.ipc.levels import WARNING
from mpworker.ipc.limits import explained
from mpworker.ipc.signals import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.options import WorkerOptions
    from mpworker.programs import Begun

CLIENT_SPIN_NS: Final = 50_000
# Where a sleep costs the machine so much that a longer spin is the cheaper way to wait: see mpw_patience in ipc/bell.h.
CLIENT_LONGEST_SPIN_NS: Final = 500_000
_CHILD_SPIN_NS: Final = 20_000
# What a supervisor has open: once, for each child, and while it makes the last one. tests/test_starts.py counts.
_FDS_OWN: Final = 15
_FDS_OF_A_CHILD: Final = 5
_FDS_TO_MAKE_A_CHILD: Final = 7
# Children that exit while others have their places already, where children are replaced on purpose.
_OVERLAP_MAX: Final = 8


class Supervisor:
    """A supervisor process, as its client holds it.

    Attributes:
        channel: The channel to it.
        arenas: What goes beside that; None for nothing.
        pid: Its process id.
        pidfd: Readable when it is dead.
        spin_ns: How long a thread that waits for an event spins before it sleeps.
        longest_spin_ns: The same where that has turned out to be worth it.
        cores: That this process may use.
    """

    def __init__(
        self,
        python: str,
        channel: Channel,
        sock: frames.Frames,
        pid: int,
        pidfd: int,
        spin_ns: int,
        cores: int,
        arenas: Arenas | None,
    ) -> None:
        self.channel = channel
        self.arenas = arenas
        self.pid = pid
        self.pidfd = pidfd
        self.spin_ns = spin_ns
        self.longest_spin_ns = CLIENT_LONGEST_SPIN_NS if spin_ns else 0
        self.cores = cores
        self._python = python
        self._sock = sock
        self._words: bytes | None = None  # what it said, once somebody has looked

    def hang_up(self) -> None:
        """Close the socket: the supervisor stops at once."""
        self._sock.close()

    def is_a_forks(self) -> None:
        """This process is a fork: close its copy of the socket, which would be warned of as never closed."""
        self._sock.close()

    def kill(self) -> None:
        """SIGKILL it; its nursery ends everything below."""
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _exit_code(self, unknown: int | None) -> int | None:
        """What the dead process exited with; None if a signal killed it, `unknown` if nobody can tell any more."""
        try:
            if self.pidfd < 0:
                return unknown  # a signal handler has closed everything
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return unknown  # the program waited for all its children itself
        return ended.si_status if ended is not None and ended.si_code == os.CLD_EXITED else None

    def ended_well(self) -> bool:
        """Has the dead process ended by itself, with all its work done, as far as anybody knows?"""
        return self._exit_code(unknown=0) == 0

    def start_failure(self) -> dict[str, str] | None:
        """Why the dead process never served, in the words of a BROKEN event; None if it did, or nobody knows."""
        if self._words is None:
            self._words = self._sock.words()
        code = None if self._words else self._exit_code(unknown=None)
        return _start_failure(self._words, self._python, "" if code is None else f"it ended with code {code}")

    def close(self) -> None:
        """Reap the dead process and close everything. It may be interrupted and called again, also by two threads."""
        try:
            if self.pidfd >= 0:  # and not by its number, which may be another child's once somebody has reaped it
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            pass  # another thread has, or the program waited for all its children itself
        self._sock.close()
        self.channel.close()
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def _start_failure(words: bytes, python: str, how: str) -> dict[str, str] | None:
    """What the first words of a supervisor that is dead tell; if it said none, how it ended, "" if nobody knows."""
    word, text = words[:1], words[1:].decode(errors="replace")
    if word == codec.CANNOT:
        return {"what": "the supervisor", "why": text, "traceback": ""}
    if word == codec.CANNOT_IMPORT:
        how = text
    elif word or not how:
        return None
    version = "{}.{}".format(*sys.version_info)
    why = f"python={python!r} must be a Python {version}, as this one is, that can import mpworker: {how}"
    return {"what": "python", "why": why}


def _recycling(options: WorkerOptions) -> dict[str, Any]:
    """The options by which children are replaced on purpose, as the scheduler takes them; empty for none."""
    found = {
        "max_tasks": options.max_tasks_per_child,
        "memory_soft": options.memory_limit,
        "memory_hard": options.memory_limit_hard,
    }
    return {name: value for name, value in found.items() if value is not None}


def overlap(options: WorkerOptions) -> int:
    """Children that there may be beyond `n`."""
    return _OVERLAP_MAX if _recycling(options) else 0


def descriptors_of(children: int) -> int:
    """How many descriptors the supervisor of so many children must be able to open."""
    return _FDS_OWN + _FDS_OF_A_CHILD * (children - 1) + _FDS_TO_MAKE_A_CHILD


def _descriptors(n: int, spare: int = 0) -> int:
    """The limit of descriptors that a supervisor must raise its own to, 0 if what this process may open is enough.

    Raises:
        OSError: It may not.
    """
    needed = descriptors_of(n + spare)
    if not 0 <= os.sysconf("SC_OPEN_MAX") < needed:  # the soft limit; -1 is none
        return 0
    import resource  # costs an import, and few programs come here

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise too_few_descriptors(n, needed, hard)
    return needed


def too_few_descriptors(n: int, needed: int, hard: int) -> OSError:
    """The error where the hard limit is below what n children need."""
    return OSError(
        errno.EMFILE,
        f"the supervisor of n={n} children needs {needed} open descriptors: {os.strerror(errno.EMFILE)} "
        f"(RLIMIT_NOFILE allows {hard})",
    )


def pickle_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes:
    """The initializer and its arguments as a pickle; empty if there is none.

    Raises:
        InvalidArgument: It cannot be called, or is asynchronous.
        SerializationError: It, or an argument, cannot be pickled.
    """
    if initializer is None:
        return b""
    if not callable(initializer):
        raise InvalidArgument(f"initializer must be callable, not {initializer!r}")
    from mpworker.functions import refuse_asynchronous
    from mpworker.ipc import payload

    refuse_asynchronous(initializer)
    try:
        return payload.dumps((initializer, tuple(initargs)))
    except payload.Unserializable as error:
        from mpworker import hints

        what = hints.culprit(initializer, initargs)
        raise SerializationError(f"the initializer or its initargs cannot be pickled: {error}{what}") from error


def blob_of(options: WorkerOptions, initializer: bytes, middleware: bytes) -> bytes:
    """The nursery's part of the configuration: what the children get from this process."""
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = None  # it was removed: the children inherit it as it is
    path: list[Any] = sys.path
    blob = {
        "path": [entry for entry in path if isinstance(entry, str)],  # the import system ignores all others
        "directory": directory,
        "environment": dict(os.environ),
        "argv": [str(each) for each in getattr(sys, "argv", [""])],
        "preload": list(options.preload),
        "initializer": initializer.hex(),
        "middleware": middleware.hex(),
    }
    return json.dumps(blob).encode()


def launch(
    begun: Begun,
    options: WorkerOptions,
    prefix: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    log_level: int = WARNING,
    middleware: bytes = b"",
) -> Supervisor:
    """Tell a supervisor what it is to be.

    Args:
        begun: The supervisor, on its way. Where this fails it is the caller's to end.
        options: The worker's options.
        prefix: What task ids begin with.
        initializer: Called in each child before its first task.
        initargs: Its arguments.
        log_level: The least level of the records that the supervisor sends.
        middleware: The pickle of what is around the execution of every task, b"" for nothing.

    Raises:
        ConfigurationError: It has ended at once. Nobody waits here for one that ends a
            little later: `Supervisor.start_failure` tells.
        SerializationError: The initializer cannot be pickled.
        OSError: No memory or descriptor is left.
    """
    arenas = channel = None
    fds: list[int] = []
    try:
        descriptors = _descriptors(options.n, overlap(options))
        blob = blob_of(options, pickle_initializer(initializer, initargs), middleware)
        cores = available_cores()
        arenas = make_arenas(options.arena_max_bytes)
        capacities = (options.client_ring_bytes, options.client_ring_bytes)
        fds, channel = make_channel("mpworker-client", capacities)
        sock = frames.Frames(begun.sock)
        config = config_of(options, prefix, log_level, descriptors, cores, arenas.capacity if arenas is not None else 0)
        _send(sock, config, blob, fds, arenas.descriptors if arenas is not None else [], begun.python)
        # Who waits in the client spins, for it has nothing else to do; with one core there is somebody else who has.
        spin_ns = CLIENT_SPIN_NS if cores > 1 else 0
        return Supervisor(begun.python, channel, sock, begun.pid, begun.pidfd, spin_ns, cores, arenas)
    except BaseException as error:
        if channel is not None:
            channel.close()
        if arenas is not None:
            arenas.close()
        if not isinstance(error, OSError):
            raise
        explanation = explained(error, "no supervisor can be started")
        if explanation is error:
            raise
        raise explanation from error
    finally:
        close_all(fds)


def config_of(
    options: WorkerOptions, prefix: str, log_level: int, descriptors: int, cores: int, arena_bytes: int
) -> dict[str, Any]:
    """What a supervisor is told of its children.

    Args:
        options: The worker's options.
        prefix: What task ids begin with.
        log_level: The least level of the records that it sends.
        descriptors: What it must be able to open; 0 for what it is.
        cores: That it may use.
        arena_bytes: Of the arena for results; 0 for none.
    """
    spread = options.cpu_affinity == "spread"
    return {
        "n": options.n,
        "descriptors": descriptors,
        "overlap": overlap(options),
        "recycling": _recycling(options),
        "cores": sorted(os.sched_getaffinity(0)) if spread else list(options.cpu_affinity or ()),
        "spread": spread,
        "usable_cores": cores,
        "slots": options.slots,
        "log_level": log_level,
        "lease_ttl": options.lease_ttl,
        "grace": options.grace,
        "start_timeout": options.start_timeout,
        "kill_timeout": options.kill_timeout,
        "arena_bytes": arena_bytes,
        "child_ring_bytes": options.child_ring_bytes,
        "client_ring_bytes": (options.client_ring_bytes, options.client_ring_bytes),
        "child": {
            "max_payload_bytes": options.max_payload_bytes,
            "task_prefix": prefix,
            "puts_off": options.n > 1,
            "nice": options.nice,
            "blas_threads": options.blas_threads or max(1, cores // options.n),
            "blas_asked": options.blas_threads is not None,
            "heartbeat_interval": min(1.0, options.lease_ttl / 8),
            # Children spin only if each of them, the supervisor and the client have a core of their own.
            "spin_ns": _CHILD_SPIN_NS if cores > options.n + 1 else 0,
        },
    }


def _send(
    sock: frames.Frames, config: dict[str, Any], blob: bytes, fds: list[int], arenas: list[int], python: str
) -> None:
    """Send a supervisor its configuration; what it says instead of reading that is raised."""
    blob_fd = make_segment("mpworker-config", len(blob))
    try:
        os.pwrite(blob_fd, blob, 0)
        sock.send(config, [*fds, blob_fd, *arenas])
    except ConnectionError as error:
        report = _start_failure(sock.words(), python, "it ended at once")
        if report is None:
            raise  # it stood, and was killed
        from mpworker.outcomes import start_failed

        raise start_failed(report) from error
    finally:
        os.close(blob_fd)
