"""`map`: an ordered, lazy stream of results over chunks of the input.

A chunk is pickled as one list and sent as one record; the children answer runs of its items, and each item that fails
is answered alone. At most a window of chunks is under way or waiting to be taken, so an endless input costs bounded
memory. The size of a chunk follows what was measured: about CHUNK_NS of work, so that the cost of sending one is
small beside it.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from mpworker.chunks import Chunk
from mpworker.errors import SerializationError
from mpworker.ipc import codec, json, payload
from mpworker.ipc.failures import brief
from mpworker.outcomes import make_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.client import Client
    from mpworker.ipc.shares import Share

CHUNK_NS: Final = 2_000_000
CHUNK_BYTES: Final = 128 << 10
SLOW_INPUT: Final = 0.05
SHORT_RANGE: Final = 128
GROWTH: Final = 8  # a chunk is at most this many times as long as the one before
WINDOW_PER_CHILD: Final = 8
WINDOW_MIN: Final = 32


class Results(itertools.chain["Any"]):
    """The results of a `map`, one after the other, by no byte code of ours for each of them.

    Dropping it ends the map, as `close` does.
    """

    _close: Callable[[], None]

    def close(self) -> None:
        """End the map: what has not begun never does."""
        self._close()


class Mapping:
    """One `map` under way.

    Args:
        client: Where the chunks go.
        function: What is called with each item.
        iterables: One, or several that are zipped.
        options: The key of the task options.
        n: The number of children.
        chunksize: Items of every chunk, None to let it follow what is measured.
        buffersize: The most items that are under way or ready and not taken.
        timeout: Seconds for the whole map.
        return_exceptions: Yield the exception of a failed item in its place.
        said: What goes along with each chunk beyond the options: see `mpworker.ipc.details`.
    """

    def __init__(
        self,
        client: Client,
        function: Callable[..., Any],
        iterables: Sequence[Any],
        options: int,
        n: int,
        chunksize: int | None,
        buffersize: int | None,
        timeout: float | None,
        return_exceptions: bool,
        said: dict[str, Any] | None = None,
    ) -> None:
        self.client = client
        client.refuse_if_closed()
        self._name = payload.name_of_callable(function)
        self._call = function
        self._pinned: list[int] = []  # the key under which the children know it, once they do
        self._shares: tuple[Share, ...] = ()  # that it takes along
        self._spread = len(iterables) > 1
        hints = [operator.length_hint(each, -1) for each in iterables]
        self._remaining = -1 if min(hints) < 0 else min(hints)
        # A range is cut, and its pieces are sent as they are.
        self._numbers = iterables[0] if not self._spread and type(iterables[0]) is range else None
        self._source: Iterator[Any] = zip(*iterables, strict=False) if self._spread else iter(iterables[0])
        self._options = options
        self._n = n
        self._chunksize = chunksize
        self._size = min(chunksize or 1, codec.MAX_CHUNK_ITEMS)
        self._items_max = buffersize
        self._items = 0
        self.window = max(WINDOW_MIN, WINDOW_PER_CHILD * n)
        self._chunks: deque[Chunk] = deque()
        self._exhausted = False
        self._failure: BaseException | None = None  # of the input; raised when all before it has been taken
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._return_exceptions = return_exceptions
        self._said = said
        self._index = 0
        self._run: Iterator[Any] = iter(())  # of results that are taken now

    def _begin(self) -> None:
        try:
            self.client.functions.always(self._call, self._pinned)
        except payload.Unserializable as error:
            from mpworker import hints

            what = hints.culprit(self._call)
            raise SerializationError(f"the function {self._name!r} cannot be pickled: {error}{what}") from error
        self._shares = self.client.functions.shares.get(self._pinned[0], ())
        self.fill()

    def fill(self) -> None:
        """Send chunks until the window is full or the input is at its end; or, if that is slow, a result is there."""
        while not self._exhausted and len(self._chunks) < self.window:
            size = self._size
            if self._items_max is not None:
                size = min(size, self._items_max - self._items)
                if size <= 0:
                    return
            if self._chunksize is None and self._remaining >= 0:
                size = max(1, min(size, self._remaining // (4 * self._n) + 1))
            items: Any = []
            began = time.monotonic()
            slow = False
            try:
                try:
                    if self._numbers is not None:
                        items, self._numbers = self._numbers[:size], self._numbers[size:]
                        items = items if len(items) > SHORT_RANGE else list(items)
                    else:
                        items.extend(itertools.islice(self._source, size))  # what came before a failure is in it
                    self._exhausted = len(items) < size
                finally:
                    slow = time.monotonic() - began > SLOW_INPUT
                    if items:
                        self._remaining -= len(items)
                        self._send(items, self._chunks)
            except Exception as error:  # noqa: BLE001  # the input's own, or the worker was stopped
                self._exhausted = True
                self._failure = error
            if slow and self._has_result():
                return

    def _has_result(self) -> bool:
        self.client.poll()
        return bool(self._chunks) and self._chunks[0].ready

    def _send(self, items: Sequence[Any], into: deque[Chunk]) -> None:
        chunk = Chunk(self, items)
        into.append(chunk)  # first: what was sent is found there, whatever comes in between
        self._items += len(items)
        try:
            self._send_chunk(chunk, again=False)
        except (payload.Unserializable, SerializationError) as error:
            if len(items) > 1:  # each goes alone, and only the one at fault fails
                self._take_back(chunk, into)
                self._send_each(items, into)
            else:
                self._cannot_send(chunk, error)
        except Exception:
            self._take_back(chunk, into)
            raise

    def _send_chunk(self, chunk: Chunk, again: bool) -> None:
        data = payload.dumps_parts(chunk.items)
        if self._shares:
            data = payload.sharing_too(chunk.items, data, self._shares)
        count = len(chunk.items)
        if self._chunksize is None:
            size = len(data) if isinstance(data, bytes) else data.nbytes
            self._size = max(1, min(self._size, CHUNK_BYTES * count // (size or 1)))
        flags = codec.SPREAD if self._spread else 0
        self.client.send_chunk(chunk, flags, self._pinned[0], self._options, count, data, self._said, again)

    def _send_each(self, items: Sequence[Any], into: deque[Chunk]) -> None:
        for item in items:
            self._send([item], into)

    def _cannot_send(self, chunk: Chunk, error: Exception) -> None:
        kind = payload.name_of_type(chunk.items[0])
        report = {"what": "item", "type": kind, "message": str(error), "traceback": ""}
        chunk.settle(codec.UNSERIALIZABLE, json.dumps(report).encode())

    def _take_back(self, chunk: Chunk, into: deque[Chunk]) -> None:
        into.remove(chunk)
        self._items -= chunk.stop
        self.client.abandon(chunk.key)

    def _adapt(self, duration_ns: int, items: int) -> None:
        if self._chunksize is None and duration_ns and items:
            wanted = CHUNK_NS * items // duration_ns
            self._size = max(1, min(wanted, GROWTH * items, codec.MAX_CHUNK_ITEMS))

    def results(self) -> Results:
        """The results in the order of the input."""
        stream = self._stream()
        next(stream)  # all that must be cleaned up happens in its `try`
        results = Results.from_iterable(stream)
        assert isinstance(results, Results)
        results._close = functools.partial(self._end, stream)
        return results

    def _end(self, stream: Generator[Iterable[Any], None, None]) -> None:
        stream.close()
        deque(self._run, 0)  # whoever holds the results has the rest of it in hand

    def _stream(self) -> Generator[Iterable[Any], None, None]:
        try:
            self._begin()
            yield ()
            yield from self._each()  # no loop in here: see `mpworker.reader`
        finally:
            self._abandon()

    def _each(self) -> Iterator[Iterable[Any]]:
        while True:
            chunk = self._turn()
            if chunk is None:
                break
            self._wait(chunk)
            values = self._take(chunk)
            if isinstance(values, list):
                self._run = iter(values)
                yield self._run
            else:
                yield from zip(values, strict=False)  # what raises does so in here, which is the end
        if self._failure is not None:
            raise self._failure

    def _turn(self) -> Chunk | None:
        """The chunk whose turn it is; None at the end."""
        chunks = self._chunks
        while chunks:
            line = chunks[0].singles or chunks
            chunk = line[0]
            if chunk.at != chunk.stop:
                return chunk
            self._items -= chunk.stop
            line.popleft()
            self.fill()
        return None

    def _take(self, chunk: Chunk) -> Iterable[Any]:
        """The next results of a chunk that is ready; none if they are still to come, for its items go once more."""
        if chunk.at not in chunk.runs:
            if chunk.at in chunk.splits or chunk.at in chunk.unsaid:
                self.resend(chunk)
            elif chunk.at in chunk.resent:
                stop, singles = chunk.resent.pop(chunk.at)
                chunk.at, chunk.singles = stop, deque(singles)
            return ()
        stop, status, data, duration_ns = chunk.runs.pop(chunk.at)
        count = stop - chunk.at
        chunk.at = stop
        if status == codec.OK:
            self._adapt(duration_ns, count)
            return self._values(data, count)
        return self._failed(status, data, count)

    def _wait(self, chunk: Chunk) -> None:
        if chunk.ready:
            return
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if not self.client.wait_for(chunk, left):
            if self.client.ending.outcome is not None:  # another thread sends some again, too late
                chunk.splits.update({start: stop for start, (stop, _) in list(chunk.sending.items())})
                chunk.settle(*self.client.ending.outcome)
                return
            raise TimeoutError(f"map({self._name}) was not done within {self._timeout} s")

    def _values(self, data: bytes, count: int) -> Iterable[Any]:
        try:
            values: list[Any] = payload.loads_result(data)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return self._unreadable(error, count)
        self._index += count
        return values

    def _unreadable(self, error: BaseException, count: int) -> Iterator[Any]:
        for _ in range(count):  # all of a run, but the child has tried: only what fails here and not there
            text = f"{self._subject()}: its result cannot be unpickled here: {brief(error)}"
            yield from self._raise_or_return(SerializationError(text))

    def _subject(self) -> str:
        return f"item {self._index} of map({self._name})"

    def _failed(self, status: int, data: bytes, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield from self._raise_or_return(make_error(status, data, self._subject()))

    def _raise_or_return(self, error: BaseException) -> Iterator[Any]:
        self._index += 1
        if not self._return_exceptions:
            raise error
        yield error

    def resend(self, chunk: Chunk) -> None:
        """Items that cannot be unpickled together: each goes alone, to find the one that is at fault.

        They were accepted, so they go although the worker stops, and whoever stops it calls this too.
        """
        for start, stop in list(chunk.splits.items()):
            self._resend_run(chunk, start, [Chunk(self, [item]) for item in chunk.items[start:stop]])
        self._say_what_was_sent(chunk)
        if not chunk.splits and not chunk.unsaid:
            self.client.resending.chunks.pop(chunk, None)  # no call since the look: more of its items may come back

    def _resend_run(self, chunk: Chunk, start: int, singles: list[Chunk]) -> None:
        taken = [start]
        with self.client.resending.sends(chunk.key):
            try:
                chunk.begin_to_send(start, singles, taken)
                self._send_again(singles[: taken[0] - start])
            finally:
                if taken[0] > start and start in chunk.sending:
                    chunk.unsaid[start] = chunk.sending[start]
                    del chunk.sending[start]  # no call since the try: what follows is done by somebody in any case

    def _send_again(self, singles: list[Chunk]) -> None:
        for single in singles:
            self._items += 1
            try:
                self._send_chunk(single, again=True)
            except (payload.Unserializable, SerializationError) as error:
                self._cannot_send(single, error)

    def _say_what_was_sent(self, chunk: Chunk) -> None:
        for start, (_, singles) in list(chunk.unsaid.items()):
            for single in singles:
                if not single.sent and not single.has_ended():  # an interrupt came before it, or just after
                    self.client.abandon(single.key)
                    single.settle(codec.CANCELLED, b"")
            self.client.resending.say(chunk.key, start)
            if chunk.said(start):
                self.client.pending.pop(chunk.key, None)

    def _abandon(self) -> None:
        """The consumer is done: what has not begun never does."""
        for chunk in reversed(self._chunks):  # so that the end of one that runs lets none of these begin
            sent = (*chunk.sending.values(), *chunk.unsaid.values(), *chunk.resent.values())
            lines = [singles for _, singles in sent]
            for each in itertools.chain([chunk], chunk.singles, *lines):
                self.client.abandon(each.key)
            self.client.resending.chunks.pop(chunk, None)
        self._chunks.clear()
        self._shares = ()
        if self._pinned and not self.client.is_fork():
            self.client.functions.drop(self._pinned[0])
