"""How a client starts its supervisor."""

import errno
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import mpworker
from mpworker.errors import ConfigurationError, InvalidArgument, SerializationError
from mpworker.functions import refuse_asynchronous
from mpworker.ipc import frames, payload
from mpworker.ipc.channel import Channel, close_all, make_channel, make_segment
from mpworker.options import WorkerOptions, available_cores

_CLIENT_SPIN_NS: Final = 50_000
_CHILD_SPIN_NS: Final = 20_000
# The package is imported on a path of nothing but its folder, so that the processes run the very copy that the client
# runs, and no other file of that folder can stand in for a module of the standard library.
_BOOTSTRAP: Final = (
    "import sys; sys.path[:], sys.path_was = [{!r}], sys.path[:]; import mpworker; sys.path[:] = sys.path_was; "
    "del sys.path_was, mpworker; __import__({!r}, fromlist=['main']).main(3)"
)


class Supervisor:
    """A supervisor process, as its client holds it.

    Attributes:
        channel: The channel to it.
        pid: Its process id.
        pidfd: Readable when it is dead.
        spin_ns: How long a thread that waits for an event spins before it sleeps.
    """

    def __init__(self, channel: Channel, sock: frames.Frames, pid: int, pidfd: int, spin_ns: int) -> None:
        self.channel = channel
        self.pid = pid
        self.pidfd = pidfd
        self.spin_ns = spin_ns
        self._sock = sock

    def hang_up(self) -> None:
        """Close the socket: the supervisor stops at once."""
        self._sock.close()

    def kill(self) -> None:
        """SIGKILL it; its nursery ends everything below."""
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def ended_well(self) -> bool:
        """Has the dead process ended by itself, with all its work done?"""
        try:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return True  # the program waited for all its children itself: nobody knows any more
        return ended is not None and ended.si_code == os.CLD_EXITED and ended.si_status == 0

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


def _interpreter_flags() -> list[str]:
    """The options that start an interpreter like this one."""
    flags = sys.flags
    found = []
    for letter, value in (
        ("d", flags.debug),
        ("O", flags.optimize),
        ("B", flags.dont_write_bytecode),
        ("s", flags.no_user_site),
        ("v", flags.verbose),
        ("b", flags.bytes_warning),
    ):
        if value:
            found.append("-" + letter * value)
    found += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        if name not in ("importtime", "showrefcount"):
            found += ["-X", name if value is True else f"{name}={value}"]
    if flags.no_site:
        found.append("-S")
    return found


def _interpreter(options: WorkerOptions) -> str:
    python = options.python or sys.executable
    if getattr(sys, "frozen", False) and not options.python:
        raise ConfigurationError(
            "this interpreter is frozen into a program: pass python=PATH of an interpreter to start"
        )
    if not os.path.isfile(python) or not os.access(python, os.X_OK):
        raise ConfigurationError(f"no executable at {python!r}: pass python=PATH of an interpreter to start")
    return python


def _pickle_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes:
    if initializer is None:
        return b""
    if not callable(initializer):
        raise InvalidArgument(f"initializer must be callable, not {initializer!r}")
    refuse_asynchronous(initializer)
    try:
        return payload.dumps((initializer, tuple(initargs)))
    except payload.Unserializable as error:
        raise SerializationError(f"the initializer or its initargs cannot be pickled: {error}") from error


def _blob(options: WorkerOptions, initializer: bytes) -> bytes:
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
    }
    return json.dumps(blob).encode()


def launch(
    options: WorkerOptions, prefix: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> Supervisor:
    """Start a supervisor.

    Args:
        options: The worker's options.
        prefix: What task ids begin with.
        initializer: Called in each child before its first task.
        initargs: Its arguments.

    Raises:
        ConfigurationError: There is no interpreter to start, or it ends at once.
        SerializationError: The initializer cannot be pickled.
        OSError: No memory, descriptor or process is left. Nothing is left behind.
    """
    python = _interpreter(options)
    blob = _blob(options, _pickle_initializer(initializer, initargs))
    root = os.path.dirname(os.path.dirname(os.path.abspath(mpworker.__file__)))
    cores = available_cores()
    seed = os.environ.get("PYTHONHASHSEED", "")
    capacities = (options.client_ring_bytes, options.client_ring_bytes)
    config = {
        "n": options.n,
        "slots": options.slots,
        "lease_ttl": options.lease_ttl,
        "grace": options.grace,
        "start_timeout": options.start_timeout,
        "kill_timeout": options.kill_timeout,
        "child_ring_bytes": options.child_ring_bytes,
        "client_ring_bytes": capacities,
        # -P: no folder of the user's on the path until the nursery's own imports are done.
        "nursery_argv": [
            *(python, "-P", *_interpreter_flags()),
            *("-c", _BOOTSTRAP.format(root, "mpworker.supervisor.nursery")),
        ],
        # Chosen here, so that a nursery that replaces another one has the same.
        "hash_seed": str(secrets.randbelow(1 << 32)) if seed in ("", "random") else seed,
        "ignore_environment": bool(sys.flags.ignore_environment),
        "child": {
            "max_payload_bytes": options.max_payload_bytes,
            "task_prefix": prefix,
            "heartbeat_interval": min(1.0, options.lease_ttl / 8),
            # Children spin only if each of them, the supervisor and the client have a core of their own.
            "spin_ns": _CHILD_SPIN_NS if cores > options.n + 1 else 0,
        },
    }
    fds, channel = make_channel("mpworker-client", capacities)
    sock: frames.Frames | None = None
    pid = pidfd = -1
    try:
        sock, theirs = frames.pair()
        try:
            pid = os.posix_spawn(
                python,
                [python, "-I", "-S", "-c", _BOOTSTRAP.format(root, "mpworker.supervisor.__main__")],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
                setpgroup=0,  # Ctrl-C in a terminal is for the client alone
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT],
            )
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                raise ConfigurationError(f"{python!r} is no program: pass python=PATH of an interpreter") from error
            raise
        finally:
            theirs.close()
        pidfd = os.pidfd_open(pid)
        blob_fd = make_segment("mpworker-config", len(blob))
        try:
            os.pwrite(blob_fd, blob, 0)
            sock.send(config, [*fds, blob_fd])
        except ConnectionError as error:
            raise ConfigurationError(f"{python!r} ended at once: it is no Python, or cannot import mpworker") from error
        finally:
            os.close(blob_fd)
    except BaseException:
        # Its socket closes, so a supervisor that was started ends by itself.
        if sock is not None:
            sock.close()
        channel.close()
        if pid > 0:
            os.waitpid(pid, 0)
        if pidfd >= 0:
            os.close(pidfd)
        raise
    finally:
        close_all(fds)
    # Who waits in the client spins, for it has nothing else to do; with one core there is somebody else who has.
    return Supervisor(channel, sock, pid, pidfd, _CLIENT_SPIN_NS if cores > 1 else 0)
