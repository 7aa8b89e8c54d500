"""Freed memory is returned to the system."""

import ctypes
import multiprocessing
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from service.process.allocator import MemoryReturn, allocated_bytes, give_long_allocations_own_pages, resident_bytes
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps, and returns, free memory")
MIB = 2**20


LIBC = ctypes.CDLL(None)
LIBC.malloc.restype, LIBC.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
BLOCK_BYTES = 16 * 1024


def held_blocks(num_bytes: int) -> list[int]:
    """Allocate short blocks and one last block."""
    blocks = [LIBC.malloc(BLOCK_BYTES) for _ in range(num_bytes // BLOCK_BYTES + 1)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    return blocks


def free_all_but_last(blocks: list[int]) -> None:
    """Free blocks; the last one keeps glibc from returning the others by itself."""
    for block in blocks[:-1]:
        LIBC.free(block)


def fragmented_bytes(num_bytes: int) -> None:
    """Leave free memory behind that is not returned to the system."""
    free_all_but_last(held_blocks(num_bytes))


@pytest.fixture
def fresh_process() -> Iterator[Executor]:
    """A new process, because growth would fit into memory that other tests have freed in this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def returned_after_growth() -> tuple[bool, bool, int, bool]:
    """Tell if a return is due before and after growth and after a return, and by how much the process shrank."""
    returning = MemoryReturn(lambda: False, min_growth_bytes=64 * MIB)
    early = returning.is_due()
    fragmented_bytes(128 * MIB)
    return early, returning.is_due(), returning.give_back(), returning.is_due()


def test_memory_is_given_back_after_growth(fresh_process: Executor) -> None:
    """Memory is returned after growth and only once, because what remains then counts as needed."""
    early, due, returned, again = fresh_process.submit(returned_after_growth).result()
    assert (early, due, again) == (False, True, False)
    assert returned > 96 * MIB


def due_while_busy_and_after() -> tuple[bool, bool, bool]:
    """Tell if a return is due after growth with and without requests that hold memory, and after more growth."""
    busy = True
    returning = MemoryReturn(lambda: busy, min_growth_bytes=64 * MIB, min_growth_while_busy_bytes=192 * MIB)
    fragmented_bytes(128 * MIB)
    while_busy = returning.is_due()
    busy = False
    after = returning.is_due()
    busy = True
    kept = held_blocks(200 * MIB)
    free_all_but_last(kept)
    return while_busy, after, returning.is_due()


def test_little_is_not_given_back_while_requests_hold_memory(fresh_process: Executor) -> None:
    """Memory is not returned while requests hold some, because they would need it again, unless it has grown much."""
    assert fresh_process.submit(due_while_busy_and_after).result() == (False, True, True)


def returns_until_free() -> list[bool]:
    """Tell at each check if a return was made: two checks while memory is held, the others after it is freed."""
    returning, due = MemoryReturn(lambda: False, min_growth_bytes=64 * MIB), list[bool]()

    def look() -> None:
        due.append(returning.is_due())
        if due[-1]:
            returning.give_back()

    blocks = held_blocks(128 * MIB)
    for _ in range(2):
        look()
    free_all_but_last(blocks)
    for _ in range(3):
        look()
    return due


def test_what_is_freed_after_a_return_is_returned_too(fresh_process: Executor) -> None:
    """The process's size does not show later frees, so returns are repeated, less often after one in vain."""
    assert fresh_process.submit(returns_until_free).result() == [True, False, True, False, False]


def test_a_long_allocation_leaves_when_it_is_freed() -> None:
    """It leaves the process even after earlier ones, from which glibc would learn to keep such allocations."""
    program = """
from service.process.allocator import give_long_allocations_own_pages, resident_bytes
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


def allocated_by_steps() -> list[int]:
    """Allocated bytes after each step: at first, with short blocks, with a block on its own pages, after freeing."""
    give_long_allocations_own_pages()
    steps = [allocated_bytes()]
    blocks = held_blocks(64 * MIB)
    steps.append(allocated_bytes())
    own_pages = bytes(64 * MIB)
    steps.append(allocated_bytes())
    free_all_but_last(blocks)
    steps.append(allocated_bytes())
    del own_pages
    return steps


def test_what_is_allocated_in_short_blocks_is_known(fresh_process: Executor) -> None:
    """Free memory that is still resident does not count, and neither do long allocations."""
    first, short, long, freed = fresh_process.submit(allocated_by_steps).result()
    assert 64 * MIB <= short - first < 66 * MIB
    assert abs(long - short) < MIB
    assert abs(freed - first) < MIB


def test_what_is_resident_is_known() -> None:
    """The interpreter of this process is in memory."""
    assert resident_bytes() > MIB
