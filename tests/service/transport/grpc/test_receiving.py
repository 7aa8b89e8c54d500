"""Receiving the message of a gRPC call: its time limit and its reservation of memory."""

import asyncio
import itertools
import threading
from typing import Any

import pytest

from service.errors import DeadlineExceeded, HeedError, Overloaded, Unavailable
from service.process.memory_budget import ByteBudget
from service.transport.grpc.receiving import (
    MAX_GROWTH_BYTES,
    MAX_IDLE_STREAMS,
    MAX_LATE_BYTES,
    MAX_UNRESERVED_BYTES,
    MAX_WAITING,
    STALE_LOOKS,
    MessageReceiver,
)

PIECE_BYTES = 32 * 1024  # such allocations have no pages of their own
MESSAGE_BYTES = MAX_LATE_BYTES  # so that one may be late without a reservation


def receiver_of(num_messages: int, timeout_s: float = 60.0) -> tuple[MessageReceiver, ByteBudget]:
    """Make a receiver with one free place, whose budget holds this many messages."""
    budget = ByteBudget("request memory", num_messages * MESSAGE_BYTES)
    return MessageReceiver(budget, MESSAGE_BYTES, timeout_s, num_free_places=1), budget


class Call:
    """A call that receives its message as a service does."""

    def __init__(self, receiver: MessageReceiver, connection: str = "a") -> None:
        self.arrives = asyncio.Event()
        self.has_place = False
        self.task = asyncio.create_task(self._receive(receiver, connection))

    async def _receive(self, receiver: MessageReceiver, connection: str) -> HeedError | None:
        """Return why the call was ended, or None."""
        error, has_come = None, False
        try:
            if not receiver.begin(self.task):
                await receiver.wait_for_place(self.task, connection)
            self.has_place = True
            has_come = await self.arrives.wait()
        finally:
            if (error := receiver.end(self.task, has_come=has_come)) is not None:
                self.task.uncancel()
                return error  # noqa: B012 - in the place of the cancellation
        return None

    async def arrive(self) -> HeedError | None:
        """Deliver the message; return why the call was ended, or None."""
        self.arrives.set()
        return await self.task


async def until(condition: Any) -> None:
    """Let the receiver check its calls until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.01)


async def turn() -> None:
    """Let all calls run until they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_call_in_a_free_place_reserves_nothing() -> None:
    """The first call has a free place."""
    receiver, budget = receiver_of(1)
    call = Call(receiver)
    await turn()
    assert (call.has_place, receiver.num_receiving, budget.reserved_bytes) == (True, 1, 0)
    assert await call.arrive() is None
    assert (receiver.num_receiving, budget.reserved_bytes, budget.refused) == (0, 0, 0)


async def test_calls_without_a_free_place_reserve_the_largest_message_or_wait() -> None:
    """No more calls receive at once than there are places; a received message frees one."""
    receiver, budget = receiver_of(2)
    calls = [Call(receiver) for _ in range(5)]
    await turn()
    assert [call.has_place for call in calls] == [True, True, True, False, False]
    assert (receiver.num_receiving, budget.reserved_bytes) == (5, 2 * MESSAGE_BYTES)
    assert await calls[1].arrive() is None
    await turn()
    assert [call.has_place for call in calls[3:]] == [True, False]
    assert [await call.arrive() for call in (calls[0], calls[2], calls[3], calls[4])] == [None] * 4
    assert (receiver.num_receiving, budget.reserved_bytes, budget.refused) == (0, 0, 0)


async def test_a_call_gets_memory_that_other_users_of_the_budget_release() -> None:
    """HTTP bodies share the budget; their release is seen at the next check."""
    receiver, budget = receiver_of(1)
    budget.reserve(MESSAGE_BYTES)
    calls = [Call(receiver) for _ in range(2)]
    await turn()
    assert not calls[1].has_place
    budget.release(MESSAGE_BYTES)
    await until(lambda: calls[1].has_place)
    assert [await call.arrive() for call in calls] == [None, None]


async def test_a_late_message_keeps_its_place_until_another_call_needs_it() -> None:
    """It then reserves memory, and the free place goes to the other call."""
    receiver, budget = receiver_of(1)
    slow = Call(receiver)
    await until(lambda: budget.reserved_bytes == MESSAGE_BYTES)
    others = [Call(receiver) for _ in range(2)]
    await turn()
    assert [call.has_place for call in others] == [True, False]
    error = await slow.task
    assert isinstance(error, Overloaded)
    assert f"{MESSAGE_BYTES} bytes of request memory" in str(error)
    await until(lambda: others[1].has_place)
    assert [await call.arrive() for call in others] == [None, None]
    assert budget.reserved_bytes == 0


async def test_late_messages_without_memory_to_reserve_are_refused() -> None:
    """Only one may stay, because each may grow to the largest size."""
    budget = ByteBudget("request memory", MESSAGE_BYTES)
    receiver = MessageReceiver(budget, MESSAGE_BYTES, 60.0, num_free_places=5)
    calls = [Call(receiver) for _ in range(5)]
    await turn()
    assert (all(call.has_place for call in calls), budget.reserved_bytes) == (True, 0)
    await until(lambda: receiver.num_receiving == 2)
    assert budget.reserved_bytes == MESSAGE_BYTES
    ended = [await call.arrive() for call in calls]
    assert [type(error) for error in ended] == [type(None)] * 2 + [Overloaded] * 3
    assert budget.reserved_bytes == 0


async def test_a_message_is_late_only_after_later_ones_have_arrived() -> None:
    """Time alone shows nothing, because gRPC's threads may get no core."""
    receiver = MessageReceiver(budget := ByteBudget("request memory", 0), MESSAGE_BYTES, 60.0, num_free_places=5)
    calls = [Call(receiver) for _ in range(3)]
    clock, _ = receiver_of(1, timeout_s=0.2)
    assert isinstance(await Call(clock).task, DeadlineExceeded)  # twenty checks later
    reset = Call(receiver)
    await turn()
    reset.task.cancel()  # an ended call says nothing about others
    assert isinstance(await Call(clock).task, DeadlineExceeded)
    assert (receiver.num_receiving, budget.refused) == (3, 0)
    assert await Call(receiver).arrive() is None
    await until(lambda: receiver.num_receiving == 1)
    ended = [await call.arrive() for call in calls]
    assert [type(error) for error in ended] == [type(None), Overloaded, Overloaded]


async def test_messages_are_late_when_memory_grows_and_none_arrives() -> None:
    """This happens if all clients send large messages at once."""
    receiver = MessageReceiver(ByteBudget("request memory", 0), MESSAGE_BYTES, 60.0, num_free_places=5)
    calls = [Call(receiver) for _ in range(3)]
    await turn()
    assert await Call(receiver).arrive() is None
    taken: list[bytes] = []

    def grow() -> None:
        if len(taken) * PIECE_BYTES < 4 * MAX_GROWTH_BYTES:
            taken.extend(bytes(PIECE_BYTES) for _ in range(MAX_GROWTH_BYTES // PIECE_BYTES // 4))

    polls = itertools.count()
    await until(lambda: next(polls) < 0 or grow() or receiver.num_receiving == 1)
    assert next(polls) < STALE_LOOKS // 2  # long before time alone makes them late
    assert [type(await call.arrive()) for call in calls] == [type(None), Overloaded, Overloaded]


class IdleStream(Call):
    """A stream that waits for its next request."""

    async def _receive(self, receiver: MessageReceiver, connection: str) -> HeedError | None:
        """Return why the stream was ended, or None."""
        error, has_come = None, False
        try:
            receiver.begin_idle(self.task, connection)
            has_come = await self.arrives.wait()
        finally:
            if (error := receiver.end(self.task, has_come=has_come)) is not None:
                self.task.uncancel()
                return error  # noqa: B012 - in the place of the cancellation
        return None


async def test_idle_streams_take_no_place_and_no_memory() -> None:
    """A call gets the only place beside them; they are not late when its message arrives."""
    receiver, budget = receiver_of(0)
    streams = [IdleStream(receiver) for _ in range(3)]
    await turn()
    for _ in range(5):
        call = Call(receiver)
        await turn()
        assert call.has_place
        assert await call.arrive() is None
    assert (receiver.num_receiving, budget.reserved_bytes) == (0, 0)
    assert [await stream.arrive() for stream in streams] == [None] * 3


async def test_one_idle_stream_too_many_ends_the_longest_of_the_connection_with_most() -> None:
    """Another connection's only stream stays, although it has waited longer."""
    receiver, _ = receiver_of(0)
    single = IdleStream(receiver, "single")
    many = [IdleStream(receiver, "many") for _ in range(MAX_IDLE_STREAMS)]
    error = await many[0].task
    assert isinstance(error, Overloaded)
    assert [await stream.arrive() for stream in (single, *many[1:])] == [None] * MAX_IDLE_STREAMS


async def test_idle_streams_end_when_memory_grows_without_a_message() -> None:
    """One of them receives slowly, and has reserved nothing."""
    receiver, budget = receiver_of(4)
    stream, taken = IdleStream(receiver), []

    def grow() -> None:
        if len(taken) * PIECE_BYTES < 4 * MAX_GROWTH_BYTES:
            taken.extend(bytes(PIECE_BYTES) for _ in range(MAX_GROWTH_BYTES // PIECE_BYTES // 4))

    await until(lambda: grow() or stream.task.done())
    error = await stream.task
    assert isinstance(error, Overloaded)
    assert "open a new one" in str(error)
    assert budget.reserved_bytes == 0


async def test_an_idle_stream_ends_at_its_time_limit_and_at_a_shutdown() -> None:
    """Both are errors, which tell the client that its next request needs a new stream."""
    receiver, _ = receiver_of(1, timeout_s=0.1)
    assert isinstance(await IdleStream(receiver).task, DeadlineExceeded)
    receiver, _ = receiver_of(1)
    stream = IdleStream(receiver)
    await turn()
    receiver.stop(60)
    assert isinstance(await stream.task, Unavailable)


async def test_connections_get_places_in_turn() -> None:
    """A connection with many calls does not block one with a single call."""
    receiver, _ = receiver_of(0)
    first = Call(receiver, "many")
    many = [Call(receiver, "many") for _ in range(5)]
    await turn()
    one = Call(receiver, "one")
    await turn()
    assert await first.arrive() is None
    assert await many[0].arrive() is None
    await turn()
    assert (one.has_place, many[1].has_place) == (True, False)
    assert [await call.arrive() for call in (one, *many[1:])] == [None] * 5


async def test_the_number_of_waiting_calls_is_bounded() -> None:
    """The connection with the most calls loses its oldest waiting one."""
    receiver, _ = receiver_of(0)
    first = Call(receiver, "many")
    one = Call(receiver, "one")
    many = [Call(receiver, "many") for _ in range(MAX_WAITING)]
    await turn()
    assert receiver.num_receiving == 1 + MAX_WAITING
    assert isinstance(await many[0].task, Overloaded)
    assert not any(call.task.done() for call in (first, one, *many[1:]))
    for call in (first, one, *many[1:]):
        call.arrives.set()
    assert [await call.task for call in (first, one, *many[1:])] == [None] * (1 + MAX_WAITING)


async def test_a_cancelled_call_frees_its_place() -> None:
    """It may have a place or wait for one."""
    receiver, budget = receiver_of(1)
    calls = [Call(receiver) for _ in range(4)]
    await turn()
    for call in (calls[1], calls[3]):
        call.task.cancel()
    await turn()
    assert [call.has_place for call in calls] == [True, True, True, False]
    assert [await call.arrive() for call in (calls[0], calls[2])] == [None, None]
    assert (receiver.num_receiving, budget.reserved_bytes) == (0, 0)


async def test_a_call_cancelled_as_it_gets_a_place_passes_it_on() -> None:
    """The next call gets it."""
    receiver, budget = receiver_of(0)
    first, reset, last = (Call(receiver) for _ in range(3))
    await turn()
    first.arrives.set()
    reset.task.cancel()
    assert await first.task is None
    await turn()
    assert (reset.task.cancelled(), last.has_place) == (True, True)
    assert (await last.arrive(), receiver.num_receiving, budget.reserved_bytes) == (None, 0, 0)


async def test_a_slow_message_ends_its_call() -> None:
    """Its reservation is released."""
    receiver, budget = receiver_of(1, timeout_s=0.2)
    error = await Call(receiver).task
    assert isinstance(error, DeadlineExceeded)
    assert "0.2 s" in str(error)
    assert budget.reserved_bytes == 0


async def test_a_shutdown_hardly_waits_for_messages() -> None:
    """Calls that receive or wait are refused long before their own time limit."""
    receiver, _ = receiver_of(0, timeout_s=3600.0)
    calls = [Call(receiver) for _ in range(2)]
    await until(lambda: receiver.num_receiving == 2)
    receiver.stop(within_s=0.1)
    assert [type(await call.task) for call in calls] == [Unavailable, Unavailable]


async def test_large_messages_and_answers_are_counted_until_they_are_released() -> None:
    """Messages are released by their call, answers when the call's task has ended."""
    budget = ByteBudget("request memory", 3 * MAX_UNRESERVED_BYTES)
    receiver = MessageReceiver(budget, MESSAGE_BYTES, 60.0)
    sent = asyncio.Event()
    sending = asyncio.create_task(sent.wait())
    assert receiver.reserve(MAX_UNRESERVED_BYTES) == 0
    message = receiver.reserve(MAX_UNRESERVED_BYTES + 1)
    receiver.reserve(MAX_UNRESERVED_BYTES + 2, until_done=sending)
    with pytest.raises(Overloaded):
        receiver.reserve(MAX_UNRESERVED_BYTES + 3)
    receiver.release(message)
    assert budget.reserved_bytes == MAX_UNRESERVED_BYTES + 2
    sent.set()
    await sending
    await until(lambda: budget.reserved_bytes == 0)
