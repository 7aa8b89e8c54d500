"""The guarantees of the continuous batcher, with a decoder that the test controls."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from service.engines.preemption import Preemption
from service.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded, Unavailable
from service.scheduling.admission import BatchStats
from service.scheduling.continuous_batcher import LOW_PRIORITY_STEP_S, ContinuousBatcher, InFlightLimits
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import LOW_PRIORITY_JOINING_TOKENS, PREFILL_TOKENS_PER_STEP
from service.telemetry.metrics import SchedulingTally
from tests.service.idle import assert_idle
from tests.service.stoppable import StopFlag, raise_in

PATIENCE_S = 10.0  # only a failing test waits this long


class Sentence:
    """A sentence that is done after `steps` steps; its tokens are their numbers."""

    def __init__(self, name: str, steps: int = 1, rows: int = 1, length: int = 4) -> None:
        self.name, self.steps, self.rows, self.length, self.max_steps = name, steps, rows, length, 1000
        self.so_far: list[int] = []

    @property
    def done(self) -> bool:
        """Whether all tokens are there."""
        return len(self.so_far) >= self.steps

    def restart(self) -> None:
        """Forget all tokens."""
        self.so_far = []


def spend(seconds: float) -> None:
    """Use CPU time."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + seconds:
        pass


class HeldDecoder:
    """A decoder whose steps wait until the test releases them, unless it runs free."""

    def __init__(self, held: bool = True, poison: Callable[[list[str]], bool] = lambda names: False) -> None:
        self.held, self.poison = held, poison
        self.preemption = Preemption()
        self.takes_s = 0.0  # CPU time of a step
        self.refused = ""  # the name of a sentence that cannot be encoded
        self.joins: list[list[str]] = []
        self.steps: list[list[str]] = []
        self.sound = True
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Queue[list[str]] = asyncio.Queue()
        self._permits = threading.Semaphore(0)

    def open(self) -> "HeldBatches":
        """Create an empty running batch."""
        return HeldBatches(self)

    def probe(self) -> None:
        """Raise if the engine is broken."""
        if not self.sound:
            raise RuntimeError("device lost")

    def step(self, sentences: list[Sentence]) -> None:
        """A step of one running batch."""
        names = [sentence.name for sentence in sentences]
        self.steps.append(names)
        if self.held:
            self._loop.call_soon_threadsafe(self._started.put_nowait, names)
            assert self._permits.acquire(timeout=PATIENCE_S)
        if self.takes_s:
            self.preemption.compute(spend, self.takes_s)
        if self.poison(names):
            raise RuntimeError("not a number")
        for sentence in sentences:
            sentence.so_far.append(len(sentence.so_far))

    async def next_step(self) -> list[str]:
        """Wait for the next step to begin; return its sentences."""
        return await asyncio.wait_for(self._started.get(), PATIENCE_S)

    def release(self, steps: int = 1) -> None:
        """Let this many steps return."""
        self._permits.release(steps)


class HeldBatches:
    """The running sentences of one thread."""

    def __init__(self, decoder: HeldDecoder) -> None:
        self._decoder = decoder
        self._sentences: list[Sentence] = []

    def join(self, sentences: Sequence[Sentence]) -> None:
        """Add all sentences, or none."""
        self._decoder.joins.append([sentence.name for sentence in sentences])
        if any(sentence.name == self._decoder.refused for sentence in sentences):
            raise RuntimeError("cannot be read")
        self._sentences += sentences

    def step(self) -> None:
        """One token more."""
        self._decoder.step(self._sentences)

    def leave(self, sentence: Sentence) -> None:
        """Free the sentence's rows."""
        self._sentences.remove(sentence)


@contextlib.asynccontextmanager
async def batcher_of(decoder: HeldDecoder, **options: Any) -> AsyncIterator[ContinuousBatcher]:
    """Make a batcher with this decoder and these limits."""
    names = InFlightLimits.__dataclass_fields__
    limits = InFlightLimits(**{name: options.pop(name) for name in list(options) if name in names})
    costs = options.pop("costs", None) or CostTable(64, 2)
    batcher = ContinuousBatcher(
        decoder.open, probe=decoder.probe, costs=costs, preemption=decoder.preemption, limits=limits, **options
    )
    try:
        yield batcher
    finally:
        decoder.release(1000)
        batcher.close()


def submit(
    batcher: ContinuousBatcher, *sentences: Sentence, deadline_s: float | None = None, on_tokens: Any = None
) -> asyncio.Task[list[str]]:
    """Submit the sentences as one request; the task returns their names."""

    async def results() -> list[str]:
        done = await batcher.submit(sentences, deadline_s, on_tokens)
        assert all(entry.result.done for entry in done)
        return [entry.result.name for entry in done]

    return asyncio.create_task(results())


def submit_low(
    batcher: ContinuousBatcher, *sentences: Sentence, deadline_s: float | None = None
) -> asyncio.Task[list[str]]:
    """Submit at low priority."""

    async def results() -> list[str]:
        return [entry.result.name for entry in await batcher.submit_low(sentences, deadline_s)]

    return asyncio.create_task(results())


async def turns(count: int = 5) -> None:
    """Let the event loop run everything that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def steady_costs(seconds: float) -> CostTable:
    """Make a cost table whose steps take a constant time for any number of rows."""
    return CostTable(64, 2, [(rows, 1, seconds) for rows in (1, 2, 4, 8, 16, 32, 64)])


async def test_sentences_join_and_leave_between_steps() -> None:
    """A short sentence that comes later is answered before a long one that came first."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        long = submit(batcher, Sentence("long", steps=4))
        assert await decoder.next_step() == ["long"]
        short = submit(batcher, Sentence("short", steps=1))
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["long", "short"]
        decoder.release()
        assert await asyncio.wait_for(short, PATIENCE_S) == ["short"]
        assert not long.done()
        assert await decoder.next_step() == ["long"]
        decoder.release(2)
        assert await asyncio.wait_for(long, PATIENCE_S) == ["long"]
    assert decoder.steps == [["long"], ["long", "short"], ["long"], ["long"]]


async def test_a_request_may_have_several_sentences() -> None:
    """The results have the order of the sentences."""
    decoder = HeldDecoder(held=False)
    async with batcher_of(decoder) as batcher:
        names = await submit(batcher, Sentence("a", steps=5), Sentence("b", steps=1), Sentence("c", steps=3))
        assert names == ["a", "b", "c"]


async def test_a_full_batch_makes_others_wait() -> None:
    """Beyond `max_running_rows` the oldest waits for free rows, and no other sentence overtakes it."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_running_rows=4) as batcher:
        first = submit(batcher, Sentence("beams", steps=2, rows=3))
        assert await decoder.next_step() == ["beams"]
        wide, narrow = submit(batcher, Sentence("wide", rows=3)), submit(batcher, Sentence("narrow"))
        await turns()
        assert batcher.queued_rows == 4
        decoder.release()
        assert await decoder.next_step() == ["beams"]
        decoder.release()
        assert (await decoder.next_step())[0] == "wide"
        decoder.release(2)
        await asyncio.gather(first, wide, narrow)


async def test_the_next_joins_as_soon_as_rows_are_free() -> None:
    """A thread keeps a sentence or two in reserve, so no step has unused rows."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_running_rows=4) as batcher:
        first = submit(batcher, Sentence("first", steps=2, rows=4))
        await decoder.next_step()
        others = [submit(batcher, Sentence(name)) for name in ("next", "last")]
        await turns()
        assert batcher.queued_rows == 1
        decoder.release()
        await decoder.next_step()
        decoder.release()
        assert (await decoder.next_step())[0] == "next"
        decoder.release(10)
        await asyncio.gather(first, *others)
    assert decoder.steps[2][0] == "next"


async def test_joining_sentences_do_not_block_running_ones() -> None:
    """Between two steps a bounded number of tokens is encoded; the rest joins later."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        running = submit(batcher, Sentence("running", steps=3))
        await decoder.next_step()
        long = [submit(batcher, Sentence(name, steps=1, length=PREFILL_TOKENS_PER_STEP // 2 + 1)) for name in "ab"]
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["running", "a"]
        decoder.release()
        assert await decoder.next_step() == ["running", "b"]
        decoder.release()
        await asyncio.gather(running, *long)


async def test_a_cancelled_sentence_frees_its_row_at_the_next_step() -> None:
    """This holds for running and waiting sentences; others go on."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_running_rows=2) as batcher:
        tasks = {"keep": submit(batcher, Sentence("keep", steps=6))}
        assert await decoder.next_step() == ["keep"]
        tasks |= {name: submit(batcher, Sentence(name, steps=3)) for name in ("drop", "wait", "next")}
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["keep", "drop"]
        tasks["drop"].cancel()
        tasks["wait"].cancel()
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["keep"]
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["keep", "next"]
        decoder.release(10)
        assert await asyncio.wait_for(tasks["keep"], PATIENCE_S) == ["keep"]
        assert await asyncio.wait_for(tasks["next"], PATIENCE_S) == ["next"]
        assert tasks["drop"].cancelled()
        assert tasks["wait"].cancelled()
        assert batcher.queued_rows == batcher.in_flight_rows == 0


async def test_an_expired_sentence_frees_its_row() -> None:
    """A deadline that passes during decoding ends the sentence."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        late = submit(batcher, Sentence("late", steps=50), deadline_s=time.monotonic() + 0.5)
        await decoder.next_step()
        with pytest.raises(DeadlineExceeded, match="before the answer was computed"):
            await asyncio.wait_for(late, PATIENCE_S)
        following = submit(batcher, Sentence("following"))
        await turns()
        decoder.release()
        assert await decoder.next_step() == ["following"]
        decoder.release()
        await following


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """The estimate uses the expected steps for a length and the work queued before."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, costs=steady_costs(0.01), max_running_rows=1) as batcher:
        running = submit(batcher, Sentence("running", length=20))
        await decoder.next_step()
        with pytest.raises(DeadlineExceeded, match="its own about 1200 ms"):
            await submit(batcher, Sentence("long", length=100), deadline_s=time.monotonic() + 1)
        waiting = [submit(batcher, Sentence(f"w{number}", length=20)) for number in range(3)]
        await turns()
        with pytest.raises(DeadlineExceeded, match="the work queued before it"):
            await submit(batcher, Sentence("short", length=4), deadline_s=time.monotonic() + 0.2)
        with pytest.raises(DeadlineExceeded, match="before the request reached the model"):
            await submit(batcher, Sentence("short"), deadline_s=time.monotonic() - 1)
        decoder.release(100)
        await asyncio.gather(running, *waiting)


async def test_an_idle_engine_ignores_the_estimate() -> None:
    """Wrong estimates of 1 s a step or 100 steps must not refuse every deadline for ever."""
    decoder = HeldDecoder()
    decoder.release(2)
    async with batcher_of(decoder, costs=steady_costs(1.0)) as batcher:
        assert await submit(batcher, Sentence("a", steps=2, length=100), deadline_s=time.monotonic() + 10) == ["a"]


async def test_a_full_queue_refuses_at_once() -> None:
    """The error says when to retry; a request that can never fit is an invalid request."""
    decoder = HeldDecoder()
    async with batcher_of(
        decoder, costs=steady_costs(0.01), max_running_rows=1, max_queue_rows=2, name="de/1"
    ) as batcher:
        running = submit(batcher, Sentence("running"))
        await decoder.next_step()
        waiting = [submit(batcher, Sentence(name)) for name in "ab"]
        await turns()
        with pytest.raises(Overloaded, match="the queue of de/1 is full: 2 rows wait, the limit is 2") as refusal:
            await submit(batcher, Sentence("c"))
        assert refusal.value.retry_after_s > 0
        with pytest.raises(InvalidRequest, match="3 rows, the queue takes 2"):
            await submit(batcher, *(Sentence(name) for name in "xyz"))
        with pytest.raises(InvalidRequest, match="a sentence has 2 rows, a running batch 1"):
            await submit(batcher, Sentence("wide", rows=2))
        decoder.release(100)
        await asyncio.gather(running, *waiting)


async def test_a_failing_step_fails_only_its_cause() -> None:
    """The others are decoded again alone, with the same results, and batches continue afterwards."""
    decoder = HeldDecoder(held=False, poison=lambda names: "bad" in names)
    async with batcher_of(decoder) as batcher:
        tasks = {name: submit(batcher, Sentence(name, steps=3)) for name in ("a", "bad", "b")}
        done, _ = await asyncio.wait(tasks.values(), timeout=PATIENCE_S)
        assert len(done) == 3
        assert await tasks["a"] == ["a"]
        assert await tasks["b"] == ["b"]
        with pytest.raises(EngineFailed, match="failed on this input: not a number"):
            await tasks["bad"]
        assert await submit(batcher, Sentence("after", steps=2)) == ["after"]
        assert batcher.health_problem() is None
        assert batcher.in_flight_rows == 0


async def test_a_sentence_that_cannot_be_encoded_fails_alone() -> None:
    """The others that were to join with it join without it."""
    decoder = HeldDecoder(held=False)
    decoder.refused = "bad"
    async with batcher_of(decoder) as batcher:
        tasks = {name: submit(batcher, Sentence(name, steps=2)) for name in ("a", "bad", "b")}
        with pytest.raises(EngineFailed, match="cannot be read"):
            await tasks["bad"]
        assert await asyncio.gather(tasks["a"], tasks["b"]) == [["a"], ["b"]]


async def test_a_dead_engine_gets_no_more_calls() -> None:
    """Its thread ends, and a sentence that it was given meanwhile fails like the others."""
    decoder = HeldDecoder(poison=lambda names: True)
    decoder.sound = False
    async with batcher_of(decoder, name="dying") as batcher:
        (thread,) = [each for each in threading.enumerate() if each.name == "dying-0"]
        first = submit(batcher, Sentence("first"))
        await decoder.next_step()
        second = submit(batcher, Sentence("second"))
        await turns()
        decoder.release()
        for task in (first, second):
            with pytest.raises(Unavailable, match="device lost"):
                await task
        await asyncio.to_thread(thread.join, PATIENCE_S)
        assert (thread.is_alive(), decoder.steps) == (False, [["first"]])


@pytest.mark.parametrize("refused", ["", "a"])
async def test_a_dead_engine_fails_all_requests(refused: str) -> None:
    """Running and waiting sentences fail, and later requests are refused."""
    decoder = HeldDecoder(held=False, poison=lambda names: True)
    decoder.sound, decoder.refused = False, refused
    async with batcher_of(decoder, max_running_rows=1) as batcher:
        tasks = [submit(batcher, Sentence(name)) for name in "ab"]
        for task in tasks:
            with pytest.raises(Unavailable, match="device lost"):
                await asyncio.wait_for(task, PATIENCE_S)
        assert "device lost" in (batcher.health_problem() or "")
        with pytest.raises(Unavailable, match="device lost"):
            await submit(batcher, Sentence("late"))
        assert batcher.in_flight_rows == batcher.queued_rows == 0
        await batcher.drain()


async def test_a_decoder_that_cannot_start_fails_all_requests() -> None:
    """An example is missing memory for its cache."""
    decoder = HeldDecoder(held=False)

    def no_memory() -> HeldBatches:
        raise MemoryError("no room for the cache")

    batcher = ContinuousBatcher(no_memory, probe=decoder.probe, costs=CostTable(64, 2), preemption=decoder.preemption)
    with pytest.raises(Unavailable, match="no room for the cache"):
        await asyncio.wait_for(submit(batcher, Sentence("a")), PATIENCE_S)
    assert "no room" in (batcher.health_problem() or "")
    batcher.close()


async def test_a_step_that_hangs_is_a_health_problem() -> None:
    """It begins after `engine_timeout_s` and ends when the step returns."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, engine_timeout_s=0.0) as batcher:
        running = submit(batcher, Sentence("running"))
        await decoder.next_step()
        assert "has not returned" in (batcher.health_problem() or "")
        decoder.release()
        await running


async def test_drain_answers_admitted_requests() -> None:
    """Later requests are refused."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_running_rows=1) as batcher:
        tasks = [submit(batcher, Sentence(name, steps=2)) for name in "ab"]
        await decoder.next_step()
        draining = asyncio.create_task(batcher.drain())
        await turns()
        with pytest.raises(Unavailable, match="shutting down"):
            await submit(batcher, Sentence("late"))
        assert not draining.done()
        decoder.release(10)
        assert await asyncio.gather(*tasks) == [["a"], ["b"]]
        await asyncio.wait_for(draining, PATIENCE_S)


async def test_tokens_are_reported_step_by_step() -> None:
    """Each report has the tokens so far of an unfinished sentence; the result has the rest."""
    decoder = HeldDecoder()
    told: list[tuple[int, list[int]]] = []
    async with batcher_of(decoder) as batcher:
        task = submit(
            batcher,
            Sentence("a", steps=3),
            Sentence("b", steps=2),
            on_tokens=lambda number, ids: told.append((number, ids)),
        )
        decoder.release(3)
        await task
    assert told == [(0, [0]), (1, [0]), (0, [0, 1])]


async def test_sentences_go_to_the_thread_with_the_fewest_rows() -> None:
    """Threads share the load."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, instances=2) as batcher:
        tasks = [submit(batcher, Sentence(name, steps=3, rows=rows)) for name, rows in (("a", 3), ("b", 1), ("c", 1))]
        decoder.release(10)
        await asyncio.gather(*tasks)
    assert ["b", "c"] in decoder.steps
    assert all(names == ["a"] for names in decoder.steps if "a" in names)


async def test_every_step_is_reported() -> None:
    """The metrics get the rows of each step, and each sentence those of its own steps."""
    decoder = HeldDecoder(held=False)
    reports: list[BatchStats] = []
    async with batcher_of(decoder, on_batch=reports.append) as batcher:
        (done,) = await batcher.submit([Sentence("beams", steps=3, rows=4)])
        await turns()
    assert [report.rows for report in reports] == [4, 4, 4]
    assert done.batch.rows == 4
    assert done.batch.tokens == 12
    assert done.batch.compute_s > 0


async def test_an_idle_batcher_uses_no_cpu() -> None:
    """Two threads are waiting."""
    others = threading.enumerate()
    decoder = HeldDecoder(held=False)
    async with batcher_of(decoder, instances=2) as batcher:
        await submit(batcher, Sentence("a", steps=3))
        await turns()
        own = [thread for thread in threading.enumerate() if thread not in others]
        assert len(own) == 2
        await assert_idle(own)


async def test_low_priority_is_paused_while_ordinary_sentences_are_decoded() -> None:
    """An ordinary sentence that comes later starts at once and finishes first."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        low = submit_low(batcher, Sentence("low", steps=3))
        assert await decoder.next_step() == ["low"]
        ordinary = submit(batcher, Sentence("ordinary", steps=2))
        assert await decoder.next_step() == ["ordinary"]
        assert batcher.in_flight_rows == 2
        decoder.release(10)
        assert await ordinary == ["ordinary"]
        assert await low == ["low"]
        assert decoder.steps == [["low"], ["ordinary"], ["ordinary"], ["low"], ["low"]]
        assert batcher.in_flight_rows == 0


async def test_waiting_low_priority_sentences_start_last() -> None:
    """No thread gets one while an ordinary sentence waits for rows."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_running_rows=1) as batcher:
        first = submit(batcher, Sentence("first"))
        assert await decoder.next_step() == ["first"]
        second = submit(batcher, Sentence("second"))
        low = submit_low(batcher, Sentence("low"))
        await turns()
        assert (batcher.queued_rows, batcher.queued_low_rows) == (1, 1)
        decoder.release(10)
        assert await asyncio.gather(first, second, low) == [["first"], ["second"], ["low"]]
        assert decoder.steps == [["first"], ["second"], ["low"]]


async def test_steps_of_low_priority_are_bounded_in_time() -> None:
    """The first step has one row; quick steps get more rows, and slow ones do not."""
    for takes_s, together in ((0.0, 8), (2 * LOW_PRIORITY_STEP_S, 1)):
        decoder = HeldDecoder(held=False)
        decoder.takes_s = takes_s
        async with batcher_of(decoder) as batcher:
            await submit_low(batcher, Sentence("first"), Sentence("second"))
            assert decoder.steps == [["first"], ["second"]]
            decoder.held = True
            rest = submit_low(batcher, *(Sentence(str(number), steps=3) for number in range(8)))
            await decoder.next_step()
            await turns()
            decoder.release()
            assert len(await decoder.next_step()) == together
            decoder.release(100)
            await rest


async def test_few_sentences_of_low_priority_join_at_once() -> None:
    """This holds even if there are rows for more."""
    decoder = HeldDecoder(held=False)
    async with batcher_of(decoder) as batcher:
        await submit_low(batcher, Sentence("timed", length=1))
        length = LOW_PRIORITY_JOINING_TOKENS // 2
        await submit_low(batcher, *(Sentence(str(number), steps=9, length=length) for number in range(5)))
    assert decoder.joins[0] == ["timed"]
    assert max(map(len, decoder.joins)) <= 2
    assert sum(map(len, decoder.joins)) == 6


async def test_one_of_several_threads_is_kept_free_of_low_priority() -> None:
    """An ordinary sentence is decoded at once."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, instances=2) as batcher:
        low = [submit_low(batcher, Sentence(f"low {number}")) for number in range(3)]
        assert await decoder.next_step() == ["low 0"]
        await turns()
        assert (batcher.in_flight_rows, batcher.queued_low_rows) == (1, 2)
        ordinary = submit(batcher, Sentence("ordinary"))
        assert await decoder.next_step() == ["ordinary"]
        decoder.release(10)
        assert await asyncio.gather(ordinary, *low) == [["ordinary"], ["low 0"], ["low 1"], ["low 2"]]


async def test_low_priority_has_a_bounded_queue_of_its_own() -> None:
    """A full low-priority queue does not block ordinary sentences."""
    decoder = HeldDecoder()
    async with batcher_of(decoder, max_queue_rows=2, max_running_rows=2) as batcher:
        running = submit_low(batcher, Sentence("running"))
        assert await decoder.next_step() == ["running"]
        waiting = submit_low(batcher, Sentence("a"), Sentence("b"))
        await turns()
        with pytest.raises(Overloaded, match="2 rows wait, the limit is 2"):
            await submit_low(batcher, Sentence("c"))
        with pytest.raises(InvalidRequest, match="a sentence has 3 rows, a running batch 2"):
            await submit_low(batcher, Sentence("wide", rows=3))
        ordinary = submit(batcher, Sentence("ordinary"), Sentence("other"))
        await turns()
        decoder.release(10)
        assert await asyncio.gather(running, waiting, ordinary) == [["running"], ["a", "b"], ["ordinary", "other"]]


async def test_paused_sentences_can_be_cancelled_and_expire() -> None:
    """Their rows are free at once, although an ordinary step is running."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        ordinary = submit(batcher, Sentence("ordinary", steps=3))
        assert await decoder.next_step() == ["ordinary"]
        cancelled = submit_low(batcher, Sentence("cancelled", steps=3))
        late = submit_low(batcher, Sentence("late"), deadline_s=time.monotonic() + 0.3)
        await turns()
        assert (batcher.in_flight_rows, batcher.queued_low_rows) == (2, 1)
        with pytest.raises(DeadlineExceeded, match="passed before the answer"):
            await late
        cancelled.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while batcher.in_flight_rows > 1:
                await turns()
        assert batcher.queued_low_rows == 0
        decoder.release(10)
        assert await ordinary == ["ordinary"]
        assert decoder.steps == [["ordinary"]] * 3


async def test_a_poisoned_sentence_of_low_priority_is_isolated() -> None:
    """It may fail in a step or when it is encoded; all others are decoded."""
    decoder = HeldDecoder(held=False, poison=lambda names: "poison" in names)
    decoder.refused = "unreadable"
    async with batcher_of(decoder) as batcher:
        assert await submit_low(batcher, Sentence("timed")) == ["timed"]
        names = ("a", "poison", "b", "unreadable")
        tasks = [submit_low(batcher, Sentence(name, steps=2)) for name in names]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, EngineFailed) for answer in answers] == [False, True, False, True]
        assert await submit(batcher, Sentence("later")) == ["later"]
        assert await submit_low(batcher, Sentence("later")) == ["later"]


async def test_drain_and_a_dead_engine_apply_to_low_priority() -> None:
    """Admitted requests are answered, later ones are refused; a dead engine fails waiting and paused ones."""
    decoder = HeldDecoder()
    async with batcher_of(decoder) as batcher:
        low = submit_low(batcher, Sentence("low"))
        await decoder.next_step()
        draining = asyncio.create_task(batcher.drain())
        await turns()
        with pytest.raises(Unavailable, match="shutting down"):
            await submit_low(batcher, Sentence("late"))
        assert not draining.done()
        decoder.release(10)
        assert await low == ["low"]
        await asyncio.wait_for(draining, PATIENCE_S)
    decoder = HeldDecoder(poison=lambda names: "ordinary" in names)
    decoder.sound = False
    async with batcher_of(decoder) as batcher:
        low = submit_low(batcher, Sentence("standing", steps=2), Sentence("waiting"))
        await decoder.next_step()
        ordinary = submit(batcher, Sentence("ordinary"))
        await turns()
        decoder.release(10)
        for task in (ordinary, low, submit_low(batcher, Sentence("later"))):
            with pytest.raises(Unavailable, match="device lost"):
                await task
        async with asyncio.timeout(PATIENCE_S):
            while batcher.in_flight_rows:
                await turns()
        assert batcher.queued_low_rows == 0


class EndlessDecoder:
    """A decoder whose steps with "endless" end only when they are terminated, as ONNX Runtime's do."""

    def __init__(self, *, in_join: bool) -> None:
        self._in_join, self.preemption = in_join, Preemption()
        self.began = threading.Semaphore(0)
        self.opened = 0

    def open(self) -> "EndlessBatches":
        """Create an empty running batch."""
        self.opened += 1
        return EndlessBatches(self)

    def compute(self, sentences: Sequence[Sentence], *, joining: bool) -> None:
        """Make an engine call."""

        def call(stop: StopFlag | None) -> None:
            self.began.release()
            until_s = time.monotonic() + PATIENCE_S
            while joining is self._in_join and any(sentence.name == "endless" for sentence in sentences):
                assert time.monotonic() < until_s
                if stop is not None and stop.terminate:
                    raise RuntimeError("Exiting due to terminate flag")
                time.sleep(1e-4)

        self.preemption.run_preemptible(call, StopFlag)


class EndlessBatches:
    """The running sentences of one thread."""

    def __init__(self, decoder: EndlessDecoder) -> None:
        self._decoder = decoder
        self._sentences: list[Sentence] = []

    def join(self, sentences: Sequence[Sentence]) -> None:
        """Add all sentences, or none."""
        self._decoder.compute(sentences, joining=True)
        self._sentences += sentences

    def step(self) -> None:
        """One token more."""
        self._decoder.compute(self._sentences, joining=False)
        for sentence in self._sentences:
            sentence.so_far.append(len(sentence.so_far))

    def leave(self, sentence: Sentence) -> None:
        """Free the sentence's rows."""
        self._sentences.remove(sentence)


@contextlib.asynccontextmanager
async def endless_batcher(
    decoder: EndlessDecoder, engine_timeout_s: float = PATIENCE_S
) -> AsyncIterator[tuple[ContinuousBatcher, SchedulingTally]]:
    """Make a batcher with this decoder, and its counters; the engine's probe succeeds."""
    tally, limits = SchedulingTally(), InFlightLimits(engine_timeout_s=engine_timeout_s)
    batcher = ContinuousBatcher(
        decoder.open,
        probe=lambda: None,
        costs=CostTable(64, 2),
        preemption=decoder.preemption,
        limits=limits,
        tally=tally,
        name="endless",
    )
    try:
        yield batcher, tally
    finally:
        batcher.close()


@pytest.mark.parametrize("low", [False, True], ids=["ordinary", "low priority"])
@pytest.mark.parametrize("in_join", [False, True], ids=["step", "join"])
async def test_an_abandoned_step_is_terminated(in_join: bool, low: bool) -> None:
    """Its caller has left, and the thread decodes for others after a bounded time."""
    decoder, asking = EndlessDecoder(in_join=in_join), submit_low if low else submit
    async with endless_batcher(decoder) as (batcher, tally):
        leaving = asking(batcher, Sentence("endless"))
        for _ in range(1 if in_join else 2):  # the step comes after the join
            assert await asyncio.to_thread(decoder.began.acquire, timeout=PATIENCE_S)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await asyncio.wait_for(asking(batcher, Sentence("next")), PATIENCE_S) == ["next"]
        assert batcher.health_problem() is None
        assert decoder.opened == 2
        assert tally.terminated == {"abandoned": 1, "overdue": 0}


@pytest.mark.parametrize("in_join", [False, True], ids=["step", "join"])
async def test_a_step_beyond_the_engine_timeout_is_terminated(in_join: bool) -> None:
    """Its callers get the reason, the next request is answered, and the server stays ready."""
    async with endless_batcher(EndlessDecoder(in_join=in_join), engine_timeout_s=0.2) as (batcher, tally):
        with pytest.raises(EngineFailed, match=r"took longer than 0\.2 s \(engine_timeout_s\)"):
            await submit(batcher, Sentence("endless"))
        assert await submit(batcher, Sentence("next")) == ["next"]
        assert batcher.health_problem() is None
        assert tally.terminated == {"abandoned": 0, "overdue": 1}


class EndsThread(BaseException):
    """An exception that no engine raises; it ends its thread."""


@pytest.mark.parametrize("idle", [False, True], ids=["decoding", "idle"])
async def test_an_engine_thread_that_ends_fails_all_requests(idle: bool) -> None:
    """Waiting and later requests are refused with the reason."""
    decoder, others = HeldDecoder(), threading.enumerate()
    async with batcher_of(decoder) as batcher:
        tasks = []
        if not idle:
            tasks.append(submit(batcher, Sentence("running", steps=3)))
            await decoder.next_step()
        (own,) = [thread for thread in threading.enumerate() if thread not in others]
        raise_in(own, EndsThread)
        decoder.held = False
        decoder.release()
        tasks += [submit(batcher, Sentence("waiting")), submit(batcher, Sentence("later"))]
        for task in tasks:
            with pytest.raises(Unavailable, match="EndsThread"):
                await asyncio.wait_for(task, PATIENCE_S)
        assert "EndsThread" in (batcher.health_problem() or "")
        assert (batcher.queued_rows, batcher.in_flight_rows) == (0, 0)
