"""The program begins anew with glibc told to ask for huge pages."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

GLIBC = platform.libc_ver()
KNOWS = GLIBC[0] == "glibc" and tuple(map(int, GLIBC[1].split(".")[:2])) >= (2, 35)
PROGRAM = """
import os, sys
from service.restart import restart_with_huge_pages
print(os.getpid(), os.environ.get("GLIBC_TUNABLES", "none"), *sys.argv[1:], flush=True)
restart_with_huge_pages()
"""


def told_by(tunables: str | None) -> list[list[str]]:
    """What the program says each time it begins: its process, what glibc is told, its arguments."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", PROGRAM, "an", "argument"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.skipif(not KNOWS, reason="glibc 2.35 or newer is not here")
@pytest.mark.parametrize(
    ("given", "told"),
    [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1")],
)
def test_the_program_begins_anew_once(given: str | None, told: str) -> None:
    """In the same process, with the same arguments, and with what glibc was told besides."""
    first, second = told_by(given)
    assert first[1:] == [given or "none", "an", "argument"]
    assert second == [first[0], told, "an", "argument"]


@pytest.mark.parametrize("given", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_a_users_own_choice_stays(given: str) -> None:
    """Whatever it is: nothing begins anew."""
    ((_, told, *_),) = told_by(given)
    assert told == given
