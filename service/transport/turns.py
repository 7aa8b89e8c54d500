"""A queue for long steps of the event loop, so that other requests wait for at most one of them.

The event loop serves every ready socket before it does anything else. Large bodies and messages that arrive together
would be received, copied and parsed one right after another, and all other requests would wait for all of them. Here
they take turns: one long step in each iteration of the loop (a turn), and everything else in between.

Conversions element by element run in a thread, in pieces, and so do copies that release the interpreter's lock. There
is one thread for all requests: several threads would pass the lock among themselves, and the loop would wait for each
of them. The thread has a lower priority than the loop, because a long step of the loop would take twice as long if both
shared a core equally.
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

# Messages and answers of more than MIN_COUNTED_BYTES count as long steps. After MAX_TURN_BYTES have been copied in one
# turn, NUM_SHORT_TURNS turns without long copies follow, in which short HTTP requests are read and answered.
MIN_COUNTED_BYTES = 64 * 2**10
MAX_TURN_BYTES = 2**20
NUM_SHORT_TURNS = 3
THREAD_NICENESS = 6

T = TypeVar("T")


class Turns:
    """A queue of long steps in order of arrival. All methods must be called in the event loop's thread."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._thread = ThreadPoolExecutor(1, "long-steps", initializer=_step_back)
        self._copied_bytes = 0  # bytes of messages and answers copied in this turn or the last few

    def call(self, step: Callable[[], None]) -> None:
        """Call a function in a turn of its own; it must not raise."""
        self._waiting.append(step)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    async def come(self) -> None:
        """Wait for a turn of the caller's own, which lasts until its next `await`."""
        turn = asyncio.get_running_loop().create_future()
        self.call(lambda: None if turn.done() else turn.set_result(None))
        await turn

    async def copies(self, num_bytes: int) -> None:
        """Wait for a turn in which the caller may copy `num_bytes` before its next `await`."""
        if num_bytes > MIN_COUNTED_BYTES:
            while self._copied_bytes >= MAX_TURN_BYTES:
                await self.come()
            self._note(num_bytes)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Call a function in the thread for long steps, after the functions that wait for it already."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def joined(self, parts: Sequence[bytes]) -> bytes:
        """Join parts; long ones in the thread for long steps, because joining them releases the interpreter's lock."""
        num_bytes = sum(map(len, parts))
        if num_bytes > MAX_TURN_BYTES:
            return await self.in_thread(partial(b"".join, parts))
        await self.copies(num_bytes)
        return b"".join(parts)

    @types.coroutine
    def paced(self, receiving: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await gRPC's coroutine that receives a message, with its copy of the message limited to a turn.

        Once the message has arrived, the coroutine copies it in one step. If this turn has copied as much as it may,
        that step waits for a later turn.
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
            except BaseException as raised:  # for example a cancellation, which the awaited coroutine must receive
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
    renice_thread(threading.get_native_id(), by=THREAD_NICENESS)
