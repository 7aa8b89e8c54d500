"""An event loop with simulated time, which passes only while everything waits, so that tests are exact.

Engine threads wait in `VirtualTime.compute`. Time advances when nothing is ready in the loop and as many threads wait
there as the batcher has engine calls running, so that no thread is between the two.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any

PATIENCE_S = 20.0  # real time; only a failing test waits this long


class _Selector(selectors.DefaultSelector):
    """A selector that advances the simulated time instead of waiting."""

    def __init__(self, time: "VirtualTime") -> None:
        super().__init__()
        self._time = time

    def select(self, timeout: float | None = None) -> list[Any]:
        """Return pending events; without any, advance the time by the requested wait."""
        if (events := super().select(0)) or timeout == 0:
            return events
        if self._time.computing != self._time.expected_computing() or timeout is None:
            return super().select(PATIENCE_S)  # for an engine thread
        self._time.now_s += timeout
        return []


class VirtualTime:
    """The simulated clock, on which engine threads wait."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.cpu_s = 0.0  # spent by engine calls
        self.computing = 0
        self.expected_computing: Callable[[], int] = lambda: 0
        self.loop = _Loop(self)

    def run(self, serving: Coroutine[Any, Any, None]) -> None:
        """Run the loop until a task is done, and close it."""
        try:
            self.loop.run_until_complete(serving)
        finally:
            self.loop.close()

    def clock(self) -> float:
        """Return the wall time."""
        return self.now_s

    def cpu_clock(self) -> float:
        """Return the CPU time of the one engine thread."""
        return self.cpu_s

    def compute(self, cpu_s: float, wall_s: float) -> None:
        """Spend time in an engine thread."""
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
    """An event loop on the simulated clock."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__(_Selector(time))
        self._virtual = time
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the simulated seconds."""
        return self._virtual.now_s
