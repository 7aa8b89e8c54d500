"""The batcher: many requests in, few engine calls out.

    submit(items) ──> queue ──> batch of similar lengths ──> engine thread ──> one result an item ──> submit returns

What it promises (each a test in tests/service/scheduling/test_batcher.py):

1. Work-conserving: an idle engine takes what is queued at once; batches form while it is busy. There is no timer.
2. A batch is bounded by its padded size (longest x rows), and is only as large as the engine's measured costs justify.
   Similar lengths go together: texts of other length join only where the engine does not compute the padding.
   The oldest entry is in every batch, so nobody starves.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once. Waiting times
   are wall time: the expected cost of the queue times what a busy engine has recently taken for each second of cost.
4. Cancelled and expired entries are dropped before they cost compute, and so are entries whose deadline cannot be met
   any more; their neighbours do not notice. An engine call is terminated when nobody waits for it any more, or when it
   has taken longer than the engine timeout; its instance lives on.
5. A failing batch fails only its members; it is split until the poisoned item stands alone, and the rest is answered.
6. A dead engine and an engine thread that has ended are noticed, an idle batcher uses no CPU, and `drain` waits for all
   that was admitted.
7. Work of low priority (`submit_low`) gets an engine call only when nothing else waits, and never the last idle
   instance's of several; its calls are short, and made by threads of its own, which the operating system takes the core
   from as soon as an ordinary call wants it. The rest holds for it too.

A lone call is made in the event loop's own thread only where nothing can make it long: what it costs follows from its
shapes alone, and calls of exactly its size have been short again and again.

All state belongs to the event loop's thread. The engine threads see a list of items and give back a list of results;
nothing else crosses, so there are no locks.
"""

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Protocol

import msgspec

from service.engines.preemption import EngineCall, Terminated, lower_engine_priority, terminable
from service.errors import EngineFailed, Unavailable
from service.process.worker_threads import SupervisedThread, Watchdog
from service.scheduling.admission import Admission, BatchStats, ItemResult, Request
from service.scheduling.cost_table import CostTable, QuickSizes
from service.scheduling.wall_time import WallTimeFactor
from service.telemetry.metrics import SchedulingTally

# How many waiting entries are looked at for one batch: bounds the work of forming it when the queue is long.
CANDIDATES = 256
# A batch grows as long as that saves more than this share of engine time; a larger batch also means a later answer.
WORTHWHILE_SAVING = 0.02
# Batches are compared by the work that they do for their time; an item's is its share of a batch of so many rows of its
# length. By what each costs alone, batches would seem to pay whose short texts are padded to a long one.
COMPARED_ROWS = 16
# Every so many batches one is twice or half as large as the costs justify: the table learns only of sizes that are
# tried, and could never be found wrong otherwise.
BATCHES_PER_TRIAL = 17  # a prime, so that trials do not all meet the last, small batch of a large request
# What it costs to hand a batch to a thread and its results back. A lone call that takes less is made on the spot.
HAND_OVER_S = 1e-4
# What such a call may take in a thread, where it finds cold caches: up to twice as long as on the spot.
QUICK_IN_THREAD_S = 2 * HAND_OVER_S
# A call on the spot corrects the costs only when it is off by more than this share: the correction takes as long as
# some of these calls do.
TOLERATED_ERROR = 0.3
# A call on the spot that takes longer, for whatever reason, is the last of its size for a while.
MAX_ON_THE_SPOT_S = 1e-3
# So long after the engine timeout a call that was terminated may take to come back, at most: no engine obeys at once.
OBEY_S = 10.0
# How much of the last batch's cost goes into the mean: what a request waits for is the whole batch that it is in.
BATCH_LEARNING_RATE = 0.2
# What a call of low priority may cost, unless one item alone costs more: so long it goes on after its caller has left,
# and so long an ordinary request waits for it where threads cannot give way.
LOW_PRIORITY_CALL_S = 5e-3


class Item(Protocol):
    """What the batcher needs to know of the things it batches."""

    @property
    def rows(self) -> int:
        """Rows of the engine call that the item takes."""

    @property
    def length(self) -> int:
        """Length of each row, in tokens; the engine pads to the longest of the call."""

    @property
    def batch_key(self) -> Hashable:
        """Only items of equal group may share a call."""


@dataclass(frozen=True, kw_only=True)
class BatcherLimits:
    """What bounds the queue and a batch."""

    max_queue_rows: int = 1024
    max_batch_rows: int = 64
    max_batch_tokens: int = 16384  # padding included, whether or not it is computed: it takes memory
    engine_timeout_s: float = 120.0


@dataclass(slots=True, eq=False)
class _Entry:
    """One item in the queue or in an engine call."""

    request: Request
    index: int
    item: Any
    rows: int  # the item's, asked once: a waiting entry is looked at for every batch that it does not get into
    length: int
    expected_s: float  # what a call for this item alone would cost
    work_s: float  # what it costs in the company of its like
    enqueued_s: float
    instance: "_Instance | None" = None  # that computes it now


class _Instance:
    """One engine thread and what it computes at the moment."""

    def __init__(
        self,
        name: str,
        work: Callable[["_Instance", list[_Entry], EngineCall], None],
        on_end: Callable[["_Instance", str], None],
        idle: "list[_Instance]",
        *,
        low: bool,
        watchdog: Watchdog | None,
    ) -> None:
        self.inbox: SimpleQueue[tuple[list[_Entry], EngineCall] | None] = SimpleQueue()
        # Of the current call; None and nothing while idle.
        self.started_s: float | None = None
        self.batch: list[_Entry] = []
        self.call: EngineCall | None = None
        self.expected_s = 0.0
        self.timer: asyncio.TimerHandle | None = None  # looks whether the call is overdue
        self.idle, self.low = idle, low  # where it waits for its next call, and for calls of which priority
        self._work = work
        self.thread = SupervisedThread(
            self._loop, name=name, on_end=lambda reason: on_end(self, reason), watchdog=watchdog
        )
        idle.append(self)

    def _loop(self) -> None:
        if self.low:
            lower_engine_priority()
        while (given := self.inbox.get()) is not None:
            self._work(self, *given)


class Batcher:
    """Batches the items of one model for a number of engine instances."""

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        probe: Callable[[], None],
        costs: CostTable,
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
            run: the engine call, made in an engine thread: a list of items to a list of results of the same length
                and order. An exception fails the call.
            probe: a call that must succeed on a sound engine; made when every item of a batch failed. If it raises,
                the engine is dead.
            costs: seconds of a call by rows and length.
            instances: how many calls run side by side.
            skipped_padding_cost: of an engine that computes only what the items hold: what a token of padding costs all
                the same, as a share of a real one. None: padding is computed like any token.
            limits: bounds of the queue and of a batch.
            on_batch: told of every engine call.
            engine_clock: measures what a call costs. For an engine that computes in the calling thread alone,
                `time.thread_time` leaves out what other threads and the host take.
            clock: of deadlines and waiting times.
            cost_follows_from_shapes: no value of an input can make a call longer, as the number of turns of a Loop
                would. Only then may a short call be made in the event loop.
            tally: counts what is refused, dropped, terminated and computed in vain.
            watchdog: notices engine threads that vanish; one that ends by an exception is noticed without.
            name: for thread names and messages.
        """
        self._run, self._probe, self._costs, self._on_batch = run, probe, costs, on_batch
        self._limits, self._padding_cost = limits or BatcherLimits(), skipped_padding_cost
        self._name, self._engine_clock, self._clock = name, engine_clock, clock
        self._quick_sizes = QuickSizes() if cost_follows_from_shapes else None
        self._tally, self._watchdog = tally or SchedulingTally(), watchdog
        self._admission = self._new_admission()
        self._loop = self._admission.loop
        self._queue = self._admission.queue
        # With bounds of its own, so that it never fills the queue of ordinary requests.
        self._low = self._new_admission()
        self._saving = 1.0  # engine time of recent batches, as a share of their items' time alone
        self._wall_factor = WallTimeFactor()
        self._batch_s = 0.0  # expected engine time of a recent batch
        self._batches_formed = 0
        self._wakeup_scheduled = self._all_busy = False
        self.in_flight_rows = 0
        self._idle: list[_Instance] = []
        self._idle_low: list[_Instance] = []
        self._instances = [self._new_instance(f"{name}-{number}", low=False) for number in range(instances)]
        # Those of low priority start with the first request of theirs.
        self._num_low = max(1, instances - 1)
        self._low_instances: list[_Instance] = []

    def _new_admission(self) -> Admission[_Entry]:
        return Admission(self._name, self._limits.max_queue_rows, tally=self._tally, clock=self._clock)

    def _new_instance(self, name: str, *, low: bool) -> _Instance:
        idle = self._idle_low if low else self._idle
        return _Instance(name, self._work, self._thread_ended, idle, low=low, watchdog=self._watchdog)

    # --- in the event loop -------------------------------------------------------------------------------------------

    async def submit(self, items: Sequence[Item], deadline_s: float | None = None) -> list[ItemResult]:
        """Compute all items of one request, in whatever batches suit; cancelling this call takes them back.

        Args:
            items: at least one.
            deadline_s: on the batcher's clock; None for no deadline.

        Raises:
            Overloaded, DeadlineExceeded: refused, or not done in time.
            Unavailable: draining, or the engine is dead.
            EngineFailed: the engine raised on one of these items, or its call took too long.
        """
        now_s = self._clock()
        rows, alone_s = 0, []
        for item in items:
            rows += item.rows
            alone_s.append(self._costs.estimate(item.rows, item.length))
        self._admission.check(
            rows,
            wait_s=self._expected_wait_s(now_s),
            own_s=self._wall_factor.value
            * max(self._batch_s, sum(alone_s) * self._saving / min(len(items), len(self._instances))),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        if (
            self._quick_sizes is not None
            and 0.0 < alone_s[0] < QUICK_IN_THREAD_S
            and len(items) == 1
            and self._idle
            and not self._queue
            and _size(items[0]) in self._quick_sizes
        ):
            return self._compute_here(items[0], alone_s[0])
        request = Request.of(len(items), self._loop, deadline_s, sum(alone_s))
        entries = self._entries(request, items, alone_s, now_s)
        self._admission.enqueue(entries)
        self._wake_up()
        return await self._outcome(self._admission, request, entries, now_s)

    async def submit_low(self, items: Sequence[Item], deadline_s: float | None = None) -> list[ItemResult]:
        """As `submit`, for work that gives way: under steady ordinary load it may wait until its deadline."""
        now_s, factor = self._clock(), self._wall_factor.value
        alone_s = [self._costs.estimate(item.rows, item.length) for item in items]
        self._low.check(
            sum(item.rows for item in items),
            wait_s=self._expected_wait_s(now_s) + factor * self._low.queued_s * self._saving / self._num_low,
            own_s=factor * sum(alone_s) * self._saving / min(len(items), self._num_low),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        request = Request.of(len(items), self._loop, deadline_s, sum(alone_s))
        entries = self._entries(request, items, alone_s, now_s)
        if not self._low_instances:
            names = [f"{self._name}-low-{number}" for number in range(self._num_low)]
            self._low_instances = [self._new_instance(name, low=True) for name in names]
        self._low.enqueue(entries)
        self._wake_up()
        return await self._outcome(self._low, request, entries, now_s)

    async def _outcome(
        self, admission: Admission[_Entry], request: Request, entries: list[_Entry], now_s: float
    ) -> list[ItemResult]:
        """What becomes of a request; a call that was made for it alone ends with it."""
        deadline_s = None if request.deadline_s == math.inf else request.deadline_s
        try:
            return await admission.wait(request, entries, deadline_s, now_s)
        finally:
            if request.missing:
                for instance in {entry.instance for entry in entries if entry.instance is not None}:
                    self._terminate_if_abandoned(instance)

    def _terminate_if_abandoned(self, instance: _Instance) -> None:
        """Stop the call of an instance when nobody waits for any of its items."""
        call = instance.call
        if call is not None and not call.terminated and all(entry.request.future.done() for entry in instance.batch):
            self._tally.terminated["abandoned"] += 1
            call.terminate()

    def _terminate_if_overdue(self, instance: _Instance) -> None:
        """Stop the call of an instance when it takes longer than the engine timeout; else look again later."""
        instance.timer = None
        if instance.started_s is None or instance.call is None:
            return
        left_s = instance.started_s + self._limits.engine_timeout_s - self._clock()
        if left_s > 0:
            instance.timer = self._loop.call_later(left_s, self._terminate_if_overdue, instance)
        elif not instance.call.terminated:
            self._tally.terminated["overdue"] += 1
            instance.call.terminate()

    def _entries(self, request: Request, items: Sequence[Item], alone_s: Sequence[float], now_s: float) -> list[_Entry]:
        estimate = self._costs.estimate
        return [
            _Entry(
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

    @property
    def queued_rows(self) -> int:
        """Rows of ordinary requests that wait for an engine."""
        return self._admission.queued_rows

    @property
    def queued_low_rows(self) -> int:
        """Rows of low priority that wait for an engine."""
        return self._low.queued_rows

    def _expected_wait_s(self, now_s: float) -> float:
        """When an engine would come to a new entry: the call that ends first, then a share of what is queued."""
        if self._idle:
            return 0.0
        factor = self._wall_factor.value
        running_s = min(
            max(0.0, (instance.started_s or now_s) + factor * instance.expected_s - now_s)
            for instance in self._instances
        )
        return running_s + factor * self._admission.queued_s * self._saving / len(self._instances)

    def _remaining_s(self, entry: _Entry) -> float:
        """Wall time until the request of a waiting item could be answered, if its engine calls began now."""
        request = entry.request
        rest_s = request.rest_s * self._saving / min(request.missing, len(self._instances))
        return self._wall_factor.value * max(entry.expected_s, rest_s)

    def _wake_up(self) -> None:
        """Form batches at the end of this turn of the loop, so that requests that arrive together go together."""
        if self._idle and not self._wakeup_scheduled:
            self._wakeup_scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._wakeup_scheduled = False
        if self._admission.dead_reason is not None:
            return
        while self._idle and (batch := self._take()):
            self._start(self._idle.pop(), batch)
        self._all_busy = False
        if self._low.queue:
            while batch := self._take_low():
                self._start(self._idle_low.pop(), batch)

    def _start(self, instance: _Instance, batch: list[_Entry]) -> None:
        """Give a batch to an idle instance."""
        extent = _Extent.of(*(entry.item for entry in batch))
        instance.started_s = self._clock()
        instance.expected_s = self._cost_s(extent)
        if not instance.low:
            self._batch_s += BATCH_LEARNING_RATE * (instance.expected_s - self._batch_s)
        instance.batch, instance.call = batch, EngineCall()
        for entry in batch:
            entry.instance = instance
        if instance.timer is None:
            instance.timer = self._loop.call_later(self._limits.engine_timeout_s, self._terminate_if_overdue, instance)
        self.in_flight_rows += extent.rows
        instance.inbox.put((batch, instance.call))

    def _take(self) -> list[_Entry]:
        """The next batch of ordinary requests."""
        # What has come while an instance was idle is tried, whatever it is thought to cost: see `Admission.check`.
        oldest = self._admission.oldest(self._remaining_s if self._all_busy else lambda entry: 0.0)
        if oldest is None:
            return []
        # With idle instances the waiting rows are shared out among them, rather than given to one.
        max_rows = min(self._limits.max_batch_rows, -(-self._admission.queued_rows // len(self._idle)))
        return self._form(self._admission, oldest, max_rows, self._limits.max_batch_tokens)

    def _take_low(self) -> list[_Entry]:
        """The next batch of low priority; called when no ordinary request waits."""
        running = len(self._low_instances) - len(self._idle_low)
        spare = len(self._idle) - running - (len(self._instances) > 1)
        if spare < 1 or (oldest := self._low.oldest()) is None:
            return []
        max_rows = 1  # until something is known of the costs
        if oldest.expected_s:
            sizes = range(1, self._limits.max_batch_rows + 1)
            cost_s = self._costs.estimate
            max_rows = bisect_right(sizes, LOW_PRIORITY_CALL_S, key=lambda rows: cost_s(rows, oldest.length))
        max_rows = max(oldest.rows, min(max_rows, -(-self._low.queued_rows // spare)))
        return self._form(self._low, oldest, max_rows, min(max_rows * oldest.length, self._limits.max_batch_tokens))

    def _form(self, admission: Admission[_Entry], oldest: _Entry, max_rows: int, max_tokens: int) -> list[_Entry]:
        """A batch: the oldest entry, and those whose company costs less engine time than a call of their own."""
        # By distance from the oldest one's length, then by age.
        length, batch_key = oldest.length, oldest.item.batch_key
        candidates = sorted(
            [
                (abs(entry.length - length), place, entry)
                for place, entry in enumerate(islice(admission.queue, CANDIDATES))
                if entry is not oldest and entry.item.batch_key == batch_key
            ]
        )
        batch, extent, work_s = [oldest], _Extent.of(oldest.item), oldest.work_s
        # A batch ends in time for all its members.
        now_s, factor, earliest_s = self._clock(), self._wall_factor.value, oldest.request.deadline_s
        cost_s = self._cost_s(extent)
        best_size, best_share = 1, cost_s / work_s if work_s else 1.0
        self._batches_formed += 1
        trials, rest = divmod(self._batches_formed, BATCHES_PER_TRIAL)
        stretch = 1.0 if rest else (2.0, 0.5)[trials % 2]
        for _, _, entry in candidates:
            wider = extent.wider(entry.rows, entry.length)
            if wider.rows > max_rows or wider.rows * wider.longest > max_tokens:
                continue
            if entry.request.future.done():
                continue
            wider_cost_s = self._cost_s(wider)
            ends_s = now_s + factor * wider_cost_s
            if ends_s > earliest_s:
                break
            if ends_s > entry.request.deadline_s:
                continue
            if wider_cost_s > cost_s + entry.expected_s and len(batch) >= stretch * best_size:
                # Its company costs more than a call of its own, and those after it differ even more in length.
                break
            batch.append(entry)
            earliest_s = min(earliest_s, entry.request.deadline_s)
            extent, cost_s, work_s = wider, wider_cost_s, work_s + entry.work_s
            share = cost_s / work_s if work_s else 0.0
            if share < best_share * (1 - WORTHWHILE_SAVING) or not work_s:
                best_size, best_share = len(batch), share
        del batch[max(1, int(stretch * best_size)) :]
        for entry in batch:
            admission.remove(entry)
        return batch

    def _cost_s(self, extent: "_Extent") -> float:
        return self._costs.estimate(extent.rows, extent.effective_length(self._padding_cost))

    def _finished(
        self,
        instance: _Instance,
        batch: list[_Entry],
        results: list[Any],
        report: BatchStats,
        dead: str | None,
    ) -> None:
        """Hand out the results of an engine call, and give the engine its next one."""
        started_s, call = instance.started_s, instance.call
        if instance.batch is not batch or started_s is None or call is None:
            return  # the instance was given up meanwhile
        self._free(instance)
        self.in_flight_rows -= report.rows
        if dead is not None:
            self._die(dead)
        for entry, result in zip(batch, results, strict=True):
            entry.instance = None
            self._admission.count_in_vain(entry)
            if isinstance(result, Terminated):
                result = EngineFailed(  # noqa: PLW2901
                    f"the engine call took longer than {self._limits.engine_timeout_s:g} s (engine_timeout_s)"
                )
            elif not isinstance(result, Exception):
                result = ItemResult(result, started_s - entry.enqueued_s, report)  # noqa: PLW2901
            entry.request.rest_s -= entry.expected_s
            entry.request.settle(entry.index, result)
        # A call that gives way takes as long as the others let it; one that was terminated has not done its work.
        if not instance.low and not call.terminated:
            self._wall_factor.record(self._clock() - started_s, instance.expected_s)
        self._all_busy = not self._idle
        instance.idle.append(instance)
        self._dispatch()
        # Last, because nobody waits for it.
        self._on_batch(report)
        if not instance.low:  # a clock on the wall counts what such a call gives way to
            self._learn(sum(entry.expected_s for entry in batch), results, report)
            self._learn_quick_sizes(batch, quick=report.cost_s < QUICK_IN_THREAD_S)

    def _learn_quick_sizes(self, batch: list[_Entry], *, quick: bool) -> None:
        """Let a call tell which items would be quick alone: all that were quick together; of others nothing is known.

        Under load hardly any item is alone, and none would ever prove quick otherwise.
        """
        if self._quick_sizes is not None and (quick or len(batch) == 1):
            for entry in batch:
                self._quick_sizes.record(_size(entry.item), quick=quick)

    def _free(self, instance: _Instance) -> None:
        instance.started_s = instance.call = None
        instance.batch = []

    def _compute_here(self, item: Item, alone_s: float) -> list[ItemResult]:
        """Make a call in the event loop's own thread."""
        # The clock of a thread is a system call, which so short a call would feel; nothing interrupts it here.
        # Nor could anything terminate it.
        (result,), report, dead = self._execute([item], time.monotonic, None)
        self._on_batch(report)
        assert self._quick_sizes is not None
        self._quick_sizes.record(_size(item), quick=report.compute_s < MAX_ON_THE_SPOT_S)
        if dead is not None:
            self._die(dead)
        if isinstance(result, Exception):
            raise result
        if abs(report.cost_s - alone_s) > TOLERATED_ERROR * alone_s:
            self._learn(alone_s, [result], report)
        return [ItemResult(result, 0.0, report)]

    def _learn(self, alone_s: float, results: list[Any], report: BatchStats) -> None:
        """Let a call that went well correct the costs; `alone_s` is what its items were expected to cost one by one."""
        for result in results:
            if isinstance(result, Exception):
                return
        self._costs.record(report.rows, report.effective_length, report.cost_s)
        if alone_s:
            self._saving += 0.1 * (min(report.cost_s / alone_s, 2.0) - self._saving)

    def _die(self, reason: str) -> None:
        for admission in (self._admission, self._low):
            admission.fail_all(reason)

    def _thread_ended(self, instance: _Instance, reason: str) -> None:
        """An engine thread has ended: answer those whom it computed for, and give none of its kind another call."""
        for entry in instance.batch:
            entry.instance = None
            entry.request.settle(entry.index, Unavailable(f"an engine thread of {self._name} has ended: {reason}"))
        self.in_flight_rows -= sum(entry.rows for entry in instance.batch)
        self._free(instance)
        if instance in instance.idle:
            instance.idle.remove(instance)
        self._die(f"an engine thread has ended: {reason}")

    def health_problem(self) -> str | None:
        """Why this batcher would not answer now, or None when it would."""
        if self._admission.dead_reason is not None:
            return self._admission.dead_reason
        now_s, timeout_s = self._clock(), self._limits.engine_timeout_s
        # Not those of low priority: they may rightly wait for a core for ever.
        for instance in self._instances:
            # At the timeout the call is terminated. An engine that does not obey within a further bound is dead.
            if instance.started_s is not None and now_s - instance.started_s > timeout_s + min(timeout_s, OBEY_S):
                return f"an engine call has not come back for {now_s - instance.started_s:.0f} s"
        return None

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._admission.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads, after what they compute now."""
        for instance in (*self._instances, *self._low_instances):
            instance.inbox.put(None)
            if instance.timer is not None:
                instance.timer.cancel()

    # --- in an engine thread (or here, where that is quicker) ---------------------------------------------------------

    def _work(self, instance: _Instance, batch: list[_Entry], call: EngineCall) -> None:
        with terminable(call):
            outcome = self._execute([entry.item for entry in batch], self._engine_clock, call)
        try:
            self._loop.call_soon_threadsafe(self._finished, instance, batch, *outcome)
        except RuntimeError:
            return  # the event loop has ended, and with it everybody who waited

    def _execute(
        self, items: list[Any], clock: Callable[[], float], call: EngineCall | None
    ) -> tuple[list[Any], BatchStats, str | None]:
        """Make the engine call: the results, what it took, and of what the engine died, if it did.

        `call` is what others may terminate it by.
        """
        extent = _Extent.of(*items)
        started_s, clock_s = time.monotonic(), clock()
        dead: str | None = None
        try:
            results = self._compute(items, call)
            if isinstance(results[0], Exception) and all(isinstance(result, Exception) for result in results):
                self._probe()
        except Terminated as error:
            results = [error] * len(items)
        except BaseException as error:  # whatever it is, the requests must hear of it
            dead = f"{type(error).__name__}: {error}"
            results = [Unavailable(f"the engine of {self._name} has failed: {dead}") for _ in items]
        tokens = extent.tokens if self._padding_cost is not None else extent.rows * extent.longest
        compute_s, cost_s = time.monotonic() - started_s, clock() - clock_s
        length = extent.effective_length(self._padding_cost)
        report = BatchStats(extent.rows, tokens, tokens - extent.tokens, compute_s, length, cost_s)
        return results, report, dead

    def _compute(self, items: list[Any], call: EngineCall | None) -> list[Any]:
        """A result for each item, or the exception that it alone causes: a failing call is split in halves.

        Raises:
            Terminated: the call was, and nothing is known of any item.
        """
        try:
            results = list(self._run(items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
        except Exception as error:
            if call is not None and call.terminated:
                raise Terminated from error
            if len(items) == 1:
                failure = EngineFailed(f"the model failed on this input: {error}")
                failure.__cause__ = error
                return [failure]
            middle = len(items) // 2
            return self._compute(items[:middle], call) + self._compute(items[middle:], call)
        return results


def _size(item: Item) -> Hashable:
    """What has to be equal for two calls of one item to cost the same."""
    return item.rows, item.length, item.batch_key


class _Extent(msgspec.Struct, frozen=True, gc=False):
    """How large an engine call is."""

    rows: int
    longest: int
    tokens: int  # of the items themselves, without padding

    @staticmethod
    def of(first: Item, *others: Item) -> "_Extent":
        """The call for these items."""
        extent = _Extent(first.rows, first.length, first.rows * first.length)
        for item in others:
            extent = extent.wider(item.rows, item.length)
        return extent

    def wider(self, rows: int, length: int) -> "_Extent":
        """The call with one item more."""
        longest = max(self.longest, length)
        return _Extent(self.rows + rows, longest, self.tokens + rows * length)

    def effective_length(self, padding_cost: float | None) -> int:
        """Length of the rows of a call without padding that costs as much."""
        if padding_cost is None or self.tokens == self.rows * self.longest:
            return self.longest
        mean = self.tokens / self.rows
        return math.ceil(mean + padding_cost * (self.longest - mean))
