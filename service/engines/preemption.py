"""Which thread gets a core that several want, and which engine calls are stopped.

Work of low priority is computed by threads that have called `lower_engine_priority`. Their engine calls begin in a
quiet moment, give up the core to whoever wants it, and are stopped when `preempt_background` says that a request has
come; the same call is made again in the next quiet moment. The priority alone would not do: Linux lets a thread of the
lowest one that can run have a whole tick of 4 ms now and then.

Any engine call is terminated (`EngineCall`) when nobody waits for its answer any more, or when it has taken too long.

The cores are the process's, and so is what is kept here.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from service.process.worker_threads import AssistantThread, ThreadEnded

T = TypeVar("T")

# A call that has waited and been stopped for so long is left to its end: under steady load it would never come to it.
# More often than once in a hundred requests would show in their 99th percentile.
PATIENCE_S = 2.0


class Stop(Protocol):
    """How to stop a call that is being computed; ONNX Runtime's `RunOptions` are one."""

    terminate: bool


class _Moments:
    """Whether work of low priority may begin now."""

    def __init__(self) -> None:
        self.held = False  # between `preempt_background` and `resume_background`
        self.waited_for = False  # some thread has given way
        self.quiet = threading.Event()  # the opposite of `held`, for threads to wait for, once there are any
        self.quiet.set()


class Terminated(Exception):
    """An engine call was stopped by `EngineCall.terminate`; what it has computed is not to be used."""


class EngineCall:
    """One engine call of a batcher, which another thread may terminate.

    An engine makes it within `terminable`; ONNX Runtime then stops after the operator that is being computed, also
    within the body of a Loop. An engine that does not call `run_preemptible` is not stopped.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._stop: Stop | None = None

    def terminate(self) -> None:
        """Stop the call as soon as the engine lets it; may be called from any thread."""
        self.terminated = True
        if (stop := self._stop) is not None:
            stop.terminate = True

    def begin(self, stop: Stop) -> None:
        """Let `stop` end what is computed from now on.

        Raises:
            Terminated: the call has been terminated already.
        """
        self._stop = stop
        if self.terminated:
            raise Terminated

    def end(self) -> None:
        """Nothing is computed any more."""
        self._stop = None


@contextlib.contextmanager
def terminable(call: EngineCall) -> Iterator[None]:
    """Let `call.terminate` stop what the calling thread computes within the `with`."""
    _of_thread.engine_call = call
    try:
        yield
    finally:
        _of_thread.engine_call = None


_of_thread = threading.local()
_moments = _Moments()
_stops: set[Stop] = set()  # of the calls that are being computed


def lower_engine_priority() -> None:
    """From now on, what the calling thread does by `compute` gives way to all other threads of the machine.

    The thread itself keeps its priority: what it does in Python holds the interpreter's lock, which a thread that does
    not get a core could not give back. Engine calls do not hold it; so a second thread, of the lowest priority, makes
    these, and nothing else.
    """
    _of_thread.lowest = _new_lowest()
    _of_thread.computed_s = 0.0
    _moments.waited_for = True
    if _moments.held:
        _moments.quiet.clear()
        if not _moments.held:  # `resume_background` came in between
            _moments.quiet.set()


def compute(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that gives back the interpreter's lock while it computes, at the calling thread's priority.

    Raises:
        ThreadEnded: the second thread of one that has given way has ended; the next call gets a new one.
    """
    lowest: AssistantThread | None = getattr(_of_thread, "lowest", None)
    if lowest is None:
        return function(*arguments)
    try:
        result, took_s = lowest.call(partial(_timed, function, *arguments))
    except ThreadEnded:
        _of_thread.lowest = _new_lowest()
        raise
    _of_thread.computed_s += took_s
    return result


def working_time() -> float:
    """As `time.thread_time`, with the seconds that were computed for a thread that has given way.

    A clock on the wall would count what it waits for its moments, and the tries that were stopped.
    """
    computed_s: float = getattr(_of_thread, "computed_s", 0.0)
    return time.thread_time() + computed_s


def run_preemptible(call: Callable[[Any], T], new_stop: Callable[[], Stop], patience_s: float = PATIENCE_S) -> T:
    """As `compute`, for a call that can be stopped; a thread that has given way waits for its moment, and tries again.

    Args:
        call: raises when it is stopped by its argument, a `Stop`; is given None where nothing will stop it.
        new_stop: makes one.
        patience_s: after which no request stops the call any more. `EngineCall.terminate` always does.

    Raises:
        Terminated: by `EngineCall.terminate`.
    """
    engine_call: EngineCall | None = getattr(_of_thread, "engine_call", None)
    if not _moments.waited_for or getattr(_of_thread, "lowest", None) is None:
        return run_stoppable(call, new_stop)
    stop = new_stop()
    until_s = time.monotonic() + patience_s
    while _moments.quiet.wait(until_s - time.monotonic()) and time.monotonic() < until_s:
        stop.terminate = False
        _stops.add(stop)
        if not _moments.quiet.is_set():  # `preempt_background` may have come before there was anything to stop
            stop.terminate = True
        try:
            return _terminable_call(engine_call, call, stop)
        except Terminated:
            raise
        except Exception:
            if not stop.terminate:
                raise
        finally:
            _stops.discard(stop)
    return run_stoppable(call, new_stop)


def _terminable_call(engine_call: EngineCall | None, call: Callable[[Any], T], stop: Stop) -> T:
    """Compute a call that `engine_call`, if there is one, can terminate.

    Raises:
        Terminated: it has done so.
    """
    if engine_call is None:
        return compute(call, stop)
    try:
        engine_call.begin(stop)
        return compute(call, stop)
    except Exception as error:
        if engine_call.terminated:
            raise Terminated from error
        raise
    finally:
        engine_call.end()


def run_stoppable(call: Callable[[Any], T], new_stop: Callable[[], Stop]) -> T:
    """As `compute`, for a call that only `EngineCall.terminate` may stop; see `run_preemptible`.

    Raises:
        Terminated: it did.
    """
    engine_call: EngineCall | None = getattr(_of_thread, "engine_call", None)
    return compute(call, None) if engine_call is None else _terminable_call(engine_call, call, new_stop())


def preempt_background() -> None:
    """Stop what is computed at low priority, and let nothing of it begin until `resume_background`."""
    _moments.held = True
    if _moments.waited_for:  # most servers never explain, and all hold for each request
        _moments.quiet.clear()
        for stop in tuple(_stops):
            stop.terminate = True


def resume_background() -> None:
    """A quiet moment has come."""
    _moments.held = False
    if _moments.waited_for:
        _moments.quiet.set()


def renice_thread(native_id: int, by: int) -> None:
    """Let a thread that runs get less of a core that others want: more niceness (sched(7)); on Linux alone.

    Args:
        native_id: the system's number of the thread. Threads that it starts later are as nice as it is.
        by: how much more than the process's first thread has.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, native_id, min(niceness + by, 19))


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    started_s = time.monotonic()
    return function(*arguments), time.monotonic() - started_s


def _new_lowest() -> AssistantThread:
    return AssistantThread(f"{threading.current_thread().name}-lowest", _become_lowest)


def _become_lowest() -> None:
    """Any other thread takes the core from one with this policy at once (`SCHED_IDLE`, sched(7)); needs no rights.

    There is no way back, for that does need rights. Where there is no such policy, or it is forbidden, calls of low
    priority are at least short.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
