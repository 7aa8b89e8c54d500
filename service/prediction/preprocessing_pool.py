"""Threads for long preprocessing (long texts, images), so that the event loop serves other requests meanwhile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from service.errors import DeadlineExceeded, Overloaded
from service.process.worker_threads import Watchdog, WorkerThreads

LEARNING_RATE = 0.1  # weight of the last row in the mean time of a row, from which the retry delay is computed

T = TypeVar("T")


class PreprocessingPool:
    """A bounded thread pool with a limit on the rows that wait; one thread per core, because more only take memory."""

    def __init__(self, num_threads: int, max_rows: int, watchdog: Watchdog | None = None) -> None:
        """Start without threads; they are created when they are needed.

        Args:
            num_threads: maximum number of threads.
            max_rows: maximum number of rows that wait or are in work; more are refused.
            watchdog: detects threads that end.
        """
        self._num_threads, self._max_rows = num_threads, max_rows
        self._threads = WorkerThreads(num_threads, "preparer", watchdog=watchdog)
        self.rows = 0  # rows of all requests that wait for a thread or are in one
        self._row_s = 0.0  # time of a recent row, a running mean

    async def run(
        self, work: Sequence[Callable[[], T]], *, rows: int, timeout_s: float, words: tuple[str, str]
    ) -> list[T]:
        """Run the pieces of one request in parallel; the first piece that fails is the request's error.

        Args:
            work: pieces of work; pieces that have not begun when the time is up are dropped.
            rows: rows of the request.
            timeout_s: time that is left.
            words: noun for the rows and verb for the work, for error messages.

        Returns:
            the result of each piece, in order.

        Raises:
            Overloaded: too many rows are waiting.
            DeadlineExceeded: the time ran out.
            Unavailable: a thread ended during its piece.
        """
        what, done = words
        if self.rows + rows > self._max_rows:
            raise Overloaded(
                f"{self.rows} texts and images wait for preprocessing, the limit is {self._max_rows}",
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
