"""One thread for work that no prediction shall wait for, and the moments in which it may go on.

    run ──> the turn of this piece ──> fewer requests are being answered than there are cores to spare ──> thread

Work comes in short pieces. A piece begins only while at least one core has nothing to answer beside its own (of one
core: while nothing is answered at all), whichever model is asked; a prediction that comes meanwhile finds at most one
piece in work. Engine calls of a piece are stopped for it, like those of the batchers' low priority
(`service.engines.preemption`). There is no timer: the end of a prediction lets the next piece begin.

All state belongs to the event loop's thread.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from service.engines.preemption import (
    EngineCall,
    lower_engine_priority,
    preempt_background,
    resume_background,
    terminable,
)
from service.errors import DeadlineExceeded
from service.process.worker_threads import Watchdog, WorkerThreads

T = TypeVar("T")


class IdleExecutor:
    """The thread, and how many requests are being answered beside it."""

    def __init__(self, num_cores: int, watchdog: Watchdog | None = None) -> None:
        """Set up.

        Args:
            num_cores: shared with whatever answers requests.
            watchdog: notices a thread that vanishes.
        """
        self._too_many = max(1, num_cores - 1)
        self._answering = 0
        self._quiet = asyncio.Event()  # cleared by those who wait for it
        self._turn = asyncio.Lock()
        self._thread = WorkerThreads(1, "spare-time", initializer=lower_engine_priority, watchdog=watchdog)

    def answering(self) -> None:
        """A request has come that must not wait; `answered` must follow."""
        self._answering += 1
        if self._answering == self._too_many:
            preempt_background()

    def answered(self) -> None:
        """It has ended, in whatever way."""
        self._answering -= 1
        if self._answering == self._too_many - 1:
            self._quiet.set()
            resume_background()

    async def run(self, piece: Callable[[], T], deadline_s: float) -> T:
        """Do a piece of work, alone among all pieces; when its caller leaves, its engine call is terminated.

        Args:
            piece: of a few milliseconds, where it can be cut so.
            deadline_s: on `time.monotonic()`'s clock.

        Raises:
            DeadlineExceeded: it passed before the piece was done.
            Unavailable: the thread ended while it did the piece.
        """
        async with self._until(deadline_s), self._turn:
            await self._moment()
            call = EngineCall()

            def terminable_piece() -> T:
                with terminable(call):
                    return piece()

            try:
                return await self._thread.submit(terminable_piece)
            except asyncio.CancelledError:  # by the caller, or by the deadline
                call.terminate()
                raise

    async def moment(self, deadline_s: float) -> None:
        """Return when a piece could begin: for work that others do.

        Args:
            deadline_s: as of `run`.

        Raises:
            DeadlineExceeded: as of `run`.
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
            raise DeadlineExceeded("the deadline passed before the explanation was there") from None
