"""Table of the cost of an engine call by rows and padded length: measured at load, corrected by every batch.

The batcher uses it to decide whether a larger batch pays, and to estimate how long the queued work will take.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence

import numpy as np

# Learning rates: for all cells alike (the machine has become faster or slower), and for the cells around the measured
# size (the estimate was wrong). The first keeps costs of all sizes comparable while only some sizes are in use.
LEARNING_RATE_ALL, LEARNING_RATE_CELL = 0.1, 0.1
MAX_CORRECTION = 2.0  # limit of the ratio between measured and expected time that a single call corrects by
MAX_KNOWN_CELLS = 4096  # larger sizes are located on use, because the table must not grow with the limits that a folder
# states
SHORTEST_S = 1e-7  # lower bound of any cost; avoids division by zero


def _powers_of_two(first: int, last: int) -> list[int]:
    grid = [first]
    while grid[-1] < last:
        grid.append(grid[-1] * 2)
    return grid


class QuickSizes:
    """Exact sizes of engine calls that have been quick several times in a row.

    Each size is judged by its own calls. The first call of a size allocates memory, so it does not predict the next.
    After one slow call, for whatever reason, a size has to prove quick again.
    """

    def __init__(self, quick_calls: int = 16, max_sizes: int = 256) -> None:
        """Count a size as quick after `quick_calls` quick calls in a row; remember `max_sizes` sizes."""
        self._quick_calls, self._max_sizes = quick_calls, max_sizes
        self._in_a_row: dict[Hashable, int] = {}

    def __contains__(self, size: Hashable) -> bool:
        """Return whether calls of this size are quick."""
        return self._in_a_row.get(size, 0) >= self._quick_calls

    def record(self, size: Hashable, *, quick: bool) -> None:
        """Record whether a call of this size was quick."""
        if not quick:
            self._in_a_row.pop(size, None)
            return
        self._in_a_row[size] = min(self._in_a_row.get(size, 0) + 1, self._quick_calls)
        if len(self._in_a_row) > self._max_sizes:
            del self._in_a_row[next(iter(self._in_a_row))]


class CostTable:
    """Seconds of one engine call on a grid of rows and lengths, interpolated linearly.

    This is a table and not a formula, because the curve has steps: caches, kernels chosen by size, a GPU whose cost is
    flat until it is full.
    """

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        measured: Sequence[tuple[int, int, float]] = (),
    ) -> None:
        """Fill the table from measured calls (rows, length, seconds); without any, the second `record` fills it."""
        self._rows = _powers_of_two(1, max(2, max_rows))
        self._lengths = _powers_of_two(1, max(2, max_length))
        # Cells are looked up several times per batch, so the cells of all usual values are located in advance.
        self._row_cells = [_locate(self._rows, value) for value in range(min(self._rows[-1], MAX_KNOWN_CELLS) + 1)]
        known_lengths = min(self._lengths[-1], MAX_KNOWN_CELLS)
        self._length_cells = [_locate(self._lengths, value) for value in range(known_lengths + 1)]
        self._seconds: list[list[float]] = []
        self._scale = 1.0
        self._cold = not measured
        if measured:
            self._fill(measured)
            for rows, length, seconds in measured:
                self._correct_cells(rows, length, seconds, 1.0)
            self._expect_no_saving_beyond(max(rows for rows, _, _ in measured))

    def _expect_no_saving_beyond(self, measured_rows: int) -> None:
        """Let rows beyond the measured ones cost as much each: the saving of larger calls may end with the caches."""
        last = bisect_right(self._rows, measured_rows) - 1
        for row in range(last + 1, len(self._rows)):
            share = self._rows[row] / self._rows[last]
            self._seconds[row] = [share * seconds for seconds in self._seconds[last]]

    def _fill(self, measured: Sequence[tuple[int, int, float]]) -> None:
        """Fill all cells from the line `fixed + per_token * rows * length` with the least relative error."""
        tokens = np.array([rows * length for rows, length, _ in measured], dtype=float)
        seconds = np.maximum([value for _, _, value in measured], SHORTEST_S)
        design = np.stack([1 / seconds, tokens / seconds], axis=1)
        (fixed, per_token), *_ = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)
        if len(measured) == 1:
            # Not enough measurements to separate the two costs, so each gets half.
            fixed, per_token = seconds[0] / 2, seconds[0] / 2 / tokens[0]
        elif fixed <= 0:
            fixed, per_token = 0.0, float(np.median(seconds / tokens))
        elif per_token <= 0:
            fixed, per_token = float(np.median(seconds)), 0.0
        self._seconds = [[float(fixed + per_token * rows * length) for length in self._lengths] for rows in self._rows]

    def estimate(self, rows: int, length: int) -> float:
        """Return the expected seconds of a call; 0 before anything was measured."""
        if not self._seconds:
            return 0.0
        if rows < len(self._row_cells) and length < len(self._length_cells):  # as in `_cell`, inlined
            (row, row_share), (column, column_share) = self._row_cells[rows], self._length_cells[length]
        else:
            row, row_share, column, column_share = self._cell(rows, length)
        upper, lower = self._seconds[row], self._seconds[row + 1]
        if column_share <= 1.0:
            at_upper = upper[column] + (upper[column + 1] - upper[column]) * column_share
            at_lower = lower[column] + (lower[column + 1] - lower[column]) * column_share
        else:
            # Proportional, because a line through the last two cells could become negative after corrections.
            beyond = (1.0 + column_share) / 2.0  # factor beyond the last grid value; grid values double from cell to
            # cell
            at_upper, at_lower = beyond * upper[column + 1], beyond * lower[column + 1]
        if row_share <= 1.0:
            return self._scale * (at_upper + (at_lower - at_upper) * row_share)
        return self._scale * at_lower * (1.0 + row_share) / 2.0

    def record(self, rows: int, length: int, seconds: float) -> None:
        """Correct the table by the duration of a call."""
        if self._cold:
            self._cold = False  # an engine's first call allocates memory and takes many times as long as later ones
            return
        if not self._seconds:
            self._fill([(rows, length, seconds)])
            return
        ratio = self._correct_cells(rows, length, seconds, LEARNING_RATE_CELL)
        self._scale *= ratio**LEARNING_RATE_ALL

    def _correct_cells(self, rows: int, length: int, seconds: float, learning_rate: float) -> float:
        """Correct the four cells around a size, weighted by nearness; return measured divided by expected seconds."""
        ratio = max(seconds, SHORTEST_S) / self.estimate(rows, length)
        ratio = min(max(ratio, 1 / MAX_CORRECTION), MAX_CORRECTION)
        row, row_share, column, column_share = self._cell(rows, length)
        row_share, column_share = min(row_share, 1.0), min(column_share, 1.0)
        for r, r_weight in ((row, 1 - row_share), (row + 1, row_share)):
            for c, c_weight in ((column, 1 - column_share), (column + 1, column_share)):
                if r_weight and c_weight:
                    self._seconds[r][c] *= ratio ** (learning_rate * r_weight * c_weight)
        return ratio

    def _cell(self, rows: int, length: int) -> tuple[int, float, int, float]:
        """Return the cell left of and above a call's size, and the fraction of the way to the next cell."""
        known = rows < len(self._row_cells) and length < len(self._length_cells)
        row, row_share = self._row_cells[rows] if known else _locate(self._rows, rows)
        column, column_share = self._length_cells[length] if known else _locate(self._lengths, length)
        return row, row_share, column, column_share


def _locate(grid: list[int], value: int) -> tuple[int, float]:
    """Return the cell left of `value` and the fraction of the way to the next one; above 1 beyond the grid."""
    cell = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 2)
    return cell, (value - grid[cell]) / (grid[cell + 1] - grid[cell])
