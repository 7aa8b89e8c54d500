"""Arrivals at a constant rate: requests start on schedule, whether or not earlier ones were answered (open loop).

Users who wait for their answer slow down with the server, and the load that would have met its worst moments is never
sent. Here each request has its time before the run begins; who counts latency from it sees all the waiting.
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

    Whoever is behind schedule does not skip: what is due is started at once.

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
        # Also with nothing to wait for: those in flight get their turn.
        gevent.sleep(max(0.0, due_s - clock()))
        if in_flight.free_count() == 0:
            give_up(number, due_s)
        else:
            in_flight.spawn(send, number, due_s)
    in_flight.join()
