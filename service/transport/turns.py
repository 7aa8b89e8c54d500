"""Long steps of many requests, one after the other, so that nobody else waits for more than one of them.

The event loop serves every socket that is ready before it turns to anything else. Large bodies and messages that are
there at the same time would be taken, copied and parsed one right after the other, and everybody else would wait for
all of them. They take turns instead: one in a turn of the loop, and everything else in between.

What Python converts element by element is done in a thread, in pieces, and what is copied without the interpreter's
lock is copied there. It is one thread for all requests: several would keep the lock among themselves, and the loop
would wait for one after the other. It is a little behind the loop where both want the same core: a long step of the
loop would otherwise take twice its time.
"""

import asyncio
import threading
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from service.process.thread_priority import renice_thread

# Messages and answers of more bytes count as long steps; so many bytes together may be copied in one turn. Then come
# turns without any: a request over HTTP is read in one, answered in the next.
MIN_COUNTED_BYTES = 64 * 2**10
MAX_TURN_BYTES = 2**20
NUM_SHORT_TURNS = 3
THREAD_STEPS_BACK = 6

T = TypeVar("T")


class Turns:
    """Long steps, in the order in which they came. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._thread = ThreadPoolExecutor(1, "long-steps", initializer=_step_back)
        self._copied_bytes = 0  # of messages and answers, in this turn or the last few

    def call(self, step: Callable[[], None]) -> None:
        """Call a function in a turn of its own; it must not raise."""
        self._waiting.append(step)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    async def come(self) -> None:
        """Return in a turn of the caller's own, which lasts up to its next `await`."""
        turn = asyncio.get_running_loop().create_future()
        self.call(lambda: None if turn.done() else turn.set_result(None))
        await turn

    async def copies(self, num_bytes: int) -> None:
        """Return in a turn in which the caller may copy so many bytes before its next `await`."""
        if num_bytes > MIN_COUNTED_BYTES:
            while self._copied_bytes >= MAX_TURN_BYTES:
                await self.come()
            self._note(num_bytes)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Call a function in the one thread for long steps, after those that wait for it already."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def joined(self, parts: Sequence[bytes]) -> bytes:
        """Put bytes together; where they are many, in the thread, which does not hold the interpreter's lock then."""
        num_bytes = sum(map(len, parts))
        if num_bytes > MAX_TURN_BYTES:
            return await self.in_thread(partial(b"".join, parts))
        await self.copies(num_bytes)
        return b"".join(parts)

    @types.coroutine
    def paced(self, receiving: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await gRPC's coroutine that receives a message.

        It takes and copies the message, however long, once what it waits for is there. That step has to wait for a
        later turn where this one has had as much as it may have.
        """
        steps, error = receiving.__await__(), None
        while True:
            try:
                awaited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                if isinstance(end.value, bytes):
                    self._note(len(end.value))
                return end.value  # type: ignore[no-any-return]
            try:
                yield awaited
                while self._copied_bytes >= MAX_TURN_BYTES:
                    yield from self.come().__await__()
                error = None
            except BaseException as raised:  # cancelled, for example: what is awaited has to hear of it
                error = raised

    def _note(self, num_bytes: int) -> None:
        if num_bytes > MIN_COUNTED_BYTES:
            if self._copied_bytes == 0:
                asyncio.get_running_loop().call_soon(self._end_turn, NUM_SHORT_TURNS)
            self._copied_bytes += num_bytes

    def _end_turn(self, num_short: int) -> None:
        if num_short and self._copied_bytes >= MAX_TURN_BYTES:
            asyncio.get_running_loop().call_soon(self._end_turn, num_short - 1)
        else:
            self._copied_bytes = 0

    def _run(self) -> None:
        step = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        step()


def _step_back() -> None:
    renice_thread(threading.get_native_id(), by=THREAD_STEPS_BACK)
