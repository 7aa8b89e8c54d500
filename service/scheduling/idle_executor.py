"""A background thread that runs short jobs only while a core is idle, so predictions never wait for it.

    run ──> one job at a time ──> waits until fewer requests are being answered than cores are available ──> thread

A job begins only while at least one core besides its own has no request to answer, for any model; on a single core,
only while no request is being answered. A prediction that arrives meanwhile finds at most one job running, and stops
its engine calls like low-priority calls of the batchers (`service.engines.preemption`). There is no timer: the end of a
prediction lets the next job begin.

All state belongs to the event loop's thread.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from service.engines.preemption import EngineCall, Preemption
from service.errors import DeadlineExceeded
from service.process.worker_threads import Watchdog, WorkerThreads

T = TypeVar("T")


class IdleExecutor:
    """Runs short jobs in a background thread while a core is idle."""

    def __init__(self, num_cores: int, preemption: Preemption, watchdog: Watchdog | None = None) -> None:
        """Set up.

        Args:
            num_cores: cores that the thread shares with the threads that answer requests.
            preemption: preemption of the engines that jobs call.
            watchdog: detects when the system has killed the thread.
        """
        self._preemption = preemption
        self._too_many = max(1, num_cores - 1)
        self._answering = 0
        self._quiet = asyncio.Event()  # cleared by the coroutines that wait for it
        self._turn = asyncio.Lock()
        self._thread = WorkerThreads(1, "spare-time", initializer=preemption.lower_engine_priority, watchdog=watchdog)

    def answering(self) -> None:
        """Count a request that must not wait for jobs; `answered` must follow."""
        self._answering += 1
        if self._answering == self._too_many:
            self._preemption.preempt_background()

    def answered(self) -> None:
        """Count a request as ended, whether answered or not."""
        self._answering -= 1
        if self._answering == self._too_many - 1:
            self._quiet.set()
            self._preemption.resume_background()

    def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function within a job at engine priority; see `Preemption.compute`."""
        return self._preemption.compute(function, *arguments)

    async def run(self, piece: Callable[[], T], deadline_s: float) -> T:
        """Run one job after the jobs before it; if its caller leaves, its engine call is terminated.

        Args:
            piece: the job, of a few milliseconds if the work can be divided.
            deadline_s: deadline on `time.monotonic()`'s clock.

        Raises:
            DeadlineExceeded: the deadline passed before the job was done.
            Unavailable: the thread ended during the job.
        """
        async with self._until(deadline_s), self._turn:
            await self._moment()
            call = EngineCall()

            def terminable_piece() -> T:
                with self._preemption.terminable(call):
                    return piece()

            try:
                return await self._thread.submit(terminable_piece)
            except asyncio.CancelledError:  # by the caller, or by the deadline
                call.terminate()
                raise

    async def moment(self, deadline_s: float) -> None:
        """Wait until a job could begin, for work that is done in other threads.

        Args:
            deadline_s: deadline on `time.monotonic()`'s clock.

        Raises:
            DeadlineExceeded: the deadline passed first.
        """
        async with self._until(deadline_s):
            await self._moment()

    async def _moment(self) -> None:
        while self._answering >= self._too_many:
            self._quiet.clear()
            await self._quiet.wait()

    @contextlib.asynccontextmanager
    async def _until(self, deadline_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                yield
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the explanation was computed") from None
