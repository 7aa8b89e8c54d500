"""What both transports share of reading a request."""

import threading

from service.transport.frame import MOST_READ_AT_ONCE, in_turn


async def test_large_messages_are_read_in_a_thread() -> None:
    """The event loop goes on meanwhile; a small one is not worth the hand-over."""

    def where(message: str) -> tuple[str, bool]:
        return message, threading.current_thread() is threading.main_thread()

    assert await in_turn(where, "small", MOST_READ_AT_ONCE) == ("small", True)
    assert await in_turn(where, "large", MOST_READ_AT_ONCE + 1) == ("large", False)
