"""The continuous batcher: sentences join and leave the running batch between decoder steps.

    submit(sentences) ──> queue ──> room in a running batch? ──> engine thread: join ─> step ─> step ─> ... ─> done
                                                                   ^  others join and leave between any two steps

Guarantees (each a test in tests/service/scheduling/test_continuous_batcher.py):

1. Work-conserving: a sentence joins at the next step with free rows; none waits for a batch to end.
2. The rows of a running batch are bounded, and so are the source tokens that join between two steps, because encoding
   them delays the running sentences.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once. A sentence
   whose deadline can no longer be met leaves the queue before it is encoded. Waiting times are wall time.
4. A cancelled or expired sentence frees its rows at the next step; other sentences are not affected. A step is
   terminated when it goes on long after its last caller has left, or beyond the engine timeout; the thread lives on.
5. A failing step fails only the sentence that causes the failure: all are decoded again, one by one.
6. A dead engine and an ended engine thread are detected, an idle batcher uses no CPU, and `drain` waits for all
   admitted requests.
7. Low-priority sentences (`submit_low`) are decoded in short steps, in threads of their own that lose their core as
   soon as an ordinary step needs it. They pause while ordinary sentences are decoded: with several threads, as many
   pause as are busy with ordinary sentences, plus one. The other guarantees hold for them too.

It has the interface and the results of `service.scheduling.batcher.Batcher`. The queue belongs to the event loop's
thread, the running sentences to their engine thread (`service.scheduling.decoder_thread`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from service.engines.preemption import Preemption
from service.errors import InvalidRequest
from service.process.worker_threads import Watchdog
from service.scheduling.admission import BatchStats, ItemResult, Request
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_messages import Entry, Progress, Sentence, Signal
from service.scheduling.decoder_thread import Decoder, DecoderLane, DecoderThread, RunningBatches
from service.scheduling.lane import two_lanes
from service.scheduling.wall_time import WallTimeFactor
from service.telemetry.metrics import SchedulingTally

# A thread is given this fraction more rows than it runs, so that sentences join at once when others end. From the queue
# they would join a step later, because the event loop learns of the free rows with a delay.
RESERVE_FRACTION = 0.25
# Target duration of a low-priority step. Bounds the work wasted after a cancellation, and the delay of ordinary
# sentences where threads cannot be preempted. A single row may exceed it.
LOW_PRIORITY_STEP_S = 5e-3
# Weight of the last step in the running mean of a row's cost in low-priority steps, which have no cost table.
LEARNING_RATE = 0.2


@dataclass(frozen=True, kw_only=True)
class InFlightLimits:
    """Bounds of the queue and of a running batch."""

    max_queue_rows: int = 1024
    max_running_rows: int = 64  # rows of one engine thread
    engine_timeout_s: float = 120.0


class ContinuousBatcher:
    """Decodes the sentences of one model in a number of engine threads."""

    joins_running_batches: ClassVar[bool] = True

    def __init__(
        self,
        open_batches: Callable[[], RunningBatches],
        *,
        probe: Callable[[], None],
        costs: CostTable,
        preemption: Preemption,
        instances: int = 1,
        limits: InFlightLimits | None = None,
        on_batch: Callable[[BatchStats], None] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
        tally: SchedulingTally | None = None,
        watchdog: Watchdog | None = None,
        name: str = "decoder",
    ) -> None:
        """Start `instances` engine threads. Must be called, like every method, from the event loop's thread.

        Args:
            open_batches: creates empty running batches for one thread.
            probe: decoding that must succeed on a sound engine; done when a step has failed. If it raises, the engine
                is dead.
            costs: seconds of a step by rows; the length is always 1.
            preemption: preemption of the engine that decodes.
            instances: number of threads that decode in parallel.
            limits: limits of the queue and of a running batch.
            on_batch: called for every step, some time after it.
            clock: clock of deadlines, waiting times and costs.
            tally: counts rows that are refused, dropped, terminated, or computed in vain.
            watchdog: detects engine threads that the system has killed; the end by an exception is detected without it.
            name: name of the model, for thread names and messages.
        """
        self._costs, self._on_batch, self._limits = costs, on_batch, limits or InFlightLimits()
        self._name, self._clock = name, clock
        self._tally, self._watchdog = tally or SchedulingTally(), watchdog
        limits = self._limits
        self._decoder = Decoder(
            open_batches, probe, preemption, limits.max_running_rows, limits.engine_timeout_s, clock
        )
        self._low_row_s = 0.0  # cost of a row in low-priority steps, a running mean; 0 before the first
        self._wall_factor = WallTimeFactor()
        self._running_s = 0.0  # expected engine time of the running sentences
        self._steps_per_token = 1.2  # decoder steps per source token of recent sentences
        max_rows, tally = self._limits.max_queue_rows, self._tally
        lanes: tuple[DecoderLane, DecoderLane] = two_lanes(name, max_rows, instances, LOW_PRIORITY_STEP_S, tally, clock)
        self._ordinary, self._low = lanes
        self._loop = self._ordinary.loop
        self._start_threads(self._ordinary)

    def _start_threads(self, lane: DecoderLane) -> None:
        lane.start(
            lambda name: DecoderThread(
                name,
                lane,
                self._decoder,
                on_progress=self._take_in,
                on_end=lambda thread, reason: self._fail_all(thread, f"an engine thread has ended: {reason}"),
                watchdog=self._watchdog,
            )
        )

    @property
    def queued_rows(self) -> int:
        """Number of rows of ordinary requests that wait for a running batch."""
        return self._ordinary.queued_rows

    @property
    def queued_low_rows(self) -> int:
        """Number of rows of low-priority requests that wait for a running batch."""
        return self._low.queued_rows

    @property
    def in_flight_rows(self) -> int:
        """Number of rows in running batches."""
        return sum(thread.rows for thread in (*self._ordinary.threads, *self._low.threads))

    async def submit(
        self,
        items: Sequence[Sentence],
        deadline_s: float | None = None,
        on_tokens: Callable[[int, list[int]], None] | None = None,
    ) -> list[ItemResult]:
        """Decode all sentences of one request; cancelling this call frees their rows.

        Args:
            items: sentences of the request, at least one; each is its own result when it is done.
            deadline_s: deadline on the batcher's clock; None for no deadline.
            on_tokens: called in the event loop after each step of each sentence, with its index in the request and its
                tokens so far.

        Raises:
            InvalidRequest: a sentence takes more rows than a running batch has.
            Overloaded, DeadlineExceeded: the request is refused, or not done in time.
            Unavailable: the batcher is draining, or the engine is dead.
            EngineFailed: the engine raised on one of these sentences, or a step took too long.
        """
        now_s, lane = self._clock(), self._ordinary
        rows = self._rows_of(items)
        lane.check(
            rows,
            wait_s=self._expected_wait_s(rows),
            own_s=max(self._decoding_s(item) for item in items),
            deadline_s=deadline_s,
            now_s=now_s,
            # Beside running sentences, each step takes longer than it would alone.
            busy=all(thread.rows for thread in lane.threads),
        )
        request = Request.of(len(items), self._loop, deadline_s)
        entries = [
            Entry(request, number, item, item.rows, self._expected_s(item), now_s, on_tokens)
            for number, item in enumerate(items)
        ]
        lane.enqueue(entries)
        self._dispatch()
        try:
            return await lane.wait(request, entries, deadline_s, now_s)
        finally:
            self._cancel(lane, entries)

    async def submit_low(self, items: Sequence[Sentence], deadline_s: float | None = None) -> list[ItemResult]:
        """Decode all sentences of one request at low priority: under ordinary load it may wait until its deadline.

        It takes the arguments of `submit` and raises the same errors.
        """
        now_s, lane = self._clock(), self._low
        rows = self._rows_of(items)
        own_s = [item.max_steps * item.rows * self._low_row_s for item in items]
        lane.check(
            rows,
            wait_s=self._expected_wait_s(rows) + self._wall_factor.value * lane.queued_s / lane.num_threads,
            own_s=sum(own_s) / min(len(items), lane.num_threads),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        request = Request.of(len(items), self._loop, deadline_s)
        entries = [
            Entry(request, number, item, item.rows, own_s[number], now_s, None) for number, item in enumerate(items)
        ]
        self._start_threads(lane)
        lane.enqueue(entries)
        self._dispatch()
        try:
            return await lane.wait(request, entries, deadline_s, now_s)
        finally:
            self._cancel(lane, entries)
            for thread in lane.threads:
                thread.inbox.put(Signal.WAKE)

    def _cancel(self, lane: DecoderLane, entries: Sequence[Entry]) -> None:
        """Mark entries whose caller has left, so that they leave before the next step."""
        for entry in entries:
            entry.cancelled = True
        for thread in lane.threads:
            thread.entries_cancelled()

    def _rows_of(self, items: Sequence[Sentence]) -> int:
        if (widest := max(item.rows for item in items)) > self._limits.max_running_rows:
            raise InvalidRequest(f"a sentence has {widest} rows, a running batch {self._limits.max_running_rows}")
        return sum(item.rows for item in items)

    def _expected_steps(self, item: Sentence) -> float:
        return min(self._steps_per_token * item.length, item.max_steps)

    def _expected_s(self, item: Sentence) -> float:
        """Return a sentence's share of the engine time in full batches, in seconds."""
        full = self._limits.max_running_rows
        return self._expected_steps(item) * item.rows * self._costs.estimate(full, 1) / full

    def _decoding_s(self, item: Sentence) -> float:
        """Return the wall time from a sentence's first to its last step, in the batch that it would join now."""
        fewest = min(thread.rows for thread in self._ordinary.threads)
        rows = min(fewest + item.rows, self._limits.max_running_rows)
        return self._wall_factor.value * self._expected_steps(item) * self._costs.estimate(rows, 1)

    def _expected_wait_s(self, rows: int) -> float:
        """Return the seconds until a new request can join: the queue and half of the running work, over all threads."""
        lane, max_rows = self._ordinary, self._limits.max_running_rows
        if not lane.queue and any(not thread.rows or thread.rows + rows <= max_rows for thread in lane.threads):
            return 0.0
        return self._wall_factor.value * (lane.queued_s + self._running_s / 2) / len(lane.threads)

    def _remaining_s(self, entry: Entry) -> float:
        """Return the wall time until a waiting sentence is done; 0 if a thread is idle, which always tries it."""
        idle = any(not thread.rows for thread in self._ordinary.threads)
        return 0.0 if idle else self._decoding_s(entry.sentence)

    def _dispatch(self) -> None:
        """Give waiting sentences to the threads; low priority only if no ordinary sentence waits."""
        max_rows = self._limits.max_running_rows
        self._give_out(self._ordinary, max_rows + int(RESERVE_FRACTION * max_rows), self._remaining_s)
        if self._low.threads and not self._ordinary.queue:
            self._pace_low()
            self._give_out(self._low, self._max_low_rows(), lambda entry: 0.0)

    def _give_out(self, lane: DecoderLane, max_rows: int, remaining_s: Callable[[Entry], float]) -> None:
        """Give waiting sentences, oldest first, to the thread with the fewest rows, as long as there is room.

        Args:
            lane: queue and threads.
            max_rows: largest number of rows of a thread that has any.
            remaining_s: returns the wall time until a sentence could be done.
        """
        while lane.dead_reason is None and (entry := lane.oldest(remaining_s)) is not None:
            thread = min(lane.threads, key=lambda each: each.rows)
            if thread.rows and thread.rows + entry.rows > max_rows:
                return
            lane.remove(entry)
            if not lane.yields:
                self._running_s += entry.expected_s
            thread.give(entry)

    def _pace_low(self) -> None:
        """Let as many low-priority threads run as ordinary ones are idle, minus one if there are several."""
        ordinary = self._ordinary.threads
        spare = sum(not thread.rows for thread in ordinary) - (len(ordinary) > 1)
        for number, thread in enumerate(sorted(self._low.threads, key=lambda each: not each.rows)):
            was_paused, thread.paused = thread.paused, number >= spare
            if was_paused and not thread.paused:
                thread.inbox.put(Signal.WAKE)

    def _max_low_rows(self) -> int:
        """Return the largest number of rows of a low-priority running batch."""
        if not self._low_row_s:
            return 1
        return min(int(self._low.max_call_s / self._low_row_s), self._limits.max_running_rows)

    def _take_in(self, thread: DecoderThread, progress: Progress) -> None:
        """Deliver the results of an engine thread, and give it new sentences."""
        lane = thread.lane
        for entry, ids in progress.streamed:
            if entry.on_tokens is not None and not entry.request.future.done():
                entry.on_tokens(entry.index, ids)
        for entry, outcome in progress.ended:
            del thread.entries[entry]
            thread.rows -= entry.rows
            if not lane.yields:
                self._running_s = self._running_s - entry.expected_s if self.in_flight_rows else 0.0
            if entry.steps:
                lane.count_in_vain(entry)
            if outcome is None:
                continue
            if isinstance(outcome, ItemResult) and not lane.yields:
                self._steps_per_token += 0.05 * (entry.steps / entry.sentence.length - self._steps_per_token)
            entry.request.settle(entry.index, outcome)
        if progress.dead is not None:
            self._fail_all(thread, progress.dead)
        self._dispatch()
        # Last, because no caller waits for it.
        for rows, seconds, turn_s in progress.steps:
            if lane.yields:
                self._low_row_s += (LEARNING_RATE if self._low_row_s else 1.0) * (seconds / rows - self._low_row_s)
            else:
                self._wall_factor.record(turn_s, self._costs.estimate(rows, 1))
                self._costs.record(rows, 1, seconds)
            self._on_batch(BatchStats(rows, rows, 0, seconds, 1, seconds))

    def _fail_all(self, thread: DecoderThread, reason: str) -> None:
        """Mark the engine as dead: fail the waiting sentences and those that a thread was given."""
        for lane in (self._ordinary, self._low):
            lane.fail_all(reason, given=thread.entries if lane is thread.lane else ())
        thread.forget()

    def health_problem(self) -> str | None:
        """Return why this batcher would not answer now, or None when it would."""
        if self._ordinary.dead_reason is not None:
            return self._ordinary.dead_reason
        # Low priority does not count, because its steps may legitimately wait for a core for ever.
        return next(filter(None, (thread.health_problem() for thread in self._ordinary.threads)), None)

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._ordinary.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads after their present step."""
        for thread in (*self._ordinary.threads, *self._low.threads):
            thread.close()
