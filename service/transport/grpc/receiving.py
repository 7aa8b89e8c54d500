"""The one message of each gRPC call: received within a time, and within the server's memory.

    headers ──> begin: a place ──────────────────> the message arrives ──> end ──> reserve its size ──> ... ──> release
                  └─ none: wait for one ──┘            └─ late: reserve the place, or be refused
                     the connections in turn           └─ slow, and others wait for a place: refused
                                                       └─ not there after `timeout_s`: refused

gRPC takes a message in from the moment when it is asked for it, and does not say how much has arrived. So a call needs
a place to ask in. Nearly all messages have come with the headers of their call, and leave their place after a turn or
two of the event loop: places are free for so long. Who stays longer has to reserve memory for the largest message. A
call without a place costs what HTTP/2's flow control lets its client send unasked, 64 KiB.

Time alone does not make a message late: on a busy machine gRPC has long got it, and its thread has not handed it on. It
hands on in order. So a message is late when one that was asked for some time after it has come; or, where none has come
since, when more and more memory is allocated.
"""

import asyncio
from typing import Any, NamedTuple

from service.errors import DeadlineExceeded, HeedError, Overloaded, Unavailable
from service.process.allocator import allocated_bytes
from service.process.memory_budget import RETRY_AFTER_S, ByteBudget

LOOK_INTERVAL_S = 0.01  # a client on this machine sends about 10 MB in it
LATE_LOOKS = 2  # the first look comes after a part of the interval
SLOW_LOOKS = 10
STALE_LOOKS = 100  # a message that takes longer counts as late whatever comes
# Messages and answers up to this size are not reserved: the queue's bound and gRPC's bound on streams are enough.
MAX_UNRESERVED_BYTES = 64 * 2**10
NUM_FREE_PLACES = 64
MAX_GROWTH_BYTES = 32 * 2**20  # of what is allocated, while no message comes
MAX_LATE_BYTES = 32 * 2**20  # of messages that are late and have nothing reserved
MAX_WAITING = 1024  # calls without a place


class _Waiting(NamedTuple):
    """A call that waits for a place: done when it has one."""

    place: "asyncio.Future[None]"
    since_look: int


class MessageReceiver:
    """Gives calls places to receive their messages in, and ends calls whose messages do not arrive.

    Attributes:
        timeout_s: how long a message may take to arrive, and before that a place to become free.
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
        # Tasks that have a place, longest first: the number of looks before. Those whose place is reserved.
        self._receiving: dict[asyncio.Task[Any], int] = {}
        self._reserved: set[asyncio.Task[Any]] = set()
        # Tasks that wait for a place, by connection: the one whose turn it is first.
        self._waiting: dict[str, dict[asyncio.Task[Any], _Waiting]] = {}
        self._num_waiting = 0
        self._ended: dict[asyncio.Task[Any], HeedError] = {}
        # Of the messages that have come: how many looks were before the last one came, and at most before one was
        # asked for.
        self._last_came_at_look = self._latest_asked_at_look = 0
        # The least that was allocated while messages did not come, and when that was seen last.
        self._least_allocated, self._missed_at_look = 0, -STALE_LOOKS

    @property
    def num_receiving(self) -> int:
        """Calls that wait for their message, or for a place."""
        return len(self._receiving) + self._num_waiting

    def begin(self, task: asyncio.Task[Any]) -> bool:
        """Give a call a place, if there is one; where there is not, it has to `wait_for_place`."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)
        return not self._waiting and self._give_place(task)

    async def wait_for_place(self, task: asyncio.Task[Any], connection: str) -> None:
        """Wait for a place.

        Args:
            task: the call's, which is the running one.
            connection: whose call it is. Connections are given places in turn: one with many calls stops no other.
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
        """Note that the task waits no longer, and whether it has a message; why this object has ended it, if it has."""
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
        """Reserve a message that has arrived, or an answer that is sent; the bytes to release.

        Args:
            num_bytes: its size.
            until_done: a task whose end releases them; None where the caller does.

        Raises:
            Overloaded: others hold too much.
        """
        if num_bytes <= MAX_UNRESERVED_BYTES:
            return 0
        self._budget.reserve(num_bytes)
        if until_done is not None:
            until_done.add_done_callback(lambda _: self._budget.release(num_bytes))
        return num_bytes

    def release(self, num_bytes: int) -> None:
        """Give back what `reserve` has returned."""
        if num_bytes:
            self._budget.release(num_bytes)

    def stop(self, within_s: float) -> None:
        """Refuse, after a time, the calls whose message has not arrived: the server shuts down."""
        self._stop_at_look = self._looks + round(within_s / LOOK_INTERVAL_S)

    # --- places ------------------------------------------------------------------------------------------------------

    def _give_place(self, task: asyncio.Task[Any]) -> bool:
        if len(self._receiving) - len(self._reserved) < self._num_free_places or self._reserve_place(task):
            self._receiving[task] = self._looks
            return True
        return False

    def _reserve_place(self, task: asyncio.Task[Any]) -> bool:
        if self._budget.reserved_bytes + self._max_message_bytes > self._budget.limit_bytes:
            return False  # it waits, which is no refusal
        self._budget.reserve(self._max_message_bytes)
        self._reserved.add(task)
        return True

    def _give_places(self) -> None:
        while self._waiting:
            connection = next(iter(self._waiting))
            task, waiting = next(iter(self._waiting[connection].items()))
            if waiting.place.cancelled():  # its call has been reset in this very turn of the loop
                self._forget(task, connection)
                continue
            if not self._give_place(task):
                return
            self._forget(task, connection)
            if connection in self._waiting:  # its next call's turn comes after the others'
                self._waiting[connection] = self._waiting.pop(connection)
            waiting.place.set_result(None)

    def _forget(self, task: asyncio.Task[Any], connection: str) -> None:
        calls = self._waiting.get(connection, {})
        if calls.pop(task, None) is not None:
            self._num_waiting -= 1
            if not calls:
                del self._waiting[connection]

    # --- ends --------------------------------------------------------------------------------------------------------

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
        self._give_places()  # the budget may have room by now
        if self._receiving or self._waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)

    def _is_late(self, asked_at_look: int, has_grown: bool) -> bool:
        """Whether a message was not there when it was asked for, which was two looks ago at least."""
        return (
            self._latest_asked_at_look - asked_at_look >= LATE_LOOKS
            or (has_grown and self._looks - self._last_came_at_look >= LATE_LOOKS)
            or self._looks - asked_at_look >= STALE_LOOKS
        )

    def _has_grown(self) -> bool:
        """Whether what is allocated has grown since messages that have nothing reserved do not come."""
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
        """End the call that has waited longest, of the connection that has most of them."""
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
