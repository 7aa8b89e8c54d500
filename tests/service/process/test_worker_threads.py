"""Threads that end, by an exception or killed without notice, are noticed."""

import asyncio
import ctypes
import threading
from collections.abc import Callable

import pytest

from service.engines.preemption import Preemption
from service.errors import Unavailable
from service.prediction.preprocessing_pool import PreprocessingPool
from service.process.worker_threads import (
    AssistantThread,
    SupervisedThread,
    ThreadEnded,
    Watchdog,
    WorkerThreads,
    is_running,
)
from service.scheduling.idle_executor import IdleExecutor
from tests.service.idle import assert_idle
from tests.service.stoppable import PATIENCE_S, raise_in


class EndsThread(BaseException):
    """An error that ends the thread in which it is raised."""


def end_thread() -> None:
    """Raise an error that ends the thread."""
    raise EndsThread


def vanish() -> None:
    """End the calling thread without notice, as the system does."""
    ctypes.CDLL(None).pthread_exit(None)


@pytest.mark.parametrize("end", [end_thread, vanish])
async def test_the_end_of_a_thread_is_reported_once(end: Callable[[], None]) -> None:
    """The event loop learns of the end within two seconds, with a reason."""
    reasons: asyncio.Queue[str] = asyncio.Queue()
    watchdog = Watchdog()
    thread = SupervisedThread(end, name="ends", on_end=reasons.put_nowait, watchdog=watchdog)
    reason = await asyncio.wait_for(reasons.get(), PATIENCE_S)
    assert reason == {end_thread: "EndsThread", vanish: "the thread is gone"}[end]
    if end is end_thread:  # its last act was to say so
        await asyncio.to_thread(thread.thread.join)
    assert not is_running(thread.thread)
    thread.ended("again")
    assert reasons.empty()


async def test_a_thread_that_was_to_end_is_not_reported() -> None:
    """A thread whose function returns reports nothing."""
    reasons: list[str] = []
    thread = SupervisedThread(lambda: None, name="returns", on_end=reasons.append, watchdog=Watchdog())
    await asyncio.to_thread(thread.thread.join)
    await asyncio.sleep(0)
    assert reasons == []


async def test_a_watchdog_hardly_wakes_an_idle_process() -> None:
    """The watchdog checks once a second, however many threads it watches."""
    go, watchdog = threading.Event(), Watchdog()
    threads = [SupervisedThread(go.wait, name="waits", on_end=print, watchdog=watchdog) for _ in range(20)]  # type: ignore[arg-type]
    try:
        await assert_idle([thread.thread for thread in threads])
    finally:
        go.set()


@pytest.mark.parametrize("end", [end_thread, vanish])
async def test_a_worker_that_ends_fails_its_job_and_is_replaced(end: Callable[[], None]) -> None:
    """Another thread runs the jobs that wait behind it."""
    workers = WorkerThreads(1, "worker", watchdog=Watchdog())
    try:
        failing, waiting = workers.submit(end), workers.submit(threading.get_ident)
        with pytest.raises(Unavailable, match="a thread of worker has ended"):
            await asyncio.wait_for(failing, PATIENCE_S)
        assert await asyncio.wait_for(waiting, PATIENCE_S) != threading.get_ident()
        assert len(workers.threads) == 1
    finally:
        workers.close()


async def test_an_idle_worker_that_ends_is_replaced() -> None:
    """The job for the idle thread fails, and the next job is done."""
    workers = WorkerThreads(1, "worker")
    try:
        await workers.submit(threading.get_ident)
        (thread,) = workers.threads
        raise_in(thread, EndsThread)
        with pytest.raises(Unavailable, match="EndsThread"):
            await asyncio.wait_for(workers.submit(threading.get_ident), PATIENCE_S)
        assert await asyncio.wait_for(workers.submit(lambda: "done"), PATIENCE_S) == "done"
    finally:
        workers.close()


async def test_a_job_that_is_taken_back_is_not_done() -> None:
    """Later jobs run, and an error fails only its own job."""
    workers, go, done = WorkerThreads(1, "worker"), threading.Event(), list[str]()
    try:
        first, taken_back = workers.submit(go.wait), workers.submit(lambda: done.append("taken back"))
        failing, last = workers.submit(lambda: 1 // 0), workers.submit(lambda: done.append("last"))
        taken_back.cancel()
        go.set()
        assert await first
        with pytest.raises(ZeroDivisionError):
            await failing
        await last
        assert done == ["last"]
    finally:
        go.set()
        workers.close()


@pytest.mark.parametrize("end", [end_thread, vanish])
def test_a_caller_does_not_wait_for_an_assistant_that_has_ended(end: Callable[[], None]) -> None:
    """The caller learns of the end within two seconds; before that, results and errors are returned."""
    assistant = AssistantThread("assistant")
    assert assistant.call(threading.get_ident) == assistant.thread.ident
    with pytest.raises(ZeroDivisionError):
        assistant.call(lambda: 1 // 0)
    with pytest.raises(ThreadEnded, match="'assistant' has ended"):
        assistant.call(end)


async def test_preparation_and_explanations_go_on_after_their_thread_has_ended() -> None:
    """The request whose job the thread ran gets an error of the server; later requests are answered."""
    preparation, idle_executor = PreprocessingPool(1, max_rows=10), IdleExecutor(1, Preemption())
    until_s = asyncio.get_running_loop().time() + PATIENCE_S
    words = ("texts", "tokenized")
    with pytest.raises(Unavailable, match="preparer has ended"):
        await preparation.run([end_thread], rows=1, timeout_s=PATIENCE_S, words=words)
    assert await preparation.run([lambda: "done"], rows=1, timeout_s=PATIENCE_S, words=words) == ["done"]
    with pytest.raises(Unavailable, match="spare-time has ended"):
        await idle_executor.run(end_thread, until_s)
    assert await idle_executor.run(lambda: "done", until_s) == "done"


def test_a_thread_that_gives_way_gets_another_assistant() -> None:
    """The call in which its assistant ended fails, and the next call succeeds."""
    outcomes, preemption = list[object](), Preemption()

    def low() -> None:
        preemption.lower_engine_priority()
        try:
            preemption.compute(end_thread)
        except ThreadEnded as error:
            outcomes.append(type(error))
        outcomes.append(preemption.compute(divmod, 7, 2))

    thread = threading.Thread(target=low)
    thread.start()
    thread.join(PATIENCE_S)
    assert outcomes == [ThreadEnded, (3, 1)]
