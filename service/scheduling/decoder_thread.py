"""Engine threads of the continuous batcher: each decodes the sentences of its running batch, step by step.

inbox ──> waiting ──> join ─> step ─> step ─> ... ─> done ──> progress report to the event loop
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from service.engines.preemption import EngineCall, Preemption, Terminated
from service.errors import EngineFailed
from service.process.worker_threads import SupervisedThread, Watchdog
from service.scheduling.admission import BatchStats, ItemResult
from service.scheduling.decoder_messages import Ended, Entry, Progress, Signal, Step
from service.scheduling.lane import Lane

# Source tokens that are encoded between two decoder steps; further sentences wait for the next step. Encoding this many
# delays the running sentences by about two steps of a full batch (docs/decisions/scheduling.md).
PREFILL_TOKENS_PER_STEP = 256
# Source tokens of a low-priority encoder call, which takes about as long as a step; one sentence alone may have more.
LOW_PRIORITY_JOINING_TOKENS = 64
# Time for a terminated step to return after the engine timeout, because engines do not stop immediately.
OBEY_S = 10.0
# Shortest time between two checks whether a step is overdue, however short the engine timeout is.
MIN_LOOK_S = 0.01
# Time after which a step whose callers have all left is terminated. Most steps end far sooner, and after a termination
# the thread has to allocate its caches again.
ABANDONED_STEP_S = 1.0


class RunningBatches(Protocol):
    """The sentences that one engine thread decodes at present."""

    def join(self, sentences: Sequence[Any]) -> None:
        """Add sentences from the next step on: all of them, or none if this raises."""

    def step(self) -> None:
        """Decode one more token of every sentence."""

    def leave(self, sentence: Any) -> None:
        """Free the rows of a sentence."""


class Decoder(NamedTuple):
    """The engine and the settings that all threads of one model share.

    Attributes:
        open_batches: creates empty running batches for one thread.
        probe: decoding that must succeed on a sound engine.
        preemption: preemption of the engine.
        max_running_rows: largest number of rows of one thread.
        timeout_s: a step that takes longer is terminated.
        clock: clock of deadlines, waiting times and costs.
    """

    open_batches: Callable[[], RunningBatches]
    probe: Callable[[], None]
    preemption: Preemption
    max_running_rows: int
    timeout_s: float
    clock: Callable[[], float]


class DecoderThread:
    """An engine thread and the sentences that it decodes, all of one priority."""

    def __init__(
        self,
        name: str,
        lane: "DecoderLane",
        decoder: Decoder,
        *,
        on_progress: Callable[["DecoderThread", Progress], None],
        on_end: Callable[["DecoderThread", str], None],
        watchdog: Watchdog | None,
    ) -> None:
        """Start the thread; must be called from the event loop's thread.

        Args:
            name: name of the thread.
            lane: lane whose sentences the thread decodes.
            decoder: the engine and its settings.
            on_progress: called in the event loop after a step whose results a caller waits for.
            on_end: called in the event loop with the reason if the thread ends unexpectedly.
            watchdog: detects when the system has killed the thread.
        """
        self.lane = lane
        self.inbox: SimpleQueue[Entry | Signal] = SimpleQueue()
        self._decoder, self._clock, self._on_progress, self._loop = decoder, decoder.clock, on_progress, lane.loop
        # Used by the event loop only: the entries that were given to the thread and have not ended.
        self.entries: dict[Entry, None] = {}
        self.rows = 0
        self.paused = False  # read by the thread before its next step
        self._timer: asyncio.TimerHandle | None = None  # fires when the step may be overdue
        # Written by the thread; the event loop reads the first three:
        self._busy_since_s: float | None = None  # start of the current step
        self._call: EngineCall | None = None  # the current step as an engine call
        self._computing: Sequence[Entry] = ()  # the entries that the current step computes
        self._turn_since_s: float | None = None  # end of the previous step, unless the thread has waited since
        self._running: Any = None
        self._members: list[Entry] = []
        self._waiting: deque[Entry] = deque()  # entries that wait for the next step, because too many joined at once
        self._unreported_steps: list[Step] = []
        self._thread = SupervisedThread(
            self._decode, name=name, on_end=lambda reason: on_end(self, reason), watchdog=watchdog
        )

    # --- in the event loop -------------------------------------------------------------------------------------------

    def give(self, entry: Entry) -> None:
        """Let the thread decode an entry, from its next step on."""
        self.entries[entry] = None
        self.rows += entry.rows
        if self._timer is None:
            self._timer = self._loop.call_later(self._decoder.timeout_s, self._terminate_if_overdue)
        self.inbox.put(entry)

    def forget(self) -> None:
        """Forget all entries, when the engine is dead."""
        self.entries.clear()
        self.rows = 0

    def close(self) -> None:
        """End the thread after its present step."""
        self.inbox.put(Signal.CLOSE)
        if self._timer is not None:
            self._timer.cancel()

    def entries_cancelled(self) -> None:
        """Terminate the current step after `ABANDONED_STEP_S` if none of its sentences has a caller by then."""
        call = self._call
        if call is not None and all(entry.cancelled for entry in self._computing):
            self._loop.call_later(ABANDONED_STEP_S, self._terminate_if_abandoned, call)

    def _terminate_if_abandoned(self, call: EngineCall) -> None:
        """Terminate a step that still runs if none of its sentences has a caller."""
        if self._call is call and not call.terminated and all(entry.cancelled for entry in self._computing):
            self.lane.tally.terminated["abandoned"] += 1
            call.terminate()

    def _terminate_if_overdue(self) -> None:
        """Terminate a step that takes longer than the timeout; check again later while there are sentences."""
        self._timer = None
        timeout_s = self._decoder.timeout_s
        call, since_s, now_s = self._call, self._busy_since_s, self._clock()
        left_s = timeout_s - (now_s - since_s if since_s is not None else 0.0)
        if left_s <= 0.0 and call is not None and not call.terminated:
            self.lane.tally.terminated["overdue"] += 1
            call.terminate()
        if self.rows:
            next_s = left_s if left_s > 0.0 else max(timeout_s, MIN_LOOK_S)
            self._timer = self._loop.call_later(next_s, self._terminate_if_overdue)

    def health_problem(self) -> str | None:
        """Return why the engine counts as dead, if it has ignored a termination at the timeout; else None."""
        since_s, timeout_s = self._busy_since_s, self._decoder.timeout_s
        if since_s is None:
            return None
        busy_s = self._clock() - since_s
        if busy_s <= timeout_s + min(timeout_s, OBEY_S):
            return None
        return f"a decoder step has not returned for {busy_s:.0f} s"

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Decode step after step, until closed or dead."""
        if self.lane.yields:
            self._decoder.preemption.lower_engine_priority()
        dead: str | None = None
        while dead is None and self._gather():
            ended: list[Ended] = []
            self._call = EngineCall()
            self._busy_since_s = self._clock()
            if self._turn_since_s is None:
                self._turn_since_s = self._busy_since_s
            try:
                with self._decoder.preemption.terminable(self._call):
                    self._turn(ended)
            except Terminated:
                ended += self._give_up()
            except BaseException as error:  # whatever it is, the requests must get an error
                dead = f"{type(error).__name__}: {error}"
                self._members, self._waiting = [], deque()
            self._busy_since_s = self._call = None
            self._computing = ()
            streamed = [(entry, list(entry.sentence.so_far)) for entry in self._members if entry.on_tokens]
            # The event loop is not woken for steps without a caller.
            if ended or streamed or dead is not None:
                steps, self._unreported_steps = self._unreported_steps, []
                self._report(Progress(ended, streamed, steps, dead))

    def _turn(self, ended: list[Ended]) -> None:
        """Let sentences leave and join, and make one step; entries that end are appended to `ended`.

        Raises:
            Terminated: the step was terminated, and the state of the running batch is unknown.
        """
        if dropped := self._drop_cancelled():
            self._report(Progress(dropped, [], [], None))
        if not self.paused:
            self._running = self._running or self._decoder.open_batches()
            self._join(ended)
        if not self.paused:  # the event loop may have paused the thread meanwhile
            self._step(ended)

    def _give_up(self) -> list[Ended]:
        """End all sentences of a terminated step; later sentences get a new running batch."""
        limit = f"{self._decoder.timeout_s:g} s (engine_timeout_s)"
        members, self._members, self._running = self._members, [], None
        self._turn_since_s = None
        return [
            Ended(entry, None if entry.cancelled else EngineFailed(f"a decoder step took longer than {limit}"))
            for entry in members
        ]

    def _report(self, progress: Progress) -> None:
        # If the event loop has ended, no caller is left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_progress, self, progress)

    def _gather(self) -> bool:
        """Receive new entries and signals; block while there is nothing to do. Return False when closed."""
        try:
            while True:
                idle = self.paused or not (self._members or self._waiting)
                if idle:
                    self._turn_since_s = None
                given = self.inbox.get() if idle else self.inbox.get_nowait()
                if given is Signal.CLOSE:
                    return False
                if given is Signal.WAKE:
                    return True
                self._waiting.append(given)
        except Empty:
            return True

    def _drop_cancelled(self) -> list[Ended]:
        gone = [entry for entry in self._members if entry.cancelled]
        for entry in gone:
            self._members.remove(entry)
            self._running.leave(entry.sentence)
        never_joined = [entry for entry in self._waiting if entry.cancelled]
        for entry in never_joined:
            self._waiting.remove(entry)
        return [Ended(entry, None) for entry in (*gone, *never_joined)]

    def _next_to_join(self) -> list[Entry]:
        """Return the waiting entries that may join now, within the limits of rows and of tokens per step."""
        joining: list[Entry] = []
        tokens, rows = 0, sum(entry.rows for entry in self._members)
        while self._waiting:
            tokens += self._waiting[0].sentence.length
            rows += self._waiting[0].rows
            if rows > self._decoder.max_running_rows:
                break
            # Joining an idle thread delays no running sentence, but low-priority calls must be short in any case.
            most = LOW_PRIORITY_JOINING_TOKENS if self.lane.yields else PREFILL_TOKENS_PER_STEP
            if joining and (self._members or self.lane.yields) and tokens > most:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _join(self, ended: list[Ended]) -> None:
        """Let waiting sentences join the running batch; entries that fail to join are appended to `ended`."""
        joining = self._next_to_join()
        now_s = self._clock()
        for entry in joining:
            entry.joined_s = now_s
        if not joining:
            return
        before, self._members = self._members, self._members + joining
        self._computing = joining
        try:
            self._running.join([entry.sentence for entry in joining])
        except Exception as error:
            self._raise_if_terminated(error)
            self._members = before
            for number, entry in enumerate(joining):
                self._join_alone(entry, joining[number + 1 :], ended)

    def _join_alone(self, entry: Entry, others: list[Entry], ended: list[Ended]) -> None:
        """Let one sentence join; if the call is terminated, it ends with `others`, which have not joined yet."""
        try:
            self._running.join([entry.sentence])
        except Exception as error:
            if self._call is not None and self._call.terminated:
                self._members += [entry, *others]
                raise Terminated from error
            self._decoder.probe()
            ended.append(Ended(entry, _failure(error)))
            return
        self._members.append(entry)

    def _step(self, ended: list[Ended]) -> None:
        """Make one step for all members; members that are done or fail are appended to `ended`."""
        if not self._members:
            return
        clock = self._decoder.preemption.working_time if self.lane.yields else self._clock
        rows, started_s = sum(entry.rows for entry in self._members), clock()
        self._computing = tuple(self._members)
        try:
            self._running.step()
        except Exception as error:
            self._raise_if_terminated(error)
            self._decode_one_by_one(ended)
            return
        ended_s = self._clock()
        turn_s = ended_s - (ended_s if self._turn_since_s is None else self._turn_since_s)
        self._unreported_steps.append(Step(rows, clock() - started_s, turn_s))
        self._turn_since_s = ended_s
        done = []
        for entry in self._members:
            entry.steps += 1
            entry.step_rows += rows
            if entry.sentence.done:
                done.append(entry)
        for entry in done:
            self._members.remove(entry)
            self._running.leave(entry.sentence)
        ended += [Ended(entry, _result(entry, ended_s)) for entry in done]

    def _decode_one_by_one(self, ended: list[Ended]) -> None:
        """Decode each sentence again and alone after a failed step, to find the sentences that fail.

        Raises:
            Terminated: a step was terminated.
        """
        self._decoder.probe()
        for entry in list(self._members):
            running = self._decoder.open_batches()
            entry.sentence.restart()
            entry.steps = entry.step_rows = 0
            try:
                running.join([entry.sentence])
                while not entry.sentence.done and not entry.cancelled:
                    running.step()
                    entry.steps += 1
                    entry.step_rows += entry.rows
            except Exception as error:
                self._raise_if_terminated(error)
                ended.append(Ended(entry, _failure(error)))
            else:
                ended.append(Ended(entry, _result(entry, self._clock()) if entry.sentence.done else None))
            self._members.remove(entry)
        self._running, self._turn_since_s = self._decoder.open_batches(), None

    def _raise_if_terminated(self, error: Exception) -> None:
        """Raise `Terminated` if an error comes from a terminated step and not from a failed one.

        Raises:
            Terminated: the step was terminated.
        """
        if self._call is not None and self._call.terminated:
            raise Terminated from error


DecoderLane = Lane[Entry, DecoderThread]


def _result(entry: Entry, ended_s: float) -> ItemResult:
    compute_s, mean_rows = ended_s - entry.joined_s, round(entry.step_rows / entry.steps)
    report = BatchStats(mean_rows, entry.step_rows, 0, compute_s, 1, compute_s)
    return ItemResult(entry.sentence, entry.joined_s - entry.enqueued_s, report)


def _failure(error: Exception) -> EngineFailed:
    failure = EngineFailed(f"the model failed on this input: {error}")
    failure.__cause__ = error
    return failure
