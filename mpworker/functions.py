"""Which functions are sent once, and which with every task.

A function that can be imported is sent once per child, by its name. A function that cannot (of `__main__`, a
notebook, a lambda, a closure) is sent once, by value, only if nobody can tell: everything it reaches must be
immutable or importable, and nothing in it may write to what would live on in the child. Such an entry is guarded:
each submit compares, by identity, what the function reached when it was pickled with what it reaches now, so that a
changed global or closure means a new pickle. Whatever fits neither is pickled with each task.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

from mpworker.errors import InvalidArgument, SerializationError
from mpworker.ipc import payload
from mpworker.ipc.codec import MAX_FUNCTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.ipc.shares import Share

_CACHED_MAX: Final = 1024
_REACH_MAX: Final = 64  # functions reached from one; more than that is not worth the guard
_MISSING: Final = object()
_IMMUTABLE: Final = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range)
# With these a function can get at its own dictionary or globals, whose changes would outlive the call.
_REVEALING: Final = frozenset(
    (
        *("globals", "vars", "locals", "setattr", "delattr", "exec", "eval", "_getframe", "currentframe"),
        *("__dict__", "__globals__", "__defaults__", "__kwdefaults__", "__code__", "__closure__"),
        *("__setattr__", "__delattr__", "__import__", "__annotations__", "f_globals", "f_locals", "get_referrers"),
    )
)
_WRITING: Final = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "STORE_NAME", "DELETE_NAME"))


_ASYNCHRONOUS: Final = 0x80 | 0x200  # CO_COROUTINE, CO_ASYNC_GENERATOR: `dis`, which knows them, is dear to import


def is_asynchronous(function: Any) -> bool:
    """Does its call do nothing yet?"""
    code = getattr(payload.innermost(function), "__code__", None)  # that of a method's function, for a method
    return code is not None and bool(code.co_flags & _ASYNCHRONOUS)


def refuse_asynchronous(function: Any) -> None:
    """Raise InvalidArgument for a function whose call does nothing yet: what it returns would have to be awaited."""
    if is_asynchronous(function):
        raise InvalidArgument(
            f"{payload.name_of_callable(function)!r} is asynchronous, and no child awaits what it returns: "
            "give a function that runs it, such as lambda x: asyncio.run(f(x))"
        )


def _is_immutable(value: object) -> bool:
    if type(value) in _IMMUTABLE:
        return True
    return isinstance(value, tuple | frozenset) and type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def _by_value_modules() -> set[str]:
    """What the program has told cloudpickle to write by value."""
    # Not imported for this; and while somebody else does, nothing can have been told yet.
    registered = getattr(sys.modules.get("cloudpickle.cloudpickle"), "list_registry_pickle_by_value", set)
    return registered()


def is_importable(value: Any) -> bool:
    """Would an import in a child find this very function, class or module under its name?"""
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__) is value and getattr(value, "__spec__", None) is not None
    name = getattr(value, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or name == "__main__" or getattr(module, "__spec__", None) is None or name in _by_value_modules():
        return False
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


class _Guard:
    """What a by-value function reached when it was pickled.

    Attributes:
        names: (namespace, name, value) of every global.
        cells: (cell, value) of every closure variable.
        parts: (function, code, defaults) of every function by value.
    """

    __slots__ = ("cells", "names", "parts")

    def __init__(self) -> None:
        self.names: list[tuple[dict[str, Any], str, object]] = []
        self.cells: list[tuple[Any, object]] = []
        self.parts: list[tuple[FunctionType, CodeType, object]] = []

    def holds(self) -> bool:
        """Does the function still reach the same?"""
        for namespace, name, value in self.names:
            if namespace.get(name, _MISSING) is not value:
                return False
        for cell, value in self.cells:
            try:
                if cell.cell_contents is not value:
                    return False
            except ValueError:
                return False
        for function, code, defaults in self.parts:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                return False
            if function.__kwdefaults__ or function.__dict__:
                return False
        return True


def _codes(code: CodeType) -> list[CodeType]:
    found = [code]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += _codes(constant)
    return found


def guard_for(function: FunctionType) -> _Guard | None:  # noqa: PLR0912  # one list of reasons to refuse
    """The guard under which a function may be sent once by value, or None if it may not."""
    guard = _Guard()
    todo, seen = [function], {id(function)}
    while todo:
        part = todo.pop()
        if part.__dict__ or part.__kwdefaults__ or len(seen) > _REACH_MAX:
            return None
        if part.__defaults__ is not None and not _is_immutable(part.__defaults__):
            return None
        guard.parts.append((part, part.__code__, part.__defaults__))
        reached: list[object] = []
        for cell in part.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                return None
            guard.cells.append((cell, value))
            reached.append(value)
        for code in _codes(part.__code__):
            # As a name, or as a string that getattr or attrgetter could be given.
            if not _REVEALING.isdisjoint((*code.co_names, *(each for each in code.co_consts if type(each) is str))):
                return None
            import dis

            for instruction in dis.get_instructions(code):
                if instruction.opname in _WRITING:
                    return None
                if (
                    instruction.opname in ("STORE_DEREF", "DELETE_DEREF")
                    and instruction.argval in part.__code__.co_freevars
                ):
                    return None
            for name in code.co_names:
                value = part.__globals__.get(name, _MISSING)
                guard.names.append((part.__globals__, name, value))
                if value is not _MISSING:
                    reached.append(value)
        for value in reached:
            if _is_immutable(value):
                continue
            if isinstance(value, ModuleType | type | BuiltinFunctionType):
                if not is_importable(value):
                    return None
            elif not isinstance(value, FunctionType):
                return None
            elif not is_importable(value) and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
    return guard


class _Entry:
    __slots__ = ("function", "guard", "key")

    def __init__(self, function: Any, key: int, guard: _Guard | None) -> None:
        self.function = function  # kept alive, so that its id() stays its own
        self.key = key
        self.guard = guard


class FunctionTable:
    """The functions that one client has sent once; its threads share it.

    A key is sent before it can be found, and it is in `live` from then on until it is dropped. Who has looked up a key
    looks into `live` once more in the moment it sends a task, since another thread may have dropped it meanwhile.

    Args:
        send: Called with (key, name, pickle) for a function that is new, before any task that uses it.
        forget: Called with the key of a function that no later task will use.

    Attributes:
        live: The keys that a task may name, each with its function's name for messages; 0, which stands for a function
            that goes with its task, is always one and has none.
        shares: By their keys, the shared objects that functions take along: each of their chunks must speak of them.
        entries: By the `id` of a function its entry, which holds if it has no guard. Else ask for its `key`.
    """

    def __init__(self, send: Callable[[int, str, bytes], None], forget: Callable[[int], None]) -> None:
        self._send = send
        self._forget = forget
        self.entries: OrderedDict[int, _Entry] = OrderedDict()
        self._keys = itertools.count(1)
        self.lock = threading.RLock()  # of all that changes; a look-up needs none
        self._pins: dict[int, int] = {}  # key: the maps that use it
        self.live = {0: ""}
        self.shares: dict[int, tuple[Share, ...]] = {}

    def key(self, function: Any) -> int:
        """The key under which the children know this function, or 0: it must go with the task."""
        entry = self.entries.get(id(function))
        if entry is not None and (entry.guard is None or entry.guard.holds()):
            return entry.key
        with self.lock:
            entry = self.entries.get(id(function))
            if entry is not None:
                if entry.guard is None or entry.guard.holds():
                    return entry.key  # another thread was faster
                self._drop(id(function))
            return self._add(function)

    def always(self, function: Any, pinned: list[int]) -> None:
        """A key even for a function that cannot be sent once: for a `map`, which gives it back at its end by `drop`.

        It stays good until then, whatever happens to the function's entry.

        Args:
            function: The function.
            pinned: The key is put here: what is returned might be lost to an interrupt.
        """
        with self.lock:
            key = self.key(function)
            if not key:
                blob, shares = payload.dumps_sharing(function)
                key = self._register(function, blob)
                if shares:
                    self.shares[key] = shares
            pins = self._pins.get(key, 0) + 1
            self._pins[key] = pins  # no call from here on until both are done
            pinned.append(key)

    def drop(self, key: int) -> None:
        """A map that called `always` is over."""
        with self.lock:
            self._pins[key] -= 1
            if self._pins[key]:
                return
            del self._pins[key]
            identity = self._identity(key)
            if identity is None:
                self._end(key)  # its entry was dropped while it was pinned
            elif identity < 0:
                self._drop(identity)

    def _identity(self, key: int) -> int | None:
        """Under what the entry of this key is found: a function's id(), or less than 0 where only its map knows it."""
        for identity, entry in list(self.entries.items()):  # a signal handler may add to it
            if entry.key == key:
                return identity
        return None

    def _add(self, function: Any) -> int:
        if type(function) is FunctionType:  # of other callables the child says so when it has the coroutine
            refuse_asynchronous(function)
        if isinstance(function, FunctionType | BuiltinFunctionType | type) and is_importable(function):
            guard = None
            blob = payload.dumps(function)
        elif isinstance(function, FunctionType):
            guard = guard_for(function)
            if guard is None:
                return 0
            blob = payload.dumps_by_value(function)
        else:
            return 0
        return self._register(function, blob, guard, id(function))

    def _register(self, function: Any, blob: bytes, guard: _Guard | None = None, identity: int = 0) -> int:
        key = next(self._keys)
        if key > MAX_FUNCTIONS:
            if identity:
                return 0
            raise SerializationError(f"{MAX_FUNCTIONS} functions were sent through one worker; make a new one")
        if len(self.entries) >= _CACHED_MAX:
            self._drop(*list(self.entries)[:1])
        name = payload.name_of_callable(function)
        self._send(key, name, blob)
        self.live[key] = name
        self.entries[identity or -key] = _Entry(function, key, guard)
        return key

    def _drop(self, identity: int) -> None:
        entry = self.entries.pop(identity, None)
        if entry is not None and entry.key not in self._pins:
            self._end(entry.key)

    def _end(self, key: int) -> None:
        self.live.pop(key, None)
        self.shares.pop(key, None)
        self._forget(key)
