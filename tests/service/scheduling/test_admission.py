"""Admission: the queue that both batchers share."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest

from service.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded, Unavailable
from service.scheduling.admission import PLANNED_FRACTION, Admission, BatchStats, ItemResult, Request

REPORT = BatchStats(1, 1, 0, 0.0, 1, 0.0)
DONE = ItemResult("answer", 0.0, REPORT)


@dataclass(slots=True, eq=False)
class Entry:
    """An item of one row."""

    request: Request
    rows: int = 1
    expected_s: float = 0.5


def check(admission: Admission[Entry], rows: int = 1, **changes: Any) -> None:
    """Check an item with no work before it and no deadline, unless given."""
    admission.check(rows, **({"wait_s": 0.0, "own_s": 0.0, "deadline_s": None, "now_s": 100.0} | changes))


def enqueue(admission: Admission[Entry], num_items: int = 1) -> tuple[Request, list[Entry]]:
    """Put a request into the queue."""
    request = Request.of(num_items, admission.loop)
    entries = [Entry(request) for _ in range(num_items)]
    admission.enqueue(entries)
    return request, entries


async def test_requests_that_can_be_answered_are_admitted() -> None:
    """The limits are the queue and a fraction of the time left; an empty queue admits any estimate."""
    admission: Admission[Entry] = Admission("m/1", 3)
    enqueue(admission, 2)
    check(admission, 1, wait_s=1.0, own_s=2.0, deadline_s=100.0 + 3.0 / PLANNED_FRACTION)
    check(admission, 1, wait_s=0.0, own_s=9.0, deadline_s=103.0)


@pytest.mark.parametrize(
    ("rows", "changes", "kind", "text"),
    [
        (4, {}, InvalidRequest, "the request has 4 rows, the queue takes 3"),
        (2, {"wait_s": 7.0}, Overloaded, "the queue of m/1 is full: 2 rows wait, the limit is 3"),
        (1, {"deadline_s": 100.0}, DeadlineExceeded, "the deadline passed before the request reached the model"),
        (
            1,
            {"deadline_s": 102.0, "wait_s": 1.5, "own_s": 1.0},
            DeadlineExceeded,
            "takes about 1500 ms, its own about 1000",
        ),
    ],
)
async def test_hopeless_requests_are_refused(rows: int, changes: Any, kind: type[Exception], text: str) -> None:
    """They are refused at once, with a reason."""
    admission: Admission[Entry] = Admission("m/1", 3)
    enqueue(admission, 2)
    with pytest.raises(kind, match=text) as refusal:
        check(admission, rows, **changes)
    if isinstance(refusal.value, Overloaded):
        assert refusal.value.retry_after_s == 7.0


async def test_a_request_is_answered_when_all_its_items_are() -> None:
    """Results keep the order of the items, and an answered request no longer waits."""
    admission: Admission[Entry] = Admission("m/1", 9)
    request, entries = enqueue(admission, 2)
    waiting = asyncio.create_task(admission.wait(request, entries, None, time.monotonic()))
    request.settle(1, ItemResult("second", 0.0, REPORT))
    await asyncio.sleep(0)
    assert not waiting.done()
    request.settle(0, ItemResult("first", 0.0, REPORT))
    assert [done.result for done in await waiting] == ["first", "second"]
    assert (admission.queued_rows, admission.queued_s, admission.oldest()) == (0, 0.0, None)


async def test_a_request_fails_with_its_first_failed_item() -> None:
    """The results of its other items are ignored."""
    admission: Admission[Entry] = Admission("m/1", 9)
    request, entries = enqueue(admission, 2)
    request.settle(1, EngineFailed("not this one"))
    request.settle(0, DONE)
    with pytest.raises(EngineFailed, match="not this one"):
        await admission.wait(request, entries, None, time.monotonic())


async def test_a_deadline_ends_the_wait() -> None:
    """The items are removed from the queue."""
    admission: Admission[Entry] = Admission("m/1", 9)
    request, entries = enqueue(admission)
    now_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="before the answer was computed"):
        await admission.wait(request, entries, now_s + 0.01, now_s)
    assert admission.queued_rows == 0


async def test_the_oldest_waiting_item_is_returned() -> None:
    """Items that have ended are skipped and removed."""
    admission: Admission[Entry] = Admission("m/1", 9)
    (first, _), (_, second) = enqueue(admission), enqueue(admission)
    first.settle(0, DONE)
    assert admission.oldest() is second[0]
    assert admission.queued_rows == 1


async def test_a_dead_engine_fails_waiting_and_running_items() -> None:
    """Later requests are refused with the same reason."""
    admission: Admission[Entry] = Admission("m/1", 9)
    (waiting, entries), (given, given_entries) = enqueue(admission), enqueue(admission)
    admission.remove(given_entries[0])
    admission.fail_all("out of memory", given=given_entries)
    for request, members in ((waiting, entries), (given, given_entries)):
        with pytest.raises(Unavailable, match="m/1 has failed: out of memory"):
            await admission.wait(request, members, None, time.monotonic())
    with pytest.raises(Unavailable, match="out of memory"):
        check(admission)


async def test_drain_waits_for_admitted_requests() -> None:
    """New requests are refused; an empty queue drains at once."""
    admission: Admission[Entry] = Admission("m/1", 9)
    request, entries = enqueue(admission)
    waiting = asyncio.create_task(admission.wait(request, entries, None, time.monotonic()))
    draining = asyncio.create_task(admission.drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shutting down"):
        check(admission)
    assert not draining.done()
    request.settle(0, DONE)
    await waiting
    await asyncio.wait_for(draining, 10)
    await Admission[Entry]("empty", 1).drain()
