"""Begins the program anew where the C library has to be told something that it reads at a process's start.

A message of 16 MB is copied several times on its way, each time into new memory. With pages of 4 KiB most of that time
goes into making 4,096 pages available; with pages of 2 MiB it takes a third (docs/decisions.md).
"""

import os
import platform
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
FIRST_VERSION = (2, 35)  # of glibc that knows it


def restart_with_huge_pages() -> None:
    """Have glibc ask the system for huge pages, where that allows it (madvise(2), MADV_HUGEPAGE).

    The process stays the same, its program begins anew. Returns where glibc has been told already, whatever it was
    told, or does not know of it. Call first of all: what was done before is lost.
    """
    tunables = os.environ.get(TUNABLES, "")
    name, version = platform.libc_ver()
    if HUGE_PAGES in tunables or name != "glibc" or tuple(map(int, version.split(".")[:2])) < FIRST_VERSION:
        return
    told = {TUNABLES: f"{tunables}:{HUGE_PAGES}=1".removeprefix(":")}
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | told)  # noqa: S606 - a shell has no part in it
