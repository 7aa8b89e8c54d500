"""Preemptible engine calls: background calls run under SCHED_IDLE and are cancelled and retried when a request arrives.

A thread that has called `Preemption.lower_engine_priority` makes background calls. They begin while no request is being
answered, yield the core to every other thread, and are stopped by `preempt_background`; the same call is made again
after `resume_background`. The scheduling policy alone would not do: Linux now and then lets a runnable thread of the
lowest priority have a whole tick of 4 ms.

Any engine call, background or not, is terminated (`EngineCall`) when all its callers have left, or when it has taken
too long.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from service.process.thread_priority import use_idle_policy
from service.process.worker_threads import AssistantThread, ThreadEnded

T = TypeVar("T")

# A background call that has waited and been stopped for this long runs to its end: under steady load it would never
# finish. More often than once in a hundred requests would show in their 99th percentile.
PATIENCE_S = 2.0


class Stop(Protocol):
    """A flag that stops a running call; ONNX Runtime's `RunOptions` are one."""

    terminate: bool


class Terminated(Exception):
    """`EngineCall.terminate` stopped an engine call; its results must not be used."""


class EngineCall:
    """One engine call of a batcher, which another thread may terminate.

    The engine makes it within `Preemption.terminable`. ONNX Runtime stops after the operator that is being computed,
    also within the body of a Loop. An engine that calls neither `run_preemptible` nor `run_stoppable` is not stopped.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._stop: Stop | None = None

    def terminate(self) -> None:
        """Stop the call as soon as the engine allows it; any thread may call this."""
        self.terminated = True
        if (stop := self._stop) is not None:
            stop.terminate = True

    def begin(self, stop: Stop) -> None:
        """Let `terminate` set `stop` from now on.

        Raises:
            Terminated: the call has been terminated already.
        """
        self._stop = stop
        if self.terminated:
            raise Terminated

    def end(self) -> None:
        """Let `terminate` set nothing: the computation has ended."""
        self._stop = None


class _ThreadState(threading.local):
    """State of the calling thread; a thread begins with these defaults."""

    engine_call: EngineCall | None = None  # terminates what the thread computes
    idle_thread: AssistantThread | None = None  # computes under SCHED_IDLE for a thread of lowered engine priority
    computed_s: float = 0.0  # computed by `idle_thread`


class Preemption:
    """Decides when background engine calls may run, and stops running ones; one object for all engines.

    With calls of low priority in ordinary threads, the 99th percentile of lone predictions was 1.5 to 2.5 times as
    high, and with SCHED_IDLE alone 1.1 to 1.6 times (docs/decisions/scheduling.md; with both: docs/benchmarks.md).
    """

    def __init__(self) -> None:
        self._thread = _ThreadState()
        self._held = False  # between `preempt_background` and `resume_background`
        self._has_threads = False  # some thread has lowered its engine priority
        self._quiet = threading.Event()  # the opposite of `_held`, kept up to date once `_has_threads`
        self._quiet.set()
        self._stops: set[Stop] = set()  # stops of the running background calls

    @contextlib.contextmanager
    def terminable(self, call: EngineCall) -> Iterator[None]:
        """Let `call.terminate` stop what the calling thread computes within the `with`."""
        self._thread.engine_call = call
        try:
            yield
        finally:
            self._thread.engine_call = None

    def lower_engine_priority(self) -> None:
        """Turn all further engine calls of the calling thread into background calls.

        The thread itself keeps its priority: its Python code holds the interpreter's lock, and a thread that gets no
        core could not release it. Engine calls release it, so a second thread, under SCHED_IDLE, makes these and
        nothing else.
        """
        self._thread.idle_thread = _new_idle_thread()
        self._thread.computed_s = 0.0
        self._has_threads = True
        if self._held:
            self._quiet.clear()
            if not self._held:  # `resume_background` came in between
                self._quiet.set()

    def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that releases the interpreter's lock while it computes, at the thread's engine priority.

        Raises:
            ThreadEnded: the second thread of a thread of lowered priority has ended; the next call gets a new one.
        """
        idle_thread = self._thread.idle_thread
        if idle_thread is None:
            return function(*arguments)
        try:
            result, took_s = idle_thread.call(partial(_timed, function, *arguments))
        except ThreadEnded:
            self._thread.idle_thread = _new_idle_thread()
            raise
        self._thread.computed_s += took_s
        return result

    def working_time(self) -> float:
        """Return `time.thread_time`, plus the seconds that the second thread of a thread of lowered priority computed.

        Wall-clock time would include the waits of background calls, and the tries that were stopped.
        """
        return time.thread_time() + self._thread.computed_s

    def run_preemptible(
        self, call: Callable[[Any], T], new_stop: Callable[[], Stop], patience_s: float = PATIENCE_S
    ) -> T:
        """Make a call that can be stopped; a background call waits until it may run, and is made again when stopped.

        Args:
            call: gets a `Stop` and raises when that stops it; gets None if nothing will stop it.
            new_stop: makes a `Stop`.
            patience_s: after this time no request stops the call any more; `EngineCall.terminate` still does.

        Raises:
            Terminated: `EngineCall.terminate` stopped it.
        """
        engine_call = self._thread.engine_call
        if not self._has_threads or self._thread.idle_thread is None:
            return self.run_stoppable(call, new_stop)
        stop = new_stop()
        until_s = time.monotonic() + patience_s
        while self._quiet.wait(until_s - time.monotonic()) and time.monotonic() < until_s:
            stop.terminate = False
            self._stops.add(stop)
            if not self._quiet.is_set():  # `preempt_background` may have come before the `add`
                stop.terminate = True
            try:
                return self._terminable_call(engine_call, call, stop)
            except Terminated:
                raise
            except Exception:
                if not stop.terminate:
                    raise
            finally:
                self._stops.discard(stop)
        return self.run_stoppable(call, new_stop)

    def run_stoppable(self, call: Callable[[Any], T], new_stop: Callable[[], Stop]) -> T:
        """Make a call that only `EngineCall.terminate` may stop, at the thread's engine priority.

        Args:
            call: gets a `Stop` and raises when that stops it; gets None if nothing will stop it.
            new_stop: makes a `Stop`.

        Raises:
            Terminated: `EngineCall.terminate` stopped it.
        """
        engine_call = self._thread.engine_call
        return self.compute(call, None) if engine_call is None else self._terminable_call(engine_call, call, new_stop())

    def _terminable_call(self, engine_call: EngineCall | None, call: Callable[[Any], T], stop: Stop) -> T:
        """Make a call that `engine_call`, if there is one, can terminate.

        Raises:
            Terminated: it did.
        """
        if engine_call is None:
            return self.compute(call, stop)
        try:
            engine_call.begin(stop)
            return self.compute(call, stop)
        except Exception as error:
            if engine_call.terminated:
                raise Terminated from error
            raise
        finally:
            engine_call.end()

    def preempt_background(self) -> None:
        """Stop the running background calls and let none begin until `resume_background`."""
        self._held = True
        if self._has_threads:  # most servers never explain, and this runs for every request
            self._quiet.clear()
            for stop in tuple(self._stops):
                stop.terminate = True

    def resume_background(self) -> None:
        """Let background calls begin."""
        self._held = False
        if self._has_threads:
            self._quiet.set()


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    started_s = time.monotonic()
    return function(*arguments), time.monotonic() - started_s


def _new_idle_thread() -> AssistantThread:
    return AssistantThread(f"{threading.current_thread().name}-lowest", use_idle_policy)
