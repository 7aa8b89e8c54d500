"""Supervised threads, whose unexpected end is noticed so that no caller waits for their results for ever.

A thread whose function ends unexpectedly reports that itself. A thread that the system kills cannot, so a watchdog
checks once a second.
"""

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from service.errors import Unavailable

T = TypeVar("T")

# Interval of the watchdog. An ended thread is noticed within two seconds, and an idle server hardly wakes.
CHECK_INTERVAL_S = 1.0


class ThreadEnded(Exception):
    """A thread has ended before it finished its job."""


def is_running(thread: threading.Thread) -> bool:
    """Whether a started thread still runs. Python itself does not know when the system has killed one."""
    if not thread.is_alive():
        return False
    return sys.platform != "linux" or Path(f"/proc/self/task/{thread.native_id}").exists()


class Watchdog:
    """Checks once a second whether the watched threads still run."""

    def __init__(self, interval_s: float = CHECK_INTERVAL_S) -> None:
        """Set up with the time between two checks; there are no checks while no thread is watched."""
        self._interval_s = interval_s
        self._watched: dict[SupervisedThread, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, thread: "SupervisedThread") -> None:
        """Watch a thread until it has ended or is forgotten."""
        self._watched[thread] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._check)

    def forget(self, thread: "SupervisedThread") -> None:
        """Stop watching a thread."""
        self._watched.pop(thread, None)

    def _check(self) -> None:
        for thread in list(self._watched):
            if not is_running(thread.thread):
                self.forget(thread)
                thread.ended("the thread is gone")
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._check) if self._watched else None


class SupervisedThread:
    """A daemon thread that reports once if it ends in any other way than by returning from its function."""

    def __init__(
        self,
        function: Callable[[], None],
        *,
        name: str,
        on_end: Callable[[str], None],
        watchdog: Watchdog | None = None,
    ) -> None:
        """Start the thread; must be called from the event loop's thread.

        Args:
            function: runs in the thread, and returns only when it was asked to.
            name: name of the thread.
            on_end: called in the event loop with the reason if the thread has ended in any other way.
            watchdog: notices when the system kills the thread; None: this goes unnoticed.
        """
        self._function, self._on_end, self._watchdog = function, on_end, watchdog
        self._loop = asyncio.get_running_loop()
        self._reported = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()
        if watchdog is not None:
            watchdog.watch(self)

    def _run(self) -> None:
        reason: str | None = "the thread was ended"
        try:
            self._function()
            reason = None
        except BaseException as error:  # whatever it is, callers that wait must be told
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, so no caller waits
                self._loop.call_soon_threadsafe(self.ended, reason)

    def ended(self, reason: str | None) -> None:
        """Handle the end of the thread; None means that it was asked to end."""
        if self._watchdog is not None:
            self._watchdog.forget(self)
        if not self._reported:
            self._reported = True
            if reason is not None:
                self._on_end(reason)


@dataclass(eq=False)
class _Worker:
    """A thread of a pool and its current job."""

    inbox: "SimpleQueue[_Job | None]" = field(default_factory=SimpleQueue)
    job: "_Job | None" = None
    thread: SupervisedThread | None = None


@dataclass(eq=False)
class _Job:
    """A function for a worker to call, and the future of its result."""

    function: Callable[[], Any]
    future: "asyncio.Future[Any]"


class WorkerThreads:
    """A thread pool for an event loop. A worker that dies fails only its own job, and is replaced.

    All methods must be called in the event loop's thread.
    """

    def __init__(
        self,
        num_threads: int,
        name: str,
        *,
        initializer: Callable[[], None] = lambda: None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Set up; threads start with the first jobs.

        Args:
            num_threads: largest number of threads.
            name: prefix of the threads' names.
            initializer: called first in each thread.
            watchdog: see `SupervisedThread`.
        """
        self._num_threads, self._name, self._initializer, self._watchdog = num_threads, name, initializer, watchdog
        self._waiting: deque[_Job] = deque()
        self._idle: list[_Worker] = []
        self._workers: dict[_Worker, None] = {}
        self._num_started = 0

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that have started and not ended."""
        return [worker.thread.thread for worker in self._workers if worker.thread is not None]

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Call a function in a thread; cancelling the future before the call begins prevents it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(function, future))
        if not self._idle and len(self._workers) < self._num_threads:
            self._start()
        self._assign()
        return future

    def _start(self) -> None:
        worker, loop = _Worker(), asyncio.get_running_loop()
        self._workers[worker] = None
        self._idle.append(worker)
        worker.thread = SupervisedThread(
            lambda: self._work(worker, loop),
            name=f"{self._name}_{self._num_started}",
            on_end=lambda reason: self._ended(worker, reason),
            watchdog=self._watchdog,
        )
        self._num_started += 1

    def _assign(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if not job.future.done():
                worker = self._idle.pop()
                worker.job = job
                worker.inbox.put(job)

    def _finished(self, worker: _Worker, job: _Job, result: Any, error: Exception | None) -> None:
        worker.job = None
        if worker in self._workers:
            self._idle.append(worker)
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        self._assign()

    def _ended(self, worker: _Worker, reason: str) -> None:
        """Fail the job of a worker that has ended, and replace the worker while there is work."""
        del self._workers[worker]
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.job is not None and not worker.job.future.done():
            worker.job.future.set_exception(Unavailable(f"a thread of {self._name} has ended: {reason}"))
        if self._waiting:
            self._start()
            self._assign()

    def close(self) -> None:
        """End the threads, each after its current job."""
        for worker in self._workers:
            worker.inbox.put(None)

    def _work(self, worker: _Worker, loop: asyncio.AbstractEventLoop) -> None:
        """Call one function after the other. Runs in the worker's thread."""
        self._initializer()
        while (job := worker.inbox.get()) is not None:
            result, failure = None, None
            try:
                result = job.function()
            except Exception as error:  # raised again in the caller
                failure = error
            try:
                loop.call_soon_threadsafe(self._finished, worker, job, result, failure)
            except RuntimeError:
                return  # the event loop has ended, so no caller waits


class AssistantThread:
    """A thread that makes calls for one other thread, which waits for each call. It ends with this object."""

    def __init__(self, name: str, initializer: Callable[[], None] = lambda: None) -> None:
        """Start the thread, which calls `initializer` first."""
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self.thread = threading.Thread(
            target=_assist, args=(initializer, self._calls, self._results), name=name, daemon=True
        )
        self.thread.start()

    def __del__(self) -> None:
        """End the thread."""
        self._calls.put(None)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread, and return its result or raise its error.

        Raises:
            ThreadEnded: the thread has ended; this is noticed within two seconds.
        """
        self._calls.put(function)
        while True:
            try:
                result, error = self._results.get(timeout=CHECK_INTERVAL_S)
            except Empty:
                if not is_running(self.thread) and self._results.empty():
                    raise ThreadEnded(f"thread {self.thread.name!r} has ended") from None
                continue
            if error is not None:
                raise error
            return cast("T", result)


def _assist(
    initializer: Callable[[], None],
    calls: "SimpleQueue[Callable[[], Any] | None]",
    results: "SimpleQueue[tuple[Any, Exception | None]]",
) -> None:
    initializer()
    while (function := calls.get()) is not None:
        try:
            outcome: tuple[Any, Exception | None] = function(), None
        except Exception as error:  # raised again in the caller
            outcome = None, error
        except BaseException as error:
            name = threading.current_thread().name
            results.put((None, ThreadEnded(f"thread {name!r} has ended: {type(error).__name__}")))
            return
        del function
        results.put(outcome)
        del outcome
