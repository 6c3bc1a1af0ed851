"""What a task raised, on its way from the child to the client.

The report of it is plain data, which always arrives; the exception itself is a pickle inside. So the client can say
what was raised also where the exception cannot be sent, or not be made again, and the status is the same in each case:
the task raised.

Python pickles an exception as the call `type(error)(*error.args)`. That fails for an ordinary class with an `__init__`
of its own, whose arguments are not what it hands on as `args`:

    class Refused(Exception):
        def __init__(self, account, reason):
            super().__init__(f"{account}: {reason}")

or, with default values, quietly makes another exception. Such a class is made here as plain objects are, without a call
of what it defines: by `__new__` and `__init__` of the built-in class below it, which gave `args` its form; then come
the fields of that class which are not as they were (smtplib sets the `args` of an OSError, and not its `errno`), and
the attributes. A class that says itself how it is to be pickled is left alone. So is one whose `args` its built-in
class does not take: the documented way to extend an ExceptionGroup is a `__new__` with arguments of its own.
"""

from __future__ import annotations

import copyreg
import functools
import io
from collections import namedtuple
from types import BuiltinFunctionType, MemberDescriptorType, WrapperDescriptorType

from mpworker.ipc import payload
from mpworker.ipc.pickles import pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# As in `mpworker.supervisor.registry`: no import of `typing`.
class Raised(namedtuple("Raised", ("type_name", "message", "traceback", "pickled", "why_not"))):  # noqa: PYI024
    """The report.

    Attributes:
        type_name: The exception's type.
        message: What it says.
        traceback: Its traceback, as text.
        pickled: The exception by `dumps`, empty if it cannot be sent.
        why_not: Why it cannot.
    """

    __slots__ = ()
    type_name: str
    message: str
    traceback: str
    pickled: bytes
    why_not: str


def dumps_report(report: Raised) -> bytes:
    """Pickle a report."""
    return pickle.dumps(tuple(report), payload.PROTOCOL)


def loads_report(data: bytes) -> Raised:
    """Unpickle a report; no code but ours takes part."""
    return Raised(*payload.loads(data))


def dumps(error: BaseException) -> bytes:
    """Pickle an exception, and those in its arguments and attributes.

    Raises:
        Unserializable: It cannot be pickled.
    """
    # As `payload.dumps` does, which is on the way of every task and so takes no picklers as arguments.
    file = io.BytesIO()
    try:
        _Pickler(file, payload.PROTOCOL).dump(error)
    except (Exception, SystemExit):  # noqa: BLE001  # as there
        return payload.dumps_by_value(error, _by_value_pickler)
    data = file.getvalue()
    return payload.dumps_by_value(error, _by_value_pickler) if b"__main__" in data else data


def checked(error: object) -> BaseException:
    """What an exception's pickle made, if that is one: a `__reduce__` may make anything.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(error, BaseException):
        raise TypeError(f"its pickle makes a {payload.name_of_type(error)}, which is no exception")
    return error


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return _reduce(value) if issubclass(type(value), BaseException) else NotImplemented


@functools.cache
def _by_value_pickler() -> Any:
    by_value: Any = payload.by_value_pickler()

    class Pickler(by_value):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            reduced = _reduce(value) if issubclass(type(value), BaseException) else NotImplemented
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    return Pickler


def _reduce(error: BaseException) -> Any:
    """How to make an exception whose class has an `__init__` or `__new__` in Python; NotImplemented for all others."""
    kind: Any = type(error)
    base: Any = _built_in(kind)
    if base is kind or _reduces_itself(kind, base):
        return NotImplemented
    try:
        made, args, *rest = base.__reduce__(error)
        fields = _fields(base, error, _make(kind, args))
    except Exception:  # noqa: BLE001  # whatever that base says to arguments which are not its own
        return NotImplemented
    if made is not kind:
        return NotImplemented
    how = (kind, args, fields) if fields else (kind, args)
    own_get = kind.__getstate__ is not base.__getstate__
    state = error.__getstate__() if own_get else _state(error, *rest)
    if own_get or kind.__setstate__ is not base.__setstate__:
        return _make, how, state
    return _make, how, state, None, None, _set_state


def _built_in(kind: Any) -> Any:
    """The nearest class below whose instances are made by no Python code."""
    while type(kind.__new__) is not BuiltinFunctionType or type(kind.__init__) is not WrapperDescriptorType:
        kind = kind.__base__
    return kind


def _reduces_itself(kind: Any, base: Any) -> bool:
    own: Any = object.__reduce_ex__
    return (
        kind.__reduce_ex__ is not own
        or kind.__reduce__ is not base.__reduce__
        or kind in copyreg.dispatch_table
        or hasattr(kind, "__getnewargs__")
        or hasattr(kind, "__getnewargs_ex__")
    )


def _make(kind: Any, args: tuple[Any, ...], fields: dict[str, Any] | None = None) -> Any:
    base = _built_in(kind)
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in (fields or {}).items():
        _set_field(error, name, value)
    return error


def _fields(base: type, error: BaseException, made: BaseException) -> dict[str, Any]:
    """What Python code cannot see in `vars(error)`, and what `made` has otherwise."""
    found = {"args": error.args} if error.args != made.args else {}
    for kind in base.__mro__[: base.__mro__.index(BaseException)]:
        for name, member in vars(kind).items():
            # An AttributeError's `obj` may be anything, and Python itself does not pickle it.
            if type(member) is MemberDescriptorType and name != "obj":
                value = member.__get__(error)
                if value is not member.__get__(made):
                    try:
                        _set_field(made, name, value)
                    except AttributeError:
                        continue  # a read-only one; it can only be what `args` made it
                    found[name] = value
    return found


def _set_field(error: BaseException, name: str, value: object) -> None:
    if value is None:
        BaseException.__delattr__(error, name)  # then it reads as None; an OSError with an `errno` of None prints it
    else:
        BaseException.__setattr__(error, name, value)


def _state(error: BaseException, reduced: dict[str, Any] | None = None) -> dict[str, Any]:
    """The attributes: what its built-in class saves, the dictionary among it, and those in slots."""
    state = dict(reduced or {})
    whole = object.__getstate__(error)
    if isinstance(whole, tuple):
        state |= whole[1]
    return state


def _set_state(error: BaseException, state: dict[str, Any]) -> None:
    for name, value in state.items():
        BaseException.__setattr__(error, name, value)  # that of a frozen dataclass would refuse
