"""Used memory is moved to huge pages unchanged, and unused memory stays unallocated."""

import mmap
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.process.huge_pages import HUGE_PAGES, move_to_huge_pages
from tests.conftest import ROOT

SIZE = 16 * 2**20


def kib_of(what: str) -> int:
    """Read the value for this process from proc(5)."""
    found = re.search(rf"^{what}: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


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
    before_kib = kib_of("AnonHugePages")
    moved_bytes = move_to_huge_pages()
    assert moved_bytes >= SIZE - 2 * 2**21
    assert kib_of("AnonHugePages") - before_kib >= (SIZE - 2 * 2**21) // 1024
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


@pytest.mark.parametrize("mode", [[], ["-X", "dev"]])
def test_code_goes_on_in_its_copy(mode: list[str]) -> None:
    """A library's code is moved while it computes in other threads; only development mode keeps its symbols."""
    needs_huge_pages()
    if platform.machine() != "x86_64":
        pytest.skip("code is moved on x86_64 alone")
    command = [sys.executable, *mode, "-c", MOVE_WHILE_COMPUTING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.stdout.split() == ["True", str(not mode)], done.stderr


MOVE_WHILE_COMPUTING = """
import threading
from pathlib import Path
import numpy as np
import onnxruntime
from service.engines.onnx_builder import identity_graph
from service.process.huge_pages import move_to_huge_pages

session = onnxruntime.InferenceSession(identity_graph(), providers=["CPUExecutionProvider"])
right, stop = [], threading.Event()

def compute():
    while not stop.is_set():
        right.append(session.run(None, {"x": np.ones(1, np.float32)})[0].item() == 1.0)

def code_with_names():  # in bytes, by proc(5)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    areas = [fields[0].split("-") for fields in lines if fields[1] == "r-xp" and len(fields) > 5]
    return sum(int(end, 16) - int(start, 16) for start, end in areas)

threads = [threading.Thread(target=compute) for _ in range(4)]
for thread in threads:
    thread.start()
before = code_with_names()
move_to_huge_pages()
counted = len(right)
while len(right) < counted + 1000:
    pass
stop.set()
for thread in threads:
    thread.join()
print(all(right), before - code_with_names() >= 2**21)
"""
