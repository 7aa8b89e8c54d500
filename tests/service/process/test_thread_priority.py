"""Priorities of threads: a library's threads are found by their name, and a name that no thread has is reported."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from structlog.testing import capture_logs

from service.process.thread_priority import MAX_NICENESS, renice_thread, renice_threads_named, threads_named
from service.transport.grpc.server import CORE_THREADS, POLLER_THREAD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own here")


def niceness(native_id: int) -> int:
    """Return the niceness of a thread."""
    return os.getpriority(os.PRIO_PROCESS, native_id)


def test_a_thread_gets_a_niceness_above_that_of_the_process() -> None:
    """However often it is set; no more than the largest, and for no other thread."""
    own = niceness(threading.get_native_id())
    with ThreadPoolExecutor(1) as pool:
        native_id = pool.submit(threading.get_native_id).result()
        for by in (5, 5, 7, 100):
            renice_thread(native_id, by)
            assert niceness(native_id) == min(own + by, MAX_NICENESS)
    assert niceness(threading.get_native_id()) == own


async def test_the_threads_of_grpc_are_found_and_reniced() -> None:
    """The installed grpcio names its threads as `service.transport.grpc.server` expects; nothing is reported."""
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    own = niceness(os.getpid())
    with capture_logs() as logs:
        for name, by in ((POLLER_THREAD, 3), (CORE_THREADS, 4)):
            await renice_threads_named(name, by)
            assert {niceness(thread) for thread in threads_named(name)} == {own + by}
    assert logs == []
    await server.stop(None)


async def test_a_name_that_no_thread_has_is_reported() -> None:
    """Once, with the name, however long it was searched for."""
    with capture_logs() as logs:
        await renice_threads_named("no-such-thread", 5, max_searches=2)
    assert [(entry["log_level"], entry["thread"]) for entry in logs] == [("warning", "no-such-thread")]
