"""`python -m load_tests.stalls.prober PORT`: asks /healthz every 10 ms, and tells how long the answers took.

Each line on standard input ends a window; one line of JSON tells its figures. A request counts from the time at which
it was due, so that a server that answers nobody for a second is late a hundred times and not once.
"""

import json
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from load_tests.measurement import percentile_ms

INTERVAL_S = 0.01
LONG_WAIT_S = 0.02
TIMEOUT_S = 120.0
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: prober\r\n\r\n"


@dataclass
class Window:
    """Measurements since the last line of input."""

    waits_s: list[float] = field(default_factory=list)
    long_waits_s: list[tuple[float, float]] = field(default_factory=list)  # begin and end, on the monotonic clock
    not_ok: int = 0
    late_s: float = 0.0  # the longest delay of this process's own wake, which is noise of the machine

    def figures(self) -> dict[str, Any]:
        """Return the figures in milliseconds."""
        return {
            "count": len(self.waits_s),
            "not_ok": self.not_ok,
            "p99_ms": percentile_ms(sorted(self.waits_s), 99),
            "p100_ms": 1e3 * max(self.waits_s, default=0.0),
            "long_waits_s": self.long_waits_s,
            "late_ms": 1e3 * self.late_s,
        }


def main() -> None:
    """Probe until standard input ends."""
    window, due_s = Window(), time.perf_counter()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=TIMEOUT_S) as connection:
        while True:
            ahead_s = due_s - time.perf_counter()
            readable, _, _ = select.select([sys.stdin], [], [], max(0.0, ahead_s))
            if readable:
                if not sys.stdin.readline():
                    return
                print(json.dumps(window.figures()), flush=True)
                window, due_s = Window(), time.perf_counter()
                continue
            if ahead_s > 0:
                window.late_s = max(window.late_s, time.perf_counter() - due_s)
            window.not_ok += not ask(connection)
            now_s = time.perf_counter()
            window.waits_s.append(now_s - due_s)
            if now_s - due_s > LONG_WAIT_S:
                window.long_waits_s.append((due_s, now_s))
            due_s += INTERVAL_S


def ask(connection: socket.socket) -> bool:
    """Ask once; return whether the answer is 200."""
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
