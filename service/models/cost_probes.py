"""Measures at load how long engine calls of different sizes take, for the batcher's cost table."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import RunningBatches

# Sizes of the timed calls of a text model, cheapest first: rows, tokens.
TEXT_PROBES = (
    (1, 8),
    (1, 16),
    (4, 8),
    (1, 32),
    (4, 16),
    (1, 64),
    (4, 32),
    (8, 32),
    (16, 32),
    (4, 128),
    (32, 32),
)
# Sizes of the timed calls of a model whose rows all have one length.
ROW_PROBES = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1))
PROBE_BUDGET_S = 0.25  # no further call is timed after this
# Row lengths of a call with padding, which is compared with a call of as many rows of their mean length.
PADDED_PROBE = (6, 10, 13, 15, 17, 19, 22, 26)
PADDED_PROBE_CALLS = 3
# Rows of the timed decoder steps of a translation model.
STEP_PROBES = (1, 4, 16, 32, 64)

Run = Callable[[list[Any]], list[Any]]


class CallTimer(NamedTuple):
    """Times engine calls.

    Attributes:
        max_rows: calls with more rows are not timed.
        clock: measures the cost of a call, in seconds.
        untimed_call: make each call once before it is timed: the first call of a size on a GPU costs more.
    """

    max_rows: int
    clock: Callable[[], float]
    untimed_call: bool

    def cost_table(
        self, run: Run, item_of_length: Callable[[int], Any], probes: Sequence[tuple[int, int]], max_length: int
    ) -> CostTable:
        """Time calls of different sizes, while the budget lasts.

        Args:
            run: the engine call.
            item_of_length: makes an item of so many tokens.
            probes: rows and tokens of each call.
            max_length: calls with longer rows are not timed.
        """
        measured = []
        ends_s = time.perf_counter() + PROBE_BUDGET_S
        for rows, length in probes:
            if length > max_length or rows > self.max_rows:
                continue
            items = [item_of_length(length)] * rows
            if self.untimed_call:
                run(items)
            started_s = self.clock()
            run(items)
            measured.append((rows, length, self.clock() - started_s))
            if time.perf_counter() > ends_s:
                break
        return CostTable(self.max_rows, max_length, measured)


def measure_padding_cost(
    run: Run, item_of_length: Callable[[int], Any], max_length: int, clock: Callable[[], float]
) -> float:
    """Measure the relative cost of a padding token in a graph that skips padding everywhere but in attention.

    It depends on precision and machine: 0.25 in float32 and 0.55 in int8 on one, less than half of that on another
    (docs/decisions/scheduling.md). The best of a few calls counts, because a disturbance makes a call only longer.

    Returns:
        the cost of a padding token, from 0 (free) to 1 (as much as a real token).
    """
    if max(PADDED_PROBE) > max_length:
        return 0.0  # so short that it hardly matters
    rows, tokens = len(PADDED_PROBE), sum(PADDED_PROBE)
    padding = rows * max(PADDED_PROBE) - tokens
    even, padded = [item_of_length(tokens // rows)] * rows, [item_of_length(length) for length in PADDED_PROBE]
    best_s = [math.inf, math.inf]
    for _ in range(PADDED_PROBE_CALLS):
        for number, items in enumerate((even, padded)):
            started_s = clock()
            run(items)
            best_s[number] = min(best_s[number], clock() - started_s)
    even_s, padded_s = best_s
    if even_s <= 0.0:
        return 0.0  # too short for this clock
    return min(1.0, max(0.0, (padded_s / even_s - 1) * tokens / padding))


def measure_step_costs(
    open_batches: Callable[[], RunningBatches], item_of_one_row: Callable[[], Any], max_rows: int
) -> CostTable:
    """Time decoder steps with different numbers of rows.

    Args:
        open_batches: makes empty running batches.
        item_of_one_row: makes an item of one row, whatever the number of beams of the model's own search.
        max_rows: largest number of rows of a running batch.
    """
    measured = []
    for rows in STEP_PROBES:
        if rows > max_rows:
            break
        running = open_batches()
        running.join([item_of_one_row() for _ in range(rows)])
        running.step()
        started_s = time.perf_counter()
        running.step()
        measured.append((rows, 1, time.perf_counter() - started_s))
    return CostTable(max_rows, 2, measured)


def warm_up_buckets(run: Run, item: Any, max_rows: int) -> None:
    """Make the first call of each bucket, which allocates, chooses kernels and captures, before clients wait for it."""
    for exponent in range((max_rows - 1).bit_length() + 1):
        run([item] * min(2**exponent, max_rows))
