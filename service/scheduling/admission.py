"""Admission control: the bounded queue that both batchers use, and how a wait in it ends.

    submit ──> check: refused at once, or ──> enqueue ──> wait: the answer, the deadline, or cancelled

All state belongs to the event loop's thread.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from service.telemetry.metrics import SchedulingTally

# Fraction of the time until a deadline that is planned for. The rest absorbs errors of the estimates: a request that
# ends just too late was computed in vain, while a slightly shorter queue costs nothing.
PLANNED_FRACTION = 0.8


class BatchStats(msgspec.Struct, frozen=True, gc=False):
    """Size and duration of one engine call."""

    rows: int
    tokens: int  # computed tokens, including padding where the engine computes it
    padded_tokens: int
    compute_s: float
    effective_length: int  # row length of a call without padding at the same cost
    cost_s: float  # cost of the call, on the engine's own clock


class ItemResult(msgspec.Struct, frozen=True, gc=False):
    """The result of one item, the time that it waited for its engine call, and the figures of that call."""

    result: Any
    queue_s: float
    batch: BatchStats


@dataclass(slots=True, eq=False)
class Request:
    """One call of `submit`: done when all its items are done or one has failed."""

    future: asyncio.Future[list[ItemResult]]
    results: list[ItemResult | None]
    missing: int
    deadline_s: float = math.inf  # on the batcher's clock
    rest_s: float = 0.0  # expected engine time of the remaining items, each computed alone

    @classmethod
    def of(
        cls,
        num_items: int,
        loop: asyncio.AbstractEventLoop,
        deadline_s: float | None = None,
        rest_s: float = 0.0,
    ) -> "Request":
        """Return a request of `num_items` items."""
        return cls(
            loop.create_future(), [None] * num_items, num_items, math.inf if deadline_s is None else deadline_s, rest_s
        )

    def settle(self, index: int, outcome: ItemResult | Exception) -> None:
        """Record the result or error of one item; it is dropped if the request is already done."""
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
            return
        self.results[index] = outcome
        self.missing -= 1
        if not self.missing:
            self.future.set_result(self.results)  # type: ignore[arg-type]  # all results are present


class Entry(Protocol):
    """One item of a request, in the queue or with an engine."""

    request: Request
    rows: int
    expected_s: float


E = TypeVar("E", bound=Entry)


class Admission(Generic[E]):
    """The queue of one model and one priority."""

    def __init__(
        self,
        name: str,
        max_queue_rows: int,
        *,
        tally: SchedulingTally | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty queue; must be called in the event loop.

        Args:
            name: name of the model, for messages.
            max_queue_rows: largest number of rows that may wait.
            tally: counts rows that are refused, dropped, or computed in vain.
            clock: clock of the deadlines.
        """
        self.name, self._max_queue_rows = name, max_queue_rows
        self.tally, self._clock = tally or SchedulingTally(), clock
        self.loop = asyncio.get_running_loop()
        self.queue: dict[E, None] = {}  # in order of arrival; a dict, because removing an item from it is cheap
        self.queued_rows = 0
        self.queued_s = 0.0  # expected engine time of the queued items
        self.dead_reason: str | None = None
        self._draining = False
        self._drained = asyncio.Event()
        self._admitted = 0  # requests that wait or are computed

    def check(
        self,
        rows: int,
        *,
        wait_s: float,
        own_s: float,
        deadline_s: float | None,
        now_s: float,
        busy: bool = False,
    ) -> None:
        """Refuse a request that could not be answered.

        Args:
            rows: rows of the request.
            wait_s: wall time until an engine could start with the request.
            own_s: wall time of the request's own work.
            deadline_s: deadline on the batcher's clock; None for no deadline.
            now_s: present time on the same clock.
            busy: whether the engine computes other requests at the same time, even though none waits.

        Raises:
            Unavailable: draining, or the engine is dead.
            InvalidRequest: the request has more rows than the queue takes.
            Overloaded: the queue is full.
            DeadlineExceeded: the deadline has passed, or the work before it leaves too little time.
        """
        if self.dead_reason is not None:
            raise Unavailable(f"the engine of {self.name} has failed: {self.dead_reason}")
        if self._draining:
            raise Unavailable("the server is shutting down")
        if rows > self._max_queue_rows:
            raise InvalidRequest(f"the request has {rows} rows, the queue takes {self._max_queue_rows}")
        if self.queued_rows + rows > self._max_queue_rows:
            raise Overloaded(
                f"the queue of {self.name} is full: {self.queued_rows} rows wait, the limit is {self._max_queue_rows}",
                retry_after_s=wait_s,
            )
        if deadline_s is None:
            return
        if now_s >= deadline_s:
            self.tally.refused_rows += rows
            raise DeadlineExceeded("the deadline passed before the request reached the model")
        # A request that need not wait is always tried: otherwise an estimate that is too high would never be corrected.
        if (wait_s or busy) and wait_s + own_s > PLANNED_FRACTION * (deadline_s - now_s):
            self.tally.refused_rows += rows
            raise DeadlineExceeded(
                f"the deadline is in {1e3 * (deadline_s - now_s):.0f} ms and cannot be met: the work queued before it"
                f" takes about {1e3 * wait_s:.0f} ms, its own about {1e3 * own_s:.0f} ms"
            )

    def enqueue(self, entries: Sequence[E]) -> None:
        """Add the items of one request to the queue; `wait` must be awaited next."""
        for entry in entries:
            self.queue[entry] = None
            self.queued_rows += entry.rows
            self.queued_s += entry.expected_s
        self._admitted += 1

    async def wait(
        self, request: Request, entries: Sequence[E], deadline_s: float | None, now_s: float
    ) -> list[ItemResult]:
        """Wait for the results of a request; when it returns, the queue has none of its items.

        Raises:
            DeadlineExceeded: the deadline passed first.
            HeedError: an item failed.
        """
        expiry = None
        if deadline_s is not None:
            # Not `call_at`, because a loop's own clock may be coarse (uvloop's has milliseconds).
            expiry = self.loop.call_later(deadline_s - now_s, self._expire, request)
        try:
            return await request.future
        finally:
            if expiry is not None:
                expiry.cancel()
            if request.missing:
                self._count_unanswered(request, entries)
            for entry in entries:
                self.remove(entry)
            self._admitted -= 1
            if self._draining and not self._admitted:
                self._drained.set()

    def _count_unanswered(self, request: Request, entries: Sequence[E]) -> None:
        """Count the rows of an unanswered request: computed in vain, or dropped because of its deadline."""
        expired = not request.future.cancelled() and isinstance(request.future.exception(), DeadlineExceeded)
        for entry, result in zip(entries, request.results, strict=True):
            if result is not None:
                self.tally.rows_in_vain += entry.rows
            elif expired and entry in self.queue:
                self.tally.dropped_rows += entry.rows

    def _expire(self, request: Request) -> None:
        if not request.future.done():
            request.future.set_exception(DeadlineExceeded("the deadline passed before the answer was computed"))

    def count_in_vain(self, entry: E) -> None:
        """Count an item as computed in vain if its caller has left."""
        future = entry.request.future
        if future.done() and (future.cancelled() or future.exception() is not None):
            self.tally.rows_in_vain += entry.rows

    def remove(self, entry: E) -> None:
        """Remove an item from the queue if it is still there."""
        if entry in self.queue:
            del self.queue[entry]
            self.queued_rows -= entry.rows
            # Sums of floats drift, so an empty queue resets them.
            self.queued_s = self.queued_s - entry.expected_s if self.queue else 0.0

    def oldest(self, remaining_s: Callable[[E], float] = lambda entry: 0.0) -> E | None:
        """Return the oldest item that has a caller and can be done in time; None if there is none.

        Args:
            remaining_s: returns the wall time until the request of an item could be answered. A request that would be
                late fails here, before it costs compute.
        """
        now_s = self._clock()
        while self.queue:
            entry = next(iter(self.queue))
            request = entry.request
            if not request.future.done():
                if request.deadline_s == math.inf or now_s + remaining_s(entry) <= request.deadline_s:
                    return entry
                self.tally.dropped_rows += entry.rows
                request.future.set_exception(
                    DeadlineExceeded("the deadline can no longer be met: the request waited and was not computed")
                )
            self.remove(entry)  # its request ended in this iteration of the event loop
        return None

    def fail_all(self, reason: str, given: Iterable[E] = ()) -> None:
        """Mark the engine as dead: fail all waiting items and those in `given`, and refuse all further requests."""
        self.dead_reason = reason
        error = Unavailable(f"the engine of {self.name} has failed: {reason}")
        for entry in [*self.queue, *given]:
            if not entry.request.future.done():
                entry.request.future.set_exception(error)
            self.remove(entry)

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        self._draining = True
        if self._admitted:
            await self._drained.wait()
