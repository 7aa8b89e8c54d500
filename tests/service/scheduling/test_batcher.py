"""The guarantees of the batcher, with an engine that the test controls."""

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from service.engines.preemption import Preemption
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from service.process.worker_threads import Watchdog
from service.scheduling.admission import BatchStats
from service.scheduling.batch_forming import BatcherLimits
from service.scheduling.batcher import (
    HAND_OVER_S,
    LOW_PRIORITY_CALL_S,
    MAX_ON_THE_SPOT_S,
    QUICK_IN_THREAD_S,
    Batcher,
)
from service.scheduling.cost_table import CostTable
from service.telemetry.metrics import SchedulingTally
from tests.service.idle import assert_idle
from tests.service.stoppable import StopFlag, raise_in

PATIENCE_S = 10.0  # only a failing test waits this long


@dataclass(frozen=True)
class Text:
    """An item of the given length."""

    name: str
    length: int = 8
    rows: int = 1
    batch_key: Hashable = None


class HeldEngine:
    """Computes `name.upper()`; each call waits until the test releases it, unless it runs free."""

    def __init__(
        self,
        answer: Callable[[list[Text]], Sequence[Any]] | None = None,
        held: bool = True,
    ) -> None:
        self.answer = answer or (lambda items: [item.name.upper() for item in items])
        self.held = held
        self.calls: list[list[str]] = []
        self.threads: list[int] = []
        self.sound = True
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Queue[list[str]] = asyncio.Queue()
        self._permits = threading.Semaphore(0)

    def run(self, items: list[Text]) -> Sequence[Any]:
        """Compute one batch."""
        names = [item.name for item in items]
        self.calls.append(names)
        self.threads.append(threading.get_ident())
        if self.held:
            self._loop.call_soon_threadsafe(self._started.put_nowait, names)
            assert self._permits.acquire(timeout=PATIENCE_S)
        return self.answer(items)

    def probe(self) -> None:
        """Raise if the engine is broken."""
        if not self.sound:
            raise RuntimeError("device lost")

    async def next_call(self) -> list[str]:
        """Wait for the next call to begin."""
        return await asyncio.wait_for(self._started.get(), PATIENCE_S)

    def release(self, calls: int = 1) -> None:
        """Let this many calls return."""
        self._permits.release(calls)


@contextlib.asynccontextmanager
async def batcher_of(engine: HeldEngine, **options: Any) -> AsyncIterator[Batcher]:
    """Make a batcher with this engine and these limits."""
    names = BatcherLimits.__dataclass_fields__
    limits = BatcherLimits(**{name: options.pop(name) for name in list(options) if name in names})
    costs = options.pop("costs", None) or CostTable(64, 512)
    batcher = Batcher(engine.run, probe=engine.probe, costs=costs, preemption=Preemption(), limits=limits, **options)
    try:
        yield batcher
    finally:
        engine.release(1000)
        batcher.close()


def submit(batcher: Batcher, *items: Text, deadline_s: float | None = None) -> asyncio.Task[list[Any]]:
    """Submit the items as one request; the task returns the results."""

    async def results() -> list[Any]:
        return [done.result for done in await batcher.submit(items, deadline_s)]

    return asyncio.create_task(results())


def submit_low(batcher: Batcher, *items: Text, deadline_s: float | None = None) -> asyncio.Task[list[Any]]:
    """Submit at low priority."""

    async def results() -> list[Any]:
        return [done.result for done in await batcher.submit_low(items, deadline_s)]

    return asyncio.create_task(results())


async def turns(count: int = 5) -> None:
    """Let the event loop run everything that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def busy(engine: HeldEngine, batcher: Batcher) -> asyncio.Task[list[Any]]:
    """Occupy the engine with one call, so that later requests queue."""
    first = submit(batcher, Text("first"))
    assert await engine.next_call() == ["first"]
    return first


def linear_costs(fixed_s: float, per_token_s: float) -> CostTable:
    """Make a cost table of an engine with a fixed cost and a cost per token."""
    sizes = [(rows, length) for rows in (1, 2, 4, 8, 16, 32, 64) for length in (8, 32, 128, 512)]
    return CostTable(
        64,
        512,
        [(rows, length, fixed_s + per_token_s * rows * length) for rows, length in sizes],
    )


async def test_an_idle_engine_computes_at_once() -> None:
    """One request is computed without waiting for others."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        task = submit(batcher, Text("a"))
        assert await engine.next_call() == ["a"]
        engine.release()
        assert await task == ["A"]


async def test_batches_form_while_the_engine_is_busy() -> None:
    """Requests that arrive during a call share the next one."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        first = await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "abc"]
        await turns()
        engine.release(2)
        assert await engine.next_call() == ["a", "b", "c"]
        assert await first == ["FIRST"]
        assert await asyncio.gather(*tasks) == [["A"], ["B"], ["C"]]


@pytest.mark.parametrize("cancelled", range(4))
async def test_cancelling_a_waiting_item_does_not_affect_others(
    cancelled: int,
) -> None:
    """The cancelled text is not computed, the three others are answered."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "abcd"]
        await turns()
        tasks[cancelled].cancel()
        await turns()
        assert batcher.queued_rows == 3
        engine.release(2)
        assert await engine.next_call() == [name for name in "abcd" if name != "abcd"[cancelled]]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(cancelled), asyncio.CancelledError)
        assert answers == [[name.upper()] for name in "abcd" if name != "abcd"[cancelled]]


@pytest.mark.parametrize("cancelled", range(4))
async def test_cancelling_a_computing_item_does_not_affect_others(
    cancelled: int,
) -> None:
    """Others in the call are answered, and later requests are served."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "abcd"]
        await turns()
        engine.release()
        assert await engine.next_call() == list("abcd")
        tasks[cancelled].cancel()
        await turns()
        engine.release(2)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(cancelled), asyncio.CancelledError)
        assert answers == [[name.upper()] for name in "abcd" if name != "abcd"[cancelled]]
        assert await submit(batcher, Text("later")) == ["LATER"]


async def test_a_failing_batch_fails_only_its_items() -> None:
    """Every item gets the error, and the next request is served."""

    def answer(items: list[Text]) -> list[str]:
        if any(item.name.startswith("bad") for item in items):
            raise ValueError("cannot compute this")
        return [item.name.upper() for item in items]

    engine = HeldEngine(answer, held=False)
    async with batcher_of(engine) as batcher:
        with pytest.raises(EngineFailed, match="cannot compute this"):
            await submit(batcher, Text("bad one"), Text("bad two"))
        assert await submit(batcher, Text("good")) == ["GOOD"]
        assert batcher.health_problem() is None


@pytest.mark.parametrize("poisoned", range(5))
async def test_one_poisoned_item_is_isolated(poisoned: int) -> None:
    """At any place in the batch it fails alone, and all others are answered."""

    def answer(items: list[Text]) -> list[str]:
        if any(item.name == "abcde"[poisoned] for item in items):
            raise ValueError("poison")
        return [item.name.upper() for item in items]

    engine = HeldEngine(answer)
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "abcde"]
        await turns()
        engine.release(100)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        failure = answers.pop(poisoned)
        assert isinstance(failure, EngineFailed)
        assert "poison" in str(failure)
        assert answers == [[name.upper()] for name in "abcde" if name != "abcde"[poisoned]]


@pytest.mark.parametrize("results", [[], ["X"], ["X", "Y", "Z"]])
async def test_a_wrong_number_of_results_fails_the_batch(
    results: list[str],
) -> None:
    """No item gets the answer of another, and none waits for ever."""
    engine = HeldEngine(lambda items: results if len(items) == 2 else [])
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "ab"]
        await turns()
        engine.release(100)
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(answer, EngineFailed)
            assert "0 results for 1 items" in str(answer)


async def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    """The request beyond the limit is refused with a time to retry; those within it are answered."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(0.1, 0.1 / 8), max_queue_rows=3) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "abc"]
        await turns()
        with pytest.raises(Overloaded, match="3 rows wait, the limit is 3") as refused:
            await submit(batcher, Text("d"))
        assert refused.value.retry_after_s > 0
        engine.release(100)
        assert await asyncio.gather(*tasks) == [["A"], ["B"], ["C"]]
        assert await submit(batcher, Text("e")) == ["E"]


async def test_a_request_larger_than_the_queue_is_refused_whole() -> None:
    """None of its items stays in the queue."""
    engine = HeldEngine()
    async with batcher_of(engine, max_queue_rows=3) as batcher:
        with pytest.raises(InvalidRequest, match="4 rows, the queue takes 3"):
            await submit(batcher, *(Text(name) for name in "abcd"))
        await busy(engine, batcher)
        submit(batcher, Text("a"), Text("b"))
        await turns()
        with pytest.raises(Overloaded):
            await submit(batcher, Text("c"), Text("d"))
        assert batcher.queued_rows == 2


async def test_a_deadline_that_passes_in_the_queue_costs_no_compute() -> None:
    """The client gets the error while the engine is still busy, and the text is never computed."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        late = submit(batcher, Text("late"), deadline_s=time.monotonic() + 0.3)
        other = submit(batcher, Text("other"))
        with pytest.raises(DeadlineExceeded, match="passed before the answer"):
            await late
        assert batcher.queued_rows == 1
        engine.release(100)
        assert await other == ["OTHER"]
        assert engine.calls == [["first"], ["other"]]


async def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused_at_once() -> None:
    """With 1 s of work queued by the measured costs, a deadline in 0.5 s is refused."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(0.1, 0.1 / 8)) as batcher:
        with pytest.raises(DeadlineExceeded, match="passed before the request reached the model"):
            await submit(batcher, Text("a"), deadline_s=time.monotonic() - 1)
        await busy(engine, batcher)
        for name in "abcde":
            submit(batcher, Text(name))
        await turns()
        with pytest.raises(
            DeadlineExceeded,
            match="cannot be met: the work queued before it takes about",
        ):
            await submit(batcher, Text("hasty"), deadline_s=time.monotonic() + 0.5)
        patient = submit(batcher, Text("patient"), deadline_s=time.monotonic() + PATIENCE_S)
        await turns()
        engine.release(100)
        assert await patient == ["PATIENT"]


async def test_an_idle_engine_ignores_the_estimate() -> None:
    """A wrong estimate of 10 s must not refuse every deadline for ever."""
    engine = HeldEngine(held=False)
    costs = linear_costs(10.0, 0.0)
    async with batcher_of(engine, costs=costs) as batcher:
        assert await submit(batcher, Text("a"), deadline_s=time.monotonic() + 1) == ["A"]
        assert costs.estimate(1, 8) < 10.0


async def test_drain_answers_admitted_requests() -> None:
    """Queued work is computed at shutdown; later requests are refused."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        first = await busy(engine, batcher)
        tasks = [submit(batcher, Text(name)) for name in "ab"]
        await turns()
        drained = asyncio.create_task(batcher.drain())
        await turns()
        with pytest.raises(Unavailable, match="shutting down"):
            await submit(batcher, Text("late"))
        assert not drained.done()
        engine.release(100)
        assert await asyncio.gather(first, *tasks) == [["FIRST"], ["A"], ["B"]]
        await asyncio.wait_for(drained, PATIENCE_S)


async def test_long_and_short_texts_have_separate_batches_if_padding_is_computed() -> None:
    """Padded to 64 tokens, texts of 8 would cost eight times as much."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(1e-3, 1e-4)) as batcher:
        await busy(engine, batcher)
        for number in range(3):
            submit(batcher, Text(f"short {number}"))
            submit(batcher, Text(f"long {number}", length=64))
        await turns()
        engine.release(100)
        assert await engine.next_call() == ["short 0", "short 1", "short 2"]
        assert await engine.next_call() == ["long 0", "long 1", "long 2"]


async def test_long_and_short_texts_share_a_batch_if_padding_is_skipped() -> None:
    """All fit into one call, and texts of similar length come first."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(1e-2, 1e-4), skipped_padding_cost=0.2) as batcher:
        await busy(engine, batcher)
        for number in range(2):
            submit(batcher, Text(f"short {number}"))
            submit(batcher, Text(f"long {number}", length=64))
        await turns()
        engine.release(100)
        assert await engine.next_call() == ["short 0", "short 1", "long 0", "long 1"]


async def test_texts_of_other_lengths_stay_out_if_skipped_padding_is_expensive() -> None:
    """An engine that is nearly as slow on padding as on tokens gets texts of equal length only."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(1e-3, 1e-4), skipped_padding_cost=0.9) as batcher:
        await busy(engine, batcher)
        for number in range(2):
            submit(batcher, Text(f"short {number}"))
            submit(batcher, Text(f"long {number}", length=64))
        await turns()
        engine.release(100)
        assert await engine.next_call() == ["short 0", "short 1"]
        assert await engine.next_call() == ["long 0", "long 1"]


async def test_many_short_texts_are_not_padded_to_a_long_one() -> None:
    """Each alone would cost less in the long batch, but together they are cheaper in a batch of their own."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(2e-4, 1e-5), skipped_padding_cost=0.25) as batcher:
        await busy(engine, batcher)
        submit(batcher, Text("long", length=64))
        shorts = [f"short {number}" for number in range(30)]
        for name in shorts:
            submit(batcher, Text(name))
        await turns()
        engine.release(100)
        assert await engine.next_call() == ["long"]
        assert set(await engine.next_call()) <= set(shorts)


async def test_the_oldest_entry_is_in_every_batch() -> None:
    """A stream of short texts does not starve a long one."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(1e-4, 1e-4)) as batcher:
        await busy(engine, batcher)
        submit(batcher, Text("long", length=500))
        for number in range(20):
            submit(batcher, Text(f"short {number}"))
        await turns()
        engine.release(100)
        assert "long" in await engine.next_call()


async def test_a_batch_grows_only_as_far_as_the_costs_justify() -> None:
    """With a large fixed cost batches form; without a fixed cost a batch saves nothing."""
    sizes = {}
    for fixed_s in (0.0, 1e-2):
        engine = HeldEngine()
        costs = CostTable(64, 512)
        for _ in range(300):
            for rows in (1, 2, 4, 8, 16, 32, 64):
                costs.record(rows, 8, fixed_s + 1e-3 * rows)
        async with batcher_of(engine, costs=costs, engine_clock=lambda: 0.0) as batcher:  # not this machine's costs
            await busy(engine, batcher)
            for number in range(32):
                submit(batcher, Text(str(number)))
            await turns()
            engine.release(100)
            sizes[fixed_s] = len(await engine.next_call())
    assert sizes[0.0] == 1
    assert sizes[1e-2] >= 16


async def test_batches_grow_when_trials_correct_the_costs() -> None:
    """A table that overestimates batches is corrected by trials."""
    engine = HeldEngine(held=False)
    costs = CostTable(64, 512, [(rows, 8, 2.1e-3 * rows) for rows in (1, 2, 4, 8, 16, 32, 64)])
    clock = iter(range(10**9))
    ticks_s = 2e-3  # every call takes one tick, whatever its size
    async with batcher_of(engine, costs=costs, engine_clock=lambda: ticks_s * next(clock)) as batcher:
        for _ in range(200):
            await submit(batcher, *(Text(str(number)) for number in range(64)))
        assert max(len(call) for call in engine.calls[:10]) <= 2
        assert max(len(call) for call in engine.calls[-10:]) >= 8


async def test_batches_shrink_when_calls_correct_the_costs() -> None:
    """A table that underestimates batches is corrected by their calls."""
    time_s = 0.0

    def answer(items: list[Text]) -> list[str]:
        nonlocal time_s
        time_s += 1e-3 * len(items) * (1 if len(items) <= 8 else 1.3)
        return [item.name for item in items]

    engine = HeldEngine(answer, held=False)
    async with batcher_of(engine, costs=linear_costs(1e-3, 1e-4), engine_clock=lambda: time_s) as batcher:
        for _ in range(300):
            await submit(batcher, *(Text(str(number)) for number in range(64)))
        assert max(len(call) for call in engine.calls[:4]) >= 16
        calls = engine.calls[-100:]
        assert sum(len(call) <= 8 for call in calls) > 80


async def test_the_limits_of_a_batch_hold() -> None:
    """A call has at most 4 rows and at most 64 padded tokens."""
    engine = HeldEngine(held=False)
    reports: list[BatchStats] = []
    async with batcher_of(engine, max_batch_rows=4, max_batch_tokens=64, on_batch=reports.append) as batcher:
        texts = [Text(str(number), length=8 + number % 9) for number in range(50)]
        assert await submit(batcher, *texts) == [text.name for text in texts]
    assert max(report.rows for report in reports) == 4
    assert max(report.tokens for report in reports) <= 64
    assert sum(report.rows for report in reports) == 50


async def test_items_of_different_groups_never_share_a_call() -> None:
    """Rows of different shapes cannot be stacked."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(1e-2, 1e-5)) as batcher:
        await busy(engine, batcher)
        for name in "axbxcx":
            submit(batcher, Text(name, batch_key=name == "x"))
        await turns()
        engine.release(100)
        assert await engine.next_call() == ["a", "b", "c"]
        assert await engine.next_call() == ["x", "x", "x"]


async def test_a_request_of_many_items_keeps_their_order_across_batches() -> None:
    """The results have the order of the items."""
    engine = HeldEngine(held=False)
    async with batcher_of(engine, max_batch_rows=7, costs=linear_costs(1e-3, 1e-5)) as batcher:
        texts = [Text(f"t{number}", length=5 + (number * 37) % 60) for number in range(100)]
        assert await submit(batcher, *texts) == [f"T{number}" for number in range(100)]
        assert len(engine.calls) >= 100 / 7


async def test_idle_instances_share_waiting_rows() -> None:
    """With two rows and two idle instances each gets one row."""
    engine = HeldEngine()
    async with batcher_of(engine, instances=2) as batcher:
        tasks = [submit(batcher, Text(name)) for name in "ab"]
        assert sorted([await engine.next_call(), await engine.next_call()]) == [
            ["a"],
            ["b"],
        ]
        engine.release(2)
        assert await asyncio.gather(*tasks) == [["A"], ["B"]]


def quick_costs() -> CostTable:
    """Make a cost table of an engine whose calls take a hundredth of a thread switch."""
    return linear_costs(HAND_OVER_S / 1000, HAND_OVER_S / 100_000)


def made_here(engine: HeldEngine) -> bool:
    """Return whether the last call ran in the event loop's thread."""
    return engine.threads[-1] == threading.get_ident()


async def test_a_quick_batch_proves_its_items_quick() -> None:
    """A batch that takes less than a thread switch shows that each of its items does too."""
    engine = HeldEngine()
    options = {"cost_follows_from_shapes": True, "engine_clock": lambda: 0.0}
    async with batcher_of(engine, costs=quick_costs(), **options) as batcher:
        await busy(engine, batcher)
        tasks = [submit(batcher, Text("a")) for _ in range(32)]
        await turns()
        engine.release(100)
        await asyncio.gather(*tasks)
        assert max(map(len, engine.calls)) > 1
        assert await submit(batcher, Text("a")) == ["A"]
        assert made_here(engine)


async def test_a_quick_lone_call_runs_in_the_event_loop() -> None:
    """This begins after sixteen calls of exactly its size took less than a thread switch."""
    engine = HeldEngine(held=False)
    options = {"cost_follows_from_shapes": True, "engine_clock": lambda: 0.0}
    async with batcher_of(engine, costs=quick_costs(), **options) as batcher:
        for _ in range(16):
            assert await submit(batcher, Text("a")) == ["A"]
            assert not made_here(engine)
        assert await submit(batcher, Text("b", length=16)) == ["B"]
        assert not made_here(engine), "the first call of a size allocates"
        assert await submit(batcher, Text("c", batch_key="another shape")) == ["C"]
        assert not made_here(engine)
        assert await submit(batcher, Text("a")) == ["A"]
        assert made_here(engine)


@pytest.mark.parametrize(
    ("follows", "takes_s"),
    [(False, 0.0), (True, 1.5 * QUICK_IN_THREAD_S)],
    ids=["a value may decide", "measured otherwise"],
)
async def test_a_call_that_may_be_long_never_runs_in_the_event_loop(follows: bool, takes_s: float) -> None:
    """It would block all other requests, however short the calls before it were."""
    engine, clock = HeldEngine(held=False), iter(range(10**9))
    options = {"cost_follows_from_shapes": follows, "engine_clock": lambda: takes_s * next(clock)}
    async with batcher_of(engine, costs=quick_costs(), **options) as batcher:
        for _ in range(40):
            await submit(batcher, Text("a"))
            assert not made_here(engine)


async def test_a_slow_call_in_the_event_loop_ends_the_shortcut() -> None:
    """Calls of its size must prove quick again in the engine thread."""
    slow: list[bool] = []

    def answer(items: list[Text]) -> list[str]:
        began_s = time.monotonic()
        while slow and time.monotonic() - began_s < 2 * MAX_ON_THE_SPOT_S:
            pass
        return [item.name for item in items]

    engine = HeldEngine(answer, held=False)
    options = {"cost_follows_from_shapes": True, "engine_clock": lambda: 0.0}
    async with batcher_of(engine, costs=quick_costs(), **options) as batcher:
        for _ in range(17):
            await submit(batcher, Text("a"))
        slow.append(made_here(engine))
        await submit(batcher, Text("a"))
        assert slow == [True]
        slow.clear()
        for _ in range(16):
            await submit(batcher, Text("a"))
            assert not made_here(engine)


class EndlessEngine:
    """An engine whose calls for "endless" end only when they are terminated, as ONNX Runtime's do."""

    def __init__(self) -> None:
        self.began, self.preemption = threading.Semaphore(0), Preemption()
        self.calls: list[list[str]] = []

    def run(self, items: list[Text]) -> list[str]:
        """Compute one batch."""
        self.calls.append([item.name for item in items])

        def compute(stop: StopFlag | None) -> list[str]:
            self.began.release()
            until_s = time.monotonic() + PATIENCE_S
            while any(item.name == "endless" for item in items):
                assert time.monotonic() < until_s
                if stop is not None and stop.terminate:
                    raise RuntimeError("Exiting due to terminate flag")
                time.sleep(1e-4)
            return [item.name.upper() for item in items]

        return self.preemption.run_preemptible(compute, StopFlag)

    async def next_call(self) -> None:
        """Wait for the next call to begin."""
        assert await asyncio.to_thread(self.began.acquire, timeout=PATIENCE_S)


@contextlib.asynccontextmanager
async def endless_batcher(
    engine: EndlessEngine, engine_timeout_s: float = PATIENCE_S
) -> AsyncIterator[tuple[Batcher, SchedulingTally]]:
    """Make a batcher with this engine, and its counters; the engine's probe succeeds."""
    tally, limits = SchedulingTally(), BatcherLimits(engine_timeout_s=engine_timeout_s)
    batcher = Batcher(
        engine.run,
        probe=lambda: None,
        costs=CostTable(64, 512),
        preemption=engine.preemption,
        limits=limits,
        tally=tally,
    )
    try:
        yield batcher, tally
    finally:
        batcher.close()


@pytest.mark.parametrize(
    ("ends", "low"), [("cancelled", False), ("cancelled", True), ("deadline", False)], ids=["left", "low", "deadline"]
)
async def test_an_abandoned_call_is_terminated(ends: str, low: bool) -> None:
    """Its caller is answered at the deadline, its items are not retried, and the instance is free again."""
    engine, asking = EndlessEngine(), submit_low if low else submit
    async with endless_batcher(engine) as (batcher, tally):
        deadline_s = time.monotonic() + 1.0 if ends == "deadline" else None
        task = asking(batcher, Text("endless"), Text("a"), deadline_s=deadline_s)
        await engine.next_call()
        if ends == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(DeadlineExceeded):
                await task
        assert await asyncio.wait_for(asking(batcher, Text("next")), PATIENCE_S) == ["NEXT"]
        assert engine.calls[0][0] == "endless"
        assert engine.calls[1:] == [["next"]]
        assert batcher.health_problem() is None
        assert tally.terminated == {"abandoned": 1, "overdue": 0}
        assert tally.rows_in_vain == len(engine.calls[0])


async def test_a_call_with_a_remaining_caller_is_not_terminated() -> None:
    """One of two callers leaves, the other is answered."""
    engine = HeldEngine()
    tally = SchedulingTally()
    async with batcher_of(engine, costs=linear_costs(1e-2, 1e-5), tally=tally) as batcher:
        await busy(engine, batcher)
        leaving, staying = submit(batcher, Text("leaving")), submit(batcher, Text("staying"))
        await turns()
        engine.release()
        assert await engine.next_call() == ["leaving", "staying"]
        leaving.cancel()
        await turns()
        engine.release()
        assert await staying == ["STAYING"]
        assert tally.terminated == {"abandoned": 0, "overdue": 0}
        assert tally.rows_in_vain == 1


async def test_a_call_beyond_the_engine_timeout_is_terminated() -> None:
    """Its callers get the reason, the next request is answered, and the server stays ready."""
    engine = EndlessEngine()
    async with endless_batcher(engine, engine_timeout_s=0.2) as (batcher, tally):
        with pytest.raises(EngineFailed, match=r"took longer than 0\.2 s \(engine_timeout_s\)"):
            await submit(batcher, Text("endless"))
        assert await submit(batcher, Text("next")) == ["NEXT"]
        assert batcher.health_problem() is None
        assert tally.terminated == {"abandoned": 0, "overdue": 1}


class EndsThread(BaseException):
    """An exception that no engine raises; it ends its thread."""


async def test_an_engine_thread_that_ends_fails_all_requests() -> None:
    """Waiting and later requests are refused with the reason."""
    engine, others = HeldEngine(), threading.enumerate()
    async with batcher_of(engine) as batcher:
        running = await busy(engine, batcher)
        waiting = submit(batcher, Text("waiting"))
        await turns()
        (own,) = [thread for thread in threading.enumerate() if thread not in others]
        raise_in(own, EndsThread)
        engine.held = False
        engine.release()
        for task in (running, waiting, submit(batcher, Text("later"))):
            with pytest.raises(Unavailable, match="EndsThread"):
                await asyncio.wait_for(task, PATIENCE_S)
        assert "EndsThread" in (batcher.health_problem() or "")
        assert (batcher.queued_rows, batcher.in_flight_rows) == (0, 0)


async def test_an_idle_engine_thread_that_ended_fails_the_next_request() -> None:
    """The request that wakes it is not lost."""
    engine, others = HeldEngine(held=False), threading.enumerate()
    async with batcher_of(engine) as batcher:
        (own,) = [thread for thread in threading.enumerate() if thread not in others]
        raise_in(own, EndsThread)  # it is raised when the thread next runs Python
        with pytest.raises(Unavailable, match="EndsThread"):
            await asyncio.wait_for(submit(batcher, Text("a")), PATIENCE_S)
        assert "EndsThread" in (batcher.health_problem() or "")


async def test_a_dead_engine_fails_all_requests() -> None:
    """If the probe fails as well, waiting and later requests are refused."""

    def answer(items: list[Text]) -> list[str]:
        raise RuntimeError("illegal memory access")

    engine = HeldEngine(answer)
    engine.sound = False
    async with batcher_of(engine, max_batch_rows=1) as batcher:
        running = submit(batcher, Text("running"))
        await engine.next_call()
        waiting = submit(batcher, Text("waiting"))
        await turns()
        engine.release()
        for task in (running, waiting, submit(batcher, Text("later"))):
            with pytest.raises(Unavailable, match="device lost"):
                await task
        assert batcher.health_problem() == "RuntimeError: device lost"
        assert batcher.queued_rows == 0


async def test_an_engine_call_that_hangs_is_a_health_problem() -> None:
    """This begins at the engine's time limit."""
    engine = HeldEngine()
    async with batcher_of(engine, engine_timeout_s=1e-9) as batcher:
        assert batcher.health_problem() is None
        task = await busy(engine, batcher)
        assert "has not returned" in (batcher.health_problem() or "")
        engine.release()
        await task
        assert batcher.health_problem() is None


async def test_an_idle_batcher_uses_no_cpu() -> None:
    """Two instances are waiting."""
    others = threading.enumerate()
    engine = HeldEngine(held=False)
    async with batcher_of(engine, instances=2) as batcher:
        await submit(batcher, Text("a"))
        own = [thread for thread in threading.enumerate() if thread not in others]
        assert len(own) == 2
        await assert_idle(own)


async def test_queue_and_batch_are_reported() -> None:
    """Waiting rows, computing rows and padding add up."""
    engine = HeldEngine()
    reports: list[BatchStats] = []
    async with batcher_of(engine, on_batch=reports.append) as batcher:
        await busy(engine, batcher)
        task = submit(batcher, Text("a", length=4), Text("b", length=6))
        await turns()
        assert (batcher.queued_rows, batcher.in_flight_rows) == (2, 1)
        engine.release(2)
        await task
        assert (batcher.queued_rows, batcher.in_flight_rows) == (0, 0)
    assert (reports[-1].rows, reports[-1].tokens, reports[-1].padded_tokens) == (
        2,
        12,
        2,
    )


async def test_ordinary_requests_are_computed_before_low_priority() -> None:
    """An ordinary request that comes last is computed first, and the others in their order."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        first = await busy(engine, batcher)
        low = submit_low(batcher, Text("low 1"), Text("low 2"))
        await turns()
        late = submit(batcher, Text("late"))
        await turns()
        assert (batcher.queued_rows, batcher.queued_low_rows) == (1, 2)
        engine.release(100)
        assert await engine.next_call() == ["late"]
        assert await asyncio.gather(first, late, low) == [["FIRST"], ["LATE"], ["LOW 1", "LOW 2"]]
        assert batcher.queued_low_rows == 0


async def test_an_ordinary_request_does_not_wait_for_a_call_of_low_priority() -> None:
    """Low-priority calls have bounded rows, and the ordinary call runs beside them."""
    engine = HeldEngine()
    per_row_s = LOW_PRIORITY_CALL_S / 10
    async with batcher_of(engine, costs=linear_costs(per_row_s, per_row_s / 8)) as batcher:
        submit_low(batcher, *(Text(f"low {number}") for number in range(100)))
        assert 2 <= len(await engine.next_call()) <= 9  # the call itself has a cost too
        ordinary = submit(batcher, Text("ordinary"))
        assert await engine.next_call() == ["ordinary"]
        engine.release(2)
        assert await ordinary == ["ORDINARY"]
        assert (await engine.next_call())[0].startswith("low")


async def test_an_expensive_row_of_low_priority_is_computed_alone() -> None:
    """So is every row while costs are unknown; otherwise a call stays within the bound."""
    for costs in (linear_costs(1.0, 1.0), CostTable(64, 512)):
        engine = HeldEngine(held=False)
        async with batcher_of(engine, costs=costs) as batcher:
            assert await submit_low(batcher, Text("a"), Text("b"), Text("c")) == ["A", "B", "C"]
        assert engine.calls[:2] == [["a"], ["b"]]
    for first, others in ((80, 8), (8, 80)):
        engine = HeldEngine(held=False)
        per_token_s = LOW_PRIORITY_CALL_S / 100
        costs = linear_costs(20 * per_token_s, per_token_s)
        async with batcher_of(engine, costs=costs, skipped_padding_cost=0.2) as batcher:
            texts = [Text(str(number), length=others if number else first) for number in range(20)]
            await submit_low(batcher, *texts)
        assert engine.calls[0] == ["0"]


async def test_low_priority_never_takes_the_last_idle_instance() -> None:
    """It gets two of three instances; a single instance it may use."""
    engine = HeldEngine()
    async with batcher_of(engine, instances=3) as batcher:
        low = [submit_low(batcher, Text(f"low {number}")) for number in range(4)]
        assert sorted([await engine.next_call(), await engine.next_call()]) == [["low 0"], ["low 1"]]
        await turns()
        assert batcher.in_flight_rows == 2
        ordinary = submit(batcher, Text("ordinary"))
        assert await engine.next_call() == ["ordinary"]
        engine.release(100)
        assert await ordinary == ["ORDINARY"]
        assert await asyncio.gather(*low) == [[f"LOW {number}"] for number in range(4)]


async def test_low_priority_has_a_bounded_queue_of_its_own() -> None:
    """A full low-priority queue does not block ordinary requests, nor the other way round."""
    engine = HeldEngine()
    async with batcher_of(engine, max_queue_rows=2) as batcher:
        first = await busy(engine, batcher)
        low = submit_low(batcher, Text("low 1"), Text("low 2"))
        await turns()
        with pytest.raises(Overloaded, match="2 rows wait, the limit is 2"):
            await submit_low(batcher, Text("low 3"))
        ordinary = submit(batcher, Text("a"), Text("b"))
        await turns()
        with pytest.raises(Overloaded):
            await submit(batcher, Text("c"))
        engine.release(100)
        assert await asyncio.gather(first, ordinary, low) == [["FIRST"], ["A", "B"], ["LOW 1", "LOW 2"]]


async def test_low_priority_items_can_be_cancelled_and_expire() -> None:
    """They cost no compute, and others are not affected."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        first = await busy(engine, batcher)
        cancelled = submit_low(batcher, Text("cancelled"))
        late = submit_low(batcher, Text("late"), deadline_s=time.monotonic() + 0.3)
        kept = submit_low(batcher, Text("kept"))
        await turns()
        cancelled.cancel()
        await turns()
        with pytest.raises(DeadlineExceeded, match="passed before the answer"):
            await late
        assert batcher.queued_low_rows == 1
        engine.release(100)
        assert await asyncio.gather(first, kept) == [["FIRST"], ["KEPT"]]
        assert engine.calls == [["first"], ["kept"]]


async def test_a_deadline_of_low_priority_that_cannot_be_met_is_refused_at_once() -> None:
    """The estimate includes ordinary work and low-priority work before it."""
    engine = HeldEngine()
    async with batcher_of(engine, costs=linear_costs(0.1, 0.1 / 8)) as batcher:
        await busy(engine, batcher)
        for name in "abc":
            submit(batcher, Text(name))
            submit_low(batcher, Text(name))
        await turns()
        with pytest.raises(DeadlineExceeded, match="cannot be met"):
            await submit_low(batcher, Text("hasty"), deadline_s=time.monotonic() + 0.9)
        submit(batcher, Text("ordinary"), deadline_s=time.monotonic() + 1.4)
        await turns()
        assert batcher.queued_rows == 4


async def test_a_poisoned_item_of_low_priority_is_isolated() -> None:
    """It fails alone, and the rest of its batch is answered."""

    def answer(items: list[Text]) -> list[str]:
        if any(item.name == "poison" for item in items):
            raise ValueError("poison")
        return [item.name.upper() for item in items]

    engine = HeldEngine(answer)
    async with batcher_of(engine, costs=linear_costs(1e-4, 1e-6)) as batcher:
        await busy(engine, batcher)
        tasks = [submit_low(batcher, Text(name)) for name in ("a", "poison", "b")]
        await turns()
        engine.release(100)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(1), EngineFailed)
        assert answers == [["A"], ["B"]]
        assert ["a", "poison", "b"] in engine.calls


async def test_drain_and_a_dead_engine_apply_to_low_priority() -> None:
    """Admitted requests are answered, later ones are refused; a dead engine fails waiting ones."""
    engine = HeldEngine()
    async with batcher_of(engine) as batcher:
        await busy(engine, batcher)
        low = submit_low(batcher, Text("low"))
        await turns()
        drained = asyncio.create_task(batcher.drain())
        await turns()
        with pytest.raises(Unavailable, match="shutting down"):
            await submit_low(batcher, Text("late"))
        assert not drained.done()
        engine.release(100)
        assert await low == ["LOW"]
        await asyncio.wait_for(drained, PATIENCE_S)

    def dying(items: list[Text]) -> list[str]:
        raise RuntimeError("illegal memory access")

    engine = HeldEngine(dying)
    engine.sound = False
    async with batcher_of(engine) as batcher:
        first = await busy(engine, batcher)
        low = submit_low(batcher, Text("low"))
        await turns()
        engine.release()
        for task in (first, low, submit_low(batcher, Text("later"))):
            with pytest.raises(Unavailable, match="device lost"):
                await task
        assert batcher.queued_low_rows == 0
        assert engine.calls == [["first"]]


async def test_an_engine_thread_that_is_killed_is_found_by_the_watchdog() -> None:
    """The system may end a thread without running its cleanup; two seconds suffice to notice."""

    def vanish(items: list[Text]) -> list[str]:
        ctypes.CDLL(None).pthread_exit(None)
        raise AssertionError

    engine = HeldEngine(vanish, held=False)
    async with batcher_of(engine, watchdog=Watchdog()) as batcher:
        with pytest.raises(Unavailable, match="the thread is gone"):
            await asyncio.wait_for(submit(batcher, Text("a")), PATIENCE_S)
        assert "the thread is gone" in (batcher.health_problem() or "")
