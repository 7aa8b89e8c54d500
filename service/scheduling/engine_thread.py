"""Engine threads of the batcher and their calls; a failing call is split to isolate the failing items."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from service.engines.preemption import EngineCall, Preemption, Terminated
from service.errors import EngineFailed, Unavailable
from service.process.worker_threads import SupervisedThread, Watchdog
from service.scheduling.admission import BatchStats
from service.scheduling.batch_forming import Entry, Extent
from service.scheduling.lane import Lane

# Time for a terminated call to return after the engine timeout, because engines do not stop immediately.
OBEY_S = 10.0

Outcome = tuple[list[Any], BatchStats, str | None]  # results or exceptions, figures of the call, why the engine is dead
OnDone = Callable[["EngineThread", list[Entry], list[Any], BatchStats, str | None], None]


class CallRunner:
    """Makes the engine calls of one model, and isolates the items that fail."""

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        preemption: Preemption,
        *,
        probe: Callable[[], None],
        skipped_padding_cost: float | None,
        name: str,
    ) -> None:
        """Set up; the arguments are described at `service.scheduling.batcher.Batcher`."""
        self.preemption = preemption
        self._run, self._probe, self._padding_cost, self._name = run, probe, skipped_padding_cost, name

    def execute(self, items: list[Any], clock: Callable[[], float], call: EngineCall | None) -> Outcome:
        """Make one engine call.

        Args:
            items: items to compute, at least one.
            clock: measures the cost of the call, in seconds.
            call: handle through which other threads may terminate the call.

        Returns:
            A result or an exception for each item, the figures of the call, and why the engine is dead, if it is.
        """
        extent = Extent.of(*items)
        started_s, clock_s = time.monotonic(), clock()
        dead: str | None = None
        try:
            results = self._compute(items, call)
            if isinstance(results[0], Exception) and all(isinstance(result, Exception) for result in results):
                self._probe()
        except Terminated as error:
            results = [error] * len(items)
        except BaseException as error:  # whatever it is, the requests must get an error
            dead = f"{type(error).__name__}: {error}"
            results = [Unavailable(f"the engine of {self._name} has failed: {dead}") for _ in items]
        tokens = extent.tokens if self._padding_cost is not None else extent.rows * extent.longest
        compute_s, cost_s = time.monotonic() - started_s, clock() - clock_s
        length = extent.effective_length(self._padding_cost)
        report = BatchStats(extent.rows, tokens, tokens - extent.tokens, compute_s, length, cost_s)
        return results, report, dead

    def _compute(self, items: list[Any], call: EngineCall | None) -> list[Any]:
        """Return for each item its result, or the exception that it causes alone; a failing call is split in halves.

        Raises:
            Terminated: the call was terminated, and no item has a result.
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


class EngineThread:
    """An engine thread and the batch that it computes at the moment.

    All attributes belong to the event loop; the thread itself uses only the inbox.
    """

    def __init__(
        self,
        name: str,
        lane: "EngineLane",
        runner: CallRunner,
        *,
        clock: Callable[[], float],
        engine_clock: Callable[[], float],
        timeout_s: float,
        on_done: OnDone,
        on_end: Callable[["EngineThread", str], None],
        watchdog: Watchdog | None,
    ) -> None:
        """Start the thread, idle; must be called from the event loop's thread.

        Args:
            name: name of the thread.
            lane: lane whose entries the thread computes.
            runner: makes the engine calls.
            clock: clock of the timeout and of waiting times.
            engine_clock: measures the cost of a call, in seconds.
            timeout_s: a call that takes longer is terminated.
            on_done: called in the event loop with the outcome of each batch.
            on_end: called in the event loop with the reason if the thread ends unexpectedly.
            watchdog: detects when the system has killed the thread.
        """
        self.lane = lane
        # State of the current call; None or empty while idle.
        self.started_s: float | None = None
        self.batch: list[Entry] = []
        self.call: EngineCall | None = None
        self.expected_s = 0.0
        self._timer: asyncio.TimerHandle | None = None  # fires when the call may be overdue
        self._inbox: SimpleQueue[tuple[list[Entry], EngineCall] | None] = SimpleQueue()
        self._runner, self._on_done, self._loop = runner, on_done, lane.loop
        self._clock, self._engine_clock, self._timeout_s = clock, engine_clock, timeout_s
        self.thread = SupervisedThread(
            self._work, name=name, on_end=lambda reason: on_end(self, reason), watchdog=watchdog
        )
        lane.idle.append(self)

    def start(self, batch: list[Entry], expected_s: float) -> None:
        """Compute a batch; the thread must be idle."""
        self.batch, self.expected_s, self.started_s = batch, expected_s, self._clock()
        self.call = EngineCall()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._terminate_if_overdue)
        self._inbox.put((batch, self.call))

    def clear(self) -> None:
        """Forget the current batch."""
        self.started_s = self.call = None
        self.batch = []

    def close(self) -> None:
        """End the thread after its present call."""
        self._inbox.put(None)
        if self._timer is not None:
            self._timer.cancel()

    def terminate_if_abandoned(self) -> None:
        """Terminate the current call if none of its items has a caller."""
        call = self.call
        if call is not None and not call.terminated and all(entry.request.future.done() for entry in self.batch):
            self.lane.tally.terminated["abandoned"] += 1
            call.terminate()

    def _terminate_if_overdue(self) -> None:
        """Terminate the current call if it takes longer than the timeout; else check again later."""
        self._timer = None
        if self.started_s is None or self.call is None:
            return
        left_s = self.started_s + self._timeout_s - self._clock()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._terminate_if_overdue)
        elif not self.call.terminated:
            self.lane.tally.terminated["overdue"] += 1
            self.call.terminate()

    def health_problem(self) -> str | None:
        """Return why the engine counts as dead, if it has ignored a termination at the timeout; else None."""
        if self.started_s is None:
            return None
        busy_s = self._clock() - self.started_s
        if busy_s <= self._timeout_s + min(self._timeout_s, OBEY_S):
            return None
        return f"an engine call has not returned for {busy_s:.0f} s"

    def _work(self) -> None:
        if self.lane.yields:
            self._runner.preemption.lower_engine_priority()
        while (given := self._inbox.get()) is not None:
            self._compute(*given)

    def _compute(self, batch: list[Entry], call: EngineCall) -> None:
        with self._runner.preemption.terminable(call):
            outcome = self._runner.execute([entry.item for entry in batch], self._engine_clock, call)
        # If the event loop has ended, no caller is left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_done, self, batch, *outcome)


EngineLane = Lane[Entry, EngineThread]
