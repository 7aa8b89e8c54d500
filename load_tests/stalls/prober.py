"""`python -m load_tests.stalls.prober PORT`: asks /healthz every 10 ms, and tells how long the answers took.

Each line on standard input ends a window; one line of JSON tells its figures. A request counts from the time at which
it was due, so that a server that answers nobody for a second is late a hundred times and not once.

The prober also reads how much CPU time the host has taken from each core (steal). A wait less the steal within it is
what the server itself is responsible for.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from load_tests.measurement import percentile_ms
from load_tests.processes import steal_of_cores_s

INTERVAL_S = 0.01
TIMEOUT_S = 120.0
TICK_S = 0.01  # at least as long as the kernel's own, of 1 to 10 ms
MAX_SAMPLES = 100_000  # of the last 16 minutes
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: prober\r\n\r\n"


class Asked(NamedTuple):
    """A request: when it was due, when it was answered, and whether that was 200."""

    due_s: float
    answered_s: float
    ok: bool


@dataclass
class Window:
    """What was measured since the last line."""

    waits_s: list[float] = field(default_factory=list)
    max_unstolen_wait_s: float = 0.0  # the longest wait less what the host took within it
    not_ok: int = 0
    late_s: float = 0.0  # how late this process itself was woken, at worst: noise of the machine

    def add(self, asked: Asked, stolen_s: float) -> None:
        """Count one request."""
        wait_s = asked.answered_s - asked.due_s
        self.waits_s.append(wait_s)
        self.max_unstolen_wait_s = max(self.max_unstolen_wait_s, wait_s - stolen_s)
        self.not_ok += not asked.ok

    def figures(self) -> dict[str, Any]:
        """In milliseconds."""
        return {
            "count": len(self.waits_s),
            "not_ok": self.not_ok,
            "p99_ms": percentile_ms(sorted(self.waits_s), 99),
            "p100_ms": 1e3 * max(self.waits_s, default=0.0),
            "p100_unstolen_ms": 1e3 * self.max_unstolen_wait_s,
            "late_ms": 1e3 * self.late_s,
        }


class StealHistory:
    """What the host had taken from each core, at the times at which it was read."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, list[float]]] = deque(maxlen=MAX_SAMPLES)
        self.read()

    def read(self) -> None:
        """Add a sample."""
        self._samples.append((time.perf_counter(), steal_of_cores_s()))

    def stolen_since_s(self, since_s: float) -> float:
        """CPU time taken from the core that lost most, between the last sample before `since_s` and the newest one."""
        newest = self._samples[-1][1]
        earlier = next((steal for at_s, steal in reversed(self._samples) if at_s <= since_s), self._samples[0][1])
        return max(now - then for now, then in zip(newest, earlier, strict=True))


def main() -> None:
    """Probe until standard input ends."""
    window, steal, due_s = Window(), StealHistory(), time.perf_counter()
    pending: deque[Asked] = deque()  # not in the window yet: the kernel counts steal at the core's next tick
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=TIMEOUT_S) as connection:
        while True:
            ahead_s = due_s - time.perf_counter()
            readable, _, _ = select.select([sys.stdin], [], [], max(0.0, ahead_s))
            if readable:
                if not sys.stdin.readline():
                    return
                for asked in pending:
                    window.add(asked, steal.stolen_since_s(asked.due_s))
                print(json.dumps(window.figures()), flush=True)
                pending.clear()
                window, due_s = Window(), time.perf_counter()
                continue
            if ahead_s > 0:
                window.late_s = max(window.late_s, time.perf_counter() - due_s)
            ok = ask(connection)
            pending.append(Asked(due_s, time.perf_counter(), ok))
            steal.read()
            while pending and time.perf_counter() - pending[0].answered_s > TICK_S:
                asked = pending.popleft()
                window.add(asked, steal.stolen_since_s(asked.due_s))
            due_s += INTERVAL_S


def ask(connection: socket.socket) -> bool:
    """Whether the answer is 200."""
    connection.sendall(REQUEST)
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the server has ended the prober's connection")
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < size:
        body += connection.recv(65536)
    return head.startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    main()
