"""What the interpreters of supervisor and nursery are started with: their command lines and their environment."""

from __future__ import annotations

import _socket
import os
import sys

import mpworker
from mpworker.ipc import _native, codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# The package is imported on a path of nothing but its folder, so that the processes run the very copy that the client
# runs, and no other file of that folder can stand in for a module of the standard library.
# No collector while they load: it finds nothing, and took a twentieth of that time.
_BOOTSTRAP: Final = (
    "import gc, sys; collects = gc.isenabled(); gc.disable(); "
    "sys.path[:], sys.path_was = [{!r}], sys.path[:]; import mpworker; sys.path[:] = sys.path_was; "
    "del sys.path_was, mpworker; main = __import__({!r}, fromlist=['main']).main"
)
# The same for a supervisor, which may run on an interpreter that cannot do it. What it then says: mpworker.ipc.codec.
# Of another version it would crash: functions travel as byte code, and the children have the path of this process.
_SUPERVISOR_BOOTSTRAP: Final = """
try:
    import sys
    if sys.version_info[:2] != {!r}:
        raise ImportError("it is a Python " + sys.version.split()[0])
    {}
except Exception as error:
    import posix  # built in: no path leads to `os` here
    word = {!r} if isinstance(error, OSError) else {!r}
    try:
        posix.write(3, word + (type(error).__name__ + ": " + str(error)).encode("utf-8", "replace"))
    finally:
        nursery = int(sys.argv[1])
        if nursery:
            posix.kill(nursery, 9)
            posix.waitpid(nursery, 0)
        posix._exit(1)
main(3, 4)
"""
# The same for a nursery. The first one is started together with a supervisor, and is silent where that says why the
# package cannot be imported.
_NURSERY_BOOTSTRAP: Final = """
try:
    {}
except ImportError:
    if sys.argv[1:]:
        raise SystemExit(1)
    raise
main(3, collects)
"""
_FIRST: Final = "first"  # what such a one has as its argument
_PID_AT: Final = 5  # in the supervisor's command line: where the process id of the first nursery goes


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


def commands(python: str) -> tuple[list[str], list[str]]:
    """The command lines of supervisor and nursery. The former ends with the latter, by which it starts further ones."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(mpworker.__file__)))
    bootstrap = _BOOTSTRAP.format(root, "mpworker.supervisor.__main__")
    words = (sys.version_info[:2], bootstrap, codec.CANNOT, codec.CANNOT_IMPORT)
    # -P: no folder of the user's on the path until the nursery's own imports are done.
    nursery = [python, "-P", *_interpreter_flags(), "-c"]
    nursery.append(_NURSERY_BOOTSTRAP.format(_BOOTSTRAP.format(root, "mpworker.supervisor.nursery")))
    return [python, "-I", "-S", "-c", _SUPERVISOR_BOOTSTRAP.format(*words), "0", *nursery], nursery


def environment() -> dict[str, str]:
    """What supervisor and nursery start with.

    -I has the supervisor heed nothing that is Python's, and the nursery sets the client's path and environment after
    its own imports.
    """
    environment = dict(os.environ)
    for name in os.environ:
        if name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONHOME") or (
            sys.flags.ignore_environment and name.startswith("PYTHON")
        ):
            del environment[name]
    seed = os.environ.get("PYTHONHASHSEED", "")
    # Chosen here, so that a nursery that replaces another one has the same.
    environment["PYTHONHASHSEED"] = str(int.from_bytes(os.urandom(4))) if seed in ("", "random") else seed
    return environment


def service_command(python: str, fd: int) -> list[str]:
    """The command line of a supervisor that clients attach to.

    Args:
        python: The interpreter.
        fd: The file with its configuration, which it inherits.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(mpworker.__file__)))
    bootstrap = _BOOTSTRAP.format(root, "mpworker.supervisor.service")
    return [python, "-I", "-S", "-c", f"{bootstrap}\nmain({fd})"]


def own_command(module: str, arguments: list[str]) -> list[str]:
    """The command line of a program of this package, by an interpreter like this one.

    Args:
        module: Its `main` is called.
        arguments: What it finds as those of the command line.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(mpworker.__file__)))
    isolated = ["-I"] if sys.flags.isolated else []
    bootstrap = _BOOTSTRAP.format(root, module)
    return [sys.executable, "-P", *isolated, *_interpreter_flags(), "-c", f"{bootstrap}\nmain()", *arguments]


class Begun:
    """A supervisor that is on its way, with its first nursery: it waits for its configuration.

    Another interpreter than this one may be none, or know nothing of the options. Then the supervisor, which
    can say so, starts alone, and starts the nursery when it is up.

    Args:
        python: The interpreter.

    Attributes:
        python: The interpreter.
        sock: Our end of the socket to it.
        pid: Its process id.
        pidfd: Readable when it is dead.

    Raises:
        OSError: There is no such program, or no memory, descriptor or process is left. Nothing is left behind.
    """

    __slots__ = ("pid", "pidfd", "python", "sock")

    def __init__(self, python: str) -> None:
        self.python = python
        self.pid = self.pidfd = -1
        started: list[int] = []
        self.sock, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            try:
                _start_both(python, theirs, started)
            finally:
                theirs.close()
            self.pid = started[0]
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            if started:  # a signal that came meanwhile was put off until it was there
                self.pid = started[0]
            self.abandon()
            raise

    def abandon(self) -> None:
        """End it: it ends by itself when its socket closes."""
        self.sock.close()
        try:
            if self.pidfd >= 0:  # by which it is nobody else, whoever has reaped it
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            elif self.pid > 0:
                os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the program waited for all its children itself
        if self.pidfd >= 0:
            os.close(self.pidfd)


def _start_both(python: str, client_end: _socket.socket, started: list[int]) -> None:
    """Start a supervisor, which has the other end of our socket to it.

    Args:
        python: The interpreter.
        client_end: That other end.
        started: Its process id is put here: what is returned might be lost to an interrupt.
    """
    supervisor, nursery = commands(python)
    variables = [os.fsencode(f"{name}={value}") for name, value in environment().items()]
    supervisor_end, nursery_end = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        _native.start(
            os.fsencode(python),
            [os.fsencode(word) for word in supervisor],
            _PID_AT,
            [os.fsencode(word) for word in (*nursery, _FIRST)] if python == sys.executable else [],
            variables,
            client_end.fileno(),
            supervisor_end.fileno(),
            nursery_end.fileno(),
            started,
        )
    finally:
        supervisor_end.close()
        nursery_end.close()
