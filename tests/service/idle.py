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
    """A second passes, for a component's threads and the event loop's, at less than 1 % of a core."""
    gc.collect()  # now, rather than within that second
    spent_s = clocks_of([threading.current_thread(), *own_threads])
    before_s = spent_s()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), timeout=1.0)
    assert spent_s() - before_s < 0.01
