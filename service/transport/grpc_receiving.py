"""The one message of each gRPC call: received within a time, counted in the server's memory.

    headers ──> begin ──> the message arrives ──> end ──> reserve its size ──> answer ──> release
                  └─ not there after two looks: reserve the largest message; refused where that fails and memory grows
                  └─ not there after `receive_timeout_s`: refused

gRPC does not say how much of a message has arrived. Nearly all messages arrive with the headers; they cost a call two
dictionary operations here. One timer looks at those that have not. On a busy machine a short message may seem late that
gRPC has long got, so a call that finds no memory to reserve goes on while the process does not grow.
"""

import asyncio
from typing import Any

from service.allocator import resident_bytes
from service.errors import DeadlineExceeded, HeedError, Unavailable
from service.memory_budget import ByteBudget

LOOK_INTERVAL_S = 0.05
# Messages and answers up to this size are not reserved: the queue's bound and gRPC's bound on streams are enough.
MAX_UNRESERVED_BYTES = 64 * 2**10
# The process may grow by so much while calls without a reservation receive.
MAX_GROWTH_BYTES = 64 * 2**20


class MessageReceiver:
    """Ends calls whose message does not arrive in time, and keeps the memory of all others within a budget.

    Attributes:
        timeout_s: how long a message may take to arrive.
    """

    def __init__(self, budget: ByteBudget, max_message_bytes: int, receive_timeout_s: float) -> None:
        self.timeout_s = receive_timeout_s
        self._budget, self._max_message_bytes = budget, max_message_bytes
        self._max_looks = max(2, round(receive_timeout_s / LOOK_INTERVAL_S))
        self._too_slow = f"the message has not arrived within {receive_timeout_s} s"
        self._stop_at_look: int | None = None
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        # Tasks that wait for a message: the number of looks before. Those that have reserved, those that are ended.
        self._began: dict[asyncio.Task[Any], int] = {}
        self._reserved: set[asyncio.Task[Any]] = set()
        self._ended: dict[asyncio.Task[Any], HeedError] = {}
        self._resident_bytes = resident_bytes()

    @property
    def num_receiving(self) -> int:
        """Calls that wait for their message."""
        return len(self._began)

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Note that a call's task begins to wait for its message."""
        self._began[task] = self._looks
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)

    def end(self, task: asyncio.Task[Any]) -> HeedError | None:
        """Note that the task waits no longer; why it was ended by this object, if it was."""
        del self._began[task]
        if self._reserved and task in self._reserved:
            self._reserved.discard(task)
            self._budget.release(self._max_message_bytes)
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

    def _look(self) -> None:
        self._timer = None
        self._looks += 1
        resident = resident_bytes()
        if not self._reserved:
            self._resident_bytes = resident
        has_grown = resident - self._resident_bytes > MAX_GROWTH_BYTES
        for task, began in list(self._began.items()):
            looks = self._looks - began
            if looks < 2 or task in self._ended:  # the first comes after a part of the interval
                continue
            if looks >= self._max_looks:
                self._end(task, DeadlineExceeded(self._too_slow))
            elif self._stop_at_look is not None and self._looks >= self._stop_at_look:
                self._end(task, Unavailable("the server is shutting down"))
            elif task not in self._reserved and (has_grown or self._has_room()):
                try:
                    self._budget.reserve(self._max_message_bytes)
                except HeedError as error:
                    self._end(task, error)
                else:
                    self._reserved.add(task)
        if self._began:
            self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._look)

    def _has_room(self) -> bool:
        return self._budget.reserved_bytes + self._max_message_bytes <= self._budget.limit_bytes

    def _end(self, task: asyncio.Task[Any], error: HeedError) -> None:
        self._ended[task] = error
        task.cancel()
