"""Pickles: how values cross from one process to the other.

What nearly all calls and results are, a few numbers and strings, `_native` writes and reads (plain.h): as pickle would,
and several times as fast. For the rest plain pickle first, for it is fast; cloudpickle for what plain pickle cannot
take (lambdas, closures, what a notebook defines). Plain pickle writes a function or class of `__main__` by its name,
which means something else in the child, so a pickle that contains the bytes `__main__` is made again by cloudpickle,
which writes it by value.

A class written by value carries an identity. When an instance comes back to the process that has the class,
cloudpickle finds that very class, and then sets all its attributes anew from the pickle: methods, counters,
everything. `loads_known` leaves a class that is already here as it is.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType

from mpworker.ipc import ownpath, shares
from mpworker.ipc._native import dumps_plain, loads_plain
from mpworker.ipc.arena import Parcel
from mpworker.ipc.codec import BUFFER_MIN, PICKLE_MIN, RANGES_MAX
from mpworker.ipc.failures import brief
from mpworker.ipc.pickles import pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.ipc.shares import Share

PROTOCOL = 5
NONE: Final = pickle.dumps(None, PROTOCOL)  # what many tasks return: known by its looks
# To look for a word in bytes is dear: `in` tries first whether it is a number, at the price of an exception. To look
# for a number is one memchr. So the rarest byte of a word is looked for before the word is.
_UNDERSCORE: Final = ord("_")


class Unserializable(Exception):
    """A value could not be pickled.

    Attributes:
        type_name: The type of the value.
    """

    def __init__(self, value: object, error: BaseException) -> None:
        self.type_name = name_of_type(value)
        super().__init__(brief(error))


def name_of_type(value: object) -> str:
    """The qualified name of a value's type, as a traceback shows it."""
    kind = type(value)
    in_sight = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if in_sight else f"{kind.__module__}.{kind.__qualname__}"


def name_of_callable(function: object) -> str:
    """A callable's name for messages; that of the function inside a `functools.partial`."""
    name = getattr(function, "__qualname__", None)
    if name is None and isinstance(function, functools.partial):
        return name_of_callable(innermost(function))
    return name if isinstance(name, str) else name_of_type(function)


def innermost(function: Any) -> Any:
    """The function inside a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def names_of_globals(function: FunctionType) -> Iterable[str]:
    """The globals that a function takes along when it is written by value."""
    names: Iterable[str] = _cloudpickle()._extract_code_globals(function.__code__)
    return names


def dumps_by_value(
    value: object,
    pickler: Callable[[], Any] | None = None,
    buffer_callback: Callable[[pickle.PickleBuffer], bool] | None = None,
) -> bytes:
    """Pickle with what is not importable written by value.

    Args:
        value: The value.
        pickler: Makes the class that pickles, on the base of `by_value_pickler`.
        buffer_callback: As for `pickle.dumps`.

    Raises:
        Unserializable: It cannot be pickled at all.
    """
    file = io.BytesIO()
    try:
        (pickler or by_value_pickler)()(file, PROTOCOL, buffer_callback).dump(value)
    except (Exception, SystemExit) as error:  # a value's own __reduce__ may raise anything
        raise Unserializable(value, error) from error
    return file.getvalue()


_IMPORT_SECONDS = 10.0  # for the case that the frame below a signal handler imports it, which waits for the handler


@functools.cache
def _cloudpickle() -> Any:
    """The module, whole. A signal handler on top of an import of it in the main thread would get half of it."""
    threading = ownpath.imported("threading")  # not before: no child shall wait for it
    if threading.current_thread() is threading.main_thread():
        importer = threading.Thread(target=_try_cloudpickle, name="mpworker-import", daemon=True)
        try:
            importer.start()
            importer.join(_IMPORT_SECONDS)
        except RuntimeError:
            pass  # no thread can be started
    from cloudpickle import cloudpickle

    return cloudpickle


def _try_cloudpickle() -> None:
    try:
        import cloudpickle  # noqa: F401
    except Exception:  # noqa: BLE001, S110  # no module, no descriptor: whoever waits for this tries it, too, and says so
        pass


@functools.cache
def by_value_pickler() -> Any:
    """Cloudpickle's pickler, which is imported late, and what it leaves out of what is not importable.

    It writes a function under `functools.lru_cache` by name wherever it stands, a `cached_property` not at all where
    that holds a lock (before 3.12), and a `singledispatch` never, for the weak references in its cache. The copies
    begin with empty caches. And it hides the file of a function, whose lines a traceback shall show.
    """
    cloudpickle = _cloudpickle()

    some: Any = functools.singledispatch(_unset)
    dispatching = some.__code__  # of every function that it makes

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is functools._lru_cache_wrapper:
                if cloudpickle._lookup_module_and_qualname(value) is None:
                    return _cached, (value.__wrapped__, value.cache_parameters())
            elif type(value) is CodeType:
                make, arguments = cloudpickle._code_reduce(value)
                hidden = [isinstance(each, str) and each == "<dynamic-code>" for each in arguments]
                return make, tuple(
                    value.co_filename if hide else each for each, hide in zip(arguments, hidden, strict=True)
                )
            elif type(value) is functools.cached_property:
                return functools.cached_property, (value.func,), {"attrname": value.attrname}
            elif getattr(value, "__code__", None) is dispatching:
                if cloudpickle._lookup_module_and_qualname(value) is None:
                    # Filled when it is there already: what it dispatches to may well call it again.
                    return functools.singledispatch, (_unset,), dict(value.registry), None, None, _register
            elif getattr(value, "__code__", None) is some.dispatch.__code__:
                # What a bound `singledispatchmethod` holds, from 3.13 on: that of a copy, which has the branch above.
                copy = functools.singledispatch(_unset)
                _register(copy, value.__closure__[value.__code__.co_freevars.index("registry")].cell_contents)
                return getattr, (copy, "dispatch")
            elif type(value) is functools.singledispatchmethod:
                state = {"dispatcher": value.dispatcher, "func": value.func}
                return functools.singledispatchmethod, (_unset,), state
            reduced = super().reducer_override(value)
            if (
                isinstance(value, type)
                and vars(value).get("__slots__")
                and reduced is not NotImplemented
                and reduced[0] is cloudpickle._make_skeleton_class
            ):
                # Made without its slots, its instances would have a dictionary, which the class here cannot take back.
                make, (constructor, name, bases, namespace, *rest), *others = reduced
                return (
                    make,
                    (constructor, name, bases, namespace | {"__slots__": vars(value)["__slots__"]}, *rest),
                    *others,
                )
            return reduced

    return Pickler


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _unset(*_: object) -> None:
    """What a `singledispatch` begins with."""


def _register(dispatcher: Any, registry: dict[type, Any]) -> None:
    for kind, function in registry.items():
        dispatcher.register(kind, function)
    functools.update_wrapper(dispatcher, registry[object])


def dumps(value: object) -> bytes:
    """Pickle a value.

    Raises:
        Unserializable: It cannot be pickled.
    """
    data = dumps_plain(value)
    if data is not None:
        return data
    try:
        data = pickle.dumps(value, PROTOCOL)
    except (Exception, SystemExit):  # noqa: BLE001  # whatever it was, cloudpickle may know how, and says so if not
        return dumps_by_value(value)
    return dumps_by_value(value) if _UNDERSCORE in data and data.find(b"__main__") >= 0 else data


def dumps_sharing(value: object) -> tuple[bytes, tuple[Share, ...]]:
    """Pickle a value, and say which shared objects are in it.

    Raises:
        Unserializable: It cannot be pickled.
    """
    before = shares.collecting.found
    found: dict[int, Share] = {}
    try:
        shares.collecting.found = found
        return dumps(value), tuple(found.values())
    finally:
        shares.collecting.found = before


class Parts:
    """A pickle that is large, has large buffers out of band, or speaks of shared objects: it needs an envelope.

    Args:
        value: What was pickled.
        pickle: Its pickle.
        buffers: What of it is not in there: bytes, each in a row.
        shares: The shared objects; they are kept as long as this is.
    """

    __slots__ = ("buffers", "pickle", "shares", "value")

    def __init__(self, value: object, pickle: bytes, buffers: list[memoryview], shares: tuple[Share, ...] = ()) -> None:
        self.value = value
        self.pickle = pickle
        self.buffers = buffers
        self.shares = shares

    @property
    def is_large(self) -> bool:
        """Is there something of it that shall lie in an arena?"""
        return bool(self.buffers) or len(self.pickle) >= PICKLE_MIN

    def in_band(self) -> bytes:
        """A pickle with all of it."""
        return dumps_sharing(self.value)[0] if self.buffers else self.pickle

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return len(self.pickle) + sum(map(len, self.buffers))


def sharing_too(value: object, data: bytes | Parts, more: tuple[Share, ...]) -> Parts:
    """A pickle that speaks of these shared objects as well.

    Args:
        value: What was pickled.
        data: What came of that.
        more: The objects.
    """
    parts = data if isinstance(data, Parts) else Parts(value, data, [])
    parts.shares = tuple({share.block[0]: share for share in (*parts.shares, *more)}.values())
    return parts


def dumps_parts(value: object) -> bytes | Parts:
    """Pickle a value; what is large of it is not copied into a pickle, but told beside it.

    Raises:
        Unserializable: It cannot be pickled.
    """
    data = dumps_plain(value)
    if data is not None:
        return data
    if shares.collecting.found is not None:  # while another value is pickled: this has a list of its own
        return _apart(value)
    buffers: list[memoryview] = []
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=_keeps(buffers, BUFFER_MIN, RANGES_MAX))
    except (Exception, SystemExit):  # noqa: BLE001  # as in `dumps`
        return _apart(value)
    if _UNDERSCORE in data and data.find(b"__main__") >= 0:
        return _apart(value)
    return data if not buffers and len(data) < PICKLE_MIN else Parts(value, data, buffers)


def _apart(value: object) -> bytes | Parts:
    parts = dumps_apart(value, BUFFER_MIN, RANGES_MAX)
    return parts if parts.is_large or parts.shares else parts.pickle


def _keeps(buffers: list[memoryview], least: int, most: int) -> Callable[[pickle.PickleBuffer], bool]:
    """What puts large buffers beside a pickle: it returns True for those that go in there."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not in one row
        if len(raw) < least or len(buffers) >= most:
            return True
        buffers.append(raw)
        return False

    return keep


def dumps_apart(value: object, least: int, most: int = sys.maxsize) -> Parts:
    """Pickle a value, with its buffers beside the pickle.

    Args:
        value: The value.
        least: Those of so many bytes.
        most: At most so many of them; all others are in the pickle.

    Raises:
        Unserializable: It cannot be pickled.
    """
    buffers: list[memoryview] = []
    keep = _keeps(buffers, least, most)
    before = shares.collecting.found
    found: dict[int, Share] = {}
    try:
        shares.collecting.found = found
        try:
            data: bytes | None = pickle.dumps(value, PROTOCOL, buffer_callback=keep)
        except (Exception, SystemExit):  # noqa: BLE001  # as in `dumps`
            data = None
        if data is None or (_UNDERSCORE in data and data.find(b"__main__") >= 0):
            buffers.clear()
            found.clear()
            data = dumps_by_value(value, buffer_callback=keep)
    finally:
        shares.collecting.found = before
    return Parts(value, data, buffers, tuple(found.values()))


class _NotPlain(Exception):
    """A value is more than numbers, text, bytes and the built-in containers of these."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, _: Any) -> Any:
        raise _NotPlain


def dumps_tried(value: object, dumps: Callable[[object], bytes | Parts] = dumps) -> bytes | Parts:
    """Pickle a value, and see that it can be unpickled: for results of several items, which share one pickle.

    The unpickling of plain data runs no code that could fail, so it is left out.

    Args:
        value: The value.
        dumps: Pickles what is not plain data.

    Raises:
        Unserializable: It cannot be pickled, or not unpickled.
    """
    file = io.BytesIO()
    try:
        _PlainPickler(file, PROTOCOL).dump(value)
    except _NotPlain:
        data = dumps(value)
        try:
            if isinstance(data, bytes):
                loads_known(data)
            else:
                loads_known(data.pickle, buffers=data.buffers)
        except (Exception, SystemExit) as error:
            raise Unserializable(value, error) from error
        return data
    data = file.getvalue()
    return Parts(value, data, []) if dumps is dumps_parts and len(data) >= PICKLE_MIN else data


loads = pickle.loads


# Of classes that are being made of a pickle, their identities: cloudpickle knows a class before it has its attributes.
# One whose unpickling was broken off stays here until the next one has made it whole.
_unfinished: set[str] = set()


class _KnownClasses(pickle.Unpickler):
    """An unpickler that never redefines a class that this process already has.

    Several threads may make one class at a time, and a signal handler on top of any of them: each sets its attributes,
    which are the same, so that none gets back half a class.
    """

    def __init__(self, data: bytes, buffers: Iterable[Any] = ()) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._made: list[tuple[type, str]] = []  # with its identity

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        # The unpickler remembers what this returns, so that must not hold the unpickler: with it would live all that
        # was ever unpickled, for the collector of early 3.11 releases does not see that cycle.
        if module == "cloudpickle.cloudpickle":
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                return functools.partial(_make_unless_known, found, self._made)
            if name == "_class_setstate":
                return functools.partial(_set_state_if_made, found, self._made)
        return found


def _make_unless_known(make: Any, made: list[tuple[type, str]], *args: Any) -> type:
    # (constructor, name, bases, ..., identity, extra): both of cloudpickle's makers end with the same two.
    identity: str = args[-2]
    known: type | None = _cloudpickle()._DYNAMIC_CLASS_TRACKER_BY_ID.get(identity)
    if known is not None and identity not in _unfinished:
        return known
    _unfinished.add(identity)  # before anybody else can find it
    kind: type = make(*args)
    made.append((kind, identity))
    return kind


def _set_state_if_made(set_state: Any, made: list[tuple[type, str]], kind: type, state: Any) -> type:
    for each, identity in made:
        if each is kind:
            set_state(kind, state)
            _unfinished.discard(identity)
    return kind


def loads_known(data: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle where the classes come from, or where it is only tried: those that are here stay as they are.

    Args:
        data: The pickle.
        buffers: What of it is out of band.
    """
    if _UNDERSCORE in data and data.find(b"cloudpickle") >= 0:  # all that makes a class there has one in its name
        _cloudpickle()  # not by way of the pickle, in the main thread
        return _KnownClasses(data, buffers).load()
    return pickle.loads(data, buffers=buffers)  # what our own children sent


def loads_result(data: bytes | Parcel) -> Any:
    """The same, whichever way it has come."""
    return loads_plain(data, _loads_known_parcel)


def _loads_known_parcel(data: bytes | Parcel) -> Any:
    return data.loads(loads_known) if isinstance(data, Parcel) else loads_known(data)


# In a child: what the initializer has set, by the name of the module whose globals it set.
_initialized: dict[str, dict[str, Any]] = {}
_MISSING = object()


class _SeesInitializer(pickle.Unpickler):
    """An unpickler whose functions see the globals that the initializer has set."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle" and name == "_function_setstate":
            return _function_setstate(found, _initialized)
        return found


def _function_setstate(set_state: Any, initialized: dict[str, dict[str, Any]]) -> Any:
    def set_state_and_globals(function: Any, state: Any) -> Any:
        result = set_state(function, state)
        namespace = function.__globals__
        namespace.update(initialized.get(namespace.get("__name__"), {}))
        return result

    return set_state_and_globals


def call_initializer(
    function: Any, args: tuple[Any, ...], initialized: dict[str, dict[str, Any]] = _initialized
) -> None:
    """Call the user's initializer, and let the functions that are unpickled later see the globals it sets.

    A function that is sent by value brings globals of its own: without this, the connection or model that an
    initializer of `__main__` puts into a global would be invisible to every task. What the initializer has set wins
    over what the client's module holds under that name.
    """
    namespace = getattr(innermost(function), "__globals__", None)
    before = dict(namespace) if namespace is not None else {}
    function(*args)
    if namespace is not None and not _is_importable_namespace(namespace):
        changed = {name: value for name, value in namespace.items() if before.get(name, _MISSING) is not value}
        changed.pop("__builtins__", None)
        if changed:
            initialized.setdefault(namespace.get("__name__", ""), {}).update(changed)


def _is_importable_namespace(namespace: dict[str, Any]) -> bool:
    """Is this a module's own dictionary, which every function of the module shares anyway?"""
    module = sys.modules.get(namespace.get("__name__", ""))
    return module is not None and module.__dict__ is namespace


def loads_in_child(data: bytes) -> Any:
    """Unpickle a call in a child."""
    return loader_in_child()(data)


def loader_in_child() -> Callable[..., Any]:
    """What unpickles calls in a child whose initializer has run."""
    return _loads_and_sees_initializer if _initialized else pickle.loads


def _loads_and_sees_initializer(data: bytes, buffers: Iterable[Any] = ()) -> Any:
    if b"cloudpickle" in data:
        return _SeesInitializer(io.BytesIO(data), buffers=buffers).load()
    return pickle.loads(data, buffers=buffers)  # what the client sent is to be run: that is the point


class _SeesInitializerHere(_KnownClasses):
    """The same, where a call is run in the process that it comes from, whose classes stay as they are."""

    def __init__(self, data: bytes, initialized: dict[str, dict[str, Any]]) -> None:
        super().__init__(data)
        self._initialized = initialized

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle" and name == "_function_setstate":
            return _function_setstate(found, self._initialized)
        return found


def loads_here(data: bytes, initialized: dict[str, dict[str, Any]]) -> Any:
    """Unpickle a call in the process that made it; `initialized` is what an initializer set, as for a child."""
    if b"cloudpickle" in data:
        _cloudpickle()
        return _SeesInitializerHere(data, initialized).load()
    return pickle.loads(data)  # this very process made it
