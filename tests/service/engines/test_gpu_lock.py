"""The lock around CUDA graph capture: shared holders meet, an exclusive one is alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

from service.engines.gpu_lock import SharedExclusiveLock
from tests.conftest import START_S


def test_shared_holders_hold_the_lock_together() -> None:
    """Two threads meet while both hold the lock."""
    lock, both = SharedExclusiveLock(), Barrier(2)

    def hold_shared() -> None:
        with lock.shared():
            both.wait(START_S)

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(hold_shared), pool.submit(hold_shared)]:
            each.result(START_S)


def test_an_exclusive_holder_is_alone() -> None:
    """Four threads hold the lock shared again and again without a pause: an exclusive holder still gets its turn."""
    lock, done, inside = SharedExclusiveLock(), Event(), set()

    def hold_shared(number: int) -> None:
        while not done.is_set():
            with lock.shared():
                inside.add(number)
                assert "exclusive" not in inside
                inside.discard(number)

    def hold_exclusive() -> None:
        try:
            for _ in range(50):
                with lock.exclusive():
                    inside.add("exclusive")
                    assert inside == {"exclusive"}
                    inside.discard("exclusive")
        finally:
            done.set()

    with ThreadPoolExecutor(5) as pool:
        for each in [*(pool.submit(hold_shared, number) for number in range(4)), pool.submit(hold_exclusive)]:
            each.result(START_S)
