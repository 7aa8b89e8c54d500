"""Measures the wakes and CPU time of threads while a component is idle.

Wakes are counted beside CPU time, because a wake after a long sleep costs up to 1.5 ms for cold caches, and for the
return of the core on a virtual machine. CPU time alone would measure the machine.
"""

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Spent(NamedTuple):
    """The wakes and the CPU time of some threads since they began."""

    wakes: int
    """Returns from a wait (voluntary context switches)."""
    cpu_s: float

    def since(self, before: "Spent") -> "Spent":
        """Return the difference to an earlier reading."""
        return Spent(self.wakes - before.wakes, self.cpu_s - before.cpu_s)


def spent_by(process_id: int, thread_ids: Iterable[int] | None = None) -> Spent:
    """Return what these threads of a process have spent; by default all of them."""
    tasks = Path(f"/proc/{process_id}/task")
    wakes, cpu_s = 0, 0.0
    for task in tasks.iterdir() if thread_ids is None else [tasks / str(each) for each in thread_ids]:
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        wakes += int(status["voluntary_ctxt_switches"])
        cpu_s += int((task / "schedstat").read_text().split()[0]) * 1e-9
    return Spent(wakes, cpu_s)


async def assert_idle(own_threads: Iterable[threading.Thread]) -> None:
    """Check that a component's threads and the event loop's wake at most three times each in a second.

    Other threads of the process are ignored, because other tests may have left them running. CPU time must stay below
    5 % of a core too, because a spinning thread never wakes.
    """
    threads = [threading.current_thread(), *own_threads]
    ids = [thread.native_id for thread in threads if thread.native_id is not None]
    assert len(ids) == len(threads)
    gc.collect()  # now, rather than within that second
    before = spent_by(os.getpid(), ids)
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), timeout=1.0)
    spent = spent_by(os.getpid(), ids).since(before)
    assert time.monotonic() - began_s >= 1.0
    assert spent.wakes <= 3 * len(threads), spent
    assert spent.cpu_s < 0.05 * len(threads), spent
