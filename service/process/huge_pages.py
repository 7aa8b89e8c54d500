"""Moves the process's long-lived memory to huge pages, and excludes it from garbage collections.

A single request finds caches cold and reads from so many places that address translation takes a good part of its time;
so do weights, which are read completely for each batch. A page of 2 MiB needs one translation, pages of 4 KiB need 512
(savings: docs/decisions/process.md).

Linux moves a process's own memory on request, but not the code of libraries, which is mapped from files. Code is
replaced by a copy, as Node.js does with `--use-largepages`.
"""

import ctypes
import gc
import mmap
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
MADV_COLLAPSE = 25  # madvise(2), since Linux 6.1
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2  # mremap(2)
MAP_FAILED = ctypes.c_void_p(-1).value
# Fraction of the small pages of a huge one that must be in use, because the unused ones will take memory too.
MIN_USED_FRACTION = 0.5
# /proc/self/pagemap has a word for each page; its highest bit is set if the page is in memory.
PAGE_BYTES, WORD_BYTES, IN_MEMORY = 4096, 8, np.uint64(1 << 63)


def keep_out_of_collections() -> None:
    """Exclude all present objects, libraries and models, from garbage collections.

    A full collection of so many objects stops all requests for 40 ms.
    """
    gc.collect()
    gc.freeze()


def move_to_huge_pages(stopped: Callable[[], bool] = lambda: False) -> int:
    """Move the process's memory to huge pages wherever enough of a page is in use.

    Other threads go on; a thread that needs a page that is being moved waits some milliseconds at most. Nothing happens
    without huge pages, with the system's setting "never", or with an old kernel. In Python's development mode
    (`python -X dev`) code is not moved, so that debuggers and profilers find its symbols.

    Args:
        stopped: called before each page; once true, nothing more is moved.

    Returns:
        the number of bytes moved.
    """
    # Other architectures would need an instruction cache flush.
    code_too = platform.machine() == "x86_64" and not sys.flags.dev_mode
    try:
        if "[never]" in (HUGE_PAGES / "enabled").read_text():
            return 0
        huge_bytes = int((HUGE_PAGES / "hpage_pmd_size").read_text())
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            areas = [area for area in _areas() if code_too or not area.is_code]
            return sum(_move(area, huge_bytes, pagemap, stopped) for area in areas)
    except OSError:  # not Linux, or without huge pages
        return 0


class _Area(NamedTuple):
    """A mapped memory area: its first address and the one after its last."""

    start: int
    end: int
    is_code: bool


def _areas() -> Iterator[_Area]:
    """Yield the process's anonymous memory and the code of its libraries (proc(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        is_data = permissions == "rw-p" and (not name or name[0] == "[heap]" or name[0].startswith("[anon"))
        is_code = permissions == "r-xp" and bool(name) and name[0].startswith("/")
        if is_data or is_code:
            start, end = addresses.split("-")
            yield _Area(int(start, 16), int(end, 16), is_code)


def _move(area: _Area, huge_bytes: int, pagemap: BinaryIO, stopped: Callable[[], bool]) -> int:
    """Move as much of an area as possible, and return the number of bytes."""
    libc, moved_bytes = _libc(), 0
    for address in range(-(-area.start // huge_bytes) * huge_bytes, area.end - huge_bytes + 1, huge_bytes):
        if stopped():
            break
        if _used_fraction(pagemap, address, huge_bytes) < MIN_USED_FRACTION:
            continue
        if area.is_code:
            moved = _replace_code(libc, address, huge_bytes)
        else:
            moved = libc.madvise(address, huge_bytes, MADV_COLLAPSE) == 0
        # Pages that cannot be moved now, for example because a device reads them, stay where they are.
        moved_bytes += huge_bytes if moved else 0
    return moved_bytes


def _replace_code(libc: Any, address: int, huge_bytes: int) -> bool:
    """Replace code by a copy in a huge page, and return whether that worked.

    The kernel replaces the mapping atomically: a thread that runs this code continues in the copy.
    """
    writable, executable = mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC
    spare = libc.mmap(None, 2 * huge_bytes, writable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if spare == MAP_FAILED:
        return False
    # A huge page is aligned to its size. The memory around it is unmapped before anything else can fail.
    copy = -(-spare // huge_bytes) * huge_bytes
    if copy > spare:
        libc.munmap(spare, copy - spare)
    libc.munmap(copy + huge_bytes, spare + huge_bytes - copy)
    libc.madvise(copy, huge_bytes, mmap.MADV_HUGEPAGE)
    ctypes.memmove(copy, address, huge_bytes)
    if (
        libc.madvise(copy, huge_bytes, MADV_COLLAPSE) == 0
        and libc.mprotect(copy, huge_bytes, executable) == 0  # hardened systems may forbid it
        and libc.mremap(copy, huge_bytes, huge_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, address) == address
    ):
        return True
    libc.munmap(copy, huge_bytes)
    return False


def _libc() -> Any:
    """Load the C library and declare the types of the functions that are called here."""
    libc, pointer, size, flags = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [pointer, size, flags, flags, flags, ctypes.c_long], pointer
    libc.mremap.argtypes, libc.mremap.restype = [pointer, size, size, flags, pointer], pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = libc.mprotect.argtypes = [pointer, size, flags]
    return libc


def _used_fraction(pagemap: BinaryIO, address: int, num_bytes: int) -> float:
    pagemap.seek(address // PAGE_BYTES * WORD_BYTES)
    words = np.frombuffer(pagemap.read(num_bytes // PAGE_BYTES * WORD_BYTES), dtype=np.uint64)
    return float((words >= IN_MEMORY).mean()) if len(words) else 0.0
