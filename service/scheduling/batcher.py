"""The batcher: combines many requests into few engine calls.

    submit(items) ──> queue ──> batch of similar lengths ──> engine thread ──> one result an item ──> submit returns

Guarantees (each a test in tests/service/scheduling/test_batcher.py):

1. Work-conserving: an idle engine takes what is queued at once; batches form while it is busy. There is no timer.
2. A batch is bounded by its padded size (longest x rows), and is only as large as the engine's measured costs justify.
   Items of similar length share a batch; other lengths join only if the engine skips padding. The oldest entry is in
   every batch, so no request starves.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once. Waiting times
   are wall time: the expected cost of the queue, times the wall seconds that a busy engine lately took per second.
4. Cancelled and expired entries are dropped before they cost compute, and so are entries whose deadline cannot be met
   any more; other entries are not affected. An engine call is terminated when none of its callers is left, or when it
   takes longer than the engine timeout; its thread lives on.
5. A failing batch fails only the items that cause it: it is split until they are alone, and the rest is answered.
6. A dead engine and an ended engine thread are detected, an idle batcher uses no CPU, and `drain` waits for all
   admitted requests.
7. Low-priority work (`submit_low`) is computed only when nothing else waits, and always leaves one of several cores
   idle. Its calls are short, and its threads lose their core as soon as an ordinary call needs it. Guarantees 2 to 6
   hold for it too.

A single item is computed in the event loop's own thread only if its call cannot take long: the cost follows from the
shapes alone, and calls of exactly this size have been short several times in a row.

All state belongs to the event loop's thread. Engine threads receive a list of items and return a list of results. They
share nothing else, so there are no locks.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

from service.engines.preemption import Preemption, Terminated
from service.errors import EngineFailed, Unavailable
from service.process.worker_threads import Watchdog
from service.scheduling.admission import BatchStats, ItemResult, Request
from service.scheduling.batch_forming import COMPARED_ROWS, BatcherLimits, BatchFormer, Entry, Extent, Item
from service.scheduling.cost_table import CostTable, QuickSizes
from service.scheduling.engine_thread import CallRunner, EngineLane, EngineThread
from service.scheduling.lane import two_lanes
from service.scheduling.wall_time import WallTimeFactor
from service.telemetry.metrics import SchedulingTally

# Time to hand a batch to a thread and its results back. A shorter call of one item is made in the event loop.
HAND_OVER_S = 1e-4
# A call that takes at most this long in a thread counts as quick: cold caches make it up to twice as long there.
QUICK_IN_THREAD_S = 2 * HAND_OVER_S
# A call in the event loop corrects the costs only if they are off by more than this: a correction takes as long.
TOLERATED_ERROR = 0.3
# After a call in the event loop that takes longer, for whatever reason, calls of its size go to threads for a while.
MAX_ON_THE_SPOT_S = 1e-3
# Weight of the last batch in the running mean of batch costs: a request waits for the whole batch that it is in.
BATCH_LEARNING_RATE = 0.2
# Target duration of a low-priority call: bounds the work wasted after a cancellation, and the delay of ordinary
# requests where threads cannot be preempted. A single item may exceed it.
LOW_PRIORITY_CALL_S = 5e-3


class Batcher:
    """Batches the items of one model for a number of engine threads."""

    joins_running_batches: ClassVar[bool] = False

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        probe: Callable[[], None],
        costs: CostTable,
        preemption: Preemption,
        instances: int = 1,
        skipped_padding_cost: float | None = None,
        limits: BatcherLimits | None = None,
        on_batch: Callable[[BatchStats], None] = lambda report: None,
        engine_clock: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.monotonic,
        cost_follows_from_shapes: bool = False,
        tally: SchedulingTally | None = None,
        watchdog: Watchdog | None = None,
        name: str = "engine",
    ) -> None:
        """Start `instances` engine threads. Must be called, like every method, from the event loop's thread.

        Args:
            run: the engine call, made in an engine thread; maps items to results in the same order, or raises.
            probe: a call that fails only on a dead engine; made when all items of a batch failed.
            costs: seconds of a call by rows and length.
            preemption: preemption of the engine that `run` calls.
            instances: number of calls that run in parallel.
            skipped_padding_cost: relative cost of a padding token (0 free, 1 real); None if padding is computed.
            limits: limits of the queue and of a batch.
            on_batch: called after every engine call.
            engine_clock: measures the cost of a call in seconds; `time.thread_time` excludes other threads' time.
            clock: clock of deadlines and waiting times.
            cost_follows_from_shapes: no input value can make a call longer; only then may the event loop make it.
            tally: counts rows that are refused, dropped, terminated, or computed in vain.
            watchdog: detects engine threads that the system has killed; the end by an exception is detected without it.
            name: name of the model, for thread names and messages.
        """
        self._costs, self._on_batch, self._limits = costs, on_batch, limits or BatcherLimits()
        self._name, self._engine_clock, self._clock = name, engine_clock, clock
        self._quick_sizes = QuickSizes() if cost_follows_from_shapes else None
        self._tally, self._watchdog = tally or SchedulingTally(), watchdog
        self._runner = CallRunner(run, preemption, probe=probe, skipped_padding_cost=skipped_padding_cost, name=name)
        self._wall_factor = WallTimeFactor()
        self._former = BatchFormer(
            costs, self._wall_factor, self._limits, skipped_padding_cost=skipped_padding_cost, clock=clock
        )
        self._saving = 1.0  # engine time of recent batches, as a fraction of their items' time alone
        self._batch_s = 0.0  # expected engine time of a recent batch
        self._wakeup_scheduled = self._all_busy = False
        self.in_flight_rows = 0
        max_rows, tally = self._limits.max_queue_rows, self._tally
        lanes: tuple[EngineLane, EngineLane] = two_lanes(name, max_rows, instances, LOW_PRIORITY_CALL_S, tally, clock)
        self._ordinary, self._low = lanes
        self._loop = self._ordinary.loop
        self._start_threads(self._ordinary)

    def _start_threads(self, lane: EngineLane) -> None:
        lane.start(
            lambda name: EngineThread(
                name,
                lane,
                self._runner,
                clock=self._clock,
                engine_clock=self._engine_clock,
                timeout_s=self._limits.engine_timeout_s,
                on_done=self._finished,
                on_end=self._thread_ended,
                watchdog=self._watchdog,
            )
        )

    async def submit(self, items: Sequence[Item], deadline_s: float | None = None) -> list[ItemResult]:
        """Compute all items of one request, in one or several batches; cancelling this call cancels them.

        Args:
            items: items of the request, at least one.
            deadline_s: deadline on the batcher's clock; None for no deadline.

        Raises:
            Overloaded, DeadlineExceeded: the request is refused, or not done in time.
            Unavailable: the batcher is draining, or the engine is dead.
            EngineFailed: the engine raised on one of these items, or its call took too long.
        """
        now_s, lane = self._clock(), self._ordinary
        alone_s = self._check(lane, items, self._expected_wait_s(now_s), deadline_s, now_s)
        if (
            self._quick_sizes is not None
            and 0.0 < alone_s[0] < QUICK_IN_THREAD_S
            and len(items) == 1
            and lane.idle
            and not lane.queue
            and _size(items[0]) in self._quick_sizes
        ):
            return self._compute_here(items[0], alone_s[0])
        return await self._compute_in_threads(lane, items, alone_s, deadline_s, now_s)

    async def submit_low(self, items: Sequence[Item], deadline_s: float | None = None) -> list[ItemResult]:
        """Compute all items of one request at low priority: under steady ordinary load it may wait until its deadline.

        It takes the arguments of `submit` and raises the same errors.
        """
        now_s, lane = self._clock(), self._low
        queued_s = self._wall_factor.value * lane.queued_s * self._saving / lane.num_threads
        alone_s = self._check(lane, items, self._expected_wait_s(now_s) + queued_s, deadline_s, now_s)
        self._start_threads(lane)
        return await self._compute_in_threads(lane, items, alone_s, deadline_s, now_s)

    def _check(
        self, lane: EngineLane, items: Sequence[Item], wait_s: float, deadline_s: float | None, now_s: float
    ) -> list[float]:
        """Refuse a request that could not be answered; return the expected cost of each item alone, in seconds."""
        rows, alone_s = 0, []
        for item in items:
            rows += item.rows
            alone_s.append(self._costs.estimate(item.rows, item.length))
        own_s = sum(alone_s) * self._saving / min(len(items), lane.num_threads)
        if not lane.yields:
            own_s = max(self._batch_s, own_s)
        lane.check(rows, wait_s=wait_s, own_s=self._wall_factor.value * own_s, deadline_s=deadline_s, now_s=now_s)
        return alone_s

    async def _compute_in_threads(
        self, lane: EngineLane, items: Sequence[Item], alone_s: list[float], deadline_s: float | None, now_s: float
    ) -> list[ItemResult]:
        """Queue one request and wait for its results; if it ends early, calls made for it alone are terminated."""
        request = Request.of(len(items), self._loop, deadline_s, sum(alone_s))
        estimate = self._costs.estimate
        entries = [
            Entry(
                request=request,
                index=number,
                item=item,
                rows=item.rows,
                length=item.length,
                expected_s=alone_s[number],
                work_s=estimate(COMPARED_ROWS, item.length) * item.rows / COMPARED_ROWS,
                enqueued_s=now_s,
            )
            for number, item in enumerate(items)
        ]
        lane.enqueue(entries)
        self._wake_up()
        try:
            return await lane.wait(request, entries, deadline_s, now_s)
        finally:
            if request.missing:
                for thread in lane.threads:
                    thread.terminate_if_abandoned()

    @property
    def queued_rows(self) -> int:
        """Number of rows of ordinary requests that wait for an engine."""
        return self._ordinary.queued_rows

    @property
    def queued_low_rows(self) -> int:
        """Number of rows of low-priority requests that wait for an engine."""
        return self._low.queued_rows

    def _expected_wait_s(self, now_s: float) -> float:
        """Return the expected wait of a new entry in seconds: for the call that ends first, and for the queue."""
        lane = self._ordinary
        if lane.idle:
            return 0.0
        factor = self._wall_factor.value
        running_s = min(
            max(0.0, (thread.started_s or now_s) + factor * thread.expected_s - now_s) for thread in lane.threads
        )
        return running_s + factor * lane.queued_s * self._saving / len(lane.threads)

    def _remaining_s(self, entry: Entry) -> float:
        """Return the wall time until a waiting item's request is answered, if its engine calls started now."""
        request = entry.request
        rest_s = request.rest_s * self._saving / min(request.missing, self._ordinary.num_threads)
        return self._wall_factor.value * max(entry.expected_s, rest_s)

    def _wake_up(self) -> None:
        """Form batches at the end of this event loop iteration, so that requests that arrive together share one."""
        if self._ordinary.idle and not self._wakeup_scheduled:
            self._wakeup_scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._wakeup_scheduled = False
        ordinary, low = self._ordinary, self._low
        if ordinary.dead_reason is not None:
            return
        while ordinary.idle and (batch := self._take(ordinary, len(ordinary.idle))):
            self._start(ordinary.idle.pop(), batch)
        self._all_busy = False
        if low.queue:
            # Low priority never gets the last idle core, unless there is only one core.
            reserved = 1 if len(ordinary.threads) > 1 else 0
            while batch := self._take(low, len(ordinary.idle) - (len(low.threads) - len(low.idle)) - reserved):
                self._start(low.idle.pop(), batch)

    def _take(self, lane: EngineLane, spare: int) -> list[Entry]:
        """Take the next batch out of a queue; empty if nothing waits or no thread is free."""
        if spare < 1:
            return []
        # An item that arrived while a thread was idle is tried whatever its estimate; see `Admission.check`.
        oldest = lane.oldest(self._remaining_s) if self._all_busy else lane.oldest()
        if oldest is None:
            return []
        batch = self._former.form(lane, oldest, spare)
        for entry in batch:
            lane.remove(entry)
        return batch

    def _start(self, thread: EngineThread, batch: list[Entry]) -> None:
        """Give a batch to an idle thread."""
        extent = Extent.of(*(entry.item for entry in batch))
        expected_s = self._former.cost_s(extent)
        if not thread.lane.yields:
            self._batch_s += BATCH_LEARNING_RATE * (expected_s - self._batch_s)
        self.in_flight_rows += extent.rows
        thread.start(batch, expected_s)

    def _finished(
        self, thread: EngineThread, batch: list[Entry], results: list[Any], report: BatchStats, dead: str | None
    ) -> None:
        """Deliver the results of an engine call, and give the thread its next batch."""
        started_s, call, lane = thread.started_s, thread.call, thread.lane
        if thread.batch is not batch or started_s is None or call is None:
            return  # the thread was abandoned in the meantime
        thread.clear()
        self.in_flight_rows -= report.rows
        if dead is not None:
            self._fail_all(dead)
        for entry, result in zip(batch, results, strict=True):
            lane.count_in_vain(entry)
            if isinstance(result, Terminated):
                result = EngineFailed(  # noqa: PLW2901
                    f"the engine call took longer than {self._limits.engine_timeout_s:g} s (engine_timeout_s)"
                )
            elif not isinstance(result, Exception):
                result = ItemResult(result, started_s - entry.enqueued_s, report)  # noqa: PLW2901
            entry.request.rest_s -= entry.expected_s
            entry.request.settle(entry.index, result)
        # The time of a preempted call depends on other threads, and a terminated call is incomplete.
        if not lane.yields and not call.terminated:
            self._wall_factor.record(self._clock() - started_s, thread.expected_s)
        self._all_busy = not self._ordinary.idle
        lane.idle.append(thread)
        self._dispatch()
        # Last, because no caller waits for it.
        self._on_batch(report)
        if not lane.yields:  # the wall time of a preempted call includes other threads' work
            self._learn(sum(entry.expected_s for entry in batch), results, report)
            self._learn_quick_sizes(batch, quick=report.cost_s < QUICK_IN_THREAD_S)

    def _learn_quick_sizes(self, batch: list[Entry], *, quick: bool) -> None:
        """Record the items of a quick call as quick when computed alone; a slow call shows nothing about its items.

        Without this, no item would prove quick under load, when hardly any is computed alone.
        """
        if self._quick_sizes is not None and (quick or len(batch) == 1):
            for entry in batch:
                self._quick_sizes.record(_size(entry.item), quick=quick)

    def _compute_here(self, item: Item, alone_s: float) -> list[ItemResult]:
        """Compute one item in the event loop's own thread."""
        # Wall time, because reading a thread's CPU clock is slow beside such a call. Nothing can terminate it here.
        (result,), report, dead = self._runner.execute([item], time.monotonic, None)
        self._on_batch(report)
        assert self._quick_sizes is not None
        self._quick_sizes.record(_size(item), quick=report.compute_s < MAX_ON_THE_SPOT_S)
        if dead is not None:
            self._fail_all(dead)
        if isinstance(result, Exception):
            raise result
        if abs(report.cost_s - alone_s) > TOLERATED_ERROR * alone_s:
            self._learn(alone_s, [result], report)
        return [ItemResult(result, 0.0, report)]

    def _learn(self, alone_s: float, results: list[Any], report: BatchStats) -> None:
        """Correct the costs by a successful call, whose items were expected to cost `alone_s` seconds one by one."""
        for result in results:
            if isinstance(result, Exception):
                return
        self._costs.record(report.rows, report.effective_length, report.cost_s)
        if alone_s:
            self._saving += 0.1 * (min(report.cost_s / alone_s, 2.0) - self._saving)

    def _fail_all(self, reason: str) -> None:
        for lane in (self._ordinary, self._low):
            lane.fail_all(reason)

    def _thread_ended(self, thread: EngineThread, reason: str) -> None:
        """Fail the batch of an engine thread that has ended, and all requests from now on."""
        for entry in thread.batch:
            entry.request.settle(entry.index, Unavailable(f"an engine thread of {self._name} has ended: {reason}"))
        self.in_flight_rows -= sum(entry.rows for entry in thread.batch)
        thread.clear()
        if thread in thread.lane.idle:
            thread.lane.idle.remove(thread)
        self._fail_all(f"an engine thread has ended: {reason}")

    def health_problem(self) -> str | None:
        """Return why this batcher would not answer now, or None when it would."""
        if self._ordinary.dead_reason is not None:
            return self._ordinary.dead_reason
        # Low priority does not count, because its calls may legitimately wait for a core for ever.
        return next(filter(None, (thread.health_problem() for thread in self._ordinary.threads)), None)

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._ordinary.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads after their present calls."""
        for thread in (*self._ordinary.threads, *self._low.threads):
            thread.close()


def _size(item: Item) -> Hashable:
    """Return the key under which calls of one item have equal costs."""
    return item.rows, item.length, item.batch_key
