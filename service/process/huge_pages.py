"""What stays in memory once the models are loaded: garbage collections pass over it, and it lies in huge pages.

A request that comes alone finds caches cold, and reads from so many places that the translation of their addresses
takes a good part of its time; so do weights that are read from end to end for each batch. A page of 2 MiB is one
translation, where pages of 4 KiB are 512 (docs/decisions/process.md has what that saves).

Linux moves a process's own memory when asked. It does not do so with the code of libraries, which are files: a copy
takes the place of that, as Node.js has it done by `--use-largepages`.
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
# Of the small pages in the place of a huge one, so many must be in use: the others will take memory too.
MIN_SHARE_IN_USE = 0.5
# /proc/self/pagemap has a word for each page; its highest bit says that the page is in memory.
PAGE_BYTES, WORD_BYTES, IN_MEMORY = 4096, 8, np.uint64(1 << 63)


def keep_out_of_collections() -> None:
    """Let the garbage collector pass over what there is by now: libraries and models, which stay.

    A full collection stops all requests, and among so many objects for 40 ms.
    """
    gc.collect()
    gc.freeze()


def move_to_huge_pages(stopped: Callable[[], bool] = lambda: False) -> int:
    """Have what this process has in memory lie in huge pages, wherever enough of one is in use; how many bytes.

    Other threads go on; one that needs a page that is being moved waits for it, some milliseconds at most. Nothing
    happens where there are no huge pages, the system's setting is "never", or the kernel is too old. In Python's
    development mode (`python -X dev`) code stays where debuggers and profilers know its functions by name.

    Args:
        stopped: asked before each page; from then on nothing more is moved.
    """
    # Other processors would have to be told that there is new code.
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
    """Memory with one purpose: from its first address to the one behind its last."""

    start: int
    end: int
    is_code: bool


def _areas() -> Iterator[_Area]:
    """What this process has of its own that is no file's, and the code of its libraries (proc(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        is_data = permissions == "rw-p" and (not name or name[0] == "[heap]" or name[0].startswith("[anon"))
        is_code = permissions == "r-xp" and bool(name) and name[0].startswith("/")
        if is_data or is_code:
            start, end = addresses.split("-")
            yield _Area(int(start, 16), int(end, 16), is_code)


def _move(area: _Area, huge_bytes: int, pagemap: BinaryIO, stopped: Callable[[], bool]) -> int:
    """Move an area, as far as it can be; how many bytes."""
    libc, moved_bytes = _libc(), 0
    for address in range(-(-area.start // huge_bytes) * huge_bytes, area.end - huge_bytes + 1, huge_bytes):
        if stopped():
            break
        if _share_in_use(pagemap, address, huge_bytes) < MIN_SHARE_IN_USE:
            continue
        if area.is_code:
            moved = _replace_code(libc, address, huge_bytes)
        else:
            moved = libc.madvise(address, huge_bytes, MADV_COLLAPSE) == 0
        # What cannot be moved now, such as pages that a device reads, stays where it is.
        moved_bytes += huge_bytes if moved else 0
    return moved_bytes


def _replace_code(libc: Any, address: int, huge_bytes: int) -> bool:
    """Let a copy in a huge page take the place of code; whether it did.

    The kernel changes the one for the other in one step: a thread that computes there goes on in the copy.
    """
    writable, executable = mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC
    spare = libc.mmap(None, 2 * huge_bytes, writable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if spare == MAP_FAILED:
        return False
    # A huge page begins at a multiple of its size. What lies around it is given back before anything else can fail.
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
    """The C library, with the types of what is called here."""
    libc, pointer, size, flags = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [pointer, size, flags, flags, flags, ctypes.c_long], pointer
    libc.mremap.argtypes, libc.mremap.restype = [pointer, size, size, flags, pointer], pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = libc.mprotect.argtypes = [pointer, size, flags]
    return libc


def _share_in_use(pagemap: BinaryIO, address: int, num_bytes: int) -> float:
    pagemap.seek(address // PAGE_BYTES * WORD_BYTES)
    words = np.frombuffer(pagemap.read(num_bytes // PAGE_BYTES * WORD_BYTES), dtype=np.uint64)
    return float((words >= IN_MEMORY).mean()) if len(words) else 0.0
