"""The servers that the benchmark compares with."""

import asyncio
import os
from pathlib import Path

import pytest

from load_tests.bench.rounds import ECHOES
from load_tests.drivers import drive_grpc
from load_tests.material import load_sentences
from load_tests.processes import Process, free_port
from service.transport.grpc.server import CORE_NICENESS, POLLER_NICENESS
from tests.conftest import START_S


@pytest.mark.parametrize("name", list(ECHOES))
async def test_an_echo_server_answers(name: str) -> None:
    """The bare echo has no settings of the service; the other one has its scheduling policy and thread priorities."""
    port, texts = free_port(), load_sentences().texts
    with Process("load_tests.bench.echo_server", str(port), *ECHOES[name], core=None) as echo:
        assert len((await drive_grpc(port, "echo", texts, 4, 40)).latencies_s) == 40
        assert echo.cpu_s() > 0
        assert echo.memory_mib()["now"] > 10
        pid, tuned = echo.popen.pid, bool(ECHOES[name])
        assert (os.sched_getscheduler(pid) == os.SCHED_BATCH) is tuned
        # gRPC names its threads, by which they are found, some time after it starts.
        async with asyncio.timeout(START_S):
            while tuned and not thread_niceness(pid) >= {POLLER_NICENESS, CORE_NICENESS}:
                await drive_grpc(port, "echo", texts, 4, 40)
        assert tuned or thread_niceness(pid) == {0}


def thread_niceness(pid: int) -> set[int]:
    """Return the niceness of a process's threads above that of the first."""
    own, threads = os.getpriority(os.PRIO_PROCESS, pid), Path(f"/proc/{pid}/task").iterdir()
    return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) - own for thread in threads}
