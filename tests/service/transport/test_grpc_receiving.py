"""The one message of each gRPC call: its time, and its part in the server's memory."""

import asyncio
import threading
from typing import Any

import pytest

from service.errors import DeadlineExceeded, HeedError, Overloaded, Unavailable
from service.memory_budget import ByteBudget
from service.transport.grpc_receiving import MAX_GROWTH_BYTES, MAX_UNRESERVED_BYTES, MessageReceiver

MESSAGE_BYTES = 1000


def receiver_of(num_messages: int, timeout_s: float = 60.0) -> tuple[MessageReceiver, ByteBudget]:
    """A receiver whose budget holds so many messages."""
    budget = ByteBudget("request memory", num_messages * MESSAGE_BYTES)
    return MessageReceiver(budget, MESSAGE_BYTES, timeout_s), budget


async def wait_for_message(receiver: MessageReceiver, arrives: asyncio.Event) -> HeedError | None:
    """Receive as a call does; why the call was ended, if it was."""
    task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
    receiver.begin(task)
    try:
        await arrives.wait()
    except asyncio.CancelledError:
        task.uncancel()
        return receiver.end(task)
    return receiver.end(task)


async def until(condition: Any) -> None:
    """Let the receiver look at its calls until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.01)


async def test_a_message_that_is_there_reserves_nothing_while_it_arrives() -> None:
    """A call whose message has come with its headers costs the budget nothing."""
    receiver, budget = receiver_of(1)
    arrives = asyncio.Event()
    arrives.set()
    assert await asyncio.create_task(wait_for_message(receiver, arrives)) is None
    assert (receiver.num_receiving, budget.reserved_bytes, budget.refused) == (0, 0, 0)


async def test_a_call_that_still_receives_reserves_the_largest_message() -> None:
    """A message that does not arrive at once reserves what it may become, and gives that back when it has arrived."""
    receiver, budget = receiver_of(2)
    arrives = asyncio.Event()
    calls = [asyncio.create_task(wait_for_message(receiver, arrives)) for _ in range(2)]
    await until(lambda: budget.reserved_bytes == 2 * MESSAGE_BYTES)
    arrives.set()
    assert await asyncio.gather(*calls) == [None, None]
    assert (receiver.num_receiving, budget.reserved_bytes) == (0, 0)


async def test_calls_without_a_reservation_end_when_the_process_grows() -> None:
    """Late calls that find no memory go on on a busy machine, and are refused as soon as memory is taken."""
    receiver, budget = receiver_of(1)
    arrives = asyncio.Event()
    calls = [asyncio.create_task(wait_for_message(receiver, arrives)) for _ in range(3)]
    await until(lambda: budget.reserved_bytes == MESSAGE_BYTES)
    assert receiver.num_receiving == 3
    taken = b"\1" * (2 * MAX_GROWTH_BYTES)
    await until(lambda: receiver.num_receiving == 1)
    arrives.set()
    ended = await asyncio.gather(*calls)
    assert [type(error) for error in ended if error] == [Overloaded, Overloaded]
    assert budget.reserved_bytes == 0
    del taken


async def test_a_slow_message_is_given_up() -> None:
    """A call whose message has not arrived in time is ended and its reservation given back."""
    receiver, budget = receiver_of(1, timeout_s=0.2)
    error = await asyncio.create_task(wait_for_message(receiver, asyncio.Event()))
    assert isinstance(error, DeadlineExceeded)
    assert "0.2 s" in str(error)
    assert budget.reserved_bytes == 0


async def test_a_shutdown_waits_only_a_moment_for_messages() -> None:
    """Calls that are still receiving when the server stops are refused long before their own time is over."""
    receiver, _ = receiver_of(1, timeout_s=3600.0)
    call = asyncio.create_task(wait_for_message(receiver, asyncio.Event()))
    await until(lambda: receiver.num_receiving == 1)
    receiver.stop(within_s=0.1)
    assert isinstance(await call, Unavailable)


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
