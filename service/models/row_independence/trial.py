"""Computes invented rows that are made to reveal whether the answer to one row depends on another."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tensors import NUMPY_OF, Arrays, TensorSpec

Run = Callable[[Arrays], Arrays]

_NUM_ROWS = 6
# Sizes tried for dynamic dimensions. A graph may refuse some, such as images smaller than its kernels.
_SIZES = (8, 64, 256)
# Each row has its own scale and offset, so a statistic of all rows differs much from that of a single row.
_SCALES = (1.0, 1e-3, 30.0, 0.1, 1e4, 1e3)
_OFFSETS = (0.0, 1.0, -2.0, 3.0, 0.5, -1.0)
_MAX_FLOAT16_SCALE = 1e3
# Ranges of integers that are tried: ids index tables of unknown size, and some graphs divide by integers.
_INTEGERS = ((0, 1), (0, 9), (1, 9), (0, 99), (0, 999), (0, 9999), (1, 99999))
_TEXTS = ("", "one", "two words", "A sentence, of several words: 3!", "naïve Ünïcode", "a a a b " * 8)
_NUMBERS_AS_TEXT = ("0", "1", "12", "3", "7", "40")
# Rows that share a call: all in either order, and some at other positions beside others.
_COMPANIES = ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (4, 0), (1, 2, 5))
# By how much a result may change in a batch, relative to the row's largest number, by bytes of its type. Kernels for
# other sizes round differently, and a dependence smaller than this cannot be told from rounding.
_TOLERANCES = {2: 2e-2, 4: 1e-3, 8: 1e-6}
# Some graphs magnify rounding, because they subtract large numbers from each other. A row computed beside copies of
# itself shows by how much, because then the other rows cannot matter. Results beside other rows may change this many
# times as much. Where they change by more than the maximum even beside copies, the rows show nothing.
_TIMES_AMONG_COPIES, _MAX_AMONG_COPIES = 8, 0.05


class TrialStopped(Exception):
    """Raised by `run` when the caller ends the trial, such as at a deadline."""


@dataclass(frozen=True, slots=True)
class _Family:
    """The kind of rows that are invented for one round."""

    size: int
    positive: bool  # floats are not negative
    scaled: bool  # the scale of floats differs from row to row
    smallest: int
    largest: int
    texts: tuple[str, ...]


def try_rows(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    run: Run,
    *,
    budget_s: float,
    max_bytes: int,
    stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Look for a reason why rows of several requests must not share a call; None if none was found.

    Invented rows are computed alone and in several batches. A row must have the same result each time.

    Args:
        inputs: the graph's inputs; the first dimension of each is the batch.
        outputs: the graph's outputs; the first dimension of each is the batch.
        run: makes a call of the graph. May raise `TrialStopped`; any other error means that it refuses the rows.
        budget_s: seconds after which no further call begins. The results until then decide.
        max_bytes: largest size of the invented rows of all inputs together.
        stop: called before each call; true ends the trial.
    """
    trial = _Trial(outputs, run, time.monotonic() + budget_s, stop)
    fitting = [size for size in _SIZES if _num_bytes(inputs, size) <= max_bytes]
    if not fitting:
        return f"its random rows would take more than {max_bytes} bytes"
    try:
        for family in _families(inputs, fitting):
            if trial.shown and family.size != trial.size:
                break
            problem = trial.round(_invented(inputs, family), family)
            if problem is not None:
                return problem
    except TrialStopped:
        if not trial.shown:
            return "it did not answer random rows in time"
    return trial.shortcoming()


class _Trial:
    """The state of a trial."""

    def __init__(self, outputs: Sequence[TensorSpec], run: Run, end: float, stop: Callable[[], bool]) -> None:
        self._run, self._end, self._stop = run, end, stop
        self._blank = {spec.name for spec in outputs}  # outputs without a finite number so far
        self._refusal = ""
        self.shown, self.size = False, 0

    def round(self, rows: Arrays, family: _Family) -> str | None:
        """Compute rows alone and in batches; return a problem, or None if there is none or the rows are refused."""
        alone: list[Arrays] = []
        for row in range(_NUM_ROWS):
            try:
                alone.append(self._call(rows, (row,)))
            except TrialStopped:
                raise
            except Exception as error:  # engines raise many types
                self._refusal = f"it refuses random rows: {error}"
                return None
        try:
            copies = [self._call(rows, (row,) * _NUM_ROWS) for row in range(_NUM_ROWS)]
            moved = [_distances(*pair) for pair in zip(alone, copies, strict=True)]
            largest = {name: max(distances[name] for distances in moved) for name in moved[0]}
            unsteady = [name for name, distance in largest.items() if distance > _MAX_AMONG_COPIES]
            if unsteady:
                self._refusal = f"output {unsteady[0]!r} of a row changes with the number of rows"
                return None
            for company in _COMPANIES:
                for name, array in self._call(rows, company).items():
                    problem = _difference([alone[row][name] for row in company], array, largest[name])
                    if problem:
                        return f"output {name!r} of a row {problem}"
        except TrialStopped:
            raise
        except Exception as error:
            return f"it refuses rows in one call that it answers in separate calls: {error}"
        self.shown, self.size = True, family.size
        for name in list(self._blank):
            if sum(_shows(result[name]) for result in alone) > 1:
                self._blank.remove(name)
        return None

    def shortcoming(self) -> str | None:
        """Say why the results are not conclusive; None if they are."""
        if not self.shown:
            return self._refusal
        if self._blank:
            return f"output {min(self._blank)!r} of random rows has no finite number"
        return None

    def _call(self, rows: Arrays, company: Sequence[int]) -> Arrays:
        if self._stop() or time.monotonic() > self._end:
            raise TrialStopped
        return self._run({name: array[list(company)] for name, array in rows.items()})


def _families(inputs: Sequence[TensorSpec], sizes: Sequence[int]) -> Iterator[_Family]:
    """Yield the kinds of rows, from those that most graphs accept to those that reveal more."""
    kinds = {"t" if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype].kind for spec in inputs}
    floats = [(True, False), (False, True), (True, True)] if "f" in kinds else [(True, False)]
    texts = [_NUMBERS_AS_TEXT, _TEXTS] if "t" in kinds else [_TEXTS]
    integers = _INTEGERS if kinds & {"i", "u"} else _INTEGERS[:1]
    varied = any(-1 in spec.shape[1:] for spec in inputs)
    for size in sizes if varied else sizes[:1]:
        for smallest, largest in integers:
            for positive, scaled in floats:
                for words in texts:
                    yield _Family(size, positive, scaled, smallest, largest, words)


def _num_bytes(inputs: Sequence[TensorSpec], size: int) -> int:
    return sum(
        _NUM_ROWS
        * math.prod(_row_shape(spec, size))
        * (64 if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype].itemsize)
        for spec in inputs
    )


def _row_shape(spec: TensorSpec, size: int) -> list[int]:
    return [size if known == -1 else known for known in spec.shape[1:]]


def _invented(inputs: Sequence[TensorSpec], family: _Family) -> Arrays:
    rng = np.random.default_rng(0)
    return {spec.name: _rows(spec, family, rng) for spec in inputs}


def _rows(spec: TensorSpec, family: _Family, rng: np.random.Generator) -> NDArray[Any]:
    shape = _row_shape(spec, family.size)
    if spec.datatype == "BYTES":
        texts = np.array(family.texts, dtype=object)
        rows = np.empty((_NUM_ROWS, *shape), object)
        for row in range(_NUM_ROWS):  # the first element is another text in each row, the others are random
            rows[row] = rng.choice(texts, shape)
            rows[row].reshape(-1)[:1] = texts[row]
        return rows
    dtype = NUMPY_OF[spec.datatype]
    made = _float_row if dtype.kind == "f" else _integer_row
    return np.stack([made(row, shape, dtype, family, rng) for row in range(_NUM_ROWS)])


def _float_row(
    row: int, shape: Sequence[int], dtype: np.dtype[Any], family: _Family, rng: np.random.Generator
) -> NDArray[Any]:
    if not family.scaled:
        return rng.uniform(size=shape).astype(dtype)
    scale = min(_SCALES[row], _MAX_FLOAT16_SCALE) if dtype.itemsize == 2 else _SCALES[row]
    values = (rng.standard_normal(shape) + _OFFSETS[row]) * scale
    return (np.abs(values) if family.positive else values).astype(dtype)


def _integer_row(
    row: int, shape: Sequence[int], dtype: np.dtype[Any], family: _Family, rng: np.random.Generator
) -> NDArray[Any]:
    """Make integers, then padding with 0 or 1; their range and the padding's length differ from row to row."""
    smallest, bound = (0, 1) if dtype.kind == "b" else (family.smallest, min(family.largest, int(np.iinfo(dtype).max)))
    largest = max(1, bound * (row + 1) // _NUM_ROWS)
    values = rng.integers(smallest, largest + 1, shape)
    if shape:
        used = max(1, shape[-1] * (row + 1) // _NUM_ROWS)
        values[..., 0] = largest
        values[..., used:] = 0 if bound == 1 else max(smallest, row % 2)
    return values.astype(dtype)


def _shows(result: NDArray[Any]) -> bool:
    """Whether a result can reveal a dependence."""
    return bool(result.size) and (result.dtype.kind != "f" or bool(np.isfinite(result).any()))


def _distances(alone: Arrays, among_copies: Arrays) -> dict[str, float]:
    """Return by how much the results of copies of a row differ from that row alone, for each output."""
    distances = {}
    for name, array in among_copies.items():
        expected = alone[name]
        if len(array) != _NUM_ROWS or expected.shape != (1, *array.shape[1:]):
            distances[name] = math.inf
        elif expected.dtype.kind != "f":
            distances[name] = 0.0 if all(np.array_equal(expected[0], each) for each in array) else math.inf
        else:
            distances[name] = max(_distance(expected[0], each) for each in array)
    return distances


def _distance(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest difference relative to the largest number; infinite if other elements are finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    wide = expected[finite].astype(np.float64)
    difference, largest = np.abs(wide - found[finite]).max(), np.abs(wide).max()
    return float(difference / largest) if largest else float(difference and math.inf)


def _difference(alone: Sequence[NDArray[Any]], together: NDArray[Any], among_copies: float) -> str | None:
    """Say how results of a batch differ from those of its rows alone; None if they do not."""
    if len(together) != len(alone) or any(each.shape != (1, *together.shape[1:]) for each in alone):
        return "has another shape in a batch"
    for expected, found in zip(alone, together, strict=True):
        if expected.dtype.kind != "f":
            if not np.array_equal(expected[0], found):
                return "depends on the other rows"
            continue
        tolerance = max(_TOLERANCES[expected.dtype.itemsize], _TIMES_AMONG_COPIES * among_copies)
        if _distance(expected[0], found) > tolerance:
            return "depends on the other rows"
    return None
