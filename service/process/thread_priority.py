"""Priorities of the process and its threads in the operating system's scheduler (sched(7)); Linux only."""

import asyncio
import contextlib
import os
import sys
import threading
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MAX_NICENESS = 19
# A library names its threads a moment after it has started them.
MAX_SEARCHES, SEARCH_INTERVAL_S = 100, 0.01


def use_batch_policy() -> None:
    """Move the process to SCHED_BATCH; call this before threads start, which inherit it.

    A thread that wakes up then waits for its turn instead of interrupting the one that computes. A request over gRPC
    without a model costs 0.24 ms of CPU time with it, 0.28 to 0.32 ms without (docs/decisions/process.md).
    """
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or forbidden
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def use_idle_policy() -> None:
    """Move the calling thread to SCHED_IDLE: every other thread takes the core from it at once.

    That needs no privileges, but the way back does. Where the policy does not exist or is forbidden, background calls
    are at least short. `service.engines.preemption.Preemption` says what it saves.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def renice_thread(native_id: int, by: int) -> None:
    """Raise the niceness of a running thread, so that it gets less of a contended core.

    Args:
        native_id: the thread's number in the operating system. Threads that it starts later inherit its niceness.
        by: niceness above that of the process's first thread.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, native_id, min(niceness + by, MAX_NICENESS))


async def renice_threads_named(name: str, by: int, max_searches: int = MAX_SEARCHES) -> None:
    """Raise the niceness of a library's threads; log a warning if there is no thread of that name.

    Args:
        name: see `threads_named`.
        by: niceness above that of the process's first thread.
        max_searches: give up after so many searches, 10 ms apart.
    """
    if sys.platform != "linux":  # threads have no niceness of their own
        return
    found: set[int] = set()
    for _ in range(max_searches):
        new = threads_named(name) - found
        if found and not new:
            return
        for native_id in new:
            renice_thread(native_id, by)
        found |= new
        await asyncio.sleep(SEARCH_INTERVAL_S)
    if not found:
        log.warning("no thread has this name, so none gets a lower priority", thread=name)


def threads_named(name: str) -> set[int]:
    """Find threads of this process, and return their numbers in the operating system.

    Args:
        name: name of native threads in the operating system, or the end of the name of Python threads, which the
            operating system knows by another name.
    """
    found = {thread.native_id for thread in threading.enumerate() if thread.native_id and thread.name.endswith(name)}
    with contextlib.suppress(OSError):  # not Linux, or a thread has ended meanwhile
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                found.add(int(task.name))
    return found
