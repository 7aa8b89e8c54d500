"""The lock that keeps CUDA graph capture apart from all other use of the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class SharedExclusiveLock:
    """A writer-preferring readers-writer lock: shared for ordinary GPU calls, exclusive for CUDA graph capture."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_shared, self._is_exclusive, self._num_waiting = 0, False, 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other shared holders.

        Not reentrant: a thread that already holds the lock could wait for itself.
        """
        with self._changed:
            # Waiting exclusive holders go first: a steady stream of shared ones would starve them.
            self._changed.wait_for(lambda: not self._is_exclusive and not self._num_waiting)
            self._num_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shared -= 1
                if not self._num_shared:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._num_waiting += 1
            self._changed.wait_for(lambda: not self._is_exclusive and not self._num_shared)
            self._num_waiting -= 1
            self._is_exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
