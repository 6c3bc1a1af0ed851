"""Arguments of the public face: each is checked where it is given, by one clear error."""

from __future__ import annotations

from _operator import index  # without the rest of `operator`

from mpworker.errors import ConfigurationError, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Literal, overload

TEXT_MAX: Final = 200
_SECONDS_MAX: Final = 1e9


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from low to high, as a plain int: any type that can be an index will do, but for bool.

    Raises:
        InvalidArgument: It is no whole number.
        ConfigurationError: It is out of bounds.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise InvalidArgument(f"{name} must be an int from {low} to {high}, not {shown(value)}")
    if number < low:
        raise ConfigurationError(f"{name} must be at least {low}, not {shown(value)}")
    if number > high:
        raise ConfigurationError(f"{name} must be at most {high}, not {shown(value)}")
    return number


if TYPE_CHECKING:

    @overload
    def check_seconds(name: str, value: Any, *, zero: bool = False, instead: str = "") -> float: ...

    @overload
    def check_seconds(
        name: str, value: Any, *, optional: Literal[True], zero: bool = False, instead: str = ""
    ) -> float | None: ...


def check_seconds(
    name: str, value: Any, *, optional: bool = False, zero: bool = False, instead: str = ""
) -> float | None:
    """A number of seconds, as a plain float: any real number will do, but for bool.

    Args:
        name: Of the option, for messages.
        value: What was given.
        optional: None is good too: no limit.
        zero: 0 is good too: no waiting.
        instead: What else it may be, which its caller looks at.

    Raises:
        InvalidArgument: It is no real number.
        ConfigurationError: It is out of bounds.
    """
    if value is None and optional:
        return None
    if not _is_real(value) or value != value:  # noqa: PLR0124  # which NaN alone is not
        either = " or None" if optional else ""
        raise InvalidArgument(f"{name} must be a number of seconds{either or instead}, not {shown(value)}")
    unlimited = "; None is no limit" if optional else ""
    if value < 0 or (value == 0 and not zero):
        low = "at least 0 s" if zero else "greater than 0 s"
        raise ConfigurationError(f"{name} must be {low}, not {shown(value)}{unlimited}")
    if value > _SECONDS_MAX:
        raise ConfigurationError(f"{name} must be at most {_SECONDS_MAX:.0f} s, not {shown(value)}{unlimited}")
    return float(value)


def check_number(name: str, value: Any, low: float, high: float, instead: str = "") -> float:
    """A number from low to high, as a plain float; `instead` as for `check_seconds`.

    Raises:
        InvalidArgument: It is no real number.
        ConfigurationError: It is out of bounds.
    """
    if not _is_real(value) or value != value:  # noqa: PLR0124  # which NaN alone is not
        raise InvalidArgument(f"{name} must be a number from {low:g} to {high:g}{instead}, not {shown(value)}")
    if value < low:
        raise ConfigurationError(f"{name} must be at least {low:g}, not {shown(value)}")
    if value > high:
        raise ConfigurationError(f"{name} must be at most {high:g}, not {shown(value)}")
    return float(value)


def check_text(name: str, value: Any, low: int) -> str:
    """A text of `low` to TEXT_MAX characters: a name, an id, a key.

    Raises:
        InvalidArgument: It is no str.
        ConfigurationError: It is too short or too long.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a str, not {shown(value)}")
    if not low <= len(value) <= TEXT_MAX:
        raise ConfigurationError(f"{name} must have {low} to {TEXT_MAX} characters, not {len(value)}")
    return value


def check_wait(value: Any) -> float | None:
    """How long to wait for a future, as `concurrent.futures` has it: 0 or less is not at all, None without limit.

    Raises:
        InvalidArgument: It is no real number.
        ConfigurationError: It is too large.
    """
    if value is not None and _is_real(value) and value <= 0:
        return 0.0
    return check_seconds("timeout", value, optional=True, zero=True)


def check_bool(name: str, value: Any) -> bool:
    """True or False, and nothing that is like one.

    Raises:
        InvalidArgument: It is neither.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, not {shown(value)}")
    return value


def in_a_line(text: str) -> str:
    """A text as it is where it can be printed, else its repr: a name shall not make lines of a log of its own."""
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """A value in a message: its repr, if it has one (an int of more than some thousand digits has none)."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # it may be of the user's own class; the message is about something else
        bits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        return f"{type(value).__name__}{bits}"


def _is_real(value: Any) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    from numbers import Real

    return isinstance(value, Real)
