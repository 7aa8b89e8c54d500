"""Returns freed memory to the operating system. Needs glibc; does nothing with another C library.

glibc keeps freed memory for later allocations, so after a burst of large requests a server would stay at its largest
size. Long allocations therefore get pages of their own, which are unmapped with them (mallopt(3), M_MMAP_THRESHOLD).
The memory of many short ones is returned when the server is not busy (malloc_trim(3)).
"""

import asyncio
import ctypes
import functools
import mmap
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

_M_MMAP_THRESHOLD = -3  # mallopt(3)
# Allocations from this size on get pages of their own. By default glibc raises this bound up to 32 MiB when such
# allocations are freed, and then the memory of a body of 16 MiB would stay.
OWN_PAGES_BYTES = 2 * 2**20
INTERVAL_S = 1.0
MIN_GROWTH_BYTES = 32 * 2**20
MIN_GROWTH_WHILE_BUSY_BYTES = 192 * 2**20
# After a smaller return, the next one waits for twice as many checks, up to the maximum.
MIN_RETURN_BYTES = 4 * 2**20
MAX_CHECKS_BETWEEN_RETURNS = 32


def give_long_allocations_own_pages() -> None:
    """Return memory of long allocations as soon as it is freed. Call this once, before threads start."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)


def resident_bytes() -> int:
    """Read the resident memory of this process; 0 if the system does not report it (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def allocated_bytes() -> int:
    """Read the allocated memory, without long allocations that have pages of their own.

    Resident memory is a poor substitute, because later allocations fit into freed memory without any growth; it is used
    only without glibc 2.33. The call takes 0.2 to 3 ms, because glibc walks through its free memory.
    """
    mallinfo2 = _mallinfo2()
    return resident_bytes() if mallinfo2 is None else int(mallinfo2().uordblks)


class MemoryReturn:
    """Returns free memory when the process has grown and holds nothing large, or when it has grown very much."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        *,
        interval_s: float = INTERVAL_S,
        min_growth_bytes: int = MIN_GROWTH_BYTES,
        min_growth_while_busy_bytes: int = MIN_GROWTH_WHILE_BUSY_BYTES,
    ) -> None:
        """Set up; the memory that is resident now counts as needed.

        Args:
            is_busy: tells whether requests hold memory that they will free.
            interval_s: time between two checks.
            min_growth_bytes: growth above the smallest resident size so far from which memory is returned.
            min_growth_while_busy_bytes: the bound while requests hold memory. Repeated long requests leave holes
                between allocations of short ones, and the process would grow with each of them.
        """
        self._is_busy, self._interval_s = is_busy, interval_s
        self._min_growth_bytes = min_growth_bytes
        self._min_growth_while_busy_bytes = min_growth_while_busy_bytes
        self._needed_bytes = resident_bytes()
        self._checks_between, self._checks_to_skip = 1, 0
        self._libc = _glibc()

    async def run(self) -> None:
        """Check in intervals until cancelled."""
        while self._libc is not None:
            await asyncio.sleep(self._interval_s)
            if self.is_due():
                # In a thread, because the call takes about 0.1 ms for each MiB; it releases the interpreter's lock.
                returned = await asyncio.to_thread(self.give_back)
                log.debug("free memory returned to the system", mib=returned >> 20)

    def is_due(self) -> bool:
        """Check whether the process has grown enough and recent returns were not in vain.

        Memory that is freed after a return does not show in the process's size, so one return is not enough.
        """
        if self._checks_to_skip:
            self._checks_to_skip -= 1
            return False
        resident = resident_bytes()
        self._needed_bytes = min(self._needed_bytes, resident)
        worth = self._min_growth_while_busy_bytes if self._is_busy() else self._min_growth_bytes
        return resident - self._needed_bytes >= worth

    def give_back(self) -> int:
        """Give free memory back to the system, and return by how many bytes the process shrank."""
        before = resident_bytes()
        if self._libc is not None:
            self._libc.malloc_trim(0)
        returned = before - resident_bytes()
        self._checks_between = (
            1 if returned >= MIN_RETURN_BYTES else min(2 * self._checks_between, MAX_CHECKS_BETWEEN_RETURNS)
        )
        self._checks_to_skip = self._checks_between - 1
        return returned


@functools.cache
def _mallinfo2() -> Callable[[], Any] | None:
    function = getattr(_glibc(), "mallinfo2", None)
    if function is not None:
        function.restype = _Mallinfo2
    return function


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


class _Mallinfo2(ctypes.Structure):
    """The result of mallinfo2(3): bytes, and some numbers of blocks."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )
