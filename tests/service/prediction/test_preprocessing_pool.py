"""The preprocessing pool is bounded, keeps the order of results, and obeys deadlines."""

import asyncio
import threading
import time

import pytest

from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.prediction.preprocessing_pool import PreprocessingPool

PATIENCE_S = 10.0  # for what must happen; only a failing test waits this long
WORDS = ("images", "decoded")


async def test_results_come_in_the_order_of_the_work() -> None:
    """The order does not depend on which piece ends first; the first waits for the second here."""
    preparation, gate = PreprocessingPool(2, max_rows=10), threading.Event()
    work = [lambda: gate.wait(PATIENCE_S) and "first", lambda: gate.set() or "second"]
    assert await preparation.run(work, rows=2, timeout_s=PATIENCE_S, words=WORDS) == ["first", "second"]
    assert preparation.rows == 0


async def test_the_event_loop_goes_on() -> None:
    """The thread waits for something that only the event loop does."""
    preparation, gate = PreprocessingPool(1, max_rows=10), threading.Event()
    running = asyncio.ensure_future(
        preparation.run([lambda: gate.wait(PATIENCE_S)], rows=1, timeout_s=PATIENCE_S, words=WORDS)
    )
    await asyncio.sleep(0)
    assert preparation.rows == 1
    gate.set()
    assert await running == [True]


async def test_too_many_rows_are_refused_with_the_limit() -> None:
    """The refusal is immediate; rows that wait are not affected."""
    preparation, gate = PreprocessingPool(1, max_rows=3), threading.Event()
    running = asyncio.ensure_future(
        preparation.run([lambda: gate.wait(PATIENCE_S)], rows=2, timeout_s=PATIENCE_S, words=WORDS)
    )
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 texts and images wait for preprocessing, the limit is 3"):
        await preparation.run([lambda: True], rows=2, timeout_s=PATIENCE_S, words=WORDS)
    gate.set()
    assert await running == [True]


async def test_at_the_deadline_what_has_not_begun_never_does() -> None:
    """The second piece waits for the only thread, which the first one holds."""
    preparation, gate = PreprocessingPool(1, max_rows=10), threading.Event()
    begun: list[str] = []
    work = [lambda: gate.wait(PATIENCE_S), lambda: begun.append("second")]
    with pytest.raises(DeadlineExceeded, match="the deadline passed before the images were decoded"):
        await preparation.run(work, rows=2, timeout_s=0.01, words=WORDS)
    assert preparation.rows == 0
    gate.set()
    await preparation.run([lambda: None], rows=1, timeout_s=PATIENCE_S, words=WORDS)
    assert begun == []


async def test_the_first_piece_that_fails_is_the_error() -> None:
    """No rows stay counted after it."""

    def refuse(number: int) -> None:
        raise InvalidRequest(f"image[{number}] is not an image")

    preparation = PreprocessingPool(2, max_rows=10)
    work = [lambda: None, lambda: refuse(1), lambda: refuse(2)]
    with pytest.raises(InvalidRequest, match=r"image\[1\] is not an image"):
        await preparation.run(work, rows=3, timeout_s=PATIENCE_S, words=WORDS)
    assert preparation.rows == 0


async def test_who_is_refused_hears_when_to_come_again() -> None:
    """The delay is the number of waiting rows times the mean time of recent rows."""
    preparation, gate = PreprocessingPool(1, max_rows=2), threading.Event()
    started_s = time.monotonic()
    await preparation.run([lambda: gate.wait(0.05)], rows=1, timeout_s=PATIENCE_S, words=WORDS)
    took_s = time.monotonic() - started_s
    running = asyncio.ensure_future(
        preparation.run([lambda: gate.wait(PATIENCE_S)], rows=2, timeout_s=PATIENCE_S, words=WORDS)
    )
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await preparation.run([lambda: True], rows=1, timeout_s=PATIENCE_S, words=WORDS)
    assert 0.0 < refused.value.retry_after_s <= 2 * took_s
    gate.set()
    await running
