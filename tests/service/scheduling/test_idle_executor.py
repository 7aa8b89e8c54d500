"""Work that gives way: pieces begin when enough cores are free, one at a time, and end by the deadline."""

import asyncio
import threading
import time

import pytest

from service.engines.preemption import Preemption
from service.errors import DeadlineExceeded
from service.scheduling.idle_executor import IdleExecutor
from tests.service.stoppable import PATIENCE_S, StopFlag, StoppableCall


def soon_s() -> float:
    """A deadline that a passing test does not meet."""
    return time.monotonic() + PATIENCE_S


async def turns() -> None:
    """So many of the loop that whatever can begin has begun."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("num_cores", "most_beside"), [(1, 0), (2, 0), (4, 2)])
async def test_a_piece_begins_when_a_core_is_free(num_cores: int, most_beside: int) -> None:
    """Beside so many requests, and not beside one more; the end of that one lets it begin."""
    spare, began = IdleExecutor(num_cores, Preemption()), threading.Event()
    for _ in range(most_beside):
        spare.answering()
    assert await spare.run(lambda: 7, soon_s()) == 7
    spare.answering()
    running = asyncio.create_task(spare.run(began.set, soon_s()))
    waiting = asyncio.create_task(spare.moment(soon_s()))
    await turns()
    assert not began.is_set()
    assert not waiting.done()
    spare.answered()
    await running
    await waiting
    assert began.is_set()


async def test_pieces_take_turns() -> None:
    """Never two at a time, in the order in which they came."""
    spare, at_once, order = IdleExecutor(2, Preemption()), list[int](), list[int]()

    def piece(number: int) -> None:
        at_once.append(number)
        assert len(at_once) == 1
        order.append(number)
        at_once.remove(number)

    await asyncio.gather(*(spare.run(lambda number=number: piece(number), soon_s()) for number in range(50)))
    assert order == list(range(50))


async def test_a_cancelled_piece_never_begins_and_one_that_has_begun_ends_first() -> None:
    """What comes after it waits for that end, and is done."""
    spare, began, go_on, done = IdleExecutor(2, Preemption()), threading.Event(), threading.Event(), list[str]()

    def long() -> None:
        began.set()
        go_on.wait(PATIENCE_S)
        done.append("long")

    first = asyncio.create_task(spare.run(long, soon_s()))
    await asyncio.to_thread(began.wait, PATIENCE_S)
    second = asyncio.create_task(spare.run(lambda: done.append("second"), soon_s()))
    await turns()
    second.cancel()
    first.cancel()
    third = asyncio.create_task(spare.run(lambda: done.append("third"), soon_s()))
    await turns()
    assert done == []
    go_on.set()
    await third
    assert done == ["long", "third"]
    for cancelled in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_the_deadline_ends_a_wait() -> None:
    """While predictions leave no moment, and where it has passed already."""
    spare = IdleExecutor(1, Preemption())
    spare.answering()
    for deadline_s in (time.monotonic() + 0.02, time.monotonic() - 1):
        with pytest.raises(DeadlineExceeded, match="the deadline passed before the explanation was there"):
            await spare.run(lambda: None, deadline_s)
        with pytest.raises(DeadlineExceeded):
            await spare.moment(deadline_s)
    spare.answered()
    assert await spare.run(lambda: 1, soon_s()) == 1


async def test_what_a_piece_raises_is_the_callers() -> None:
    """And the next one is done all the same."""
    spare = IdleExecutor(1, Preemption())
    with pytest.raises(ZeroDivisionError):
        await spare.run(lambda: 1 // 0, soon_s())
    assert await spare.run(lambda: 1, soon_s()) == 1


async def test_a_request_stops_the_engine_call_of_a_piece() -> None:
    """And its end lets the same call begin anew."""
    preemption, began = Preemption(), threading.Semaphore(0)
    spare = IdleExecutor(1, preemption)
    call = StoppableCall(began, tries=2)
    running = asyncio.create_task(spare.run(lambda: preemption.run_preemptible(call, StopFlag), soon_s()))
    await asyncio.to_thread(began.acquire, timeout=PATIENCE_S)
    spare.answering()
    await asyncio.to_thread(call.stopped.acquire, timeout=PATIENCE_S)
    assert not running.done()
    spare.answered()
    assert await asyncio.wait_for(running, PATIENCE_S) == "done"
    assert call.begun == 2


@pytest.mark.parametrize("leaves", [True, False], ids=["the caller leaves", "the deadline passes"])
async def test_the_engine_call_of_a_piece_ends_with_its_caller(leaves: bool) -> None:
    """It is terminated, and the next piece begins."""
    preemption, began = Preemption(), threading.Semaphore(0)
    spare = IdleExecutor(1, preemption)
    call = StoppableCall(began, tries=2)
    deadline_s = soon_s() if leaves else time.monotonic() + 1.0
    running = asyncio.create_task(spare.run(lambda: preemption.run_preemptible(call, StopFlag), deadline_s))
    await asyncio.to_thread(began.acquire, timeout=PATIENCE_S)
    if leaves:
        running.cancel()
    with pytest.raises(asyncio.CancelledError if leaves else DeadlineExceeded):
        await running
    assert await spare.run(lambda: "next", soon_s()) == "next"
    assert call.stopped.acquire(blocking=False)
    assert call.begun == 1
