"""The continuous batcher: sentences join and leave the running batch between decoder steps.

    submit(sentences) ──> queue ──> room in a running batch? ──> engine thread: join ─> step ─> step ─> ... ─> done
                                                                   ^  others join and leave between any two steps

Guarantees (each a test in tests/service/scheduling/test_continuous_batcher.py):

1. Work-conserving: a sentence joins at the next step where there is room; nobody waits for a batch to end.
2. The rows of a running batch are bounded, and so are the tokens of the sentences that join between two steps: reading
   new sentences delays those that are being written.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once. A
   sentence whose deadline can no longer be met leaves the queue before it is read. Waiting times are wall time.
4. A cancelled or expired sentence frees its rows at the next step; its neighbours do not notice. A step is terminated
   when it goes on long after nobody waits for any of its sentences, or beyond the engine timeout; the thread lives on.
5. A failing step fails only the sentence that causes it: all are decoded again, one by one.
6. A dead engine and an engine thread that has ended are noticed, an idle batcher uses no CPU, and `drain` waits for all
   that was admitted.
7. Sentences of low priority (`submit_low`) are decoded in short steps, in threads of their own that lose their core as
   soon as an ordinary step wants it. They pause while ordinary sentences are decoded; of several threads, as many pause
   as are busy with ordinary sentences, and one more. The other guarantees hold for them too.

Its interface and its results are those of `service.scheduling.batcher.Batcher`. The queue belongs to the event loop's
thread, the running sentences to their engine thread (`service.scheduling.decoder_thread`).
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engines.preemption import Preemption
from service.errors import InvalidRequest
from service.process.worker_threads import Watchdog
from service.scheduling.admission import BatchStats, ItemResult, Request
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_messages import Entry, Progress, Sentence, Signal
from service.scheduling.decoder_thread import Decoder, DecoderLane, DecoderThread, RunningBatches
from service.scheduling.lane import Lane
from service.scheduling.wall_time import WallTimeFactor
from service.telemetry.metrics import SchedulingTally

# A thread holds this fraction more rows than run: sentences that join at once when others are done. From the queue they
# would come a step later, for the event loop has to hear of the free rows first.
RESERVE_FRACTION = 0.25
# Target duration of a low-priority step. Bounds the work wasted after a cancellation, and the delay to an ordinary
# sentence where threads cannot give way. A single row may exceed it.
LOW_PRIORITY_STEP_S = 5e-3
# For the cost of a row in a low-priority step; these steps differ from the others, whose costs are measured.
LEARNING_RATE = 0.2


@dataclass(frozen=True, kw_only=True)
class InFlightLimits:
    """Bounds of the queue and of a running batch."""

    max_queue_rows: int = 1024
    max_running_rows: int = 64  # of one engine thread
    engine_timeout_s: float = 120.0


class ContinuousBatcher:
    """Decodes the sentences of one model in a number of engine threads."""

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
            preemption: of the engine that decodes.
            instances: how many threads decode side by side.
            limits: bounds of the queue and of a running batch.
            on_batch: called for every step, some time after it.
            clock: of deadlines, waiting times and costs.
            tally: counts what is refused, dropped, terminated and computed in vain.
            watchdog: notices engine threads that vanish; one that ends by an exception is noticed without.
            name: for thread names and messages.
        """
        self._costs, self._on_batch, self._limits = costs, on_batch, limits or InFlightLimits()
        self._name, self._clock = name, clock
        self._tally, self._watchdog = tally or SchedulingTally(), watchdog
        limits = self._limits
        self._decoder = Decoder(
            open_batches, probe, preemption, limits.max_running_rows, limits.engine_timeout_s, clock
        )
        self._low_row_s = 0.0  # of a step of low priority; 0 until the first
        self._wall_factor = WallTimeFactor()
        self._running_s = 0.0  # expected engine time of what runs
        self._steps_per_token = 1.2  # of recent sentences: steps to write one, by tokens to read
        self._ordinary = self._new_lane(instances)
        # Its threads start with its first request. One thread less leaves a core idle for an ordinary sentence.
        self._low = self._new_lane(max(1, instances - 1), max_call_s=LOW_PRIORITY_STEP_S, yields=True)
        self._loop = self._ordinary.loop
        self._start_threads(self._ordinary)

    def _new_lane(self, num_threads: int, *, max_call_s: float = math.inf, yields: bool = False) -> DecoderLane:
        return Lane(
            self._name,
            self._limits.max_queue_rows,
            num_threads,
            max_call_s=max_call_s,
            yields=yields,
            tally=self._tally,
            clock=self._clock,
        )

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
        """Rows of ordinary requests that wait for a running batch."""
        return self._ordinary.queued_rows

    @property
    def queued_low_rows(self) -> int:
        """Rows of low priority that wait for a running batch."""
        return self._low.queued_rows

    @property
    def in_flight_rows(self) -> int:
        """Rows in running batches."""
        return sum(thread.rows for thread in (*self._ordinary.threads, *self._low.threads))

    async def submit(
        self,
        items: Sequence[Sentence],
        deadline_s: float | None = None,
        on_tokens: Callable[[int, list[int]], None] | None = None,
    ) -> list[ItemResult]:
        """Decode all sentences of one request; cancelling this call frees their rows.

        Args:
            items: at least one; each comes back as its own result, done.
            deadline_s: on the batcher's clock; None for no deadline.
            on_tokens: called in the event loop after each step of each sentence, with its number in the request and its
                tokens up to then.

        Raises:
            InvalidRequest: a sentence takes more rows than there are.
            Overloaded, DeadlineExceeded: refused, or not done in time.
            Unavailable: draining, or the engine is dead.
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
            # With those that run already, each step takes longer than it would alone.
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

        Arguments and errors are those of `submit`.
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
        """Let entries that nobody waits for leave before the next step."""
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
        """Return a sentence's share of the engine time of full batches, in seconds."""
        full = self._limits.max_running_rows
        return self._expected_steps(item) * item.rows * self._costs.estimate(full, 1) / full

    def _decoding_s(self, item: Sentence) -> float:
        """Return the wall time from a sentence's first to its last step, in the batch that it would join now."""
        fewest = min(thread.rows for thread in self._ordinary.threads)
        rows = min(fewest + item.rows, self._limits.max_running_rows)
        return self._wall_factor.value * self._expected_steps(item) * self._costs.estimate(rows, 1)

    def _expected_wait_s(self, rows: int) -> float:
        """Return the seconds until a new request would join: the queue and half of what runs, for all threads."""
        lane, max_rows = self._ordinary, self._limits.max_running_rows
        if not lane.queue and any(not thread.rows or thread.rows + rows <= max_rows for thread in lane.threads):
            return 0.0
        return self._wall_factor.value * (lane.queued_s + self._running_s / 2) / len(lane.threads)

    def _remaining_s(self, entry: Entry) -> float:
        """Return the wall time until a waiting sentence is done; 0 on an idle thread, where it is tried in any case."""
        idle = any(not thread.rows for thread in self._ordinary.threads)
        return 0.0 if idle else self._decoding_s(entry.sentence)

    def _dispatch(self) -> None:
        """Give waiting sentences to the threads, low priority when no ordinary sentence waits."""
        max_rows = self._limits.max_running_rows
        self._give_out(self._ordinary, max_rows + int(RESERVE_FRACTION * max_rows), self._remaining_s)
        if self._low.threads and not self._ordinary.queue:
            self._pace_low()
            self._give_out(self._low, self._max_low_rows(), lambda entry: 0.0)

    def _give_out(self, lane: DecoderLane, max_rows: int, remaining_s: Callable[[Entry], float]) -> None:
        """Give waiting sentences, oldest first, to the thread with the fewest rows, as long as there is room.

        Args:
            lane: queue and threads.
            max_rows: of a thread that has any.
            remaining_s: wall time until a sentence could be done.
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
        """Let as many threads of low priority run as ordinary ones are idle, less one where there are several."""
        ordinary = self._ordinary.threads
        spare = sum(not thread.rows for thread in ordinary) - (len(ordinary) > 1)
        for number, thread in enumerate(sorted(self._low.threads, key=lambda each: not each.rows)):
            was_paused, thread.paused = thread.paused, number >= spare
            if was_paused and not thread.paused:
                thread.inbox.put(Signal.WAKE)

    def _max_low_rows(self) -> int:
        """Return the most rows of a running batch of low priority."""
        if not self._low_row_s:
            return 1
        return min(int(self._low.max_call_s / self._low_row_s), self._limits.max_running_rows)

    def _take_in(self, thread: DecoderThread, progress: Progress) -> None:
        """Hand out the results of an engine thread, and give it new sentences."""
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
        # Last, because nobody waits for it.
        for rows, seconds, turn_s in progress.steps:
            if lane.yields:
                self._low_row_s += (LEARNING_RATE if self._low_row_s else 1.0) * (seconds / rows - self._low_row_s)
            else:
                self._wall_factor.record(turn_s, self._costs.estimate(rows, 1))
                self._costs.record(rows, 1, seconds)
            self._on_batch(BatchStats(rows, rows, 0, seconds, 1, seconds))

    def _fail_all(self, thread: DecoderThread, reason: str) -> None:
        """Fail what waits and what a thread was given: its engine is dead."""
        for lane in (self._ordinary, self._low):
            lane.fail_all(reason, given=thread.entries if lane is thread.lane else ())
        thread.forget()

    def health_problem(self) -> str | None:
        """Return why this batcher would not answer now, or None when it would."""
        if self._ordinary.dead_reason is not None:
            return self._ordinary.dead_reason
        # Low priority does not count: its steps may rightly wait for a core for ever.
        return next(filter(None, (thread.health_problem() for thread in self._ordinary.threads)), None)

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._ordinary.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads, after the step they compute now."""
        for thread in (*self._ordinary.threads, *self._low.threads):
            thread.close()
