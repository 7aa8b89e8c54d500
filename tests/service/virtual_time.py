"""An event loop whose time passes only while everybody waits: seconds of load are computed in moments, and exactly.

Engine threads wait in `VirtualTime.compute`. Time goes on when nothing is ready in the loop and as many threads wait
there as the batcher has engine calls under way, so that no thread is on its way between the two.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any

PATIENCE_S = 20.0  # of real time; only a failing test waits so long


class _Selector(selectors.DefaultSelector):
    """Passes virtual time instead of waiting."""

    def __init__(self, time: "VirtualTime") -> None:
        super().__init__()
        self._time = time

    def select(self, timeout: float | None = None) -> list[Any]:
        """Events that are there; without any, the virtual time that was to be waited has passed."""
        if (events := super().select(0)) or timeout == 0:
            return events
        if self._time.computing != self._time.expected_computing() or timeout is None:
            return super().select(PATIENCE_S)  # for an engine thread
        self._time.now_s += timeout
        return []


class VirtualTime:
    """The clock, and what the engine threads wait for."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.cpu_s = 0.0  # spent by engine calls
        self.computing = 0
        self.expected_computing: Callable[[], int] = lambda: 0
        self.loop = _Loop(self)

    def run(self, serving: Coroutine[Any, Any, None]) -> None:
        """Let the loop run until this is done, and close it."""
        try:
            self.loop.run_until_complete(serving)
        finally:
            self.loop.close()

    def clock(self) -> float:
        """Wall time."""
        return self.now_s

    def cpu_clock(self) -> float:
        """CPU time of the engine thread; there is one."""
        return self.cpu_s

    def compute(self, cpu_s: float, wall_s: float) -> None:
        """Spend time, in an engine thread."""
        done = threading.Event()

        def end() -> None:
            self.computing -= 1
            self.cpu_s += cpu_s
            done.set()

        def begin() -> None:
            self.computing += 1
            self.loop.call_later(wall_s, end)

        self.loop.call_soon_threadsafe(begin)
        assert done.wait(PATIENCE_S)


class _Loop(asyncio.SelectorEventLoop):
    """Its clock is the virtual one."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__(_Selector(time))
        self._virtual = time
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now_s
