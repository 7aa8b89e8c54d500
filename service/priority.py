"""Which thread gets a core that several want."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_of_thread = threading.local()


def give_way() -> None:
    """From now on, what the calling thread does by `compute` gives way to all other threads of the machine.

    The thread itself keeps its priority: what it does in Python holds the interpreter's lock, which a thread that does
    not get a core could not give back. Engine calls do not hold it; so a second thread, of the lowest priority, makes
    these, and nothing else.
    """
    _of_thread.lowest = ThreadPoolExecutor(1, f"{threading.current_thread().name}-lowest", _become_lowest)


def compute(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that gives back the interpreter's lock while it computes, at the calling thread's priority."""
    lowest: ThreadPoolExecutor | None = getattr(_of_thread, "lowest", None)
    return function(*arguments) if lowest is None else lowest.submit(function, *arguments).result()


def step_back(thread: threading.Thread, by: int) -> None:
    """Let a thread that runs get less of a core that others want: `by` more of niceness (sched(7)); on Linux alone."""
    if sys.platform == "linux" and thread.native_id is not None:
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, thread.native_id)
            os.setpriority(os.PRIO_PROCESS, thread.native_id, min(niceness + by, 19))


def _become_lowest() -> None:
    """Any other thread takes the core from one with this policy at once (`SCHED_IDLE`, sched(7)); needs no rights.

    There is no way back, for that does need rights. Where there is no such policy, or it is forbidden, calls of low
    priority are at least short.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
