"""Byte budgets of the whole server: work reserves memory before it takes it, and is refused where none is left."""

import contextlib
import threading
import time
from collections.abc import Iterator

from service.errors import DeadlineExceeded, Overloaded, TooLarge

RETRY_AFTER_S = 1.0  # a body or an image is held for about as long


class ByteBudget:
    """A bound in bytes on what all requests together hold of one kind of memory. Safe to use from any thread.

    Attributes:
        name: what is counted, for messages and metrics.
        limit_bytes: the bound.
        refused: requests that found too little left.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name, self.limit_bytes = name, limit_bytes
        self.refused = 0
        self._reserved_bytes = 0
        self._released = threading.Condition()

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._reserved_bytes

    def reserve(self, num_bytes: int) -> None:
        """Reserve bytes at once.

        Raises:
            Overloaded: others hold too much of the budget.
            TooLarge: the whole budget is smaller.
        """
        with self._released:
            self._check_size(num_bytes)
            if self._reserved_bytes + num_bytes > self.limit_bytes:
                self.refused += 1
                raise Overloaded(
                    f"{num_bytes} bytes of {self.name} are needed, {self._reserved_bytes} of"
                    f" {self.limit_bytes} bytes are in use",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._reserved_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give reserved bytes back."""
        with self._released:
            assert 0 <= num_bytes <= self._reserved_bytes
            self._reserved_bytes -= num_bytes
            self._released.notify_all()

    @contextlib.contextmanager
    def held(self, num_bytes: int, until_s: float) -> Iterator[None]:
        """Reserve bytes for a block of code; a thread waits for them while others hold too much.

        Args:
            num_bytes: how many.
            until_s: when to give up, on `time.monotonic()`'s clock.

        Raises:
            DeadlineExceeded: others held too much all that time.
            TooLarge: the whole budget is smaller.
        """
        with self._released:
            self._check_size(num_bytes)
            while self._reserved_bytes + num_bytes > self.limit_bytes:
                if not self._released.wait(max(0.0, until_s - time.monotonic())):
                    self.refused += 1
                    raise DeadlineExceeded(f"the deadline passed before {num_bytes} bytes of {self.name} were free")
            self._reserved_bytes += num_bytes
        try:
            yield
        finally:
            self.release(num_bytes)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.limit_bytes:
            self.refused += 1
            raise TooLarge(f"{num_bytes} bytes of {self.name} are needed, the limit is {self.limit_bytes}")


class Reservation:
    """The bytes that one request holds of a budget: they may grow, and are given back all at once."""

    __slots__ = ("_budget", "num_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.num_bytes = 0

    def grow_to(self, num_bytes: int) -> None:
        """Hold at least so many bytes.

        Raises:
            Overloaded: others hold too much of the budget.
            TooLarge: the whole budget is smaller.
        """
        if num_bytes > self.num_bytes:
            self._budget.reserve(num_bytes - self.num_bytes)
            self.num_bytes = num_bytes

    def release(self) -> None:
        """Give all of it back."""
        if self.num_bytes:
            self._budget.release(self.num_bytes)
            self.num_bytes = 0
