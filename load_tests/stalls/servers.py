"""Servers at default limits, on one core, whose log is read or is not, and the prober beside them."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.processes import DRAIN_AT_ONCE, LOAD_CORE, SERVER_CORE, Process, free_port
from load_tests.soak.servers import LogReader

READY_S = 600.0  # a thousand models are proved one after the other
MAX_QUIET_MS, MAX_QUIET_WINDOWS = 10.0, 20
SETTLE_S = 0.3  # after-effects of a request, such as freeing memory, belong to its window


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: Process
    http_port: int
    grpc_port: int
    reader: LogReader | None  # reader of its log; None if the log's disk is full

    @property
    def grpc(self) -> str:
        """Address of the gRPC interface."""
        return f"127.0.0.1:{self.grpc_port}"


class Prober:
    """Asks /healthz in a process of its own, while other processes watch the cores.

    Attributes:
        watches_cores: whether real-time priority is permitted, which that needs.
    """

    def __init__(self, process: Process, core_watches: list[Process]) -> None:
        self._process, self._core_watches = process, core_watches
        self.watches_cores = all(_ask(watch) is not None for watch in core_watches)

    def window(self) -> dict[str, Any]:
        """End a window and return its figures.

        Raises:
            RuntimeError: the prober has ended, for its connection has.
        """
        figures: dict[str, Any] | None = _ask(self._process)
        if figures is None:
            raise RuntimeError("/healthz was not answered any more; the prober has said why above")
        gaps_s = [gap for watch in self._core_watches for gap in _ask(watch) or []]
        return figures | {"gaps_s": gaps_s}


def _ask(process: Process) -> Any:
    """Return a process's JSON answer to a line on its standard input; None if the process has ended."""
    assert process.popen.stdin
    assert process.popen.stdout
    try:
        process.popen.stdin.write("\n")
        process.popen.stdin.flush()
        line = process.popen.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else None


@contextmanager
def serving(store: Path, *, full_disk: bool = False) -> Iterator[Server]:
    """Run `python -m service` on a store; yield it when it is ready and at rest.

    Args:
        store: its models.
        full_disk: nothing can be written to its log.
    """
    http, grpc = free_port(), free_port()
    options = ("--model-store", str(store), "--http-port", str(http), "--grpc-port", str(grpc))
    taken = None
    if full_disk:
        given = os.open("/dev/full", os.O_WRONLY)
    else:
        taken, given = os.pipe()
    try:
        process = Process("service", *options, *DRAIN_AT_ONCE, stderr=given)
    finally:
        os.close(given)
    reader = None if taken is None else LogReader(taken)
    try:
        with process:
            process.wait_until_ready(f"http://127.0.0.1:{http}/readyz", READY_S)
            process.wait_until_idle()
            try:
                yield Server(process, http, grpc, reader)
            finally:
                if reader is not None:
                    reader.resume()
    finally:
        if reader is not None and taken is not None:
            reader.join()
            os.close(taken)


@contextmanager
def probing(server: Server) -> Iterator[Prober]:
    """Run a prober of a server on the core of the load, and watches on the cores of both."""
    with ExitStack() as stack:
        watches = [
            stack.enter_context(Process("load_tests.stalls.core_watch", pipes=True, core=core))
            for core in (SERVER_CORE, LOAD_CORE)
        ]
        process = Process("load_tests.stalls.prober", str(server.http_port), pipes=True, core=LOAD_CORE)
        prober = Prober(stack.enter_context(process), watches)
        prober.window()
        yield prober


def settle() -> None:
    """Wait for the after-effects of a request."""
    time.sleep(SETTLE_S)


def wait_until_quiet(prober: Prober) -> None:
    """Wait until no earlier request delays the prober, or for some seconds at most; then begin a window."""
    prober.window()
    for _ in range(MAX_QUIET_WINDOWS):
        settle()
        if prober.window()["p100_ms"] < MAX_QUIET_MS:
            return
