"""`python -m load_tests.stalls.core_watch`: when the core to which it is pinned was not available to this machine.

Wakes every 2 ms at the highest real-time priority: no process delays it. Where it is woken late, the host
has run something else on the core, has woken it late, or a system call has kept it. Such times are not the server's.
The host's own count (steal in /proc/stat) is too coarse: it is added up at the core's next tick, in units of 10 ms.

Each line on standard input ends a window; one line of JSON tells its gaps, as pairs of begin and end in seconds of the
monotonic clock, which all processes share.
"""

import json
import os
import select
import sys
import time

INTERVAL_S = 0.002
MIN_GAP_S = 0.003  # shorter gaps are usual on any machine


def main() -> int:
    """Watch until standard input ends; exit status 1 where real-time priority is not permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
    except PermissionError:
        return 1
    gaps_s: list[tuple[float, float]] = []
    while True:
        due_s = time.perf_counter() + INTERVAL_S
        readable, _, _ = select.select([sys.stdin], [], [], INTERVAL_S)
        now_s = time.perf_counter()
        if now_s - due_s > MIN_GAP_S:
            gaps_s.append((due_s, now_s))
        if readable:
            if not sys.stdin.readline():
                return 0
            print(json.dumps(gaps_s), flush=True)
            gaps_s = []


if __name__ == "__main__":
    sys.exit(main())
