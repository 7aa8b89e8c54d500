"""A thread writes the lines of the log; lines without a reader are lost and counted."""

import os
import threading
from pathlib import Path

import pytest

from service.telemetry.log_writer import LogWriter, write_beside

PIPE_BYTES = 65536


def read_all(fd: int) -> list[str]:
    """Read the lines of a pipe whose other end is closed."""
    with os.fdopen(fd) as pipe:
        return pipe.read().splitlines()


def test_lines_are_written_in_order_until_the_end() -> None:
    """Every line that was logged before `close` is written."""
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for number in range(500):
        writer.write(f"line {number}\n")
    writer.close(60)
    os.close(writing)
    assert read_all(reading) == [f"line {number}" for number in range(500)]
    assert writer.num_lost == 0


def test_lines_are_lost_while_the_reader_is_stopped() -> None:
    """Logging never blocks; when somebody reads again, a line says how many were lost."""
    reading, writing = os.pipe()
    writer = LogWriter(writing, lambda number: f"lost {number}\n", max_buffered_bytes=10_000)
    line = "x" * 99 + "\n"
    for _ in range(5000):  # 500 kB, of which pipe and buffer take 76
        writer.write(line)
    lost = writer.num_lost
    assert 4000 < lost < 5000
    writer.close(0)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(reading)))
    reader.start()
    writer.close(60)
    os.close(writing)
    reader.join()
    told = [int(each.split()[1]) for each in found if each.startswith("lost")]
    assert sum(told) == lost == writer.num_lost
    assert len(found) - len(told) == 5000 - lost


def test_closing_does_not_wait_for_a_stopped_reader() -> None:
    """`close` returns after its time-out although the thread still hangs in a write."""
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for _ in range(2000):
        writer.write("x" * 99 + "\n")
    writer.close(0.01)
    os.close(reading)  # ends the thread's write
    writer.close(60)
    os.close(writing)
    assert writer.num_lost > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not here")
def test_a_full_disk_loses_lines_without_errors() -> None:
    """Code that logs never gets ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(full)
    for _ in range(10):
        writer.write("a line\n")
    writer.close(60)
    os.close(full)
    assert writer.num_lost == 10


def test_a_non_blocking_descriptor_loses_no_lines() -> None:
    """Another program may have made the shared pipe non-blocking."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    lines = PIPE_BYTES // 100 * 3
    for _ in range(lines):
        writer.write("x" * 99 + "\n")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(reading)))
    reader.start()
    writer.close(60)
    os.close(writing)
    reader.join()
    assert (len(found), writer.num_lost) == (lines, 0)


def test_a_line_is_bounded() -> None:
    """A traceback of a megabyte is cut off, so that one line cannot fill the buffer."""
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    writer.write("y" * 10**6 + "\n")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(reading)))
    reader.start()
    writer.close(60)
    os.close(writing)
    reader.join()
    assert [(len(line), line[-4:]) for line in found] == [(65536 + 3, "y...")]


def test_plain_text_is_written_or_lost_without_waiting() -> None:
    """It never blocks, with or without a reader."""
    reading, writing = os.pipe()
    write_beside(writing, "welcome")
    assert os.read(reading, 100) == b"welcome"
    os.close(reading)
    write_beside(writing, "nobody reads")  # EPIPE in the thread, which is no error
    os.close(writing)
