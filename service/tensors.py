"""Tensor descriptions of the Open Inference Protocol: datatypes and shapes.

Tensors are numpy arrays; BYTES tensors are object arrays of `bytes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

# All datatypes except BYTES. They are little-endian on the wire, and on every machine that ONNX Runtime supports.
NUMPY_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
DTYPE_OF = NUMPY_OF | {"BYTES": np.dtype(object)}
DATATYPE_OF_NUMPY = {dtype: name for name, dtype in DTYPE_OF.items()}
# From this absolute value on, a float may stand for another integer than the one that was written.
MAX_EXACT_FLOAT = 2**53


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    any_rank: bool = False  # whether the model declares no shape; `shape` is then (-1,), for clients that need one
    is_nchw: bool = False  # whether the axes are known to be those of images: rows, channels, height, width
    ranked_by: str = ""  # output whose best classes stand in place of this one's; empty: its own
    labels: tuple[str, ...] = ()  # names of the classes along the last axis, where the model has them

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape fits the description."""
        if self.any_rank:
            return True
        if len(shape) != len(self.shape):
            return False
        for size, actual in zip(self.shape, shape, strict=True):  # a loop, because all() takes three times as long
            if size not in (-1, actual):
                return False
        return True


def whole_number(value: object) -> int | None:
    """Return the integer that a JSON value is, also if it is written as a float (1.0, 1e3).

    None for every other value, for booleans, and for floats from `MAX_EXACT_FLOAT` on, which are not exact.
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
        return int(value)
    return None


def bytes_array(elements: Sequence[bytes]) -> NDArray[Any]:
    """Make a one-dimensional BYTES tensor."""
    return np.array(elements, dtype=object)
