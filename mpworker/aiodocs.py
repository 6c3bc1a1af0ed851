"""The documentation of a verb that an event loop's worker shares with `ProcessWorker`: said once, there."""

import inspect
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_SECTION: Final = re.compile(r"^(Args|Returns|Raises|Example):\n", re.MULTILINE)
_ENTRY: Final = re.compile(r"^    (?=\S)", re.MULTILINE)
_WRONG_LOOP: Final = "    WrongEventLoop: The worker is in use by another event loop.\n"


def like(model: Callable[..., Any]) -> Callable[[F], F]:
    """Document a verb as its model is, with what its own docstring says beyond its first line.

    Of arguments and errors that both tell of, the verb's own word counts; so do its own result and example. That of the
    model is left out: it does not await.

    Args:
        model: The method of `ProcessWorker` that does the same.
    """

    def document(verb: F) -> F:
        if model.__doc__ and verb.__doc__:  # with -OO there are none
            verb.__doc__ = _merged(_sections(model.__doc__), _sections(verb.__doc__))
        return verb

    return document


def _merged(model: dict[str, str], own: dict[str, str]) -> str:
    _, _, beyond = own[""].partition("\n")
    raises = _joined(model.get("Raises", ""), _joined(own.get("Raises", ""), _WRONG_LOOP))
    parts = [
        model[""],
        beyond.strip(),
        _section("Args", _joined(model.get("Args", ""), own.get("Args", ""))),
        _section("Returns", own.get("Returns", model.get("Returns", ""))),
        _section("Raises", raises),
        _section("Example", own.get("Example", "")),
    ]
    return "\n\n".join(part for part in parts if part)


def _sections(doc: str) -> dict[str, str]:
    """What a docstring says by the heading, and before all headings as ""."""
    first, *rest = _SECTION.split(inspect.cleandoc(doc))
    return {"": first.strip(), **{name: f"{text.rstrip()}\n" for name, text in zip(rest[::2], rest[1::2], strict=True)}}


def _joined(model: str, own: str) -> str:
    """The entries of both, in the order of the model."""
    named = {}
    for entry in (*_ENTRY.split(model)[1:], *_ENTRY.split(own)[1:]):
        named[entry.partition(":")[0]] = f"    {entry}"
    return "".join(named.values())


def _section(name: str, text: str) -> str:
    return f"{name}:\n{text.rstrip()}" if text else ""
