from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, final

from _typeshed import ReadableBuffer as Buffer

_C = TypeVar("_C")
_T = TypeVar("_T")

RING_CTL_BYTES: Final[int]
RING_MIN_CAPACITY: Final[int]
RING_MAX_CAPACITY: Final[int]
RECORD_HEADER_BYTES: Final[int]
BELL_BYTES: Final[int]
CLAIMS_HEADER_BYTES: Final[int]
CLAIM_SLOT_BYTES: Final[int]
CLAIM_NOTE_BYTES: Final[int]
SUBMIT: Final[int]
TASK: Final[int]
DONE: Final[int]
FREE: Final[int]
OFFERED: Final[int]
CLAIMED: Final[int]
REVOKED: Final[int]

def detach_all(returns: list[int] = ..., alone: bool = ..., /) -> None: ...
def dumps_plain(value: object, /) -> bytes | None: ...
def keep(object: object, /) -> None: ...
def loads_plain(data: _T, loads: Callable[[_T], Any], /) -> Any: ...
def prctl(option: int, value: int, /) -> None: ...
def to_main_thread(number: int, fd: int = -1, start: int = 0, /) -> None: ...
def start(
    path: bytes,
    supervisor: list[bytes],
    pid_at: int,
    nursery: list[bytes],
    environment: list[bytes],
    client_end: int,
    supervisor_end: int,
    nursery_end: int,
    started: list[int] = ...,
    /,
) -> int: ...

class RingCorrupt(Exception): ...
class MadeBeforeFork(Exception): ...

@final
class Ring:
    def __new__(cls, buffer: Buffer, ctl_offset: int, data_offset: int, capacity: int, /) -> Ring: ...
    def push(self, kind: int, flags: int, a: int, b: int, c: int, payload: Buffer, /) -> bool: ...
    def push_keeping(
        self, kept: dict[int, Any], value: object, kind: int, flags: int, a: int, b: int, c: int, payload: Buffer, /
    ) -> bool: ...
    def pop(self, into: list[tuple[int, int, int, int, int, bytes]], limit: int, /) -> int: ...
    def readable(self) -> bool: ...
    def fits(self, payload_bytes: int, /) -> bool: ...
    def fill(self) -> int: ...
    @property
    def max_payload(self) -> int: ...

@final
class Bell:
    def __new__(cls, buffer: Buffer, offset: int, fd: int, /) -> Bell: ...
    @property
    def waiting(self) -> bool: ...
    def ring(self) -> None: ...
    def ring_room(self) -> None: ...
    def want_room(self, wanted: bool, /) -> None: ...
    def wake(self) -> None: ...
    def drain(self) -> None: ...
    def arm(self) -> None: ...
    def disarm(self) -> None: ...
    def wait(
        self,
        inbound: Ring | None,
        outbound: Ring | None,
        need: int,
        timeout: float,
        also_fd: int,
        spin_ns: int,
        by_habit: bool,
        longest_ns: int = 0,
        /,
    ) -> int: ...

@final
class Claims:
    def __new__(cls, buffer: Buffer, slots: int, notes: int = 0, /) -> Claims: ...
    def offer(self, slot: int, generation: int, task: int = 0, range: int = 0, /) -> None: ...
    def send_offer(
        self,
        slot: int,
        generation: int,
        ring: Ring,
        kind: int,
        flags: int,
        a: int,
        c: int,
        payload: Buffer,
        task: int = 0,
        range: int = 0,
        /,
    ) -> bool: ...
    def claim(self, slot: int, generation: int, /) -> int: ...
    def revoke(self, slot: int, generation: int, /) -> bool: ...
    def run(
        self,
        slot: int,
        generation: int,
        call: Callable[..., object],
        items: list[Any],
        values: list[Any],
        first: int,
        stop: int,
        spread: bool,
        flush_at_ns: int,
        /,
    ) -> bool: ...
    @property
    def inside(self) -> bool: ...
    def halt(self, slot: int, generation: int, /) -> int: ...
    def peek(self, slot: int, /) -> tuple[int, int, int, int, int]: ...
    def beat(self) -> int: ...
    def start_heartbeat(self, interval_s: float, /) -> None: ...

class AttemptState:
    running: int
    task: int
    slot: int
    number: int
    early: bool
    itemwise: bool
    orphans: bool
    held_back: bool
    details: bytes
    stack: str | None

@final
class Tasks:
    def __new__(
        cls,
        claims: Claims,
        attempt: AttemptState,
        inbound: Ring,
        outbound: Ring,
        peer_bell: Bell,
        received: dict[int, Any],
        loads: Callable[[bytes], Any],
        of_value: Callable[[Any], tuple[int, bytes]],
        of_failure: Callable[[BaseException], tuple[int, bytes]],
        of_unread: Callable[[BaseException], tuple[int, bytes]],
        push: Callable[[int, int, int, int, int, bytes], None],
        plain_max: int,
        puts_off: bool,
        /,
    ) -> Tasks: ...
    def run(self) -> tuple[int, int, int, int, int, bytes] | None: ...

@final
class Submit:
    def __new__(
        cls,
        outbound: Ring,
        inbound: Ring,
        peer_bell: Bell,
        entries: Mapping[int, Any],
        live: Mapping[int, str],
        pending: dict[int, Any],
        keys: Iterator[int],
        dumps: Callable[[tuple[tuple[Any, ...], dict[str, Any]]], object],
        kept: dict[int, Any] | None,
        pending_max: int,
        record_max: int,
        look_at: int,
        /,
    ) -> Submit: ...
    def submit(
        self,
        client: _C,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: int,
        details: bytes,
        make: Callable[[_C, int, str], Any],
        /,
    ) -> Any: ...
    def submit_all(
        self,
        client: _C,
        calls: list[
            tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], int, bytes, Callable[[_C, int, str], Any]]
        ],
        futures: list[Any],
        /,
    ) -> Any: ...

@final
class Extents:
    def __new__(cls, capacity: int, /) -> Extents: ...
    def take(self, size: int, into: list[tuple[int, int, int]], /) -> bool: ...
    def give(self, number: int, /) -> bool: ...
    @property
    def taken(self) -> int: ...
    @property
    def largest(self) -> int: ...

@final
class Loan:
    def __new__(
        cls, fd: int, offset: int, size: int, returns: list[int] = ..., number: int = 0, read_only: bool = False, /
    ) -> Loan: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def arm(self) -> None: ...
    def detach(self) -> None: ...
    def locate(self, buffer: Buffer, /) -> int: ...
    @property
    def views(self) -> int: ...
