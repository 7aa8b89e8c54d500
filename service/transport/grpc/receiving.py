"""Receives the one message of each gRPC call within a time limit and within the server's memory.

    headers ──> begin: a place ──────────────────> the message arrives ──> end ──> reserve its size ──> ... ──> release
                  └─ none: wait for one ──┘            └─ late: reserve the place, or be refused
                     the connections in turn           └─ slow, and others wait for a place: refused
                                                       └─ not there after `timeout_s`: refused

Once a call asks for its message, gRPC buffers it and does not report how much has arrived. So a call needs one of a
limited number of places before it asks. Nearly all messages arrive together with the headers of their call, and free
their place within one or two iterations of the event loop. A call whose message is late has to reserve memory for a
message of the largest size. A call without a place takes at most 64 KiB, which HTTP/2's flow control lets a client send
in advance.

Time alone does not show that a message is late: on a busy machine gRPC may have received it, but its thread has not
delivered it yet. Messages are delivered in order. So a message counts as late if another one that was asked for some
time later has arrived; or, if none has arrived since, if the allocated memory grows.

A stream of requests that waits for its next one is idle. It needs no place, because it may wait for long and mostly
nothing arrives; there are at most `MAX_IDLE_STREAMS`. Idle streams are ended if the allocated memory grows while no
message arrives, because then one of them may be receiving slowly.

"Look" is the name of the periodic check for late messages.
"""

import asyncio
from collections import Counter
from typing import Any, NamedTuple

from service.errors import DeadlineExceeded, HeedError, Overloaded, Unavailable
from service.process.allocator import allocated_bytes
from service.process.memory_budget import RETRY_AFTER_S, ByteBudget

LOOK_INTERVAL_S = 0.01  # a client on the same machine sends about 10 MB in this time
LATE_LOOKS = 2  # two, because the first look comes after a part of the interval
SLOW_LOOKS = 10
STALE_LOOKS = 100  # a message that takes longer counts as late in any case
# Messages and answers up to this size reserve no memory: the limits of the queue and of gRPC's streams bound them.
MAX_UNRESERVED_BYTES = 64 * 2**10
NUM_FREE_PLACES = 64
MAX_GROWTH_BYTES = 32 * 2**20  # growth of allocated memory while no message arrives
MAX_LATE_BYTES = 32 * 2**20  # memory of late messages that have none reserved
MAX_WAITING = 1024  # calls that wait for a place
MAX_IDLE_STREAMS = 64


class _Waiting(NamedTuple):
    """A call that waits for a place; `place` is done when it gets one."""

    place: "asyncio.Future[None]"
    since_look: int


class _Idle(NamedTuple):
    """A stream that waits for its next request."""

    connection: str
    since_look: int


class MessageReceiver:
    """Gives calls places to receive their messages in, and ends calls whose messages do not arrive.

    Attributes:
        timeout_s: limit of the wait for a place, and again of the wait for the message.
    """

    def __init__(
        self,
        budget: ByteBudget,
        max_message_bytes: int,
        receive_timeout_s: float,
        num_free_places: int = NUM_FREE_PLACES,
    ) -> None:
        self.timeout_s, self._num_free_places = receive_timeout_s, num_free_places
        self._budget, self._max_message_bytes = budget, max_message_bytes
        self._max_unreserved_late = MAX_LATE_BYTES // max_message_bytes
        self._max_looks = max(LATE_LOOKS, round(receive_timeout_s / LOOK_INTERVAL_S))
        self._too_slow = f"the message has not arrived within {receive_timeout_s} s"
        self._stop_at_look: int | None = None
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        # Tasks that have a place, longest first, with the number of looks before they got it; tasks with reserved
        # memory.
        self._receiving: dict[asyncio.Task[Any], int] = {}
        self._reserved: set[asyncio.Task[Any]] = set()
        # Tasks that wait for a place, by connection; the connection whose turn is next comes first.
        self._waiting: dict[str, dict[asyncio.Task[Any], _Waiting]] = {}
        self._num_waiting = 0
        self._idle: dict[asyncio.Task[Any], _Idle] = {}  # longest first
        self._idle_allocated = 0  # memory allocated when a message last arrived while streams were idle
        self._ended: dict[asyncio.Task[Any], HeedError] = {}
        # Number of looks before the last message arrived, and before the latest request for a message that has arrived.
        self._last_came_at_look = self._latest_asked_at_look = 0
        # Least memory allocated while messages were missing, and the look that last found a message missing.
        self._least_allocated, self._missed_at_look = 0, -STALE_LOOKS

    @property
    def num_receiving(self) -> int:
        """Number of calls that wait for their message or for a place."""
        return len(self._receiving) + self._num_waiting

    def begin(self, task: asyncio.Task[Any]) -> bool:
        """Give a call a place if one is free; return False if the call must use `wait_for_place`."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)
        return not self._waiting and self._give_place(task)

    def begin_idle(self, task: asyncio.Task[Any], connection: str) -> None:
        """Let a stream wait for its next request.

        Args:
            task: the stream's task.
            connection: the stream's connection. If too many streams are idle, the one that has waited longest on the
                connection with the most of them is ended.
        """
        if len(self._idle) >= MAX_IDLE_STREAMS:
            most, _ = Counter(idle.connection for idle in self._idle.values()).most_common(1)[0]
            longest = next(task for task, idle in self._idle.items() if idle.connection == most)
            self._end_idle(longest, self._idle_refusal(f"more than {MAX_IDLE_STREAMS} streams wait for requests"))
        if not self._idle:
            self._idle_allocated = allocated_bytes()
        self._idle[task] = _Idle(connection, self._looks)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)

    async def wait_for_place(self, task: asyncio.Task[Any], connection: str) -> None:
        """Wait for a place.

        Args:
            task: the call's task, which is the running one.
            connection: the call's connection. Connections get places in turn, so that one with many calls blocks no
                other.
        """
        if self._num_waiting >= MAX_WAITING:
            self._end_one_of_most()
        waiting = _Waiting(asyncio.get_running_loop().create_future(), self._looks)
        self._waiting.setdefault(connection, {})[task] = waiting
        self._num_waiting += 1
        try:
            await waiting.place
        finally:
            self._forget(task, connection)

    def end(self, task: asyncio.Task[Any], *, has_come: bool) -> HeedError | None:
        """Free the place of a task, which has its message or not; return the error if this object ended the task."""
        if self._idle and self._idle.pop(task, None) is not None and has_come:
            self._last_came_at_look = self._looks
        asked_at_look = self._receiving.pop(task, None)
        if asked_at_look is not None:
            if has_come:
                self._last_came_at_look = self._looks
                self._latest_asked_at_look = max(self._latest_asked_at_look, asked_at_look)
            if self._reserved and task in self._reserved:
                self._reserved.discard(task)
                self._budget.release(self._max_message_bytes)
            if self._waiting:
                self._give_places()
        return self._ended.pop(task, None) if self._ended else None

    def reserve(self, num_bytes: int, until_done: asyncio.Task[Any] | None = None) -> int:
        """Reserve memory for a message that has arrived or an answer to be sent; return the bytes to release.

        Args:
            num_bytes: size of the message or answer.
            until_done: task whose end releases the memory; None if the caller releases it.

        Raises:
            Overloaded: other calls hold too much memory.
        """
        if num_bytes <= MAX_UNRESERVED_BYTES:
            return 0
        self._budget.reserve(num_bytes)
        if until_done is not None:
            until_done.add_done_callback(lambda _: self._budget.release(num_bytes))
        return num_bytes

    def release(self, num_bytes: int) -> None:
        """Release as many bytes as `reserve` returned."""
        if num_bytes:
            self._budget.release(num_bytes)

    def stop(self, within_s: float) -> None:
        """Refuse calls whose message has not arrived within a time, because the server shuts down."""
        self._stop_at_look = self._looks + round(within_s / LOOK_INTERVAL_S)

    # --- places ------------------------------------------------------------------------------------------------------

    def _give_place(self, task: asyncio.Task[Any]) -> bool:
        if len(self._receiving) - len(self._reserved) < self._num_free_places or self._reserve_place(task):
            self._receiving[task] = self._looks
            return True
        return False

    def _reserve_place(self, task: asyncio.Task[Any]) -> bool:
        if self._budget.reserved_bytes + self._max_message_bytes > self._budget.limit_bytes:
            return False  # the call waits, so this does not count as refused
        self._budget.reserve(self._max_message_bytes)
        self._reserved.add(task)
        return True

    def _give_places(self) -> None:
        while self._waiting:
            connection = next(iter(self._waiting))
            task, waiting = next(iter(self._waiting[connection].items()))
            if waiting.place.cancelled():  # its call was reset in this iteration of the event loop
                self._forget(task, connection)
                continue
            if not self._give_place(task):
                return
            self._forget(task, connection)
            if connection in self._waiting:  # its next call comes after those of the other connections
                self._waiting[connection] = self._waiting.pop(connection)
            waiting.place.set_result(None)

    def _forget(self, task: asyncio.Task[Any], connection: str) -> None:
        calls = self._waiting.get(connection, {})
        if calls.pop(task, None) is not None:
            self._num_waiting -= 1
            if not calls:
                del self._waiting[connection]

    # --- late and missing messages -----------------------------------------------------------------------------------

    def _look(self) -> None:
        self._timer = None
        self._looks += 1
        stopping = self._stop_at_look is not None and self._looks >= self._stop_at_look
        waiting = [each for calls in self._waiting.values() for each in calls.values()]
        num_wanted = sum(self._looks - each.since_look >= SLOW_LOOKS for each in waiting)
        num_unreserved_late, has_grown = 0, self._has_grown()
        for task, asked_at_look in list(self._receiving.items()):
            looks = self._looks - asked_at_look
            if looks < LATE_LOOKS or task in self._ended:
                continue
            if looks >= self._max_looks:
                self._end(task, DeadlineExceeded(self._too_slow))
            elif stopping:
                self._end(task, Unavailable("the server is shutting down"))
            elif not self._is_late(asked_at_look, has_grown):
                continue
            elif task not in self._reserved and not self._reserve_place(task):
                num_unreserved_late += 1
                if num_unreserved_late > self._max_unreserved_late:
                    self._end(task, self._refusal("the message has not arrived, and"))
            elif looks >= SLOW_LOOKS and num_wanted > 0:
                num_wanted -= 1
                self._end(task, self._refusal("the message has not arrived, and"))
        for connection, calls in list(self._waiting.items()):
            for task, each in list(calls.items()):
                if stopping:
                    self._end(task, Unavailable("the server is shutting down"), connection)
                elif self._looks - each.since_look >= self._max_looks:
                    self._end(task, self._refusal("the message has not been received:"), connection)
        if self._idle:
            self._look_at_idle()
        self._give_places()  # the budget may have room again
        if self._receiving or self._waiting or self._idle:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)

    def _look_at_idle(self) -> None:
        allocated, has_grown = allocated_bytes(), False
        if self._looks - self._last_came_at_look < LATE_LOOKS or allocated < self._idle_allocated:
            self._idle_allocated = allocated
        elif allocated - self._idle_allocated > MAX_GROWTH_BYTES:
            self._idle_allocated, has_grown = allocated, True
        for task, idle in list(self._idle.items()):
            if self._stop_at_look is not None:
                self._end_idle(task, Unavailable("the server is shutting down"))
            elif self._looks - idle.since_look >= self._max_looks:
                text = f"no request has arrived on the stream within {self.timeout_s} s; open a new one"
                self._end_idle(task, DeadlineExceeded(text))
            elif has_grown and self._looks - idle.since_look >= LATE_LOOKS:
                self._end_idle(task, self._idle_refusal("a message arrives slowly while the server's memory grows"))

    def _end_idle(self, task: asyncio.Task[Any], error: HeedError) -> None:
        del self._idle[task]
        self._end(task, error)

    def _idle_refusal(self, why: str) -> Overloaded:
        self._budget.refused += 1
        return Overloaded(f"{why}: idle streams are ended; open a new one", retry_after_s=RETRY_AFTER_S)

    def _is_late(self, asked_at_look: int, has_grown: bool) -> bool:
        """Whether a message that was asked for at least two looks ago is still on its way from the client."""
        return (
            self._latest_asked_at_look - asked_at_look >= LATE_LOOKS
            or (has_grown and self._looks - self._last_came_at_look >= LATE_LOOKS)
            or self._looks - asked_at_look >= STALE_LOOKS
        )

    def _has_grown(self) -> bool:
        """Whether allocated memory has grown since messages without reserved memory are missing."""
        missed = any(
            self._looks - asked_at_look >= LATE_LOOKS and task not in self._reserved
            for task, asked_at_look in self._receiving.items()
        )
        if not missed:
            return False
        allocated = allocated_bytes()
        if self._looks - self._missed_at_look >= STALE_LOOKS:
            self._least_allocated = allocated
        self._least_allocated, self._missed_at_look = min(self._least_allocated, allocated), self._looks
        return allocated - self._least_allocated > MAX_GROWTH_BYTES

    def _end_one_of_most(self) -> None:
        """End the call that has waited longest on the connection with the most waiting calls."""
        connection = max(self._waiting, key=lambda name: len(self._waiting[name]))
        task = next(iter(self._waiting[connection]))
        self._end(task, self._refusal(f"more than {MAX_WAITING} messages wait to be received, and"), connection)

    def _refusal(self, why: str) -> Overloaded:
        self._budget.refused += 1
        text = f"{why} others hold {self._budget.reserved_bytes} of {self._budget.limit_bytes} bytes of"
        return Overloaded(f"{text} {self._budget.name}", retry_after_s=RETRY_AFTER_S)

    def _end(self, task: asyncio.Task[Any], error: HeedError, waits_on: str | None = None) -> None:
        if waits_on is not None:
            self._forget(task, waits_on)
        self._ended[task] = error
        task.cancel()
