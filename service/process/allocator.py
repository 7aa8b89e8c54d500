"""Gives memory that is free again back to the operating system. Needs glibc; does nothing with another C library.

glibc keeps what a program frees for its next allocations: after a burst of large requests a server would stay as large
as it ever was. Long allocations get pages of their own, which leave with them (mallopt(3), M_MMAP_THRESHOLD). What many
short ones leave behind is handed back in a quiet moment (malloc_trim(3)).
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
# Allocations from this size on get pages of their own. By itself glibc raises this bound up to 32 MiB as such
# allocations are freed, and a body of 16 MiB then stays.
OWN_PAGES_BYTES = 2 * 2**20
INTERVAL_S = 1.0
MIN_GROWTH_BYTES = 32 * 2**20
MIN_GROWTH_WHILE_BUSY_BYTES = 192 * 2**20
# A return of less was in vain: the next one comes after twice as many looks, at most so many.
MIN_RETURN_BYTES = 4 * 2**20
MAX_LOOKS_BETWEEN = 32


def give_long_allocations_own_pages() -> None:
    """Let memory of long allocations go back to the system as soon as it is freed; call once, before threads begin."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)


def resident_bytes() -> int:
    """Read how much memory of this process is resident; 0 where the system does not say (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def allocated_bytes() -> int:
    """How much memory is allocated, without long allocations that have pages of their own.

    Resident memory tells less: what was freed takes in the next allocations without any growth. It takes 0.2 to 3
    ms: glibc looks through what is free. Without glibc 2.33 it is what is resident.
    """
    mallinfo2 = _mallinfo2()
    return resident_bytes() if mallinfo2 is None else int(mallinfo2().uordblks)


class MemoryReturn:
    """Hands free memory back when the process has grown and nothing large is held, or when it has grown very much."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        *,
        interval_s: float = INTERVAL_S,
        min_growth_bytes: int = MIN_GROWTH_BYTES,
        min_growth_while_busy_bytes: int = MIN_GROWTH_WHILE_BUSY_BYTES,
    ) -> None:
        """Set up; what is resident now counts as needed.

        Args:
            is_busy: whether requests hold memory that they will give back.
            interval_s: between two looks.
            min_growth_bytes: growth above the least that was ever resident that is worth a return.
            min_growth_while_busy_bytes: the same while requests hold memory. Long requests that come again and again
                leave holes in what short ones have allocated meanwhile, and the process would grow with each.
        """
        self._is_busy, self._interval_s = is_busy, interval_s
        self._min_growth_bytes = min_growth_bytes
        self._min_growth_while_busy_bytes = min_growth_while_busy_bytes
        self._needed_bytes = resident_bytes()
        self._looks_between, self._looks_to_skip = 1, 0
        self._libc = _glibc()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while self._libc is not None:
            await asyncio.sleep(self._interval_s)
            if self.is_due():
                # In a thread: the call gives the interpreter's lock back, and takes about 0.1 ms for each MiB.
                returned = await asyncio.to_thread(self.give_back)
                log.debug("free memory has been given back", mib=returned >> 20)

    def is_due(self) -> bool:
        """Look: whether the process has grown enough, and a return seems not to be in vain.

        What is freed after a return is not seen in the process's size, so one return is not enough.
        """
        if self._looks_to_skip:
            self._looks_to_skip -= 1
            return False
        resident = resident_bytes()
        self._needed_bytes = min(self._needed_bytes, resident)
        worth = self._min_growth_while_busy_bytes if self._is_busy() else self._min_growth_bytes
        return resident - self._needed_bytes >= worth

    def give_back(self) -> int:
        """Hand free memory back to the system; by how many bytes the process shrank."""
        before = resident_bytes()
        if self._libc is not None:
            self._libc.malloc_trim(0)
        returned = before - resident_bytes()
        self._looks_between = 1 if returned >= MIN_RETURN_BYTES else min(2 * self._looks_between, MAX_LOOKS_BETWEEN)
        self._looks_to_skip = self._looks_between - 1
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
    """What glibc tells of its memory, in bytes but for numbers of blocks (mallinfo(3))."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )
