"""One priority of a batcher: a bounded queue and the engine threads that compute its items."""

import math
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.scheduling.admission import Admission, E
from service.telemetry.metrics import SchedulingTally

T = TypeVar("T")


class Lane(Admission[E], Generic[E, T]):
    """The queue and the engine threads of one priority.

    Attributes:
        num_threads: number of threads after `start`.
        max_call_s: target duration of an engine call; infinite if only rows and tokens limit it.
        yields: whether the threads give up their core to all other threads (low priority).
        threads: all threads, none before `start`.
        idle: threads that wait for a batch.
    """

    def __init__(
        self,
        name: str,
        max_queue_rows: int,
        num_threads: int,
        *,
        max_call_s: float = math.inf,
        yields: bool = False,
        tally: SchedulingTally | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty queue without threads; must be called in the event loop. See `Admission` for arguments."""
        super().__init__(name, max_queue_rows, tally=tally, clock=clock)
        self.num_threads, self.max_call_s, self.yields = num_threads, max_call_s, yields
        self.threads: list[T] = []
        self.idle: list[T] = []

    def start(self, new_thread: Callable[[str], T]) -> None:
        """Start the threads unless they run already; `new_thread` starts one, given its name."""
        if not self.threads:
            prefix = f"{self.name}-low" if self.yields else self.name
            self.threads = [new_thread(f"{prefix}-{number}") for number in range(self.num_threads)]


def two_lanes(
    name: str,
    max_queue_rows: int,
    instances: int,
    low_call_s: float,
    tally: SchedulingTally | None,
    clock: Callable[[], float],
) -> tuple[Lane[Any, Any], Lane[Any, Any]]:
    """Create the lanes of a batcher: one for ordinary and one for low-priority requests.

    The low-priority threads start with the first request for them. One thread fewer leaves a core idle for an ordinary
    request.

    Args:
        name: name of the model, for thread names and messages.
        max_queue_rows: largest number of rows that may wait in each lane.
        instances: number of engine threads for ordinary requests.
        low_call_s: target duration of a low-priority engine call.
        tally: counts rows that are refused, dropped, terminated, or computed in vain.
        clock: clock of deadlines and waiting times.
    """
    ordinary = Lane[Any, Any](name, max_queue_rows, instances, tally=tally, clock=clock)
    low_threads = max(1, instances - 1)
    low = Lane[Any, Any](
        name, max_queue_rows, low_threads, max_call_s=low_call_s, yields=True, tally=tally, clock=clock
    )
    return ordinary, low
