"""In-flight batching: sentences join and leave the running batch between decoder steps.

    submit(sentences) ──> queue ──> room in a running batch? ──> engine thread: join ─> step ─> step ─> ... ─> done
                                                                   ^  others join and leave between any two steps

What it promises (each a test in tests/service/scheduling/test_continuous_batcher.py):

1. Work-conserving: a sentence joins at the next step where there is room; nobody waits for a batch to end.
2. A running batch is bounded by its rows, and while sentences run, what joins between two steps by its tokens: reading
   new sentences holds up those that are being written.
3. The queue is bounded: when it is full, or a deadline cannot be met any more, `submit` refuses at once. A
   sentence whose deadline can no longer be met leaves the queue before it is read. Waiting times are wall time.
4. A cancelled or expired sentence frees its rows at the next step; its neighbours do not notice. A step is terminated
   when it goes on long after nobody waits for any of its sentences, or beyond the engine timeout; the thread lives on.
5. A failing step fails only the sentence that causes it: all are decoded again, one by one.
6. A dead engine and an engine thread that has ended are noticed, an idle batcher uses no CPU, and `drain` waits for all
   that was admitted.
7. Sentences of low priority (`submit_low`) are decoded in short steps, in threads of their own, which the operating
   system takes the core from as soon as an ordinary step wants it. While ordinary sentences are decoded, they stand
   still; of several threads, as many as are busy with ordinary ones and one more. The rest holds for them too.

It answers as `service.scheduling.batcher.Batcher` does and shares its reports. The queue belongs to the event loop's
thread, the running sentences to their engine thread; both look at an entry's `cancelled` and at an instance's
`busy_since_s` alone.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from service.engines.preemption import EngineCall, Terminated, lower_engine_priority, terminable, working_time
from service.errors import EngineFailed, InvalidRequest
from service.process.worker_threads import SupervisedThread, Watchdog
from service.scheduling.admission import Admission, BatchStats, ItemResult, Request
from service.scheduling.cost_table import CostTable
from service.scheduling.wall_time import WallTimeFactor
from service.telemetry.metrics import SchedulingTally

# Tokens that are read between two steps of running sentences; more wait for the next step. So many hold the others up
# for about two steps of a full batch (docs/decisions/scheduling.md).
PREFILL_TOKENS_PER_STEP = 256
# A thread holds so many rows more than run, as a share of these: sentences that join at once when others are done. From
# the queue they would come a step later, for the event loop has to hear of the free rows first.
RESERVE_SHARE = 0.25
# What a step of low priority may take, unless one row alone takes longer: so long it goes on after its caller has left,
# and so long an ordinary sentence waits for it where threads cannot give way.
LOW_PRIORITY_STEP_S = 5e-3
# Tokens that are read in a call of low priority, unless one sentence alone has more: about such a step's time.
LOW_PRIORITY_JOINING_TOKENS = 64
# So long a step may go on after the last of its callers has left, before it is terminated: most end far sooner, and
# after a terminated one the thread's memory is laid out anew.
ABANDONED_STEP_S = 1.0
# So long after the engine timeout a step that was terminated may take to come back, at most.
OBEY_S = 10.0
# At most so often is looked whether a step is overdue, however short the engine timeout.
MIN_LOOK_S = 0.01
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
    outcome: ItemResult | Exception | None


class _Signal(Enum):
    """What an engine thread is told besides its sentences."""

    WAKE = 1  # something has changed
    CLOSE = 2


class _Step(NamedTuple):
    """A step that was made."""

    rows: int
    seconds: float
    turn_s: float  # wall time since the step before, or since the thread had something to do again


class _Progress(NamedTuple):
    """What an engine thread tells the event loop after a step."""

    ended: list[_Ended]
    streamed: list[tuple[_Entry, list[int]]]
    steps: "list[_Step]"  # since the last report
    dead: str | None


@dataclass(eq=False)
class _Instance:
    """One engine thread and what it decodes, all of it at one priority."""

    low: bool
    inbox: "SimpleQueue[_Entry | _Signal]" = field(default_factory=SimpleQueue)
    # Of the event loop: what was given to it and has not ended.
    entries: dict[_Entry, None] = field(default_factory=dict)
    rows: int = 0
    paused: bool = False  # seen by the engine thread before its next step
    thread: SupervisedThread | None = None
    timer: asyncio.TimerHandle | None = None  # looks whether the step is overdue
    # Of the engine thread; the event loop looks at the first two:
    busy_since_s: float | None = None  # start of the step that it computes now
    call: EngineCall | None = None  # that step
    computing: Sequence[_Entry] = ()  # whose sentences it is made for
    turn_since_s: float | None = None  # end of the step before, unless the thread has waited since
    running: Any = None
    members: list[_Entry] = field(default_factory=list)
    waiting: deque[_Entry] = field(default_factory=deque)  # for the next step, because too many joined at once
    untold_steps: list[_Step] = field(default_factory=list)


class ContinuousBatcher:
    """Decodes the sentences of one model in a number of engine threads."""

    def __init__(
        self,
        open_batches: Callable[[], RunningBatches],
        *,
        probe: Callable[[], None],
        costs: CostTable,
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
            open_batches: empty running batches for one thread.
            probe: decoding that must succeed on a sound engine; done when a step has failed. If it raises, the engine
                is dead.
            costs: seconds of a step by rows; the length is always 1.
            instances: how many threads decode side by side.
            limits: bounds of the queue and of a running batch.
            on_batch: told of every step, some time after it.
            clock: of deadlines, waiting times and costs.
            tally: counts what is refused, dropped, terminated and computed in vain.
            watchdog: notices engine threads that vanish; one that ends by an exception is noticed without.
            name: for thread names and messages.
        """
        self._open, self._probe, self._costs, self._on_batch = open_batches, probe, costs, on_batch
        self._limits, self._name, self._clock = limits or InFlightLimits(), name, clock
        self._tally, self._watchdog = tally or SchedulingTally(), watchdog
        self._admission = self._new_admission()
        self._loop = self._admission.loop
        # With bounds of its own, so that it never fills the queue of ordinary requests.
        self._low = self._new_admission()
        self._low_row_s = 0.0  # of a step of low priority; 0 until the first
        self._wall_factor = WallTimeFactor()
        self._running_s = 0.0  # expected engine time of what runs
        self._steps_per_token = 1.2  # of recent sentences: steps to write one, by tokens to read
        self._instances = [self._start(f"{name}-{number}", low=False) for number in range(instances)]
        # One less for low priority, for one core kept free is what a sentence that comes is decoded on at once; they
        # start with the first request of theirs.
        self._num_low = max(1, instances - 1)
        self._low_instances: list[_Instance] = []

    def _new_admission(self) -> Admission[_Entry]:
        return Admission(self._name, self._limits.max_queue_rows, tally=self._tally, clock=self._clock)

    def _start(self, name: str, *, low: bool) -> _Instance:
        instance = _Instance(low)
        instance.thread = SupervisedThread(
            lambda: self._decode(instance),
            name=name,
            on_end=lambda reason: self._die(instance, f"an engine thread has ended: {reason}"),
            watchdog=self._watchdog,
        )
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
        now_s = self._clock()
        rows = self._rows_of(items)
        self._admission.check(
            rows,
            wait_s=self._expected_wait_s(rows),
            own_s=max(self._decoding_s(item) for item in items),
            deadline_s=deadline_s,
            now_s=now_s,
            # With those that run already, each step takes longer than it would alone.
            busy=all(instance.rows for instance in self._instances),
        )
        request = Request.of(len(items), self._loop, deadline_s)
        entries = [
            _Entry(request, number, item, item.rows, self._expected_s(item), now_s, on_tokens)
            for number, item in enumerate(items)
        ]
        self._admission.enqueue(entries)
        self._dispatch()
        try:
            return await self._admission.wait(request, entries, deadline_s, now_s)
        finally:
            self._cancel(entries, self._instances)

    async def submit_low(self, items: Sequence[Sentence], deadline_s: float | None = None) -> list[ItemResult]:
        """As `submit`, for work that gives way: under steady ordinary load it may wait until its deadline."""
        now_s = self._clock()
        rows = self._rows_of(items)
        own_s = [item.max_steps * item.rows * self._low_row_s for item in items]
        self._low.check(
            rows,
            wait_s=self._expected_wait_s(rows) + self._wall_factor.value * self._low.queued_s / self._num_low,
            own_s=sum(own_s) / min(len(items), self._num_low),
            deadline_s=deadline_s,
            now_s=now_s,
        )
        request = Request.of(len(items), self._loop, deadline_s)
        entries = [
            _Entry(request, number, item, item.rows, own_s[number], now_s, None) for number, item in enumerate(items)
        ]
        if not self._low_instances:
            names = [f"{self._name}-low-{number}" for number in range(self._num_low)]
            self._low_instances = [self._start(name, low=True) for name in names]
        self._low.enqueue(entries)
        self._dispatch()
        try:
            return await self._low.wait(request, entries, deadline_s, now_s)
        finally:
            self._cancel(entries, self._low_instances)
            for instance in self._low_instances:
                instance.inbox.put(_Signal.WAKE)

    def _cancel(self, entries: Sequence[_Entry], instances: Sequence[_Instance]) -> None:
        """Nobody waits for these any more: they leave before the next step, and a long step for nobody is stopped."""
        for entry in entries:
            entry.cancelled = True
        for instance in instances:
            call = instance.call
            if call is not None and all(entry.cancelled for entry in instance.computing):
                self._loop.call_later(ABANDONED_STEP_S, self._terminate_if_abandoned, instance, call)

    def _terminate_if_abandoned(self, instance: _Instance, call: EngineCall) -> None:
        """Stop a step if it still goes on, and nobody waits for any of its sentences."""
        if instance.call is call and not call.terminated and all(entry.cancelled for entry in instance.computing):
            self._tally.terminated["abandoned"] += 1
            call.terminate()

    def _terminate_if_overdue(self, instance: _Instance) -> None:
        """Stop a step that takes longer than the engine timeout; else look again later, while there are sentences."""
        instance.timer = None
        call, since_s, now_s = instance.call, instance.busy_since_s, self._clock()
        left_s = self._limits.engine_timeout_s - (now_s - since_s if since_s is not None else 0.0)
        if left_s <= 0.0 and call is not None and not call.terminated:
            self._tally.terminated["overdue"] += 1
            call.terminate()
        if instance.rows:
            next_s = left_s if left_s > 0.0 else max(self._limits.engine_timeout_s, MIN_LOOK_S)
            instance.timer = self._loop.call_later(next_s, self._terminate_if_overdue, instance)

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

    def _decoding_s(self, item: Sentence) -> float:
        """Wall time from its first to its last step, in the company that it would have if it joined now."""
        fewest = min(instance.rows for instance in self._instances)
        rows = min(fewest + item.rows, self._limits.max_running_rows)
        return self._wall_factor.value * self._expected_steps(item) * self._costs.estimate(rows, 1)

    def _expected_wait_s(self, rows: int) -> float:
        """Until a new request would join: what is queued, and half of what runs, shared out among the threads."""
        if not self._admission.queue and any(self._has_room(instance, rows) for instance in self._instances):
            return 0.0
        return self._wall_factor.value * (self._admission.queued_s + self._running_s / 2) / len(self._instances)

    def _remaining_s(self, entry: _Entry) -> float:
        """Wall time until a waiting sentence could be done; on an idle thread it is tried, whatever it may cost."""
        idle = any(not instance.rows for instance in self._instances)
        return 0.0 if idle else self._decoding_s(entry.sentence)

    def _has_room(self, instance: _Instance, rows: int) -> bool:
        return not instance.rows or instance.rows + rows <= self._limits.max_running_rows

    def _dispatch(self) -> None:
        """Give waiting sentences, oldest first, to the thread with the fewest rows, as long as there is room."""
        while self._admission.dead_reason is None and (entry := self._admission.oldest(self._remaining_s)) is not None:
            instance = min(self._instances, key=lambda each: each.rows)
            reserve = int(RESERVE_SHARE * self._limits.max_running_rows)
            if not self._has_room(instance, entry.rows - reserve):
                return
            self._admission.remove(entry)
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
            stood_still, instance.paused = instance.paused, number >= spare
            if stood_still and not instance.paused:
                instance.inbox.put(_Signal.WAKE)

    def _dispatch_low(self) -> None:
        """The same for low priority, when no ordinary sentence waits."""
        while self._low.dead_reason is None and (entry := self._low.oldest()) is not None:
            instance = min(self._low_instances, key=lambda each: each.rows)
            if instance.rows and instance.rows + entry.rows > self._most_low_rows():
                return
            self._low.remove(entry)
            self._give(instance, entry)

    def _give(self, instance: _Instance, entry: _Entry) -> None:
        instance.entries[entry] = None
        instance.rows += entry.rows
        if instance.timer is None:
            instance.timer = self._loop.call_later(self._limits.engine_timeout_s, self._terminate_if_overdue, instance)
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
            if entry.steps:
                self._admission.count_in_vain(entry)
            if outcome is None:
                continue
            if isinstance(outcome, ItemResult) and not instance.low:
                self._steps_per_token += 0.05 * (entry.steps / entry.sentence.length - self._steps_per_token)
            entry.request.settle(entry.index, outcome)
        if progress.dead is not None:
            self._die(instance, progress.dead)
        self._dispatch()
        # Last, because nobody waits for it.
        for rows, seconds, turn_s in progress.steps:
            if instance.low:
                self._low_row_s += (LEARNING_RATE if self._low_row_s else 1.0) * (seconds / rows - self._low_row_s)
            else:
                self._wall_factor.record(turn_s, self._costs.estimate(rows, 1))
                self._costs.record(rows, 1, seconds)
            self._on_batch(BatchStats(rows, rows, 0, seconds, 1, seconds))

    def _die(self, instance: _Instance, reason: str) -> None:
        self._admission.fail_all(reason, given=[] if instance.low else instance.entries)
        self._low.fail_all(reason, given=instance.entries if instance.low else [])
        instance.entries.clear()
        instance.rows = 0

    def health_problem(self) -> str | None:
        """Why this batcher would not answer now, or None when it would."""
        if self._admission.dead_reason is not None:
            return self._admission.dead_reason
        now_s, timeout_s = self._clock(), self._limits.engine_timeout_s
        # Not those of low priority: they may rightly wait for a core for ever.
        for instance in self._instances:
            since_s = instance.busy_since_s
            # At the timeout the step is terminated. An engine that does not obey within a further bound is dead.
            if since_s is not None and now_s - since_s > timeout_s + min(timeout_s, OBEY_S):
                return f"a decoder step has not come back for {now_s - since_s:.0f} s"
        return None

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        await asyncio.gather(self._admission.drain(), self._low.drain())

    def close(self) -> None:
        """End the engine threads, after the step they compute now."""
        for instance in (*self._instances, *self._low_instances):
            instance.inbox.put(_Signal.CLOSE)
            if instance.timer is not None:
                instance.timer.cancel()

    # --- in an engine thread -----------------------------------------------------------------------------------------

    def _decode(self, instance: _Instance) -> None:
        """Step after step, until closed or dead."""
        if instance.low:
            lower_engine_priority()
        dead: str | None = None
        while dead is None and self._gather(instance):
            ended: list[_Ended] = []
            instance.call = EngineCall()
            instance.busy_since_s = self._clock()
            if instance.turn_since_s is None:
                instance.turn_since_s = instance.busy_since_s
            try:
                with terminable(instance.call):
                    self._turn(instance, ended)
            except Terminated:
                ended += self._give_up(instance)
            except BaseException as error:  # whatever it is, the requests must hear of it
                dead = f"{type(error).__name__}: {error}"
                instance.members, instance.waiting = [], deque()
            instance.busy_since_s = instance.call = None
            instance.computing = ()
            streamed = [(entry, list(entry.sentence.so_far)) for entry in instance.members if entry.on_tokens]
            # The event loop is not woken for steps that nobody waits for.
            if ended or streamed or dead is not None:
                steps, instance.untold_steps = instance.untold_steps, []
                self._tell(instance, _Progress(ended, streamed, steps, dead))

    def _turn(self, instance: _Instance, ended: list[_Ended]) -> None:
        """Let sentences leave and join, and make a step; `ended` takes in those that have ended.

        Raises:
            Terminated: the step was; nothing is known of the running batch.
        """
        if dropped := self._drop_cancelled(instance):
            self._tell(instance, _Progress(dropped, [], [], None))
        if not instance.paused:
            instance.running = instance.running or self._open()
            self._join(instance, ended)
        if not instance.paused:  # it may since have been told to
            self._step(instance, ended)

    def _give_up(self, instance: _Instance) -> list[_Ended]:
        """After a terminated step: all its sentences end, and the next ones get a running batch of their own."""
        limit = f"{self._limits.engine_timeout_s:g} s (engine_timeout_s)"
        members, instance.members, instance.running = instance.members, [], None
        instance.turn_since_s = None
        return [
            _Ended(entry, None if entry.cancelled else EngineFailed(f"a decoder step took longer than {limit}"))
            for entry in members
        ]

    def _tell(self, instance: _Instance, progress: _Progress) -> None:
        # A loop that has ended took with it everybody who waited.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_in, instance, progress)

    def _gather(self, instance: _Instance) -> bool:
        """What has come in since the last step; waits for something when there is nothing to do. False: closed."""
        try:
            while True:
                idle = instance.paused or not (instance.members or instance.waiting)
                if idle:
                    instance.turn_since_s = None
                given = instance.inbox.get() if idle else instance.inbox.get_nowait()
                if given is _Signal.CLOSE:
                    return False
                if given is _Signal.WAKE:
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

    def _join(self, instance: _Instance, ended: list[_Ended]) -> None:
        """Let those who wait join, as far as they may; `ended` takes in those that failed on the way."""
        joining: list[_Entry] = []
        tokens, rows = 0, sum(entry.rows for entry in instance.members)
        while instance.waiting:
            tokens += instance.waiting[0].sentence.length
            rows += instance.waiting[0].rows
            if rows > self._limits.max_running_rows:
                break
            # Nobody is held up by what joins an idle thread; those of low priority keep to short calls all the same.
            most = LOW_PRIORITY_JOINING_TOKENS if instance.low else PREFILL_TOKENS_PER_STEP
            if joining and (instance.members or instance.low) and tokens > most:
                break
            joining.append(instance.waiting.popleft())
        now_s = self._clock()
        for entry in joining:
            entry.joined_s = now_s
        if not joining:
            return
        before, instance.members = instance.members, instance.members + joining
        instance.computing = joining
        try:
            instance.running.join([entry.sentence for entry in joining])
        except Exception as error:
            _raise_if_terminated(instance, error)
            instance.members = before
            for number, entry in enumerate(joining):
                self._join_alone(instance, entry, joining[number + 1 :], ended)

    def _join_alone(self, instance: _Instance, entry: _Entry, others: list[_Entry], ended: list[_Ended]) -> None:
        """Let one sentence join; `others` are to follow, and end with it if this is terminated."""
        try:
            instance.running.join([entry.sentence])
        except Exception as error:
            if instance.call is not None and instance.call.terminated:
                instance.members += [entry, *others]
                raise Terminated from error
            self._probe()
            ended.append(_Ended(entry, _failure(error)))
            return
        instance.members.append(entry)

    def _step(self, instance: _Instance, ended: list[_Ended]) -> None:
        """One step for all; `ended` takes in those that are done with it, or that it fails on."""
        if not instance.members:
            return
        clock = working_time if instance.low else self._clock
        rows, started_s = sum(entry.rows for entry in instance.members), clock()
        instance.computing = tuple(instance.members)
        try:
            instance.running.step()
        except Exception as error:
            _raise_if_terminated(instance, error)
            self._decode_one_by_one(instance, ended)
            return
        ended_s = self._clock()
        turn_s = ended_s - (ended_s if instance.turn_since_s is None else instance.turn_since_s)
        instance.untold_steps.append(_Step(rows, clock() - started_s, turn_s))
        instance.turn_since_s = ended_s
        done = []
        for entry in instance.members:
            entry.steps += 1
            entry.step_rows += rows
            if entry.sentence.done:
                done.append(entry)
        for entry in done:
            instance.members.remove(entry)
            instance.running.leave(entry.sentence)
        ended += [_Ended(entry, _result(entry, ended_s)) for entry in done]

    def _decode_one_by_one(self, instance: _Instance, ended: list[_Ended]) -> None:
        """After a failed step nothing is known of the batch: decode each sentence anew, alone, and see which fails."""
        self._probe()
        for entry in list(instance.members):
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
                _raise_if_terminated(instance, error)
                ended.append(_Ended(entry, _failure(error)))
            else:
                ended.append(_Ended(entry, _result(entry, self._clock()) if entry.sentence.done else None))
            instance.members.remove(entry)
        instance.running, instance.turn_since_s = self._open(), None


def _raise_if_terminated(instance: _Instance, error: Exception) -> None:
    """Tell a step that was terminated from one that failed.

    Raises:
        Terminated: it was terminated.
    """
    if instance.call is not None and instance.call.terminated:
        raise Terminated from error


def _result(entry: _Entry, ended_s: float) -> ItemResult:
    compute_s, mean_rows = ended_s - entry.joined_s, round(entry.step_rows / entry.steps)
    report = BatchStats(mean_rows, entry.step_rows, 0, compute_s, 1, compute_s)
    return ItemResult(entry.sentence, entry.joined_s - entry.enqueued_s, report)


def _failure(error: Exception) -> EngineFailed:
    failure = EngineFailed(f"the model failed on this input: {error}")
    failure.__cause__ = error
    return failure
