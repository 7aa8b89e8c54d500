"""Memory budgets of the whole server: work reserves bytes before it allocates them, and is refused if none are left."""

import contextlib
import threading
import time
from collections.abc import Iterator

from service.errors import DeadlineExceeded, Overloaded, TooLarge

RETRY_AFTER_S = 1.0  # about as long as a body or an image is held


class ByteBudget:
    """A bound on the bytes that all requests together hold of one kind of memory. Thread-safe.

    Attributes:
        name: the kind of memory, for messages and metrics.
        limit_bytes: the bound.
        refused: number of requests that were refused.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name, self.limit_bytes = name, limit_bytes
        self.refused = 0
        self._reserved_bytes = 0
        self._released = threading.Condition()

    @property
    def reserved_bytes(self) -> int:
        """The number of bytes that are reserved now."""
        return self._reserved_bytes

    def reserve(self, num_bytes: int, held_bytes: int = 0) -> None:
        """Reserve bytes without waiting.

        Args:
            num_bytes: number of bytes.
            held_bytes: what the request holds already; with that it must fit into the budget.

        Raises:
            Overloaded: others hold too much of the budget.
            TooLarge: the request exceeds the whole budget.
        """
        with self._released:
            self._check_size(held_bytes + num_bytes)
            if self._reserved_bytes + num_bytes > self.limit_bytes:
                self.refused += 1
                raise Overloaded(
                    f"{num_bytes} bytes of {self.name} are needed, {self._reserved_bytes} of"
                    f" {self.limit_bytes} bytes are in use",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._reserved_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Release reserved bytes."""
        with self._released:
            assert 0 <= num_bytes <= self._reserved_bytes
            self._reserved_bytes -= num_bytes
            self._released.notify_all()

    @contextlib.contextmanager
    def held(self, num_bytes: int, until_s: float) -> Iterator[None]:
        """Reserve bytes for a block of code, and wait for them while others hold too much.

        Args:
            num_bytes: number of bytes.
            until_s: deadline of the wait, on the clock of `time.monotonic()`.

        Raises:
            DeadlineExceeded: others held too much until then.
            TooLarge: the request exceeds the whole budget.
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
    """The bytes of a budget that one request holds. They may grow, and are released together."""

    __slots__ = ("_budget", "num_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.num_bytes = 0

    def grow_to(self, num_bytes: int) -> None:
        """Reserve more bytes until at least `num_bytes` are held.

        Raises:
            Overloaded: others hold too much of the budget.
            TooLarge: the request exceeds the whole budget.
        """
        if num_bytes > self.num_bytes:
            self._budget.reserve(num_bytes - self.num_bytes, self.num_bytes)
            self.num_bytes = num_bytes

    def release(self) -> None:
        """Release all bytes."""
        if self.num_bytes:
            self._budget.release(self.num_bytes)
            self.num_bytes = 0
