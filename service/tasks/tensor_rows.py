"""Tensors in, tensors out: any ONNX graph, batched along the first dimension where that proves to be the batch."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tensors import NUMPY_OF, Arrays, TensorSpec

# What the cost of a row goes by where rows differ in size: so many bytes of its inputs are a token of its length.
BYTES_PER_TOKEN = 1024
# The rows that are invented to see whether a graph computes each by itself: how many, and the size of dimensions of
# any size. A graph may refuse the first size, such as images that its kernels do not fit into.
INVENTED_ROWS, INVENTED_SIZES = 8, (8, 64)
MAX_INVENTED_ELEMENTS = 2**20  # of a row of one input
# By how much the results of a row may differ in company, as a share of the largest number. Rounding is less, but a
# graph that was quantized dynamically scales by the largest number of a call, whichever row it is in; what depends on
# the other rows by what it computes differs by far more.
TOLERATED_DIFFERENCE = 0.02


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Some rows of one request. An item of the batcher; only rows of the same shape share a call, none is padded."""

    arrays: Arrays
    rows: int
    group: Hashable  # the shape of a row
    length: int  # 1 where all rows have one size
    truncated: bool = False  # no tensor ever is


class TensorRows:
    """The pure part of a bare ONNX model."""

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, max_rows: int, batched: bool
    ) -> None:
        """Set up.

        Args:
            inputs: the graph's own.
            outputs: the same.
            max_rows: that a call takes of a batched model.
            batched: rows of several requests may share a call; see `batching_problem`.
        """
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._max_rows, self._batched = max_rows, batched
        self._sized = any(
            spec.datatype == "BYTES" or -1 in spec.shape[1 if self._batched else 0 :] for spec in self.inputs
        )

    def items(self, inputs: Arrays) -> list[Rows]:
        """A request's tensors as items: one, or several where the request has more rows than a call takes.

        The tensors are those of the metadata, with shapes that fit it.

        Raises:
            InvalidRequest: the inputs differ in their rows, there is none, or a BYTES element is not UTF-8.
        """
        num_bytes, feeds, shapes = 0, {}, []
        for name, array in inputs.items():
            shapes.append(array.shape)
            if array.dtype.hasobject:
                elements = array.ravel().tolist()
                feeds[name] = _of_shape(_to_text(name, elements), array.shape)
                num_bytes += sum(map(len, elements))
            else:
                feeds[name] = array
                num_bytes += array.nbytes
        if not self._sized:
            num_bytes = 0
        if not self._batched:
            return [Rows(feeds, 1, object(), _length(num_bytes))]
        num_rows, group = shapes[0][0], []
        for shape in shapes:
            group.append(shape[1:])
            if shape[0] != num_rows:
                rows = {name: len(array) for name, array in feeds.items()}
                raise InvalidRequest(f"the inputs differ in their first dimension, which is the batch: {rows}")
        if num_rows == 0:
            raise InvalidRequest("the inputs have no rows: their first dimension is 0")
        length = _length(num_bytes // num_rows)
        if num_rows <= self._max_rows:
            return [Rows(feeds, num_rows, tuple(group), length)]
        return [
            Rows(
                {name: array[first : first + self._max_rows] for name, array in feeds.items()},
                rows=min(self._max_rows, num_rows - first),
                group=tuple(group),
                length=length,
            )
            for first in range(0, num_rows, self._max_rows)
        ]

    def collate(self, items: Sequence[Rows]) -> Arrays:
        """Feeds of one engine call: the rows of all items, one after another."""
        if len(items) == 1:
            return items[0].arrays
        return {name: np.concatenate([item.arrays[name] for item in items]) for name in items[0].arrays}

    def separate(self, outputs: Arrays, items: Sequence[Rows]) -> list[Arrays]:
        """Each item's rows of the outputs, with strings as BYTES: here, in an engine's thread, they hold up nobody.

        Raises:
            ValueError: the graph did not keep the batch dimension; the items must then be computed one by one.
        """
        if len(items) == 1:
            return [_with_bytes(outputs)]
        num_rows = sum(item.rows for item in items)
        for name, array in outputs.items():
            if array.shape[:1] != (num_rows,):
                raise ValueError(f"output {name!r} has shape {array.shape} for {num_rows} rows")
        outputs = _with_bytes(outputs)
        ends = np.cumsum([item.rows for item in items])
        return [
            {name: array[end - item.rows : end] for name, array in outputs.items()}
            for item, end in zip(items, ends, strict=True)
        ]

    def tensors(self, results: Sequence[Arrays]) -> Arrays:
        """The items of one request, put together again."""
        joined = {}
        for name, array in results[0].items():
            whole = array if len(results) == 1 else np.concatenate([result[name] for result in results])
            joined[name] = whole
        return joined


def batching_problem(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Callable[[Arrays], Arrays]
) -> str | None:
    """Why rows of several requests must not share a call of a graph, or None when they may.

    That the first dimension may have any size does not make it the batch: it may be time, and each step then depends on
    those before it. So the graph is shown invented rows, and has to answer them together as it does one by one.

    Args:
        inputs: of the graph.
        outputs: of the graph.
        run: a call of the graph.
    """
    if not inputs or any(spec.shape[:1] != (-1,) for spec in (*inputs, *outputs)):
        return "not every tensor has a first dimension of any size"
    problem = "its rows are too large to be invented"
    for size in INVENTED_SIZES:
        if any(math.prod(_invented_shape(spec, size)) > MAX_INVENTED_ELEMENTS for spec in inputs):
            continue
        rng = np.random.default_rng(0)
        rows = {spec.name: _invented(spec, size, rng) for spec in inputs}
        try:
            alone = [run({name: array[n : n + 1] for name, array in rows.items()}) for n in range(INVENTED_ROWS)]
            together = run(rows)
        except Exception as error:  # whatever the engine raises
            problem = f"it refuses invented rows: {error}"
            continue
        for name, array in together.items():
            if not _same([result[name] for result in alone], array):
                return f"output {name!r} of a row depends on the other rows"
        return None
    return problem


def _invented_shape(spec: TensorSpec, size: int) -> list[int]:
    return [size if known == -1 else known for known in spec.shape[1:]]


def _invented(spec: TensorSpec, size: int, rng: np.random.Generator) -> NDArray[Any]:
    """Rows of a tensor that most graphs take: 0 and 1 are tokens, masks and text, and text that is a number."""
    shape = (INVENTED_ROWS, *_invented_shape(spec, size))
    if spec.datatype == "BYTES":
        return rng.choice(np.array(["0", "1"], dtype=object), shape)
    dtype = NUMPY_OF[spec.datatype]
    return (rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)


def _same(alone: Sequence[NDArray[Any]], together: NDArray[Any]) -> bool:
    """Whether rows have the same results one by one and together."""
    if {array.shape for array in alone} != {(1, *together.shape[1:])} or len(together) != len(alone):
        return False
    expected = np.concatenate(alone)
    if expected.dtype.kind != "f":
        return bool((expected == together).all())
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.allclose(expected, together, rtol=0, atol=TOLERATED_DIFFERENCE * largest, equal_nan=True)


def _length(num_bytes: int) -> int:
    return max(1, -(-num_bytes // BYTES_PER_TOKEN))


def _to_text(name: str, elements: list[bytes]) -> list[str]:
    """BYTES as ONNX Runtime takes them."""
    texts: list[str] = []
    try:
        for element in elements:
            texts.append(element.decode())  # noqa: PERF401, how far it comes tells which one is wrong
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name}[{len(texts)}] is not UTF-8, the only text that ONNX strings carry") from None
    return texts


def _with_bytes(outputs: Arrays) -> Arrays:
    return {name: _to_bytes(array) if array.dtype.hasobject else array for name, array in outputs.items()}


def _to_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """Strings as ONNX Runtime gives them, as BYTES."""
    return _of_shape([text.encode() for text in array.ravel().tolist()], array.shape)


def _of_shape(elements: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.array(elements, dtype=object)
    return array if len(shape) == 1 else array.reshape(shape)
