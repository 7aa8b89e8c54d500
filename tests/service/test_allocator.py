"""What is freed leaves the process."""

import ctypes
import multiprocessing
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from service.allocator import MemoryReturn, resident_bytes
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps, and returns, free memory")
MIB = 2**20


def fragmented_bytes(num_bytes: int, block_bytes: int = 16 * 1024) -> None:
    """Allocate short blocks, and free all but the last, which keeps glibc from returning the others by itself."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(block_bytes) for _ in range(num_bytes // block_bytes)]
    for block in blocks:
        ctypes.memset(block, 1, block_bytes)
    libc.malloc(block_bytes)
    for block in blocks:
        libc.free(block)


@pytest.fixture
def fresh_process() -> Iterator[Executor]:
    """A process of its own: in this one, other tests have left free memory, into which growth fits."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def returned_after_growth() -> tuple[bool, bool, int, bool]:
    """Whether a return is due before and after growth, by how much the process shrank, whether one is due again."""
    returning = MemoryReturn(lambda: False, min_growth_bytes=64 * MIB)
    early = returning.is_due()
    fragmented_bytes(128 * MIB)
    return early, returning.is_due(), returning.give_back(), returning.is_due()


def test_memory_is_given_back_after_growth(fresh_process: Executor) -> None:
    """Not before, and only once: what stays counts as needed from then on."""
    early, due, returned, again = fresh_process.submit(returned_after_growth).result()
    assert (early, due, again) == (False, True, False)
    assert returned > 96 * MIB


def due_while_busy_and_after() -> tuple[bool, bool]:
    """Whether a return is due after growth, while requests hold memory and when they do not."""
    busy = True
    returning = MemoryReturn(lambda: busy, min_growth_bytes=64 * MIB)
    fragmented_bytes(128 * MIB)
    while_busy = returning.is_due()
    busy = False
    return while_busy, returning.is_due()


def test_nothing_is_given_back_while_requests_hold_memory(fresh_process: Executor) -> None:
    """Their memory would be asked for again at once."""
    assert fresh_process.submit(due_while_busy_and_after).result() == (False, True)


def test_a_long_allocation_leaves_when_it_is_freed() -> None:
    """Also after others before it, by which glibc learns to keep such allocations."""
    program = """
from service.allocator import give_long_allocations_own_pages, resident_bytes
give_long_allocations_own_pages()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(3):
    libc.free(libc.malloc(24 << 20))
before = resident_bytes()
block = libc.malloc(16 << 20)
ctypes.memset(block, 1, 16 << 20)
short = libc.malloc(100)
held = resident_bytes()
libc.free(block)
print(held - before >= 16 << 20, resident_bytes() - before < 1 << 20)
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "True"], answer


def test_what_is_resident_is_known() -> None:
    """This process has at least its interpreter in memory."""
    assert resident_bytes() > MIB
