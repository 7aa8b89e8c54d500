"""Processes under measurement: started, pinned to a core, watched, ended."""

import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

CLOCK_TICKS_S = os.sysconf("SC_CLK_TCK")
SERVER_CORE, LOAD_CORE = 0, 1
# No load balancer watches these servers, so they need not be unready before they drain.
DRAIN_AT_ONCE = ("--unready-before-drain-s", "0")
RESTING_S, MAX_AT_REST = 0.25, 0.05  # minimum time at rest, and the fraction of a core that counts as rest
CORES = sorted(os.sched_getaffinity(0))  # read before any pinning, because children inherit it


class Process:
    """A Python module in a process of its own, on one core unless None is given; ended with the `with` block."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        pipes: bool = False,
        core: int | None = SERVER_CORE,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        self.started_s = time.perf_counter()

        self._log = log.open("w+") if log else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE if pipes else None,
            stdout=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stderr=stderr if stderr is not None else None if pipes and not log else self._log,
            text=True,
            env=None if environment is None else os.environ | environment,
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
        """Return the CPU seconds of all threads so far, ended ones included, with the scheduler's nanoseconds."""
        return _cpu_s(self.popen.pid)

    def family_cpu_s(self) -> float:
        """Return the CPU seconds of the process and all its running descendants."""
        return sum(_cpu_s(process) for process in self._family())

    def family_memory_mib(self) -> float:
        """Return the proportional set size of the process and its descendants: pages that they share count once."""
        total_kib = 0
        for process in self._family():
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total_kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total_kib / 1024

    def _family(self) -> list[int]:
        found = [self.popen.pid]
        for process in found:  # which grows meanwhile
            for task in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def memory_mib(self) -> dict[str, float]:
        """Return the resident memory now and at its peak."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {name: int(fields[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}

    def wait_until_ready(self, url: str, timeout_s: float = 60.0) -> float:
        """Return the seconds from the start of the process to the first 200 from `url`.

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

    def wait_until_idle(self, timeout_s: float = 60.0) -> None:
        """Return when the process rests: a server moves its memory into huge pages for a while after it is ready.

        Raises:
            TimeoutError: it does not rest.
        """
        until_s, cpu_s = time.perf_counter() + timeout_s, -math.inf
        while (now_s := self.cpu_s()) - cpu_s > MAX_AT_REST * RESTING_S:
            if time.perf_counter() > until_s:
                raise TimeoutError(f"the process was not idle after {timeout_s} s")
            cpu_s = now_s
            time.sleep(RESTING_S)


@contextmanager
def own_server() -> Iterator[tuple[Process, str, str]]:
    """Run `python -m service` on free ports of this machine; yield its process and the addresses of HTTP and gRPC."""
    http, grpc = free_port(), free_port()
    ports = ("--http-port", str(http), "--grpc-port", str(grpc))
    with Process("service", *ports, *DRAIN_AT_ONCE, core=None) as server:
        server.wait_until_ready(f"http://127.0.0.1:{http}/readyz")
        yield server, f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"


@dataclass(frozen=True)
class CpuReading:
    """CPU seconds so far of the load (this process), the server, and all other processes."""

    at_s: float
    load_s: float
    server_s: float | None  # including its child processes; None: unknown
    busy_s: float  # of all processes together
    idle_s: float
    steal_s: float  # time that the host gave to other machines

    @classmethod
    def now(cls, server_pid: int | None) -> "CpuReading":
        """Read all counters."""
        machine = psutil.cpu_times()
        server_s = None
        if server_pid is not None:
            parent = psutil.Process(server_pid)
            family = [parent.cpu_times(), *(child.cpu_times() for child in parent.children(recursive=True))]
            server_s = sum(times.user + times.system for times in family)
        return cls(
            at_s=time.perf_counter(),
            load_s=time.process_time(),
            server_s=server_s,
            # Some systems do not count all of them.
            busy_s=sum(getattr(machine, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq")),
            idle_s=machine.idle + getattr(machine, "iowait", 0.0),
            steal_s=getattr(machine, "steal", 0.0),
        )

    def since(self, earlier: "CpuReading", answered: int) -> dict[str, Any]:
        """Return seconds since an earlier reading, and milliseconds per answer of that time; None where unknown."""
        load_s, steal_s = self.load_s - earlier.load_s, self.steal_s - earlier.steal_s
        server_s = None
        if self.server_s is not None and earlier.server_s is not None:
            server_s = self.server_s - earlier.server_s
        # The counters tick at different times, so the rest may be negative.
        others_s = max(0.0, self.busy_s - earlier.busy_s - load_s - (server_s or 0.0))
        return {
            "load_s": load_s,
            "server_s": server_s,
            "others_s": None if server_s is None else others_s,
            "steal_s": steal_s,
            "idle_s": self.idle_s - earlier.idle_s,
            "load_ms_per_answer": 1e3 * load_s / answered if answered else None,
            "server_ms_per_answer": None if server_s is None or not answered else 1e3 * server_s / answered,
        }


def _cpu_s(process: int) -> float:
    # The CPU clock of a process (clock_getcpuclockid(3), which Python has only for threads) includes ended threads.
    return time.clock_gettime(~process << 3 | 2)


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has enough of them."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def steal_s() -> float:
    """Return the CPU time that the host has taken from this machine since it booted, all cores together."""
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / CLOCK_TICKS_S


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
