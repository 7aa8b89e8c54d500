"""The one message of each gRPC call: its time, and its part in the server's memory."""

import asyncio
import itertools
import threading
from typing import Any

import pytest

from service.errors import DeadlineExceeded, HeedError, Overloaded, Unavailable
from service.process.memory_budget import ByteBudget
from service.transport.grpc.receiving import (
    MAX_GROWTH_BYTES,
    MAX_LATE_BYTES,
    MAX_UNRESERVED_BYTES,
    MAX_WAITING,
    STALE_LOOKS,
    MessageReceiver,
)

PIECE_BYTES = 32 * 1024  # such allocations have no pages of their own
MESSAGE_BYTES = MAX_LATE_BYTES  # so that one may be late without a reservation


def receiver_of(num_messages: int, timeout_s: float = 60.0) -> tuple[MessageReceiver, ByteBudget]:
    """A receiver with one free place, whose budget holds so many messages."""
    budget = ByteBudget("request memory", num_messages * MESSAGE_BYTES)
    return MessageReceiver(budget, MESSAGE_BYTES, timeout_s, num_free_places=1), budget


class Call:
    """A call that receives its message as a service does."""

    def __init__(self, receiver: MessageReceiver, connection: str = "a") -> None:
        self.arrives = asyncio.Event()
        self.has_place = False
        self.task = asyncio.create_task(self._receive(receiver, connection))

    async def _receive(self, receiver: MessageReceiver, connection: str) -> HeedError | None:
        """Why the call was ended, if it was."""
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
        """Have the message there; why the call was ended, if it was."""
        self.arrives.set()
        return await self.task


async def until(condition: Any) -> None:
    """Let the receiver look at its calls until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.01)


async def turn() -> None:
    """Let all calls come to where they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_message_that_is_there_reserves_nothing_while_it_arrives() -> None:
    """The first call has a free place."""
    receiver, budget = receiver_of(1)
    call = Call(receiver)
    await turn()
    assert (call.has_place, receiver.num_receiving, budget.reserved_bytes) == (True, 1, 0)
    assert await call.arrive() is None
    assert (receiver.num_receiving, budget.reserved_bytes, budget.refused) == (0, 0, 0)


async def test_calls_without_a_free_place_reserve_the_largest_message_or_wait() -> None:
    """However many come at once, no more than the places may receive; an arrived message makes room for the next."""
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


async def test_a_call_takes_the_room_that_others_of_the_budget_give_back() -> None:
    """Bodies over HTTP share the budget: their end is seen at the next look."""
    receiver, budget = receiver_of(1)
    budget.reserve(MESSAGE_BYTES)
    calls = [Call(receiver) for _ in range(2)]
    await turn()
    assert not calls[1].has_place
    budget.release(MESSAGE_BYTES)
    await until(lambda: calls[1].has_place)
    assert [await call.arrive() for call in calls] == [None, None]


async def test_late_messages_keep_their_places_until_somebody_wants_them() -> None:
    """A slow one reserves its place, so that the free one is free for others; who comes then takes its place."""
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


async def test_late_messages_without_room_to_reserve_are_refused() -> None:
    """Places are free for messages that are there; of others only one may stay, where each may become so large."""
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


async def test_a_message_is_late_only_when_later_ones_have_come() -> None:
    """Time alone says nothing: a thread of gRPC's that gets no core hands nothing on."""
    receiver = MessageReceiver(budget := ByteBudget("request memory", 0), MESSAGE_BYTES, 60.0, num_free_places=5)
    calls = [Call(receiver) for _ in range(3)]
    clock, _ = receiver_of(1, timeout_s=0.2)
    assert isinstance(await Call(clock).task, DeadlineExceeded)  # twenty looks later
    reset = Call(receiver)
    await turn()
    reset.task.cancel()  # it has ended, and says nothing of others
    assert isinstance(await Call(clock).task, DeadlineExceeded)
    assert (receiver.num_receiving, budget.refused) == (3, 0)
    assert await Call(receiver).arrive() is None
    await until(lambda: receiver.num_receiving == 1)
    ended = [await call.arrive() for call in calls]
    assert [type(error) for error in ended] == [type(None), Overloaded, Overloaded]


async def test_messages_are_late_when_more_and_more_is_allocated_and_none_comes() -> None:
    """As when all clients send large ones at once; also where one had come a moment after they were asked for."""
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


async def test_connections_get_places_in_turn() -> None:
    """A connection with many calls does not stop one with a single call."""
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


async def test_calls_that_wait_are_bounded() -> None:
    """The connection with most of them loses the one that has waited longest."""
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


async def test_a_caller_that_leaves_leaves_its_place() -> None:
    """Whether it has one or waits for one."""
    receiver, budget = receiver_of(1)
    calls = [Call(receiver) for _ in range(4)]
    await turn()
    for call in (calls[1], calls[3]):
        call.task.cancel()
    await turn()
    assert [call.has_place for call in calls] == [True, True, True, False]
    assert [await call.arrive() for call in (calls[0], calls[2])] == [None, None]
    assert (receiver.num_receiving, budget.reserved_bytes) == (0, 0)


async def test_a_caller_that_leaves_in_the_turn_in_which_it_would_get_a_place_stops_nobody() -> None:
    """The next one gets it."""
    receiver, budget = receiver_of(0)
    first, reset, last = (Call(receiver) for _ in range(3))
    await turn()
    first.arrives.set()
    reset.task.cancel()
    assert await first.task is None
    await turn()
    assert (reset.task.cancelled(), last.has_place) == (True, True)
    assert (await last.arrive(), receiver.num_receiving, budget.reserved_bytes) == (None, 0, 0)


async def test_a_slow_message_is_given_up() -> None:
    """A call whose message has not arrived in time is ended and its reservation given back."""
    receiver, budget = receiver_of(1, timeout_s=0.2)
    error = await Call(receiver).task
    assert isinstance(error, DeadlineExceeded)
    assert "0.2 s" in str(error)
    assert budget.reserved_bytes == 0


async def test_a_shutdown_waits_only_a_moment_for_messages() -> None:
    """Calls that are still receiving, or wait, when the server stops are refused long before their own time is over."""
    receiver, _ = receiver_of(0, timeout_s=3600.0)
    calls = [Call(receiver) for _ in range(2)]
    await until(lambda: receiver.num_receiving == 2)
    receiver.stop(within_s=0.1)
    assert [type(await call.task) for call in calls] == [Unavailable, Unavailable]


async def test_large_messages_and_answers_are_counted_until_they_are_gone() -> None:
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
