"""What is freed leaves the process."""

import ctypes
import platform
import subprocess
import sys

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


def test_memory_is_given_back_after_growth() -> None:
    """Not before, and only once: what stays counts as needed from then on."""
    returning = MemoryReturn(lambda: False, min_growth_bytes=64 * MIB)
    assert not returning.is_due()
    fragmented_bytes(128 * MIB)
    assert returning.is_due()
    assert returning.give_back() > 96 * MIB
    assert not returning.is_due()


def test_nothing_is_given_back_while_requests_hold_memory() -> None:
    """Their memory would be asked for again at once."""
    busy = True
    returning = MemoryReturn(lambda: busy, min_growth_bytes=64 * MIB)
    fragmented_bytes(128 * MIB)
    assert not returning.is_due()
    busy = False
    assert returning.is_due()
    returning.give_back()


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
