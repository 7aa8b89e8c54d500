"""Long steps each get an iteration of the event loop, or run in one thread."""

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from service.transport.turns import (
    MAX_TURN_BYTES,
    MIN_COUNTED_BYTES,
    NUM_SHORT_TURNS,
    THREAD_NICENESS,
    Turns,
)


class LoopTurns:
    """Counts the iterations of the event loop from now on."""

    def __init__(self) -> None:
        self.count = 0
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        """Stop counting."""
        self._handle.cancel()


@pytest_asyncio.fixture
async def loop_turns() -> AsyncIterator[LoopTurns]:
    """Make a counter that stops with the test."""
    counter = LoopTurns()
    yield counter
    counter.stop()


async def test_each_step_has_a_turn_of_its_own(loop_turns: LoopTurns) -> None:
    """Steps run in order, including those that come meanwhile."""
    turns, called, done = Turns(), list[tuple[str, int]](), asyncio.Event()

    def step(name: str) -> None:
        called.append((name, loop_turns.count))
        if name == "a":
            turns.call(lambda: step("d"))
        if name == "d":
            done.set()

    for name in ("a", "b", "c"):
        turns.call(lambda name=name: step(name))  # type: ignore[misc]
    await done.wait()
    assert [name for name, _ in called] == ["a", "b", "c", "d"]
    assert len({turn for _, turn in called}) == 4
    turns.call(lambda: step("d"))  # after all were done
    done.clear()
    await done.wait()
    assert len(called) == 5


async def test_the_turn_of_a_cancelled_request_is_skipped() -> None:
    """It does not delay other requests."""
    turns = Turns()
    first, second = (asyncio.create_task(turns.come()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()


class Message:
    """A gRPC message that is available after an event, and read in one step."""

    def __init__(self, loop_turns: LoopTurns, size: int, there: asyncio.Event) -> None:
        self._loop_turns, self._size, self._there = loop_turns, size, there
        self.taken_at = 0
        self.cancelled = False

    async def read(self) -> bytes:
        """Receive the message."""
        try:
            await self._there.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.taken_at = self._loop_turns.count
        return bytes(self._size)


@pytest.mark.parametrize(
    ("size", "num_turns"), [(MIN_COUNTED_BYTES, 1), (MAX_TURN_BYTES // 2, 5), (10 * MAX_TURN_BYTES, 10)]
)
async def test_messages_that_arrive_together_are_read_in_several_turns(
    loop_turns: LoopTurns, size: int, num_turns: int
) -> None:
    """Short ones share a turn up to a limit; very long ones are read one by one."""
    turns, there = Turns(), asyncio.Event()
    messages = [Message(loop_turns, size, there) for _ in range(10)]

    async def receive(message: Message) -> int:
        return len(await turns.paced(message.read()))

    receiving = [asyncio.create_task(receive(message)) for message in messages]
    await asyncio.sleep(0)
    there.set()
    assert await asyncio.gather(*receiving) == [size] * 10
    assert len({message.taken_at for message in messages}) >= num_turns
    assert size > MIN_COUNTED_BYTES or messages[0].taken_at == messages[-1].taken_at


async def test_turns_without_long_steps_follow_a_long_one(loop_turns: LoopTurns) -> None:
    """Other requests are read and answered in them."""
    turns = Turns()

    async def copy(num_bytes: int) -> int:
        await turns.copies(num_bytes)
        return loop_turns.count

    taken_at = await asyncio.gather(*(copy(2 * MAX_TURN_BYTES) for _ in range(3)))
    assert all(later - earlier > NUM_SHORT_TURNS for earlier, later in itertools.pairwise(taken_at))
    long, *short = await asyncio.gather(copy(2 * MAX_TURN_BYTES), *(copy(MIN_COUNTED_BYTES) for _ in range(10)))
    assert len(set(short)) == 1
    assert short[0] < long  # it is still waiting


async def test_long_bodies_are_joined_in_the_thread() -> None:
    """Other work of the thread comes first; short bodies are joined at once."""
    turns, gate = Turns(), threading.Event()
    blocking = asyncio.create_task(turns.in_thread(gate.wait))
    long = asyncio.create_task(turns.joined([b"a" * MAX_TURN_BYTES, b"b"]))
    assert await turns.joined([b"a", b"b"]) == b"ab"
    assert len(await turns.joined([b"a" * MIN_COUNTED_BYTES] * 3)) == 3 * MIN_COUNTED_BYTES
    assert not long.done()
    gate.set()
    assert await long == b"a" * MAX_TURN_BYTES + b"b"
    assert await blocking


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has niceness of threads")
async def test_the_thread_has_lower_priority_than_the_loop() -> None:
    """On one core a step of the loop takes little longer than alone."""
    before = os.getpriority(os.PRIO_PROCESS, os.getpid())
    behind = await Turns().in_thread(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert behind == min(before + THREAD_NICENESS, 19)


async def test_a_receiver_can_be_cancelled(loop_turns: LoopTurns) -> None:
    """This holds while its message has not arrived."""
    message = Message(loop_turns, 1, asyncio.Event())

    async def receive() -> bytes:
        return await Turns().paced(message.read())

    receiving = asyncio.create_task(receive())
    await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert message.cancelled


async def test_errors_of_receiving_reach_the_caller() -> None:
    """They are not swallowed."""

    async def fail() -> bytes:
        await asyncio.sleep(0)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await Turns().paced(fail())


async def test_work_in_the_thread_is_done_one_by_one() -> None:
    """All of it runs in the same thread."""
    turns = Turns()
    threads = await asyncio.gather(*(turns.in_thread(threading.get_ident) for _ in range(20)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
