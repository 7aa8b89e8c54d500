"""Processes that the load tests start."""

import os

import pytest

from load_tests.processes import CORES, LOAD_CORE, SERVER_CORE, Process, free_port, pin


@pytest.mark.skipif(len(CORES) < 2, reason="one core: nothing to keep apart")
def test_a_server_under_measurement_has_its_own_core() -> None:
    """This holds also if the starting process is pinned to another core."""
    before = os.sched_getaffinity(0)
    try:
        pin(LOAD_CORE)
        with Process("load_tests.bench.echo_server", str(free_port())) as server:
            assert os.sched_getaffinity(server.popen.pid) == {CORES[SERVER_CORE]}
            assert os.sched_getaffinity(0) == {CORES[LOAD_CORE]}
    finally:
        os.sched_setaffinity(0, before)


def test_the_error_quotes_a_server_that_does_not_start() -> None:
    """The end of its log says why."""
    with (
        Process("service", "--model-store", "/nowhere", core=None) as server,
        pytest.raises(TimeoutError, match="/nowhere"),
    ):
        server.wait_until_ready("http://127.0.0.1:9/readyz")
