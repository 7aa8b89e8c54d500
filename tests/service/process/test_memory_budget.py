"""Byte budgets refuse requests, let threads wait, and report their use."""

import threading
import time

import pytest

from service.errors import DeadlineExceeded, Overloaded, TooLarge
from service.process.memory_budget import ByteBudget
from service.telemetry.metrics import Metrics


def test_a_full_budget_refuses_until_something_is_released() -> None:
    """The refusal names the budget, what is in use and the limit."""
    budget = ByteBudget("request memory", 100)
    budget.reserve(60)
    with pytest.raises(Overloaded, match="50 bytes of request memory are needed, 60 of 100 bytes are in use") as caught:
        budget.reserve(50)
    assert caught.value.retry_after_s > 0
    budget.release(60)
    budget.reserve(100)
    assert (budget.reserved_bytes, budget.refused) == (100, 1)


def test_what_can_never_fit_is_too_large() -> None:
    """A request larger than the budget gets TooLarge, because a retry would not help."""
    budget = ByteBudget("image memory", 100)
    with pytest.raises(TooLarge, match="101 bytes of image memory are needed, the limit is 100"):
        budget.reserve(101)
    with pytest.raises(TooLarge, match="the limit is 100"), budget.held(101, until_s=0):
        raise AssertionError
    assert budget.reserved_bytes == 0


def test_a_thread_waits_for_memory_that_another_holds() -> None:
    """A waiting thread goes on after the release, and both threads release what they held."""
    budget, entered = ByteBudget("image memory", 100), threading.Event()

    def second() -> None:
        with budget.held(80, until_s=time.monotonic() + 60):
            entered.set()

    with budget.held(80, until_s=0):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()
    assert budget.reserved_bytes == 0


def test_waiting_for_memory_ends_at_the_deadline() -> None:
    """A wait until the deadline reserves nothing."""
    budget = ByteBudget("image memory", 100)
    budget.reserve(80)
    with pytest.raises(DeadlineExceeded, match="before 30 bytes of image memory were free"), budget.held(30, until_s=0):
        raise AssertionError
    assert (budget.reserved_bytes, budget.refused) == (80, 1)


def test_metrics_show_each_budget() -> None:
    """The metrics show its size, the reserved bytes and the number of refusals."""
    metrics, budget = Metrics(), ByteBudget("request memory", 100)
    metrics.show_budget(budget)
    budget.reserve(70)
    with pytest.raises(Overloaded):
        budget.reserve(40)
    shown = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels == {"budget": "request memory"}
    }
    assert shown == {
        "heed_memory_reserved_bytes": 70,
        "heed_memory_limit_bytes": 100,
        "heed_memory_refused_total": 1,
    }
