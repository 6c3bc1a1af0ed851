"""The records of every ring: their kinds, and how the three header words a, b, c are filled.

A record is (kind, flags, a, b, c, payload); payloads of tasks and results are opaque to the supervisor. Small,
structured payloads (options, requests, crash reports) are JSON: the supervisor reads them, and it never unpickles.

======== ================================ ===================== ======================= ============================
kind     direction                        a                     b                       c
======== ================================ ===================== ======================= ============================
FRAGMENT any: a part of a large payload   0                     0                       0
FUNCTION client > supervisor              function              bytes of its name       0
FUNCTION supervisor > child               function              0                       0
FORGET   client > supervisor > child      function              0                       0
CONTEXT  supervisor > child               context               judge, 0 for none       0
OPTIONS  client > supervisor              options               0                       0
SUBMIT   client > supervisor              task                  function                options
CHUNK    client > supervisor              task                  function                options | items << 32
REQUEST  client > supervisor              request               0                       0
TASK     supervisor > child               task | context << 40  generation              slot | function << 8
RANGE    supervisor > child               task | context << 40  generation              as TASK, and start, stop
EXIT     supervisor > child               0                     0                       0
READY    child > supervisor               0                     0                       0
REFUSED  child > supervisor: no start     0                     0                       0
DONE     child > supervisor               started_ns            generation              slot | duration_ns << 8
ITEMS    child > supervisor               start | stop << 32    generation              slot | duration_ns << 8
AFTER    child > supervisor               microseconds          generation              slot
BEGUN    child > supervisor               started_ns            generation              slot
NOTE     child > supervisor               0                     generation              slot
RESULT   supervisor > client              task                  0                       0
RESULTS  supervisor > client              task                  start | stop << 32      duration_ns
SPLIT    supervisor > client              task                  start | stop << 32      0
REPLY    supervisor > client              request               0                       0
BROKEN   supervisor > client              0                     0                       0
EVENT    supervisor > client              task                  number                  0
LOG      supervisor > client              task, 0 for none      number                  0
FAREWELL supervisor > client: it ends     0                     0                       0
CLOSING  supervisor > client: takes no more 0                   0                       0
TERMS    supervisor > client: of many clients 0                 0                       0
RUN      supervisor > client              task                  runs not told of        0
RAN      supervisor > client              task                  0                       0
WANT     child > supervisor               bytes                 0                       0
LENT     supervisor > child               offset                bytes, 0 for none       block
FREE     any                              block                 is it quiet?            0
SHARE    client > supervisor              block                 offset                  bytes
SHARE    child > supervisor               block                 0                       0
UNSHARE  any but supervisor > client      block                 0                       0
======== ================================ ===================== ======================= ============================

WANT asks for a block of the arena for results, and LENT answers. FREE, of the sender's or the receiver's: a client
gives back what it got with a result, a supervisor what it got with a call, and a child what it does not need; a
supervisor says to a child that a block is another's by now. Quiet: a client that does so need not be woken for what it
gets back by that; of block 0: from now on somebody there waits for room. SHARE, of a shared object: the client has
placed it, a child has opened it. UNSHARE: nobody in the client needs it; a child shall let go of it, and has.
FUNCTION, TASK, RANGE, SUBMIT and CHUNK carry a pickle, as do DONE, ITEMS, RESULT and RESULTS when their status says so;
a client's FUNCTION has its name before that.
A context is what many tasks have in common and a child must know, 0 for nothing: the judge is the number of a function
that tells, for an exception, whether a task is not to be tried again, and the payload is empty, or the JSON of
{"prefix"}: what the ids of these tasks begin with, where that is not the same for all. One that is said again with
nothing at all is over. AFTER goes before the DONE or ITEMS of the attempt that raised Retry. REFUSED and BROKEN carry
JSON: {"why", "traceback"}, a line and what a failed initializer or preload printed. BEGUN is sent of what is WATCHED,
when it was claimed. NOTE carries JSON, of a middleware that raised: {"middleware", "traceback"}. FAREWELL carries JSON:
the answer to "metrics" that holds from then on. TERMS carries JSON, of what a client was told when it attached and is
otherwise by now: {"queues", "unknown_queues", "priority_min"}. EVENT and LOG are numbered together, those that were
dropped included: `mpworker.supervisor.watching`. RUN and RAN are of runs of recurring tasks, and sent while the client
listens: RUN carries JSON, {"name", "queue"}, and RAN, of what was announced by a RUN, is as RESULT:
`mpworker.supervisor.telling`.
"""

from __future__ import annotations

from mpworker.ipc.signals import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeAlias

Record: TypeAlias = tuple[int, int, int, int, int, bytes]

FRAGMENT: Final = 1
FUNCTION: Final = 2
FORGET: Final = 3
OPTIONS: Final = 4
SUBMIT: Final = 5
CHUNK: Final = 6
REQUEST: Final = 7
TASK: Final = 8
RANGE: Final = 9
EXIT: Final = 10
READY: Final = 11
REFUSED: Final = 12
DONE: Final = 13
ITEMS: Final = 14
RESULT: Final = 15
RESULTS: Final = 16
SPLIT: Final = 17
REPLY: Final = 18
AFTER: Final = 19
BROKEN: Final = 20
BEGUN: Final = 21
NOTE: Final = 22
EVENT: Final = 23
LOG: Final = 24
FAREWELL: Final = 25
RUN: Final = 26
RAN: Final = 27
WANT: Final = 28
LENT: Final = 29
FREE: Final = 30
SHARE: Final = 31
UNSHARE: Final = 32
CONTEXT: Final = 33
CLOSING: Final = 34
TERMS: Final = 35

# What a supervisor says on its socket before anything else, for the client to look at if it dies: that it serves, or
# why it cannot, with the reason as text. One that says nothing was none.
STANDS: Final = b"+"
CANNOT: Final = b"-"  # something could not be had
CANNOT_IMPORT: Final = b"?"  # this package, by the interpreter that the user chose

# What a supervisor of several clients says on the socket of one before it closes it: all is well.
LEFT: Final = b"+"
DISMISSED: Final = b"-"  # or: it serves this one no more, for what it has sent

# Flags. The low byte is the attempt on its way to a child (255 stands for more) and the status on the way back.
LOW: Final = 0xFF
SPREAD: Final = 0x0100  # the items of a chunk are argument tuples, not single arguments
LAST: Final = 0x0200  # ITEMS: the chunk ends with this record and its slot is free
FINAL: Final = 0x0100  # DONE, ITEMS: not to be tried again, whatever `retries` are left
AGAIN: Final = 0x0001  # SUBMIT, CHUNK: a supervisor that has died had accepted it; the details say what is known of it
DETAILED: Final = 0x0200  # SUBMIT, CHUNK, TASK, RANGE: the payload begins with details: `mpworker.ipc.details`
WATCHED: Final = 0x0400  # TASK: its child tells when it begins
FIRST: Final = 0x0400  # FRAGMENT: a payload begins
ARENA: Final = 0x0800  # SUBMIT, CHUNK, TASK, RANGE, DONE, ITEMS, RESULT, RESULTS: an envelope: `mpworker.ipc.arena`
STREAM: Final = 0x7000  # FRAGMENT, FRAGMENTED: which of the payloads that one producer sends at the same time
STREAM_SHIFT: Final = 12
FRAGMENTED: Final = 0x8000  # the payload began in the FRAGMENT records before this one

# Statuses of DONE, ITEMS, RESULT, RESULTS and RAN.
OK: Final = 0  # a pickled value, or a pickled list of values
ERROR: Final = 1  # a report by `mpworker.ipc.raised`: the task raised, whether or not its exception can be sent
UNSERIALIZABLE: Final = 2  # JSON: {"what", "type", "message", "traceback"}: of a call or a result, nothing was raised
EXITED: Final = 3  # JSON: {"type", "code", "traceback"}: the task raised SystemExit or KeyboardInterrupt
INTERRUPTED: Final = 4  # JSON: {"stack"}: the interrupt that the supervisor sent was taken
CRASHED: Final = 5  # JSON: {"pid", "signal", "exit_code", "cause", "attempt", "attempts", "unclaimed_deaths"}
# JSON: {"timeout", "deadline", "attempt", "attempts", "interrupted", "dumped", "killed"}; timeout is None where the
# deadline was missed, which is on the monotonic clock
TIMED_OUT: Final = 6
CANCELLED: Final = 7  # no payload

# What an EVENT tells, in its low byte.
QUEUED: Final = 1
STARTED: Final = 2
RETRIED: Final = 3
FINISHED: Final = 4

# Sent to a child after its slot's halt word was set. C libraries and systemd take the first few real-time signals.
INTERRUPT_SIGNAL: Final = signal.SIGRTMIN + 8
# Sent before it to a child whose task is late: mpworker.ipc.stacks.
STACK_SIGNAL: Final = signal.SIGRTMIN + 7

# Bounds of the packed header words.
MAX_CHUNK_ITEMS: Final = (1 << 16) - 1
MAX_FUNCTIONS: Final = (1 << 24) - 1
NAME_BYTES_MAX: Final = 200  # of a function's name, which is cut there
CONTEXT_SHIFT: Final = 40
TASK_MASK: Final = (1 << CONTEXT_SHIFT) - 1
CRON_KEYS: Final = 1 << (CONTEXT_SHIFT - 1)  # tasks from this number on the supervisor makes; a client counts from 1
MAX_SLOTS: Final = 256
CHILDREN_MAX: Final = 256  # of one supervisor
LISTED_MAX: Final = 10_000  # tasks of which an operator is told at once
MAX_STREAMS: Final = STREAM >> STREAM_SHIFT
# What goes by way of an arena, if there is one.
BUFFER_MIN: Final = 1 << 14  # bytes of a buffer that is not copied into its pickle
PICKLE_MIN: Final = 1 << 16  # bytes of a pickle that does not go through a ring
RANGES_MAX: Final = 1024  # buffers of one value; all others are copied into its pickle
# What the text of a report is cut to, in characters of each field, and what a whole report may then take beyond
# max_payload_bytes: a character is at most 12 bytes of JSON, and there are two such fields; in a pickle
# there are three, of at most 4 bytes. What an exception says, told beside it or in its place, is cut to less.
REPORT_TEXT_MAX: Final = 1 << 15
REPORT_BYTES_MAX: Final = 1 << 20
MESSAGE_TEXT_MAX: Final = 1 << 11


def pack_range(slot: int, function: int, start: int, stop: int) -> int:
    """The c word of RANGE: 8 bits of slot, 24 of function, 16 of start, 16 of stop."""
    return slot | function << 8 | start << 32 | stop << 48
