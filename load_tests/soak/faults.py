"""Faults around the servers, one after another, by the number of finished requests."""

import asyncio
from collections.abc import Sequence

from load_tests.soak.servers import OverwrittenFiles, ServerSlot
from load_tests.soak.tally import Tally

# Repeated in this order; a fault lasts for half of the requests until the next one.
FAULTS = ("unread-log", "overwritten-files", "roll")


class FaultPlan:
    """Starts faults and ends them."""

    def __init__(
        self, faults: Sequence[str], slots: Sequence[ServerSlot], files: OverwrittenFiles, tally: Tally
    ) -> None:
        """Set up; without faults nothing goes wrong."""
        self._faults = [name for name in FAULTS if name in faults]
        self._slots, self._files, self._tally = slots, files, tally
        self._done, self._changed = tally.done, asyncio.Event()

    def advance(self, done: int) -> None:
        """Tell the plan how many requests are done."""
        self._done = done
        self._changed.set()

    async def run(self, every: int) -> None:
        """Start a fault after each `every` requests, until cancelled.

        Raises:
            RuntimeError: a rolled server does not become ready.
            TimeoutError: a server does not end after SIGTERM.
        """
        if not self._faults:
            await asyncio.Event().wait()
        while True:
            number = self._done // every
            await self._reached((number + 1) * every)
            name = self._faults[number % len(self._faults)]
            self._tally.add(self._tally.faults, name)
            if name == "roll":
                for slot in self._slots:
                    await slot.roll()
                continue
            if name == "unread-log":
                self._pause_logs()
            else:
                self._files.overwrite(number)
            await self._reached((number + 1) * every + every // 2)
            await self.end()

    async def end(self) -> None:
        """End the current fault: files are as they were, logs are read."""
        self._files.restore()
        for slot in self._slots:
            if slot.reader is not None:
                slot.reader.resume()

    def _pause_logs(self) -> None:
        for slot in self._slots:
            if slot.reader is not None:
                slot.reader.pause()

    async def _reached(self, done: int) -> None:
        while self._done < done:
            self._changed.clear()
            await self._changed.wait()
