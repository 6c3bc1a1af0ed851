"""Exceptions of every kind, and tasks that raise them: importable, and light for the children that import them."""

import copyreg
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

# ------------------------------------------------------------ ordinary classes with an __init__ of their own


class Two(Exception):
    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} {second}")
        self.first = first
        self.second = second


class Default(Exception):
    """Can be made again from its `args`, and would then say it twice."""

    def __init__(self, name: str, code: int = 0) -> None:
        super().__init__(f"{name} failed with {code}")
        self.code = code


class Keyword(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class NoSuper(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code


class OwnNew(Exception):
    def __new__(cls, first: int, second: int) -> Any:
        made = super().__new__(cls)
        made.total = first + second  # type: ignore[attr-defined]
        return made

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first}+{second}")


class Slotted(Exception):
    __slots__ = ("__hidden", "code")

    def __init__(self, code: int, hidden: int) -> None:
        super().__init__("slotted")
        self.code = code
        self.__hidden = hidden

    @property
    def hidden(self) -> int:
        return self.__hidden


@dataclass(frozen=True)
class Frozen(Exception):
    code: int
    reason: str = "none"


class Guarded(Exception):
    """Keeps a lock out of its pickle, as any object may."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)
        self.lock = threading.Lock()
        self.first = first

    def __getstate__(self) -> dict[str, int]:
        return {"first": self.first}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()


class OwnSet(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)
        self.first = first

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, first=-state["first"])


class Itself(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)
        self.me = self


class Missing(OSError):
    def __init__(self, name: str) -> None:
        super().__init__(2, "not here", name)
        self.name = name


class Refused(OSError):
    """As those of smtplib: the `args` are set, and no field of an OSError."""

    def __init__(self, code: int, text: str, *more: object) -> None:
        self.code = code
        self.args = (code, text, *more)


class Named(AttributeError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}.{second}", name=second, obj=threading.Lock())


class Encoded(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("ascii", data, 0, 1, "bad")


class NotFound(ImportError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}.{second}", name=second, path=f"/{first}")


class NoKey(KeyError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}/{second}")


class Stop(StopIteration):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


class Exit(SystemExit):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


class BadSyntax(SyntaxError):
    def __init__(self, line: int, text: str) -> None:
        super().__init__("bad", ("file.py", line, 1, text))


class Both(LookupError, AttributeError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}/{second}")


class Mixin:
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}/{second}")  # type: ignore[call-arg]


class Mixed(Mixin, ValueError):
    pass


class Group(ExceptionGroup[Exception]):
    """As Python's documentation says that a group is to be extended."""

    def __new__(cls, errors: list[Exception], code: int) -> Self:
        made = super().__new__(cls, f"code {code}", errors)
        made.code = code
        return made

    code: int

    def derive(self, excs: Any) -> "Group":
        return Group(excs, self.code)


class GroupOfTwo(ExceptionGroup[Exception]):
    def __new__(cls, *, errors: list[Exception]) -> Self:
        return super().__new__(cls, "of two", errors)

    def __init__(self, *, errors: list[Exception]) -> None:
        self.count = len(errors)


class Lazy(UnicodeDecodeError):
    """Never calls what sets the fields; its `args` are those of its constructor."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __str__(self) -> str:
        return self.note


# ------------------------------------------------------------ classes that say themselves how


class Reduced(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("reduced")
        self.sum = first + second

    def __reduce__(self) -> Any:
        return Reduced, (self.sum, 100)


class ReducedEx(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("reduced")
        self.sum = first + second

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ReducedEx, (self.sum, 100)


class Registered(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("registered")
        self.sum = first + second


copyreg.pickle(Registered, lambda error: (Registered, (error.sum, 100)))  # type: ignore[arg-type, return-value]


class NewArgs(Exception):
    """Says how it would be made if it were no exception; Python's pickle does not listen."""

    def __init__(self, first: int, second: int = 100) -> None:
        super().__init__(first)
        self.sum = first + second

    def __getnewargs__(self) -> tuple[int]:
        return (self.sum,)

    def __setstate__(self, _: object) -> None:
        pass


# ------------------------------------------------------------ what cannot be sent, or not be made


class Locked(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class OnlyThere(Exception):
    """Can be made again in the process that it comes from, and in no other."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return _only_in, (self.pid, str(self))


def _only_in(pid: int, message: str) -> OnlyThere:
    if os.getpid() != pid:
        raise RuntimeError("not here")
    return OnlyThere(message)


class Speechless(RuntimeError):
    def __str__(self) -> str:
        raise SystemExit(3)


class NotThereSpeechless(OnlyThere):
    def __reduce__(self) -> Any:
        return _speechless_but_in, (self.pid, str(self))


def _speechless_but_in(pid: int, message: str) -> OnlyThere:
    if os.getpid() != pid:
        raise Speechless
    return NotThereSpeechless(message)


class Nothing(Exception):
    def __reduce__(self) -> Any:
        return int, ("7",)


class Mute(Exception):
    def __init__(self, how: type[BaseException]) -> None:
        super().__init__(how)
        self.how = how

    def __str__(self) -> str:
        raise self.how

    __repr__ = __str__


class MuteLocked(Locked):
    def __str__(self) -> str:
        raise RuntimeError


class Unreducible(Exception):
    how: type[BaseException] = RuntimeError

    def __reduce__(self) -> Any:
        raise self.how("stays here")


class UnreducibleBase(Unreducible):
    how = GeneratorExit


class MyText(str):
    """The text that a `__str__` may return; it cannot be sent."""

    __slots__ = ()

    def __reduce_ex__(self, _: Any) -> Any:
        raise RuntimeError


class Wordy(Exception):
    def __str__(self) -> str:
        return MyText("my words")


class Unwinding(Exception):
    """Has methods of names that others call."""

    def with_traceback(self, _: Any) -> Any:
        raise RuntimeError


class MuteCode:
    def __str__(self) -> str:
        raise RuntimeError


class _Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise RuntimeError
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=_Nameless):
    pass


def nameless() -> Nameless:
    return Nameless()


class Base(BaseException):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


# ------------------------------------------------------------ tasks


def raise_it(make: Callable[..., BaseException], *args: Any, **kwargs: Any) -> None:
    raise make(*args, **kwargs)


def raise_until(path: str, times: int, make: Callable[..., BaseException], *args: Any) -> int:
    """Raise at the first calls; then the number of this one."""
    with open(path, "a+b", buffering=0) as calls:
        calls.write(b".")
        count = calls.tell()
    if count <= times:
        raise make(*args)
    return count


def raise_at_first(item: tuple[str, bool]) -> str:
    """For each path that is to fail: at the first call."""
    path, fails = item
    if fails and not os.path.exists(path):
        open(path, "x").close()
        raise Locked(path)
    return path
