"""Moves the process's long-lived data to huge pages (madvise(2), MADV_COLLAPSE; Linux 6.1 or newer).

A single request finds cold caches and reads from so many places that address translation takes much of its time; the
weights, which are read completely for each batch, have the same effect. A page of 2 MiB needs one translation; the same
memory in pages of 4 KiB needs 512 (savings: docs/decisions/process.md).
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
MADV_COLLAPSE = 25
# Fraction of the small pages of a huge page that must be in use, because the unused ones will take memory too.
MIN_USED_FRACTION = 0.5
# /proc/self/pagemap has a word for each page; its highest bit is set if the page is in memory.
PAGE_BYTES, WORD_BYTES, IN_MEMORY = 4096, 8, np.uint64(1 << 63)


def move_to_huge_pages(stopped: Callable[[], bool] = lambda: False) -> int:
    """Move the process's data to huge pages wherever enough of a page is in use.

    Other threads go on; a thread that needs a page that is being moved waits some milliseconds at most. Nothing happens
    without huge pages, with the system's setting "never", or with an old kernel.

    Args:
        stopped: called before each page; once true, nothing more is moved.

    Returns:
        the number of bytes moved.
    """
    try:
        if "[never]" in (HUGE_PAGES / "enabled").read_text():
            return 0
        huge_bytes = int((HUGE_PAGES / "hpage_pmd_size").read_text())
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            return sum(_move(*area, huge_bytes, pagemap, stopped) for area in list(_data_areas()))
    except OSError:  # not Linux, or without huge pages
        return 0


def _data_areas() -> Iterator[tuple[int, int]]:
    """Yield the first address of each area of anonymous memory, and the one after its last (proc(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and (not name or name[0] == "[heap]" or name[0].startswith("[anon")):
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)


def _move(start: int, end: int, huge_bytes: int, pagemap: BinaryIO, stopped: Callable[[], bool]) -> int:
    """Move as much of an area as possible, and return the number of bytes."""
    madvise, moved_bytes = _madvise(), 0
    for address in range(-(-start // huge_bytes) * huge_bytes, end - huge_bytes + 1, huge_bytes):
        if stopped():
            break
        if _used_fraction(pagemap, address, huge_bytes) < MIN_USED_FRACTION:
            continue
        # Pages that cannot be moved now, for example because a device reads them, stay where they are.
        if madvise(address, huge_bytes, MADV_COLLAPSE) == 0:
            moved_bytes += huge_bytes
    return moved_bytes


def _madvise() -> Any:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise


def _used_fraction(pagemap: BinaryIO, address: int, num_bytes: int) -> float:
    pagemap.seek(address // PAGE_BYTES * WORD_BYTES)
    words = np.frombuffer(pagemap.read(num_bytes // PAGE_BYTES * WORD_BYTES), dtype=np.uint64)
    return float((words >= IN_MEMORY).mean()) if len(words) else 0.0
