"""What a component costs while nothing is asked of it."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterable


def clocks_of(threads: Iterable[threading.Thread]) -> Callable[[], float]:
    """CPU seconds of these threads together.

    Not those of the process: what other tests left running there is no concern of this component.
    """
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None]
    return lambda: sum(time.clock_gettime(clock) for clock in clocks)


async def assert_idle(own_threads: Iterable[threading.Thread]) -> None:
    """A second passes, for a component's threads and the event loop's, at less than 1 % of a core.

    One of at most five: what uses CPU time while idle does so in each. What the machine does to a large process now and
    then (pages of it that were taken and come back) is counted as the thread's as well.
    """
    spent_s = clocks_of([threading.current_thread(), *own_threads])
    spent = []
    while len(spent) < 5 and (not spent or spent[-1] >= 0.01):
        gc.collect()  # now, rather than within that second
        before_s = spent_s()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=1.0)
        spent.append(spent_s() - before_s)
    assert min(spent) < 0.01, spent
