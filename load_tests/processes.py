"""Processes under measurement: started, pinned to a core, watched, ended."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

CLOCK_TICKS_S = os.sysconf("SC_CLK_TCK")
SERVER_CORE, LOAD_CORE = 0, 1
CORES = sorted(os.sched_getaffinity(0))  # before any pinning: a process hands what it was pinned to on to its children


class Process:
    """A Python module in a process of its own, on one core unless None is given; ended with the `with` block."""

    def __init__(self, module: str, *arguments: str, pipes: bool = False, core: int | None = SERVER_CORE) -> None:
        self.started_s = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the block)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE if pipes else None,
            stdout=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stderr=None if pipes else self._log,
            text=True,
            preexec_fn=None if core is None else lambda: pin(core),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.popen.terminate()
        self.popen.wait(timeout=30)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def cpu_s(self) -> float:
        """CPU seconds of all threads so far, with the scheduler's nanoseconds."""
        total_ns = 0
        for task in Path(f"/proc/{self.popen.pid}/task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
        return total_ns * 1e-9

    def memory_mib(self) -> dict[str, float]:
        """Resident memory now and at its peak."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {name: int(fields[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}

    def wait_until_ready(self, url: str, timeout_s: float = 60.0) -> float:
        """Seconds from the start of the process to the first 200 from `url`.

        Raises:
            TimeoutError: it did not come, or the process ended.
        """
        while time.perf_counter() - self.started_s < timeout_s and self.popen.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=1):
                    return time.perf_counter() - self.started_s
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.005)
        self._log.seek(0)
        last_words = self._log.read()[-1000:]
        raise TimeoutError(f"{url} was not ready after {timeout_s} s, or its process ended; it said: {last_words}")


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has enough of them."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def steal_s() -> float:
    """CPU time that the host has taken from this machine since it booted, all cores together."""
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / CLOCK_TICKS_S


def free_port() -> int:
    """A port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
