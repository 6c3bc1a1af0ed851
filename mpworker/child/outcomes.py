"""What a child tells of values and exceptions: a status, and a payload that the client can read."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mpworker.child.answers import Answers
from mpworker.child.arenas import Arenas
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls
from mpworker.ipc import codec, json, payload, raised
from mpworker.ipc._native import Claims
from mpworker.ipc.failures import brief, cut, full, said
from mpworker.ipc.payload import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.errors import Retry


class Outcomes:
    """How the attempts of one child end.

    Args:
        answers: Takes what is told beside the outcome.
        attempt: The one that runs.
        calls: Where its judge is.
        claims: The claim page.
        max_payload_bytes: What is larger is told to be so instead.
        arenas: Where large values go; None for nowhere.
    """

    def __init__(
        self,
        answers: Answers,
        attempt: Attempt,
        calls: Calls,
        claims: Claims,
        max_payload_bytes: int,
        arenas: Arenas | None = None,
    ) -> None:
        self._answers = answers
        self._attempt = attempt
        self._calls = calls
        self._claims = claims
        self._max_payload_bytes = max_payload_bytes
        self._arenas = arenas
        self._dumps: Callable[[Any], bytes | Parts] = payload.dumps if arenas is None else payload.dumps_parts

    def dumps_tried(self, value: Any) -> bytes | Parts:
        """A pickle that can be unpickled."""
        return payload.dumps_tried(value, self._dumps)

    def checked(self, value: object, size: int) -> None:
        """See that the pickle of a value is small enough.

        Raises:
            Unserializable: It is not.
        """
        if size > self._max_payload_bytes:
            bound = f"a pickle of {size} bytes exceeds max_payload_bytes={self._max_payload_bytes}"
            raise payload.Unserializable(value, ValueError(bound))

    def _sent(self, value: object, data: bytes | Parts) -> tuple[int, bytes]:
        """The status and payload of a value, given its pickle."""
        if isinstance(data, bytes):
            if len(data) > self._max_payload_bytes:
                self.checked(value, len(data))
            return codec.OK, data
        self.checked(value, data.nbytes)
        assert self._arenas is not None  # nothing else makes parts
        return self._arenas.place(data)

    def of_values(self, values: list[Any]) -> tuple[int, bytes]:
        """Of a run of items that have returned these.

        Raises:
            Unserializable: They cannot be sent together.
        """
        return self._sent(values, self.dumps_tried(values))

    def of_value(self, value: Any, dumps: Callable[[Any], bytes | Parts] | None = None) -> tuple[int, bytes]:
        """Of a call that has returned this."""
        if value is None:
            return codec.OK, payload.NONE
        try:
            return self._sent(value, (dumps or self._dumps)(value))
        except payload.Unserializable as error:
            return unserializable("result", error.type_name, error, "")
        except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt and the like, from a __reduce__
            return unserializable("result", payload.name_of_type(value), error, "")

    def of_failure(self, error: BaseException) -> tuple[int, bytes]:
        """Of a call that has raised this."""
        if self._attempt.stack is not None:  # whatever it made of the interrupt
            return self.of_interrupt()
        try:
            status, out = self._told(error)
            # Not imported here: `concurrent.futures` comes along. Who raises it has done so.
            errors = sys.modules.get("mpworker.errors")
            if errors is not None and isinstance(error, errors.Retry):
                self._ask_for_pause(error)
            elif self._gives_up(error):
                status |= codec.FINAL
            return status, out
        except BaseException as broken:  # noqa: BLE001  # a metaclass can do that
            why_not = f"what it is cannot be told: {type(broken).__name__}"
            return codec.ERROR, raised.dumps_report(raised.Raised("an exception", "", "", b"", why_not))

    def of_interrupt(self) -> tuple[int, bytes]:
        """Of a call that was interrupted."""
        stack, self._attempt.stack = self._attempt.stack, None
        return codec.INTERRUPTED, json.dumps({"stack": stack}).encode()

    def _ask_for_pause(self, error: Retry) -> None:
        if error.after is not None:
            slot = self._attempt.slot
            generation = self._claims.peek(slot)[0]
            self._answers.push(codec.AFTER, 0, int(error.after * 1e6), generation, slot, b"")

    def _gives_up(self, error: BaseException) -> bool:
        """Does the retry policy want no further attempt after this exception?"""
        context = self._attempt.task >> codec.CONTEXT_SHIFT
        if not context:
            return False
        try:
            judge = self._calls.judge(context)
            return judge is not None and bool(judge(error))
        except Exception:  # noqa: BLE001  # a class that cannot be imported here was not raised here either
            return False

    def _told(self, error: BaseException) -> tuple[int, bytes]:
        text = cut(full(error))
        if isinstance(error, SystemExit | KeyboardInterrupt):
            code = said(error.code) if isinstance(error, SystemExit) else ""
            exited = {"type": type(error).__name__, "code": cut(code), "traceback": text}
            return codec.EXITED, json.dumps(exited).encode()
        type_name, message = payload.name_of_type(error), cut(said(error), codec.MESSAGE_TEXT_MAX)
        why_not = ""
        try:
            bare = BaseException.with_traceback(error, None)
            data = raised.dumps(bare)
            self.checked(bare, len(data))
            # Some cannot be made again, or end the process that tries: that shall not be the client.
            raised.checked(payload.loads_known(data))
        except BaseException as cause:  # noqa: BLE001  # their code may raise anything, and this child lives on
            why_not, data = _reason(cause), b""
        return codec.ERROR, raised.dumps_report(raised.Raised(type_name, message, text, data, why_not))

    def middleware_failed(self, name: str, trace: str) -> None:
        """Tell of a middleware that raised. No interrupt comes in between: a part of a record would be left."""
        attempt = self._attempt
        generation, attempt.running = attempt.running, 0
        said = json.dumps({"middleware": name, "traceback": trace}).encode()
        self._answers.push(codec.NOTE, 0, 0, generation, attempt.slot, said)
        attempt.running = generation
        if generation and attempt.early:
            attempt.on_interrupt(0, sys._getframe())


def unserializable(what: str, type_name: str, error: BaseException, text: str) -> tuple[int, bytes]:
    """The status and payload of what cannot be pickled or unpickled."""
    report = {"what": what, "type": type_name, "message": _reason(error), "traceback": cut(text)}
    return codec.UNSERIALIZABLE, json.dumps(report).encode()


def _reason(error: BaseException) -> str:
    return cut(str(error)) if isinstance(error, payload.Unserializable) else brief(error)
