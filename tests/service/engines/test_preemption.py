"""Preemptible engine calls: background calls yield to all others, the Python around them does not."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engines.preemption import Preemption
from tests.service.stoppable import PATIENCE_S, StopFlag, StoppableCall

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no SCHED_IDLE")


def policy() -> int:
    """Return the scheduling policy of the calling thread."""
    return os.sched_getscheduler(0)


def test_what_a_thread_computes_gives_way_and_the_thread_does_not() -> None:
    """Engine calls have the lowest priority, the Python around them the usual one."""
    preemption = Preemption()

    def low() -> tuple[int, int, int]:
        preemption.lower_engine_priority()
        return preemption.compute(policy), policy(), preemption.compute(policy)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(low).result() == (os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_IDLE)


def test_other_threads_compute_themselves() -> None:
    """A thread of ordinary priority makes its calls itself."""
    preemption = Preemption()
    assert preemption.compute(threading.get_ident) == threading.get_ident()
    assert preemption.compute(policy) == os.SCHED_OTHER


def test_a_call_that_fails_raises() -> None:
    """`compute` raises what the function raises, whichever thread calls it."""
    preemption = Preemption()

    def low() -> None:
        preemption.lower_engine_priority()
        with pytest.raises(ZeroDivisionError):
            preemption.compute(divmod, 1, 0)
        assert preemption.compute(divmod, 7, 2) == (3, 1)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(low).result()


def low_thread(preemption: Preemption) -> ThreadPoolExecutor:
    """Return a thread of lowered engine priority."""
    return ThreadPoolExecutor(1, initializer=preemption.lower_engine_priority)


def test_a_call_is_stopped_when_it_is_held_and_made_again() -> None:
    """A background call is stopped and retried as often as requests arrive."""
    preemption = Preemption()
    began = threading.Semaphore(0)
    call = StoppableCall(began, tries=20)
    with low_thread(preemption) as thread:
        done = thread.submit(preemption.run_preemptible, call, StopFlag, PATIENCE_S)
        for number in range(19):
            assert began.acquire(timeout=PATIENCE_S)
            assert call.begun == number + 1
            preemption.preempt_background()
            assert call.stopped.acquire(timeout=PATIENCE_S)
            assert not done.done()
            preemption.resume_background()
        assert done.result(PATIENCE_S) == "done"
    assert call.begun == 20


@pytest.mark.parametrize("lets_go", [True, False])
def test_in_the_end_a_call_is_left_to_its_end(lets_go: bool) -> None:
    """Whether it was stopped all the time or could not begin: nothing can stop it then."""
    preemption = Preemption()

    def call(told: StopFlag | None) -> bool:
        while told is not None and not told.terminate:
            pass
        if told is not None:
            raise RuntimeError("told to stop")
        return True

    preemption.preempt_background()
    try:
        with low_thread(preemption) as thread:
            done = thread.submit(preemption.run_preemptible, call, StopFlag, 0.1)
            until_s = time.monotonic() + PATIENCE_S
            while lets_go and not done.done() and time.monotonic() < until_s:
                preemption.resume_background()
                preemption.preempt_background()
            assert done.result(PATIENCE_S)
    finally:
        preemption.resume_background()


def test_nothing_of_low_priority_begins_while_it_is_held() -> None:
    """An ordinary thread's calls do, and nothing could stop them."""
    preemption = Preemption()
    preemption.preempt_background()
    try:
        assert preemption.run_preemptible(lambda stop: stop, StopFlag) is None
        with low_thread(preemption) as thread:
            waiting = thread.submit(preemption.run_preemptible, type, StopFlag)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
            preemption.resume_background()
            assert waiting.result(PATIENCE_S) is StopFlag
    finally:
        preemption.resume_background()


def test_a_call_that_fails_unasked_is_not_made_again() -> None:
    """The caller gets its error."""
    preemption = Preemption()
    tries = []

    def failing(stop: StopFlag) -> None:
        tries.append(stop)
        raise ZeroDivisionError

    with low_thread(preemption) as thread, pytest.raises(ZeroDivisionError):
        thread.submit(preemption.run_preemptible, failing, StopFlag).result(PATIENCE_S)
    assert len(tries) == 1


def test_a_thread_that_gives_way_knows_what_it_worked() -> None:
    """What is computed for it counts, what it waits for the moment to compute does not."""
    preemption = Preemption()

    def work(stop: StopFlag | None) -> float:
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.02:
            pass
        return time.monotonic() - began_s

    def measured() -> tuple[float, float, float]:
        began_s, before_s = time.monotonic(), preemption.working_time()
        computed_s = preemption.run_preemptible(work, StopFlag)
        return time.monotonic() - began_s, preemption.working_time() - before_s, computed_s

    preemption.preempt_background()
    try:
        with low_thread(preemption) as thread:
            measuring = thread.submit(measured)
            with pytest.raises(TimeoutError):
                measuring.result(0.3)
            preemption.resume_background()
            passed_s, worked_s, computed_s = measuring.result(PATIENCE_S)
    finally:
        preemption.resume_background()
    assert computed_s <= worked_s < passed_s - 0.2
