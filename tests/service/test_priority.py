"""Priorities of threads: engine calls give way, the Python around them does not."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.priority import compute, give_way, step_back

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no SCHED_IDLE")


def policy() -> int:
    """Of the calling thread."""
    return os.sched_getscheduler(0)


def test_what_a_thread_computes_gives_way_and_the_thread_does_not() -> None:
    """Engine calls have the lowest priority, the Python around them the usual one."""

    def low() -> tuple[int, int, int]:
        give_way()
        return compute(policy), policy(), compute(policy)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(low).result() == (os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_IDLE)


def test_other_threads_compute_themselves() -> None:
    """No call is handed to another thread where none has to give way."""
    assert compute(threading.get_ident) == threading.get_ident()
    assert compute(policy) == os.SCHED_OTHER


def test_a_call_that_fails_raises() -> None:
    """What the function raises, wherever it is called."""

    def low() -> None:
        give_way()
        with pytest.raises(ZeroDivisionError):
            compute(divmod, 1, 0)
        assert compute(divmod, 7, 2) == (3, 1)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(low).result()


def test_a_thread_steps_back_from_where_it_is() -> None:
    """By so much, no further than there is, and no other thread with it."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = niceness()
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.current_thread).result()
        for by, expected in ((5, own + 5), (2, own + 7), (100, 19)):
            step_back(thread, by)
            assert pool.submit(niceness).result() == expected
    assert niceness() == own
