"""One thread for work that no prediction shall wait for, and the moments in which it may go on.

    run ──> the turn of this piece ──> fewer requests are being answered than there are cores to spare ──> thread

Work comes in short pieces. A piece begins only while at least one core has nothing to answer beside its own (of one
core: while nothing is answered at all), whichever model is asked; a prediction that comes meanwhile finds at most one
piece in work, takes the core from its engine calls, and stops it where it can be stopped; it is done again later. There
is no timer: the end of a prediction lets the next piece begin.

All state belongs to the event loop's thread.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from service.errors import DeadlineExceeded
from service.priority import give_way

T = TypeVar("T")

# A piece that was stopped so many times is left to its end: under steady load it would never come to it.
MOST_STOPS = 4


class Stopped(Exception):
    """A piece was told to stop, and has."""


class Stop(Protocol):
    """How to stop a piece that is being done; ONNX Runtime's `RunOptions` are one."""

    terminate: bool


class SpareTime:
    """The thread, and how many requests are being answered beside it."""

    def __init__(self, num_cores: int) -> None:
        """`num_cores` are shared with whatever answers requests."""
        self._too_many = max(1, num_cores - 1)
        self._answering = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._turn = asyncio.Lock()
        self._stop: Stop | None = None  # of the piece that is being done, if it may be stopped
        self._thread = ThreadPoolExecutor(1, "spare-time", give_way)

    def answering(self) -> None:
        """A request has come that must not wait; `answered` must follow."""
        self._answering += 1
        if self._answering == self._too_many:
            self._quiet.clear()
            if self._stop is not None:
                self._stop.terminate = True

    def answered(self) -> None:
        """It has ended, in whatever way."""
        self._answering -= 1
        if self._answering == self._too_many - 1:
            self._quiet.set()

    async def run(self, piece: Callable[[], T], deadline_s: float, stop: Stop | None = None) -> T:
        """Do a piece of work, alone among all pieces; cancelled, it is left to its end unless it can be stopped.

        Args:
            piece: of a few milliseconds, where it can be cut so.
            deadline_s: on `time.monotonic()`'s clock.
            stop: what makes the piece raise `Stopped`, for a request that must not wait.

        Raises:
            DeadlineExceeded: it passed before the piece was done.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()), self._turn:
                for stops in itertools.count():
                    while not self._quiet.is_set():
                        await self._quiet.wait()
                    if stop is not None:
                        stop.terminate = False
                        self._stop = stop if stops < MOST_STOPS else None
                    try:
                        return await loop.run_in_executor(self._thread, piece)
                    except Stopped:
                        continue
                    except asyncio.CancelledError:
                        if stop is not None:
                            stop.terminate = True
                        raise
                    finally:
                        self._stop = None
                raise AssertionError("a piece that is not stopped ends")
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the explanation was there") from None
