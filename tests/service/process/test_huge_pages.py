"""Used memory is moved to huge pages unchanged, and unused memory stays unallocated."""

import asyncio
import gc
import mmap
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from service.config import ServiceConfig
from service.engines.device import Device
from service.process.huge_pages import HUGE_PAGES, move_to_huge_pages
from service.server import settle

SIZE = 16 * 2**20


def kib_of(what: str) -> int:
    """Read the value for this process from proc(5)."""
    found = re.search(rf"^{what}: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def mapping_kib(area: NDArray[Any]) -> int:
    """Return the size of the huge pages in the mapping that an array lies in.

    The sum over the process is no measure: other memory may return its huge pages at the same time.
    """
    address, inside = area.__array_interface__["data"][0], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if (mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise LookupError(f"no mapping has address {address:#x}")


def needs_huge_pages() -> None:
    """Skip the test if the kernel offers no huge pages."""
    if sys.platform != "linux" or not (HUGE_PAGES / "enabled").exists():
        pytest.skip("this kernel has no huge pages")
    if "[never]" in (HUGE_PAGES / "enabled").read_text():
        pytest.skip("this system's setting for huge pages is 'never'")
    if tuple(map(int, re.findall(r"\d+", subprocess.check_output(["uname", "-r"], text=True))[:2])) < (6, 1):
        pytest.skip("this kernel is older than 6.1, which is the first to move pages when asked")


def test_what_is_in_use_is_moved_as_it_is() -> None:
    """A large area is moved except for its ends and keeps its contents; a second call changes nothing."""
    needs_huge_pages()
    area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(area, dtype=np.uint32)
    numbers[:] = np.arange(len(numbers))
    before_kib = mapping_kib(numbers)
    moved_bytes = move_to_huge_pages()
    assert moved_bytes >= SIZE - 2 * 2**21
    assert mapping_kib(numbers) - before_kib >= (SIZE - 2 * 2**21) // 1024
    assert (numbers == np.arange(len(numbers))).all()
    assert move_to_huge_pages() >= SIZE - 2 * 2**21
    assert (numbers == np.arange(len(numbers))).all()


def test_what_is_hardly_in_use_takes_no_more_memory() -> None:
    """Areas with a single used page in each huge page, such as stacks of threads, are not moved."""
    needs_huge_pages()
    move_to_huge_pages()  # all else
    area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for first in range(0, SIZE, 2**21):
        area[first] = 1
    before_kib = kib_of("Rss")
    move_to_huge_pages()
    assert kib_of("Rss") - before_kib < SIZE // 1024 // 2


def test_it_stops_when_told() -> None:
    """A stop before the first page moves nothing."""
    assert move_to_huge_pages(lambda: True) == 0


@pytest.mark.parametrize(
    ("setting", "device", "moves"), [("on", "cpu", True), ("off", "cpu", False), ("on", "cuda", False)]
)
def test_a_server_moves_what_it_has_loaded_unless_told_not_to(
    setting: Literal["on", "off"], device: Device, moves: bool
) -> None:
    """Neither with `--huge-pages off` nor on a GPU; memory that is in use then stays in small pages."""
    needs_huge_pages()
    move_to_huge_pages()  # all else
    area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(area, dtype=np.uint32)
    numbers[:] = 7
    before_kib = mapping_kib(numbers)
    try:
        settle(ServiceConfig(huge_pages=setting), device, asyncio.Event())
    finally:
        gc.unfreeze()
    movers = [thread for thread in threading.enumerate() if thread.name == "huge-pages"]
    assert len(movers) == moves
    for thread in movers:
        thread.join()
    assert (mapping_kib(numbers) - before_kib > SIZE // 1024 // 2) is moves
