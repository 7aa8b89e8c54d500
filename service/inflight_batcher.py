"""In-flight batching: sentences join and leave the running batch between decoder steps.

    submit(sentences) ──> queue ──> room in a running batch? ──> engine thread: join ─> step ─> step ─> ... ─> done
                                                                   ^  others join and leave between any two steps

What it promises (each a test in tests/service/test_inflight_batcher.py):

1. Work-conserving: a sentence joins at the next step where there is room; nobody waits for a batch to end.
2. A running batch is bounded by its rows, and while sentences run, what joins between two steps by its tokens: reading
   new sentences holds up those that are being written.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once.
4. A cancelled or expired sentence frees its rows at the next step; its neighbours do not notice.
5. A failing step fails only the sentence that causes it: all are decoded again, one by one.
6. A dead engine is noticed, an idle batcher uses no CPU, and `drain` waits for all that was admitted.
7. Sentences of low priority (`submit_low`) are decoded in short steps, in threads of their own, which the operating
   system takes the core from as soon as an ordinary step wants it. While ordinary sentences are decoded, they stand
   still; of several threads, as many as are busy with ordinary ones and one more. The rest holds for them too.

It answers as `service.batcher.Batcher` does and shares its reports. The queue belongs to the event loop's thread, the
running sentences to their engine thread; both look at an entry's `cancelled` and at an instance's `busy_since_s` alone.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

from service.admission import Admission, BatchReport, Done, Request
from service.cost_table import CostTable
from service.errors import EngineFailed, InvalidRequest
from service.priority import give_way, working_time

# Tokens that are read between two steps of running sentences; more wait for the next step. So many hold the others up
# for about two steps of a full batch (docs/decisions.md).
JOINING_TOKENS = 256
# A thread holds so many rows more than run, as a share of these: sentences that join at once when others are done. From
# the queue they would come a step later, for the event loop has to hear of the free rows first.
RESERVE_SHARE = 0.25
# What a step of low priority may take, unless one row alone takes longer: so long it goes on after its caller has left,
# and so long an ordinary sentence waits for it where threads cannot give way.
LOW_PRIORITY_STEP_S = 5e-3
# Tokens that are read in a call of low priority, unless one sentence alone has more: about such a step's time.
LOW_PRIORITY_JOINING_TOKENS = 64
LEARNING_RATE = 0.2  # of what a row of such a step takes; their steps differ from the others', whose costs are measured


class Sentence(Protocol):
    """What this batcher needs to know of the things it decodes."""

    @property
    def rows(self) -> int:
        """Rows of the running batch that it takes."""

    @property
    def length(self) -> int:
        """Tokens of its source."""

    @property
    def max_steps(self) -> int:
        """Steps after which its decoding is over in any case."""

    @property
    def done(self) -> bool:
        """Whether its decoding is over."""

    @property
    def so_far(self) -> list[int]:
        """Its tokens up to now."""

    def restart(self) -> None:
        """Begin again, as if no step had been made."""


class RunningBatches(Protocol):
    """The sentences that one engine thread decodes at present."""

    def join(self, sentences: Sequence[Any]) -> None:
        """Let sentences take part from the next step on; all of them, or none if this raises."""

    def step(self) -> None:
        """One token more for every sentence."""

    def leave(self, sentence: Any) -> None:
        """Free the rows of a sentence."""


@dataclass(frozen=True, kw_only=True)
class InFlightLimits:
    """What bounds the queue and a running batch."""

    max_queue_rows: int = 1024
    max_running_rows: int = 64  # of one engine thread
    engine_timeout_s: float = 120.0


@dataclass(slots=True, eq=False)
class _Entry:
    """One sentence in the queue or in a running batch."""

    request: Request
    index: int
    sentence: Any
    rows: int
    expected_s: float
    enqueued_s: float
    on_tokens: Callable[[int, list[int]], None] | None
    cancelled: bool = False  # set in the event loop, seen by the engine thread before its next step
    # Of the engine thread:
    joined_s: float = 0.0
    steps: int = 0
    step_rows: int = 0  # rows of all the steps it took part in


class _Ended(NamedTuple):
    """A sentence that has left its running batch: its result, or None when nobody waits for it any more."""

    entry: _Entry
    outcome: Done | Exception | None


class _Signal(Enum):
    """What an engine thread is told besides its sentences."""

    LOOK = 1  # something has changed
    CLOSE = 2


class _Progress(NamedTuple):
    """What an engine thread tells the event loop after a step."""

    ended: list[_Ended]
    streamed: list[tuple[_Entry, list[int]]]
    steps: list[tuple[int, float]]  # rows and seconds of each step since the last report
    dead: str | None


@dataclass(eq=False)
class _Instance:
    """One engine thread and what it decodes, all of it at one priority."""

    low: bool
    inbox: "SimpleQueue[_Entry | _Signal]" = field(default_factory=SimpleQueue)
    # Of the event loop: what was given to it and has not ended.
    entries: dict[_Entry, None] = field(default_factory=dict)
    rows: int = 0
    stands_still: bool = False  # seen by the engine thread before its next step
    # Of the engine thread:
    busy_since_s: float | None = None  # start of the step that it computes now; the event loop looks at it
    running: Any = None
    members: list[_Entry] = field(default_factory=list)
    waiting: deque[_Entry] = field(default_factory=deque)  # for the next step, because too many joined at once
    untold_steps: list[tuple[int, float]] = field(default_factory=list)


class InFlightBatcher:
    """Decodes the sentences of one model in a number of engine threads."""

    def __init__(
        self,
        open_batches: Callable[[], RunningBatches],
        *,
        probe: Callable[[], None],
        costs: CostTable,
        instances: int = 1,
        limits: InFlightLimits | None = None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        name: str = "decoder",
    ) -> None:
        """Start `instances` engine threads. Must be called, like every method, from the event loop's thread.

        Args:
            open_batches: empty running batches for one thread.
            probe: decoding that must succeed on a sound engine; done when a step has failed. If it raises, the engine
                is dead.
            costs: seconds of a step by rows; the length is always 1.
            instances: how many threads decode side by side.
            limits: bounds of the queue and of a running batch.
            on_batch: told of every step, some time after it.
            name: for thread names and messages.
        """
        self._open, self._probe, self._costs, self._on_batch = open_batches, probe, costs, on_batch
        self._limits, self._name = limits or InFlightLimits(), name
        self._admission: Admission[_Entry] = Admission(name, self._limits.max_queue_rows)
        self._loop = self._admission.loop
        # With bounds of its own, so that it never fills the queue of ordinary requests.
        self._low: Admission[_Entry] = Admission(name, self._limits.max_queue_rows)
        self._low_row_s = 0.0  # of a step of low priority; 0 until the first
        self._running_s = 0.0  # expected engine time of what runs
        self._steps_per_token = 1.2  # of recent sentences: steps to write one, by tokens to read
        self._instances = [self._start(f"{name}-{number}", low=False) for number in range(instances)]
        # One less for low priority, for one core kept free is what a sentence that comes is decoded on at once; they
        # start with the first request of theirs.
        self._num_low = max(1, instances - 1)
        self._low_instances: list[_Instance] = []

    def _start(self, name: str, *, low: bool) -> _Instance:
        instance = _Instance(low)
        Thread(target=self._decode, args=(instance,), name=name, daemon=True).start()
        return instance

    @property
    def queued_rows(self) -> int:
        """Rows of ordinary requests that wait for a running batch."""
        return self._admission.queued_rows

    @property
    def queued_low_rows(self) -> int:
        """Rows of low priority that wait for a running batch."""
        return self._low.queued_rows

    @property
    def in_flight_rows(self) -> int:
        """Rows in running batches."""
        return sum(instance.rows for instance in (*self._instances, *self._low_instances))

    # --- in the event loop -------------------------------------------------------------------------------------------

    async def submit(
        self,
        items: Sequence[Sentence],
        deadline_s: float | None = None,
        on_tokens: Callable[[int, list[int]], None] | None = None,
    ) -> list[Done]:
        """Decode all sentences of one request; cancelling this call frees their rows.

        Args:
            items: at least one; each comes back as its own result, done.
            deadline_s: on `time.monotonic()`'s clock; None for no deadline.
            on_tokens: called in the event loop after each step of each sentence, with its number in the request and its
                tokens up to then.

        Raises:
            InvalidRequest: a sentence takes more rows than there are.
            Overloaded, DeadlineExceeded: refused, or not done in time.
            Unavailable: draining, or the engine is dead.
            EngineFailed: the engine raised on one of these sentences.
        """
        now_s = time.monotonic()
        rows = self._rows_of(items)
        self._admission.check(
            rows,
            wait_s=self._expected_wait_s(rows),
            own_s=max(self._expected_steps(item) * self._costs.estimate(item.rows, 1) for item in items),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        request = Request.of(len(items), self._loop)
        entries = [
            _Entry(request, number, item, item.rows, self._expected_s(item), now_s, on_tokens)
            for number, item in enumerate(items)
        ]
        self._admission.enter(entries)
        self._dispatch()
        try:
            return await self._admission.outcome(request, entries, deadline_s, now_s)
        finally:
            for entry in entries:
                entry.cancelled = True

    async def submit_low(self, items: Sequence[Sentence], deadline_s: float | None = None) -> list[Done]:
        """As `submit`, for work that gives way: under steady ordinary load it may wait until its deadline."""
        now_s = time.monotonic()
        rows = self._rows_of(items)
        own_s = [item.max_steps * item.rows * self._low_row_s for item in items]
        self._low.check(
            rows,
            wait_s=self._expected_wait_s(rows) + self._low.queued_s / self._num_low,
            own_s=sum(own_s) / min(len(items), self._num_low),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        request = Request.of(len(items), self._loop)
        entries = [
            _Entry(request, number, item, item.rows, own_s[number], now_s, None) for number, item in enumerate(items)
        ]
        if not self._low_instances:
            names = [f"{self._name}-low-{number}" for number in range(self._num_low)]
            self._low_instances = [self._start(name, low=True) for name in names]
        self._low.enter(entries)
        self._dispatch()
        try:
            return await self._low.outcome(request, entries, deadline_s, now_s)
        finally:
            for entry in entries:
                entry.cancelled = True
            for instance in self._low_instances:
                instance.inbox.put(_Signal.LOOK)

    def _rows_of(self, items: Sequence[Sentence]) -> int:
        if (widest := max(item.rows for item in items)) > self._limits.max_running_rows:
            raise InvalidRequest(f"a sentence has {widest} rows, a running batch {self._limits.max_running_rows}")
        return sum(item.rows for item in items)

    def _expected_steps(self, item: Sentence) -> float:
        return min(self._steps_per_token * item.length, item.max_steps)

    def _expected_s(self, item: Sentence) -> float:
        """Its share of the engine time of full batches."""
        full = self._limits.max_running_rows
        return self._expected_steps(item) * item.rows * self._costs.estimate(full, 1) / full

    def _expected_wait_s(self, rows: int) -> float:
        """Until a new request would join: what is queued, and half of what runs, shared out among the threads."""
        if not self._admission.queue and any(self._has_room(instance, rows) for instance in self._instances):
            return 0.0
        return (self._admission.queued_s + self._running_s / 2) / len(self._instances)

    def _has_room(self, instance: _Instance, rows: int) -> bool:
        return not instance.rows or instance.rows + rows <= self._limits.max_running_rows

    def _dispatch(self) -> None:
        """Give waiting sentences, oldest first, to the thread with the fewest rows, as long as there is room."""
        while self._admission.dead_reason is None and (entry := self._admission.oldest()) is not None:
            instance = min(self._instances, key=lambda each: each.rows)
            reserve = int(RESERVE_SHARE * self._limits.max_running_rows)
            if not self._has_room(instance, entry.rows - reserve):
                return
            self._admission.leave(entry)
            self._running_s += entry.expected_s
            self._give(instance, entry)
        if self._low_instances:
            self._pace_low()
            self._dispatch_low()

    def _pace_low(self) -> None:
        """Let as many threads of low priority go on as ordinary ones are idle, but for one of several."""
        idle = sum(not instance.rows for instance in self._instances)
        spare = idle - (len(self._instances) > 1)
        for number, instance in enumerate(sorted(self._low_instances, key=lambda each: not each.rows)):
            stood_still, instance.stands_still = instance.stands_still, number >= spare
            if stood_still and not instance.stands_still:
                instance.inbox.put(_Signal.LOOK)

    def _dispatch_low(self) -> None:
        """The same for low priority, when no ordinary sentence waits."""
        while self._low.dead_reason is None and (entry := self._low.oldest()) is not None:
            instance = min(self._low_instances, key=lambda each: each.rows)
            if instance.rows and instance.rows + entry.rows > self._most_low_rows():
                return
            self._low.leave(entry)
            self._give(instance, entry)

    def _give(self, instance: _Instance, entry: _Entry) -> None:
        instance.entries[entry] = None
        instance.rows += entry.rows
        instance.inbox.put(entry)

    def _most_low_rows(self) -> int:
        """Rows of a running batch of low priority."""
        if not self._low_row_s:
            return 1
        return min(int(LOW_PRIORITY_STEP_S / self._low_row_s), self._limits.max_running_rows)

    def _take_in(self, instance: _Instance, progress: _Progress) -> None:
        """Hand out what an engine thread has done."""
        for entry, ids in progress.streamed:
            if entry.on_tokens is not None and not entry.request.future.done():
                entry.on_tokens(entry.index, ids)
        for entry, outcome in progress.ended:
            del instance.entries[entry]
            instance.rows -= entry.rows
            if not instance.low:
                self._running_s = self._running_s - entry.expected_s if self.in_flight_rows else 0.0
            if outcome is None:
                continue
            if isinstance(outcome, Done) and not instance.low:
                self._steps_per_token += 0.05 * (entry.steps / entry.sentence.length - self._steps_per_token)
            entry.request.settle(entry.index, outcome)
        if progress.dead is not None:
            self._die(instance, progress.dead)
        self._dispatch()
        # Last, because nobody waits for it.
        for rows, seconds in progress.steps:
            if instance.low:
                self._low_row_s += (LEARNING_RATE if self._low_row_s else 1.0) * (seconds / rows - self._low_row_s)
            else:
                self._costs.record(rows, 1, seconds)
            self._on_batch(BatchReport(rows, rows, 0, seconds, 1, seconds))

    def _die(self, instance: _Instance, reason: str) -> None:
        self._admission.die(reason, given=[] if instance.low else instance.entries)
        self._low.die(reason, given=instance.entries if instance.low else [])
        instance.entries.clear()
        instance.rows = 0

    def trouble(self) -> str | None:
        """Why this batcher would not answer now, or None when it would."""
        if self._admission.dead_reason is not None:
            return self._admission.dead_reason
        now_s = time.monotonic()
        # Not those of low priority: they may rightly wait for a core for ever.
        for instance in self._instances:
            since_s = instance.busy_since_s
            if since_s is not None and now_s - since_s > self._limits.engine_timeout_s:
                return f"a decoder step has not come back for {now_s - since_s:.0f} s"
        return None

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._admission.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads, after the step they compute now."""
        for instance in (*self._instances, *self._low_instances):
            instance.inbox.put(_Signal.CLOSE)

    # --- in an engine thread -----------------------------------------------------------------------------------------

    def _decode(self, instance: _Instance) -> None:
        """Step after step, until closed or dead."""
        if instance.low:
            give_way()
        dead: str | None = None
        while dead is None and self._gather(instance):
            instance.busy_since_s = time.monotonic()
            ended: list[_Ended] = []
            try:
                if dropped := self._drop_cancelled(instance):
                    self._tell(instance, _Progress(dropped, [], [], None))
                if not instance.stands_still:
                    instance.running = instance.running or self._open()
                    ended += self._join(instance)
                if not instance.stands_still:  # it may since have been told to
                    ended += self._step(instance)
            except BaseException as error:  # whatever it is, the requests must hear of it
                dead = f"{type(error).__name__}: {error}"
                instance.members, instance.waiting = [], deque()
            instance.busy_since_s = None
            streamed = [(entry, list(entry.sentence.so_far)) for entry in instance.members if entry.on_tokens]
            # The event loop is not woken for steps that nobody waits for.
            if ended or streamed or dead is not None:
                steps, instance.untold_steps = instance.untold_steps, []
                self._tell(instance, _Progress(ended, streamed, steps, dead))

    def _tell(self, instance: _Instance, progress: _Progress) -> None:
        # A loop that has ended took with it everybody who waited.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_in, instance, progress)

    def _gather(self, instance: _Instance) -> bool:
        """What has come in since the last step; waits for something when there is nothing to do. False: closed."""
        try:
            while True:
                idle = instance.stands_still or not (instance.members or instance.waiting)
                given = instance.inbox.get() if idle else instance.inbox.get_nowait()
                if given is _Signal.CLOSE:
                    return False
                if given is _Signal.LOOK:
                    return True
                instance.waiting.append(given)
        except Empty:
            return True

    def _drop_cancelled(self, instance: _Instance) -> list[_Ended]:
        gone = [entry for entry in instance.members if entry.cancelled]
        for entry in gone:
            instance.members.remove(entry)
            instance.running.leave(entry.sentence)
        never_joined = [entry for entry in instance.waiting if entry.cancelled]
        for entry in never_joined:
            instance.waiting.remove(entry)
        return [_Ended(entry, None) for entry in (*gone, *never_joined)]

    def _join(self, instance: _Instance) -> list[_Ended]:
        """Let those who wait join, as far as they may; what failed on the way."""
        joining: list[_Entry] = []
        tokens, rows = 0, sum(entry.rows for entry in instance.members)
        while instance.waiting:
            tokens += instance.waiting[0].sentence.length
            rows += instance.waiting[0].rows
            if rows > self._limits.max_running_rows:
                break
            # Nobody is held up by what joins an idle thread; those of low priority keep to short calls all the same.
            most = LOW_PRIORITY_JOINING_TOKENS if instance.low else JOINING_TOKENS
            if joining and (instance.members or instance.low) and tokens > most:
                break
            joining.append(instance.waiting.popleft())
        now_s = time.monotonic()
        for entry in joining:
            entry.joined_s = now_s
        if not joining:
            return []
        try:
            instance.running.join([entry.sentence for entry in joining])
        except Exception:
            return [ended for entry in joining for ended in self._join_alone(instance, entry)]
        instance.members += joining
        return []

    def _join_alone(self, instance: _Instance, entry: _Entry) -> list[_Ended]:
        try:
            instance.running.join([entry.sentence])
        except Exception as error:
            self._probe()
            return [_Ended(entry, _failure(error))]
        instance.members.append(entry)
        return []

    def _step(self, instance: _Instance) -> list[_Ended]:
        """One step for all; those that are done with it, or that it fails on."""
        if not instance.members:
            return []
        clock = working_time if instance.low else time.monotonic
        rows, started_s = sum(entry.rows for entry in instance.members), clock()
        try:
            instance.running.step()
        except Exception:
            return self._decode_one_by_one(instance)
        instance.untold_steps.append((rows, clock() - started_s))
        ended_s = time.monotonic()
        done = []
        for entry in instance.members:
            entry.steps += 1
            entry.step_rows += rows
            if entry.sentence.done:
                done.append(entry)
        for entry in done:
            instance.members.remove(entry)
            instance.running.leave(entry.sentence)
        return [_Ended(entry, _result(entry, ended_s)) for entry in done]

    def _decode_one_by_one(self, instance: _Instance) -> list[_Ended]:
        """After a failed step nothing is known of the batch: decode each sentence anew, alone, and see which fails."""
        self._probe()
        members, instance.members = instance.members, []
        ended = []
        for entry in members:
            running = self._open()
            entry.sentence.restart()
            entry.steps = entry.step_rows = 0
            try:
                running.join([entry.sentence])
                while not entry.sentence.done and not entry.cancelled:
                    running.step()
                    entry.steps += 1
                    entry.step_rows += entry.rows
            except Exception as error:
                ended.append(_Ended(entry, _failure(error)))
            else:
                ended.append(_Ended(entry, _result(entry, time.monotonic()) if entry.sentence.done else None))
        instance.running = self._open()
        return ended


def _result(entry: _Entry, ended_s: float) -> Done:
    compute_s, mean_rows = ended_s - entry.joined_s, round(entry.step_rows / entry.steps)
    report = BatchReport(mean_rows, entry.step_rows, 0, compute_s, 1, compute_s)
    return Done(entry.sentence, entry.joined_s - entry.enqueued_s, report)


def _failure(error: Exception) -> EngineFailed:
    failure = EngineFailed(f"the model failed on this input: {error}")
    failure.__cause__ = error
    return failure
