"""The classification extension of the Open Inference Protocol: an output as its best classes, as Triton gives them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, TooLarge
from service.tensors import TensorSpec, bytes_array

MAX_CLASSES = 2**17  # elements of an answer, each of which becomes a Python object
# Values that are sorted in one call, and classes that are written in one, which take about 2 ms.
SLICE_ELEMENTS = 16_384
# Values and classes that are worked on in the event loop: about 1 ms.
MAX_INLINE_VALUES, MAX_INLINE_CLASSES = 8_192, 512


def is_short(array: NDArray[Any], count: int) -> bool:
    """Whether `top_classes` takes too little time for a thread of its own."""
    rows, size = _rows_and_size(array.shape)
    return array.size <= MAX_INLINE_VALUES and rows * min(count, size) <= MAX_INLINE_CLASSES


def check_classes(spec: TensorSpec) -> None:
    """Check that an output has numbers that can be ranked.

    Raises:
        InvalidRequest: names the output and its datatype.
    """
    if spec.datatype in ("BYTES", "BOOL") and not spec.ranked_by:
        raise InvalidRequest(f"output {spec.name!r}: classification is for numbers, the output is {spec.datatype}")


def top_classes(array: NDArray[Any], count: int, spec: TensorSpec) -> NDArray[Any]:
    """Return the best classes of each row, best first, as BYTES "value:index" or "value:index:label".

    The last axis holds the classes. An output whose only dimension is the number of rows has one class a row. Values
    are written with six decimals, integers without; of equal values the lower index comes first, NaN comes last.

    Args:
        array: an output, numbers of any shape: [..., classes], or [rows].
        count: number of classes to return; all of them if there are fewer.
        spec: description of the output, with its labels.

    Returns:
        BYTES [..., min(count, classes)], or [rows, 1].

    Raises:
        TooLarge: the answer would have more than `MAX_CLASSES` elements.
        InvalidRequest: the output has no dimensions.
    """
    if array.ndim == 0:
        raise InvalidRequest(f"output {spec.name!r}: classification is for tensors, the output is one number")
    if array.ndim == len(spec.shape) == 1 and spec.shape[0] == -1 and not spec.any_rank:
        array = array[:, None]
    rows, size = _rows_and_size(array.shape)
    count = min(count, size)
    if rows * count > MAX_CLASSES:
        raise TooLarge(f"output {spec.name!r}: {rows * count} classes, the limit of an answer is {MAX_CLASSES}")
    values_RC = array.reshape(rows, size)
    at_once = max(1, SLICE_ELEMENTS // max(1, size))
    written: list[bytes] = []
    labels = spec.labels if len(spec.labels) == size else ()
    for first in range(0, rows if count else 0, at_once):
        part_RC = values_RC[first : first + at_once]
        best_RK = _best(part_RC, count)
        best_values = np.take_along_axis(part_RC, best_RK, axis=1).ravel()
        for start in range(0, best_RK.size, SLICE_ELEMENTS):
            end = start + SLICE_ELEMENTS
            written += _written(best_values[start:end].tolist(), best_RK.ravel()[start:end].tolist(), labels)
    return bytes_array(written).reshape(*array.shape[:-1], count)


def _rows_and_size(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _best(values_RC: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the indices of the largest values of each row, largest first."""
    size = values_RC.shape[1]
    if values_RC.dtype.kind == "f":
        values_RC = np.where(np.isnan(values_RC), -np.inf, values_RC)
    if count * 8 < size and size > SLICE_ELEMENTS:  # only a few of many: found without sorting all
        return np.stack([_best_of_many(values_C, count) for values_C in values_RC])
    # Reversed before and after, because a stable sort keeps the order of equal values.
    ascending_RC = np.argsort(values_RC[:, ::-1], axis=1, kind="stable")
    best_RK: NDArray[np.intp] = size - 1 - ascending_RC[:, : -count - 1 : -1]
    return best_RK


def _best_of_many(values_C: NDArray[Any], count: int) -> NDArray[np.intp]:
    least = np.partition(values_C, len(values_C) - count)[len(values_C) - count]
    above = np.flatnonzero(values_C > least)
    equal = np.flatnonzero(values_C == least)[: count - len(above)]
    found = np.concatenate([above, equal])
    best_K: NDArray[np.intp] = found[_best(values_C[found][None], count)[0]]
    return best_K


def _written(values: list[Any], indices: list[int], labels: Sequence[str]) -> list[bytes]:
    pattern = "%d:%d" if values and isinstance(values[0], int) else "%f:%d"
    if labels:
        return [(pattern % pair + ":" + labels[pair[1]]).encode() for pair in zip(values, indices, strict=True)]
    return [(pattern % pair).encode() for pair in zip(values, indices, strict=True)]
