"""Threads for what takes long before a model is asked: long texts, images; the event loop answers others meanwhile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from service.errors import DeadlineExceeded, Overloaded
from service.process.worker_threads import Watchdog, WorkerThreads

LEARNING_RATE = 0.1  # of the mean time of a row, which says when to come again

T = TypeVar("T")


class PreprocessingPool:
    """As many threads as there are cores; more would only take memory."""

    def __init__(self, num_threads: int, max_rows: int, watchdog: Watchdog | None = None) -> None:
        """Set up.

        Args:
            num_threads: at most.
            max_rows: that may wait or be in work; what comes on top is refused.
            watchdog: notices threads that vanish.
        """
        self._num_threads, self._max_rows = num_threads, max_rows
        self._threads = WorkerThreads(num_threads, "preparer", watchdog=watchdog)
        self.rows = 0  # of all requests that wait for a thread or are with one
        self._row_s = 0.0  # of a recent row, a running mean

    async def run(
        self, work: Sequence[Callable[[], T]], *, rows: int, timeout_s: float, words: tuple[str, str]
    ) -> list[T]:
        """Do the work of one request side by side; the first piece that fails is the request's error.

        Args:
            work: in pieces; one that has not begun when the time is up never does.
            rows: of the request.
            timeout_s: what is left to it.
            words: what the rows are and what is done to them, for messages.

        Raises:
            Overloaded: too many rows wait already.
            DeadlineExceeded: the time is up.
            Unavailable: the thread that did a piece of it has ended.
        """
        what, done = words
        if self.rows + rows > self._max_rows:
            raise Overloaded(
                f"{self.rows} texts and images wait to be prepared, the limit is {self._max_rows}",
                retry_after_s=self.rows * self._row_s / self._num_threads,
            )

        def timed(piece: Callable[[], T]) -> tuple[T, float]:
            started_s = time.monotonic()
            return piece(), time.monotonic() - started_s

        self.rows += rows
        try:
            async with asyncio.timeout(timeout_s):
                running = [self._threads.submit(partial(timed, piece)) for piece in work]
                prepared = await asyncio.gather(*running, return_exceptions=True)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed before the {what} were {done}") from None
        finally:
            self.rows -= rows
        results = []
        for entry in prepared:
            if isinstance(entry, BaseException):
                raise entry
            results.append(entry[0])
            self._row_s += LEARNING_RATE * (entry[1] * len(work) / rows - self._row_s)
        return results
