"""Deadlines at three times the capacity, with both batchers: rows are counted on a clock of the test's own."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.engines.preemption import Preemption
from service.errors import DeadlineExceeded
from service.scheduling.admission import ItemResult
from service.scheduling.batch_forming import BatcherLimits
from service.scheduling.batcher import Batcher
from service.scheduling.continuous_batcher import ContinuousBatcher, InFlightLimits
from service.scheduling.cost_table import CostTable
from service.telemetry.metrics import SchedulingTally
from tests.service.virtual_time import VirtualTime

DEADLINE_S = 0.5
OVERLOAD = 3.0
DURATION_S = 6.0
# CPU time of a call: a fixed part and one for each row, so that larger batches pay.
FIXED_S, ROW_S, MAX_ROWS = 4e-3, 2e-3, 16
# Steps of a translation, which take as long together.
STEPS = 10

Slowness = Callable[[float], float]  # wall seconds for a second of CPU time, by the time since the load began
SLOWNESS: dict[str, Slowness] = {
    "wall is CPU time": lambda _: 1.0,
    "twice": lambda _: 2.0,
    "four times": lambda _: 4.0,
    "it changes": lambda passed_s: 1.0 if passed_s < DURATION_S / 3 else 4.0 if passed_s < DURATION_S * 2 / 3 else 2.0,
    "a quota of a quarter": lambda passed_s: 1.0 if passed_s % 0.1 < 0.02 else 5.0,
}


@dataclass
class Load:
    """What came of the requests."""

    offered: int = 0
    answered: int = 0
    refused: int = 0
    computed: int = 0  # rows of engine calls, or rows of steps
    useful: int = 0  # the same of requests that were answered in time
    capacity: float = 0.0  # rows that full batches would have computed in the time
    tally: SchedulingTally = field(default_factory=SchedulingTally)

    @property
    def in_vain(self) -> int:
        """Rows computed for nobody."""
        return self.computed - self.useful


@dataclass(frozen=True)
class Text:
    """An item of one row."""

    rows: int = 1
    length: int = 8
    batch_key: None = None


class Sentence:
    """Is done after `max_steps` steps."""

    rows, length = 1, 8

    def __init__(self, max_steps: int = 10) -> None:
        self.max_steps, self.so_far = max_steps, list[int]()

    @property
    def done(self) -> bool:
        """Whether it has all its tokens."""
        return len(self.so_far) >= self.max_steps

    def restart(self) -> None:
        """Forget them."""
        self.so_far.clear()


async def offer(
    time: VirtualTime, load: Load, rate_per_s: float, submit: Callable[[float], Any], duration_s: float = DURATION_S
) -> None:
    """Send requests at a constant rate, each with the deadline."""

    async def ask() -> None:
        load.offered += 1
        deadline_s = time.now_s + DEADLINE_S
        try:
            done: list[ItemResult] = await submit(deadline_s)
        except DeadlineExceeded:
            load.refused += time.now_s < deadline_s - 1e-6
        else:
            assert time.now_s <= deadline_s
            load.answered += 1
            load.useful += getattr(done[0].result, "max_steps", 1)

    asking = set()
    until_s = time.now_s + duration_s
    while time.now_s < until_s:
        asking.add(asyncio.create_task(ask()))
        await asyncio.sleep(1 / rate_per_s)
    await asyncio.gather(*asking)


def cost_s(rows: int) -> float:
    """CPU time of a call."""
    return FIXED_S + ROW_S * rows


def step_s(rows: int) -> float:
    """CPU time of a decoder step."""
    return cost_s(rows) / STEPS


def costs(cost_s: Callable[[int], float], length: int) -> CostTable:
    """They are known exactly."""
    return CostTable(MAX_ROWS, 8, [(rows, length, cost_s(rows)) for rows in (1, 2, 4, 8, 16)])


def run_batcher(slowness: Slowness, overload: float = OVERLOAD) -> Load:
    """Offer single rows to the batcher."""
    time, load = VirtualTime(), Load()
    began_s = time.now_s

    def run(items: list[Text]) -> Sequence[Text]:
        load.computed += len(items)
        cpu_s = cost_s(len(items))
        time.compute(cpu_s, cpu_s * slowness(time.now_s - began_s))
        return items

    async def serve() -> None:
        batcher = Batcher(
            run,
            probe=lambda: None,
            costs=costs(cost_s, 8),
            preemption=Preemption(),
            limits=BatcherLimits(max_batch_rows=MAX_ROWS, max_queue_rows=10_000),
            engine_clock=time.cpu_clock,
            clock=time.clock,
            tally=load.tally,
        )
        time.expected_computing = lambda: int(batcher.in_flight_rows > 0)
        rate_per_s = overload * MAX_ROWS / cost_s(MAX_ROWS)
        await offer(time, load, rate_per_s, lambda deadline_s: batcher.submit([Text()], deadline_s))
        batcher.close()

    time.run(serve())
    load.capacity = capacity_rows(slowness, cost_s)
    return load


def capacity_rows(slowness: Slowness, cost_s: Callable[[int], float]) -> float:
    """Rows of full batches, one after the other, in the time of the load."""
    passed_s, rows = 0.0, 0.0
    while passed_s < DURATION_S:
        passed_s += cost_s(MAX_ROWS) * slowness(passed_s)
        rows += MAX_ROWS
    return rows


class Steps:
    """The running sentences of one thread, in virtual time."""

    def __init__(self, time: VirtualTime, load: Load, slowness: Slowness) -> None:
        self._time, self._load, self._slowness, self._began_s = time, load, slowness, time.now_s
        self._sentences: list[Sentence] = []

    def join(self, sentences: Sequence[Sentence]) -> None:
        """All of them."""
        self._sentences += sentences

    def step(self) -> None:
        """One token more."""
        rows = len(self._sentences)
        self._load.computed += rows
        self._time.compute(step_s(rows), step_s(rows) * self._slowness(self._time.now_s - self._began_s))
        for sentence in self._sentences:
            sentence.so_far.append(0)

    def leave(self, sentence: Sentence) -> None:
        """Free its row."""
        self._sentences.remove(sentence)


@pytest.mark.parametrize("name", SLOWNESS)
def test_at_three_times_the_capacity_the_engine_works_for_those_who_are_answered(name: str) -> None:
    """At least 80 % of the capacity is answered in time, and less than 5 % of the rows are computed in vain."""
    load = run_batcher(SLOWNESS[name])
    assert load.answered >= 0.8 * load.capacity
    assert load.in_vain < 0.05 * load.computed
    assert load.tally.rows_in_vain == load.in_vain
    assert load.tally.refused_rows + load.tally.dropped_rows + load.answered + load.in_vain >= load.offered


def run_inflight_batcher(slowness: Slowness) -> Load:
    """Offer single sentences of ten steps to the in-flight batcher."""
    time, load = VirtualTime(), Load()

    async def serve() -> None:
        batcher = ContinuousBatcher(
            lambda: Steps(time, load, slowness),
            probe=lambda: None,
            costs=costs(step_s, 1),
            preemption=Preemption(),
            limits=InFlightLimits(max_running_rows=MAX_ROWS, max_queue_rows=10_000),
            clock=time.clock,
            tally=load.tally,
        )
        time.expected_computing = lambda: int(batcher.in_flight_rows > 0)
        rate_per_s = OVERLOAD * MAX_ROWS / (STEPS * step_s(MAX_ROWS))
        await offer(time, load, rate_per_s, lambda deadline_s: batcher.submit([Sentence(STEPS)], deadline_s))
        batcher.close()

    time.run(serve())
    load.capacity = capacity_rows(slowness, step_s)
    return load


@pytest.mark.parametrize("name", SLOWNESS)
def test_at_three_times_the_capacity_translations_are_decoded_for_those_who_are_answered(name: str) -> None:
    """At least 80 % of the capacity is answered in time, and less than 5 % of the rows are computed in vain."""
    load = run_inflight_batcher(SLOWNESS[name])
    assert load.useful >= 0.8 * load.capacity
    assert load.in_vain < 0.05 * load.computed
