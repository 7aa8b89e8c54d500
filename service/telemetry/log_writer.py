"""Writes log lines in a thread of its own: whoever logs never waits for whoever reads the log.

    any thread ── line ──> bounded buffer ──> one thread ──> file descriptor

A reader that has stopped (a full pipe) or a disk that is full costs lines, which are counted, and nothing else.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

MAX_BUFFERED_BYTES = 4 * 2**20
MAX_LINE_BYTES = 64 * 2**10  # a longer one, a traceback of a recursion, is cut off


class LogWriter:
    """A bounded buffer of lines, and the thread that writes them; any thread may call."""

    def __init__(
        self,
        fd: int,
        lost_line: Callable[[int], str] = lambda number: f"{number} log lines were lost",
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        """Start the thread.

        Args:
            fd: is written to, and stays open.
            lost_line: makes the line that says how many lines were lost; written when writing works again.
            max_buffered_bytes: of lines that wait; more are lost.
        """
        self._fd, self._lost_line, self._max_buffered_bytes = fd, lost_line, max_buffered_bytes
        # Reentrant: a signal's handler or a finalizer may log while its own thread is in here.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._num_lost = self._num_told = 0
        self._line_is_torn = self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def num_lost(self) -> int:
        """Lines that were not written, since the start."""
        return self._num_lost

    def write(self, line: str) -> None:
        """Put a line into the buffer, or count it as lost where that is full; returns at once."""
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
        """Write what is buffered, but wait no longer than this; the thread may then still hang in a write."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                line = self._lines[0] if self._lines else None
                # Read once: further lines may be lost while these are told of.
                num_untold = self._num_lost - self._num_told
            if num_untold and self._write(self._lost_line(num_untold)):
                self._num_told += num_untold
            if line is None:
                return
            written = self._write(line)
            with self._changed:
                # It counts as buffered until it is written, so that a stopped reader costs no more than the buffer.
                self._lines.popleft()
                self._buffered_bytes -= len(line)
                self._num_lost += not written

    def _write(self, line: bytes | str) -> bool:
        """Write a line whole; whether that worked."""
        rest = memoryview(line if isinstance(line, bytes) else line.encode())
        try:
            if self._line_is_torn:
                os.write(self._fd, b"\n")
                self._line_is_torn = False
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # whoever made the descriptor does not want to wait; this thread does
                    select.select([], [self._fd], [])
        except OSError:  # the disk is full, the reader is gone
            self._line_is_torn = self._line_is_torn or len(rest) < len(line)
            return False
        return True


def write_beside(fd: int, text: str) -> None:
    """Write a text in a thread: the caller does not wait, and an error or a reader that has stopped loses it."""

    def write() -> None:
        rest = text.encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            return

    threading.Thread(target=write, name="writer", daemon=True).start()
