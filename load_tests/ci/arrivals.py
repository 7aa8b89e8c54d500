"""Arrivals at a constant rate: requests start on schedule, whether or not earlier ones were answered (open loop).

Users that wait for their answer slow down with the server, so the load that would meet its worst moments is never
sent. Here each request has a time on the schedule, and latency counted from it includes all waiting.
"""

from collections.abc import Callable
from time import perf_counter

import gevent
from gevent.pool import Pool


def send_on_schedule(
    count: int,
    rate_per_s: float,
    max_in_flight: int,
    send: Callable[[int, float], None],
    give_up: Callable[[int, float], None],
    clock: Callable[[], float] = perf_counter,
) -> None:
    """Start `count` requests, each in a greenlet of its own, and wait until all have ended.

    Late requests are started at once; none is skipped.

    Args:
        count: how many.
        rate_per_s: the first is due now, each other 1 / rate_per_s after the one before.
        max_in_flight: a request that is due while so many run is not started.
        send: makes a request; takes its number and the time it was due. Must end by itself.
        give_up: is told of each that was not started, in the same way.
        clock: seconds.
    """
    in_flight, begun_s = Pool(max_in_flight), clock()
    for number in range(count):
        due_s = begun_s + number / rate_per_s
        # Sleep even without a wait, so that requests in flight can run.
        gevent.sleep(max(0.0, due_s - clock()))
        if in_flight.free_count() == 0:
            give_up(number, due_s)
        else:
            in_flight.spawn(send, number, due_s)
    in_flight.join()
