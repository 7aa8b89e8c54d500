"""What stays in memory once the models are loaded: garbage collections pass over it, and it lies in huge pages.

A request that comes alone finds caches cold, and reads from so many places that the translation of their addresses
takes a good part of its time; so do weights that are read from end to end for each batch. A page of 2 MiB is one
translation, where pages of 4 KiB are 512 (docs/decisions.md has what that saves).
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
MADV_COLLAPSE = 25  # madvise(2), since Linux 6.1
# Of the small pages in the place of a huge one, so many must be in use: the others will take memory too.
LEAST_SHARE_IN_USE = 0.5
# /proc/self/pagemap has a word for each page; its highest bit says that the page is in memory.
PAGE_BYTES, WORD_BYTES, IN_MEMORY = 4096, 8, np.uint64(1 << 63)


def keep_out_of_collections() -> None:
    """Let the garbage collector pass over what there is by now: libraries and models, which stay.

    A full collection stops all requests, and among so many objects for 40 ms.
    """
    gc.collect()
    gc.freeze()


def move_to_huge_pages(stopped: Callable[[], bool] = lambda: False) -> int:
    """Have the kernel put this process's memory into huge pages, wherever enough of it is in use; how many bytes.

    Other threads go on; one that needs a page that is being moved waits for it, some milliseconds at most. Nothing
    happens where there are no huge pages, the system's setting is "never", or the kernel is too old.

    Args:
        stopped: asked before each page; from then on nothing more is moved.
    """
    try:
        if "[never]" in (HUGE_PAGES / "enabled").read_text():
            return 0
        huge_bytes = int((HUGE_PAGES / "hpage_pmd_size").read_text())
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            return sum(_move(area, huge_bytes, pagemap, stopped) for area in _areas())
    except OSError:  # not Linux, or without huge pages
        return 0


def _areas() -> Iterator[tuple[int, int]]:
    """Where this process has memory of its own that is no file's, by proc(5): first address and end."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and (not name or name[0] == "[heap]" or name[0].startswith("[anon")):
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)


def _move(area: tuple[int, int], huge_bytes: int, pagemap: BinaryIO, stopped: Callable[[], bool]) -> int:
    """Move an area, as far as it can be; how many bytes."""
    libc, moved_bytes, (start, end) = ctypes.CDLL(None), 0, area
    for address in range(-(-start // huge_bytes) * huge_bytes, end - huge_bytes + 1, huge_bytes):
        if stopped():
            break
        if _share_in_use(pagemap, address, huge_bytes) < LEAST_SHARE_IN_USE:
            continue
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(huge_bytes), MADV_COLLAPSE):
            break
        moved_bytes += huge_bytes
    return moved_bytes


def _share_in_use(pagemap: BinaryIO, address: int, num_bytes: int) -> float:
    pagemap.seek(address // PAGE_BYTES * WORD_BYTES)
    words = np.frombuffer(pagemap.read(num_bytes // PAGE_BYTES * WORD_BYTES), dtype=np.uint64)
    return float((words >= IN_MEMORY).mean()) if len(words) else 0.0
