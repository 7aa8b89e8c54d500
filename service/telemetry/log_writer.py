"""Writes log lines in a separate thread, so that logging never waits for the reader of the log.

    any thread ── line ──> bounded buffer ──> one thread ──> file descriptor

If the reader stops (a full pipe) or the disk is full, lines are lost and counted; nothing else happens.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

MAX_BUFFERED_BYTES = 4 * 2**20
MAX_LINE_BYTES = 64 * 2**10  # a longer line, such as the traceback of a recursion, is cut off


class LogWriter:
    """A bounded buffer of lines and the thread that writes them. Thread-safe."""

    def __init__(
        self,
        fd: int,
        lost_line: Callable[[int], str] = lambda number: f"{number} log lines were lost",
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        """Start the thread.

        Args:
            fd: file descriptor to write to; it is not closed.
            lost_line: makes the line that reports the number of lost lines, for when writing works again.
            max_buffered_bytes: largest size of the waiting lines; further lines are lost.
        """
        self._fd, self._lost_line, self._max_buffered_bytes = fd, lost_line, max_buffered_bytes
        # Reentrant, because a signal handler or finalizer may log while its thread is in here.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._num_lost = self._num_reported = 0
        self._line_is_torn = self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def num_lost(self) -> int:
        """The number of lines that were not written since the start."""
        return self._num_lost

    def write(self, line: str) -> None:
        """Put a line into the buffer, or count it as lost if the buffer is full. Never blocks."""
        encoded = line.encode(errors="backslashreplace")
        if len(encoded) > MAX_LINE_BYTES:
            encoded = encoded[:MAX_LINE_BYTES] + b"...\n"
        with self._changed:
            if self._buffered_bytes + len(encoded) > self._max_buffered_bytes:
                self._num_lost += 1
                return
            self._lines.append(encoded)
            self._buffered_bytes += len(encoded)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write what is buffered, waiting at most `timeout_s`; the thread may still hang in a write after that."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                line = self._lines[0] if self._lines else None
                # Read once, because further lines may be lost while these are reported.
                num_unreported = self._num_lost - self._num_reported
            if num_unreported and self._write(self._lost_line(num_unreported)):
                self._num_reported += num_unreported
            if line is None:
                return
            written = self._write(line)
            with self._changed:
                # A line counts as buffered until it is written, so that memory stays bounded if the reader stops.
                self._lines.popleft()
                self._buffered_bytes -= len(line)
                self._num_lost += not written

    def _write(self, line: bytes | str) -> bool:
        """Write a whole line, and return whether that worked."""
        rest = memoryview(line if isinstance(line, bytes) else line.encode())
        try:
            if self._line_is_torn:
                os.write(self._fd, b"\n")
                self._line_is_torn = False
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # the descriptor is non-blocking, but this thread may wait
                    select.select([], [self._fd], [])
        except OSError:  # the disk is full, the reader is gone
            self._line_is_torn = self._line_is_torn or len(rest) < len(line)
            return False
        return True


def write_beside(fd: int, text: str) -> None:
    """Write a text in a new thread without waiting; an error or a stopped reader loses the text."""

    def write() -> None:
        rest = text.encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            return

    threading.Thread(target=write, name="writer", daemon=True).start()
