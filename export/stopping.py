"""Stops a command on SIGINT or SIGTERM: at once, or where its work is whole.

Both raise an exception in the main thread, so that what is half made is removed: KeyboardInterrupt, and its subclass
`Terminated` for SIGTERM.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


class StopHandler:
    """A signal handler that raises the exception of SIGINT or SIGTERM, and remembers the signal.

    A library drops the exception where the signal arrives in a callback from C, in a destructor, or under an `except`
    without a type. `raise_if_stopped` raises it again.
    """

    def __init__(self) -> None:
        self.received: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise the exception of a signal."""
        self.received.append(number)
        raise _exception_of(number)


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM end the work of this process, also where a library drops the exception."""
    for number in STOPS:
        signal.signal(number, StopHandler())


def raise_if_stopped() -> None:
    """Stop after the call of a library that may have dropped the exception of a signal.

    Raises:
        KeyboardInterrupt: a signal was received, and the work goes on.
    """
    for number in STOPS:
        handler = signal.getsignal(number)
        if isinstance(handler, StopHandler) and handler.received:
            raise _exception_of(number)


def _exception_of(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


@contextlib.contextmanager
def stopping_later(message: str) -> Iterator[list[int]]:
    """Only note the first signal, and act on it at the end of the block; a second one acts at once.

    Args:
        message: what standard error says at the first signal.

    Yields:
        the signals so far, for loops that end early.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal was noted.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield noted
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def act(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise _exception_of(number)

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            act(number, frame)
        noted.append(number)
        if message:
            # Not by print: the signal may have interrupted a write to the same buffer.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{message}\n".encode())

    try:
        for number in STOPS:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        act(noted[0], None)
