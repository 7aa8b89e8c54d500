"""Chooses the items of the next engine call: items of similar length, as many as save engine time."""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import msgspec

from service.scheduling.admission import Request
from service.scheduling.cost_table import CostTable
from service.scheduling.lane import Lane
from service.scheduling.wall_time import WallTimeFactor

# Waiting entries that are considered for one batch; limits the work if the queue is long.
CANDIDATES = 256
# A batch grows only while this saves more than this fraction of engine time, because larger batches delay answers.
WORTHWHILE_SAVING = 0.02
# Batches are compared by work per time. The work of an item is its share of the cost of a batch with this many rows of
# its length. If it were the cost of the item alone, padding short texts to a long one would seem to pay.
COMPARED_ROWS = 16
# One batch in this many is twice or half as large as the costs justify, because the table is corrected only for sizes
# that are tried.
BATCHES_PER_TRIAL = 17  # a prime, so that trials do not always coincide with the small last batch of a large request


@dataclass(frozen=True, kw_only=True)
class BatcherLimits:
    """Bounds of the queue and of a batch."""

    max_queue_rows: int = 1024
    max_batch_rows: int = 64
    max_batch_tokens: int = 16384  # including padding, which takes memory even if it is not computed
    engine_timeout_s: float = 120.0


class Item(Protocol):
    """The properties of a model's input that the batcher uses."""

    @property
    def rows(self) -> int:
        """Number of rows that the item takes in an engine call."""

    @property
    def length(self) -> int:
        """Length of each row, in tokens; the engine pads to the longest of the call."""

    @property
    def batch_key(self) -> Hashable:
        """Only items with equal keys may share a call."""


@dataclass(slots=True, eq=False)
class Entry:
    """One item in the queue or in an engine call."""

    request: Request
    index: int
    item: Any
    rows: int  # copied from the item, because it is read for every batch until the entry is chosen
    length: int
    expected_s: float  # cost of a call for this item alone
    work_s: float  # share of the cost of a batch of items of this length
    enqueued_s: float


class Extent(msgspec.Struct, frozen=True, gc=False):
    """The size of an engine call."""

    rows: int
    longest: int
    tokens: int  # tokens of the items, without padding

    @staticmethod
    def of(first: Item, *others: Item) -> "Extent":
        """Return the size of a call for these items."""
        extent = Extent(first.rows, first.length, first.rows * first.length)
        for item in others:
            extent = extent.wider(item.rows, item.length)
        return extent

    def wider(self, rows: int, length: int) -> "Extent":
        """Return the size of the call after one more item has been added."""
        longest = max(self.longest, length)
        return Extent(self.rows + rows, longest, self.tokens + rows * length)

    def effective_length(self, padding_cost: float | None) -> int:
        """Return the row length of a call without padding at the same cost.

        Args:
            padding_cost: relative cost of a padding token in an engine that skips padding; None if it computes it.
        """
        if padding_cost is None or self.tokens == self.rows * self.longest:
            return self.longest
        mean = self.tokens / self.rows
        return math.ceil(mean + padding_cost * (self.longest - mean))


class BatchFormer:
    """Chooses the items of each batch by the measured costs of engine calls."""

    def __init__(
        self,
        costs: CostTable,
        wall_factor: WallTimeFactor,
        limits: BatcherLimits,
        *,
        skipped_padding_cost: float | None,
        clock: Callable[[], float],
    ) -> None:
        """Set up.

        Args:
            costs: seconds of a call by rows and length.
            wall_factor: wall seconds for each second of cost.
            limits: limits of a batch.
            skipped_padding_cost: relative cost of a padding token in an engine that skips padding; None if the engine
                computes it.
            clock: clock of the deadlines.
        """
        self._costs, self._wall_factor, self._limits = costs, wall_factor, limits
        self._padding_cost, self._clock = skipped_padding_cost, clock
        self._batches_formed = 0

    def cost_s(self, extent: Extent) -> float:
        """Return the expected seconds of a call of this size."""
        return self._costs.estimate(extent.rows, extent.effective_length(self._padding_cost))

    def form(self, lane: Lane[Entry, Any], oldest: Entry, spare: int) -> list[Entry]:
        """Choose the oldest entry, and entries that cost less engine time in its batch than in a call of their own.

        Args:
            lane: lane with the queue; the chosen entries stay in the queue.
            oldest: the entry that is always in the batch.
            spare: number of idle threads, among which the waiting rows are divided.
        """
        max_rows, max_tokens = self._bounds(lane, oldest, spare)
        # Sorted by difference from the oldest entry's length, then by age.
        length, batch_key = oldest.length, oldest.item.batch_key
        candidates = sorted(
            [
                (abs(entry.length - length), place, entry)
                for place, entry in enumerate(islice(lane.queue, CANDIDATES))
                if entry is not oldest and entry.item.batch_key == batch_key
            ]
        )
        batch, extent, work_s = [oldest], Extent.of(oldest.item), oldest.work_s
        # A batch must end before the deadlines of all its members.
        now_s, factor, earliest_s = self._clock(), self._wall_factor.value, oldest.request.deadline_s
        cost_s = self.cost_s(extent)
        best_size, best_share = 1, cost_s / work_s if work_s else 1.0
        self._batches_formed += 1
        trials, rest = divmod(self._batches_formed, BATCHES_PER_TRIAL)
        stretch = 1.0 if rest else (2.0, 0.5)[trials % 2]
        for _, _, entry in candidates:
            wider = extent.wider(entry.rows, entry.length)
            if wider.rows > max_rows or wider.rows * wider.longest > max_tokens:
                continue
            if entry.request.future.done():
                continue
            wider_cost_s = self.cost_s(wider)
            ends_s = now_s + factor * wider_cost_s
            if ends_s > earliest_s:
                break
            if ends_s > entry.request.deadline_s:
                continue
            if wider_cost_s > cost_s + entry.expected_s and len(batch) >= stretch * best_size:
                # This entry costs more here than in a call of its own, and the lengths of later ones differ even more.
                break
            batch.append(entry)
            earliest_s = min(earliest_s, entry.request.deadline_s)
            extent, cost_s, work_s = wider, wider_cost_s, work_s + entry.work_s
            share = cost_s / work_s if work_s else 0.0
            if share < best_share * (1 - WORTHWHILE_SAVING) or not work_s:
                best_size, best_share = len(batch), share
        del batch[max(1, int(stretch * best_size)) :]
        return batch

    def _bounds(self, lane: Lane[Entry, Any], oldest: Entry, spare: int) -> tuple[int, int]:
        """Return the largest number of rows of the next batch, and of tokens including padding."""
        max_rows = min(-(-lane.queued_rows // spare), self._limits.max_batch_rows)
        if lane.max_call_s == math.inf:
            return max_rows, self._limits.max_batch_tokens
        sizes, cost_s, length = range(1, self._limits.max_batch_rows + 1), self._costs.estimate, oldest.length
        in_time = 1  # while the costs are unknown
        if oldest.expected_s:
            in_time = bisect_right(sizes, lane.max_call_s, key=lambda rows: cost_s(rows, length))
        max_rows = max(oldest.rows, min(max_rows, in_time))
        return max_rows, min(max_rows * length, self._limits.max_batch_tokens)
